"""Content passes unchanged: 8-bit and folded headers, odd spaces, bodies of every size."""

from __future__ import annotations

import hashlib

import pytest

from .case import Case, act, edit, own_fields
from .lab import Mta
from .lab.served import Stage

CHUNK = 65535
REQUIRED = b"Date: Sun, 22 Nov 2026 20:00:00 +0000\r\nFrom: a@from.test\r\nMessage-Id: <1@from.test>\r\n"


@pytest.fixture
def case(filter_class: str, stage: Stage, mta: Mta) -> Case:
    return Case(mta, stage.serve(f"planned.py:{filter_class}"))


def text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


FIELDS: dict[str, tuple[bytes, bytes]] = {
    # name: as the client sends it after the colon, as a filter is shown it
    "latin-1": (b" caf\xe9 \xff\xfe", b"caf\xe9 \xff\xfe"),
    "utf-8": (" café ✓".encode(), "café ✓".encode()),
    "broken utf-8": (b" \xc3\x28 \xed\xa0\x80", b"\xc3\x28 \xed\xa0\x80"),
    "folded with a tab": (b" one\r\n\ttwo", b"one\n\ttwo"),
    "folded with spaces": (b" one\r\n    two\r\n three", b"one\n    two\n three"),
    "folded at once": (b"\r\n one", b"\n one"),
    "folded 8 bit": (b" caf\xe9\r\n\t\xe9t\xe9", b"caf\xe9\n\t\xe9t\xe9"),
    "two spaces": (b"  two", b" two"),
    "a tab": (b"\ttab", b"\ttab"),
    "no space": (b"none", b"none"),
    "long": (b" " + b"x" * 900, b"x" * 900),
    "long, folded": (
        b" start" + b"\r\n\t" + b"\r\n\t".join([b"y" * 70] * 200),
        b"start\n\t" + b"\n\t".join([b"y" * 70] * 200),
    ),
}


@pytest.mark.parametrize("filter_class", ["Default", "Early", "Raw"])
@pytest.mark.parametrize("name", FIELDS)
def test_header_values_are_shown_and_delivered_unchanged(case: Case, name: str) -> None:
    raw, without_space = FIELDS[name]
    case.plan(act("end_of_message", edit("add_header", "X-New", "v")))
    delivery = case.deliver(REQUIRED + b"X-Field:" + raw + b"\r\nSubject: x\r\n\r\nbody\r\n")
    assert [value for field, value in delivery.fields if field == "X-Field"] == [raw]
    shown = [event["data"] for event in case.first_connection() if event["event"] == "header"]
    expected = raw.replace(b"\r\n", b"\n") if case.served.target.endswith("Raw") else without_space
    assert ["X-Field", text(expected)] in shown


@pytest.mark.parametrize("filter_class", ["Default", "Raw"])
@pytest.mark.parametrize("name", FIELDS)
def test_values_come_out_as_a_filter_was_shown_them(case: Case, name: str) -> None:
    """A filter that hands a value on unchanged changes nothing."""
    raw, without_space = FIELDS[name]
    leading = case.served.target.endswith("Raw")
    value = raw.replace(b"\r\n", b"\n") if leading else without_space
    case.plan(
        act(
            "end_of_message",
            edit("change_header", "X-Field", value),
            edit("add_header", "X-Copy", value),
        )
    )
    delivery = case.deliver(REQUIRED + b"X-Field:" + raw + b"\r\nSubject: x\r\n\r\nbody\r\n")
    expected = raw if leading or raw.startswith(b" ") else b" " + raw
    fields = dict(delivery.fields)
    assert fields["X-Copy"] == expected
    assert fields["X-Field"] == expected


def test_utf8_in_envelope_and_helo(stage: Stage, postfix: Mta) -> None:
    """Sendmail without EAI refuses all of it, and both refuse other 8-bit bytes there."""
    case = Case(postfix, stage.serve("planned.py:Default"))
    with case.client() as client:
        client.expect(250, "EHLO café.test")
        client.expect(250, "MAIL FROM:<zoë@from.test> SMTPUTF8")
        client.expect(250, f"RCPT TO:<ünal@{case.domain}>")
        assert client.data(REQUIRED + b"\r\nbody\r\n").code == 250
        client.quit()
    assert case.delivered(1)[0].sender == "zoë@from.test"
    events = {event["event"]: event["data"] for event in case.first_connection()}
    assert events["helo"] == ["café.test"]
    assert events["mail"] == ["zoë@from.test", ["SMTPUTF8"]]
    assert events["rcpt"][0] == f"ünal@{case.domain}"


SIZES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1]


def body_of(size: int) -> bytes:
    """Lines of 100 bytes, the last one shorter; a line end falls on every boundary sooner or later."""
    line = b"0123456789" * 9 + b"01234567\r\n"
    whole = line * (size // 100)
    rest = size - len(whole)
    if rest == 1:
        return whole[:-100] + b"0" * 99 + b"\r\n" if whole else b"\n"
    return whole + (b"z" * (rest - 2) + b"\r\n" if rest else b"")


@pytest.mark.parametrize("filter_class", ["Default", "Early"])
@pytest.mark.parametrize("size", SIZES)
def test_bodies_around_the_size_of_a_chunk(case: Case, size: int) -> None:
    body = body_of(size) if size > 1 else b"\r\n" * size
    delivery = case.deliver(REQUIRED + b"\r\n" + body)
    assert delivery.body == body
    chunks = [event["data"] for event in case.first_connection() if event["event"] == "body"]
    assert [length for length, _ in chunks] == [CHUNK] * (len(body) // CHUNK) + [len(body) % CHUNK] * (
        len(body) % CHUNK > 0
    )
    expected = [hashlib.sha256(body[start : start + CHUNK]).hexdigest() for start in range(0, len(body), CHUNK)]
    assert [digest for _, digest in chunks] == expected


@pytest.mark.parametrize("filter_class", ["Default", "Early"])
def test_three_megabytes(case: Case) -> None:
    body = body_of(3_000_000)
    case.plan(act("end_of_message", edit("add_header", "X-New", "v")))
    delivery = case.deliver(REQUIRED + b"\r\n" + body)
    assert delivery.body == body
    assert delivery.values("X-New") == [b"v"]
    chunks = [event["data"] for event in case.first_connection() if event["event"] == "body"]
    assert sum(length for length, _ in chunks) == len(body)
    assert case.filter_failed() == []


@pytest.mark.parametrize("filter_class", ["Default", "Early"])
def test_skip_in_a_large_body(case: Case) -> None:
    body = body_of(300_000)
    case.plan(
        act("body", verdict="skip", message=1),
        act("end_of_message", edit("add_header", "X-New", "v")),
    )
    with case.client() as client:
        client.ehlo()
        for number in (1, 2):
            assert case.send(client, REQUIRED + b"\r\n" + body, number=number) == 250
        client.quit()
    deliveries = case.delivered(2)
    assert [delivery.body for delivery in deliveries] == [body, body]
    assert [delivery.values("X-New") for delivery in deliveries] == [[b"v"], [b"v"]]
    events = case.first_connection()
    chunks = [sum(event["event"] == "body" and event["message"] == number for event in events) for number in (1, 2)]
    assert chunks == [1, 5]


@pytest.mark.parametrize("filter_class", ["Default", "Early", "Minimal"])
@pytest.mark.parametrize("message", [b"", b"\r\n", REQUIRED, REQUIRED + b"\r\n", b"\r\nonly a body\r\n"])
def test_messages_that_lack_something(case: Case, message: bytes) -> None:
    case.plan(act("end_of_message", edit("add_header", "X-New", "v"), edit("replace_body", b"new\r\n")))
    delivery = case.deliver(message)
    assert delivery.body == b"new\r\n"
    assert delivery.values("X-New") == [b"v"]
    assert own_fields(delivery)[-1] == ("X-New", b"v")
    assert case.filter_failed() == []


@pytest.mark.parametrize("filter_class", ["Default", "Early"])
def test_five_hundred_headers(case: Case) -> None:
    head = REQUIRED + b"".join(b"X-Many: %d\r\n" % number for number in range(500))
    case.plan(
        act(
            "end_of_message",
            edit("delete_header", "X-Many", index=1),
            edit("change_header", "X-Many", "end", index=500),
        )
    )
    delivery = case.deliver(head + b"\r\nbody\r\n")
    assert delivery.values("X-Many") == [*(b"%d" % number for number in range(1, 499)), b"end"]
