"""Edits: checked when they are asked for, put in an order that gives the same result on both MTAs."""

import io
from collections.abc import Iterator
from typing import IO, Any

import pytest

from fastmilter import codec
from fastmilter._text import to_text
from fastmilter.constants import MAX_DATA_BYTES, MAX_HEADER_INDEX
from fastmilter.edits import (
    APPEND_INDEX,
    SPOOL_MEMORY_BYTES,
    AppendHeader,
    DeleteHeaders,
    Edit,
    NewBody,
    SetHeader,
    body_packets,
    compose,
    discard,
    field_name,
    field_value,
    header_index,
    spooled,
)
from fastmilter.replies import CONTINUE, TEMPFAIL

# -- what may be asked for --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Subject", b"X-Spam-Level", "X_1", "!#$%&'*+-.^_`|~"])
def test_field_names(name: str | bytes) -> None:
    assert field_name(name) == (name.encode() if isinstance(name, str) else name)


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\n", "\xe4", "a\0", b"a\x7f", None, 5, "\ud800"])
def test_field_names_that_are_refused(name: Any) -> None:
    with pytest.raises(ValueError, match=r"must be printable ASCII|surrogates"):
        field_name(name)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("text", b"text"),
        ("", b""),
        ("a\r\n b", b"a\n b"),
        ("a\n\tb\n", b"a\n\tb"),
        ("text\r\n", b"text"),
        (b"\xff", b"\xff"),
        ("\udcff ä", b"\xff \xc3\xa4"),
        (" leading", b" leading"),
    ],
)
def test_field_values(given: str | bytes, sent: bytes) -> None:
    assert field_value(b"X", given) == sent


@pytest.mark.parametrize(
    "given", ["a\nb", "a\r\nBcc: x", "a\0b", "a\rb", "a\r", "\n\n", "a\n\n b", None, 5, "\ud800", "a\r\r\n b"]
)
def test_field_values_that_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"the value of|surrogates"):
        field_value(b"X", given)


def test_a_field_must_fit_a_packet() -> None:
    room = MAX_DATA_BYTES - len(b"....X\0\0")
    value = field_value(b"X", "x" * room)
    assert len(codec.encode(codec.ChangeHeader(1, b"X", value))) == 5 + MAX_DATA_BYTES
    with pytest.raises(ValueError, match="does not fit a packet"):
        field_value(b"X", "x" * (room + 1))


def test_indices() -> None:
    assert header_index(1, 1) == 1
    assert header_index(0, 0) == 0
    assert header_index(MAX_HEADER_INDEX, 0) == MAX_HEADER_INDEX
    wrong: Any
    for wrong in (0, -1, MAX_HEADER_INDEX + 1, True, 1.0, "1", None):
        with pytest.raises(ValueError, match="must be a number from 1"):
            header_index(wrong, 1)


# -- order ------------------------------------------------------------------------------------------------------------


def order(edits: list[Edit], shown: list[bytes] | None, *, sendmail: bool = False, may_add: bool = True) -> list[Any]:
    names = None if shown is None else [to_text(name) for name in shown]
    composed = compose(edits, names, appends_in_place=sendmail, may_add=may_add)
    return [codec.decode_response(packet[4:]) for packet in composed.head + composed.foot]


def test_a_recipient_who_is_there_is_not_added_again() -> None:
    edits: list[Edit] = [
        codec.AddRecipient(b"<a@b>"),
        codec.AddRecipient(b"<c@d>"),
        codec.AddRecipient(b"<new@d>"),
        codec.AddRecipient(b"<a@b>", (b"NOTIFY=NEVER",)),
        codec.AddRecipient(b"<A@b>"),
        codec.DeleteRecipient(b"<a@b>"),
        codec.AddRecipient(b"<a@b>"),
    ]
    composed = compose(edits, None, appends_in_place=False, recipients=[codec.RcptTo(b"<a@b>"), codec.RcptTo(b"c@d")])
    assert [codec.decode_response(packet[4:]) for packet in composed.head] == edits[2:]


X = b"X"


def test_changes_first_highest_index_first_then_additions_envelope_quarantine() -> None:
    edits: list[Edit] = [
        codec.Quarantine(b"why"),
        codec.AddRecipient(b"<a@b>"),
        AppendHeader(b"New", b"1"),
        SetHeader(b"X", 1, b"one"),
        codec.InsertHeader(0, b"Top", b"2"),
        SetHeader(b"Y", 1, None),
        codec.ChangeSender(b"<>"),
        SetHeader(b"X", 3, None),
        SetHeader(b"x", 2, b"two"),
        codec.DeleteRecipient(b"<c@d>"),
    ]
    assert order(edits, [b"X", b"x", b"X", b"Y"]) == [
        codec.ChangeHeader(3, b"X", b""),
        codec.ChangeHeader(2, b"x", b"two"),
        codec.ChangeHeader(1, b"X", b"one"),
        codec.ChangeHeader(1, b"Y", b""),
        codec.AddHeader(b"New", b"1"),
        codec.InsertHeader(0, b"Top", b"2"),
        codec.AddRecipient(b"<a@b>"),
        codec.ChangeSender(b"<>"),
        codec.DeleteRecipient(b"<c@d>"),
        codec.Quarantine(b"why"),
    ]


def test_the_last_change_of_a_field_wins() -> None:
    edits: list[Edit] = [
        SetHeader(X, 1, b"old"),
        SetHeader(b"x", 1, b"new"),
        SetHeader(X, 2, b"2"),
        SetHeader(X, 2, None),
    ]
    assert order(edits, [X, X]) == [codec.ChangeHeader(2, X, b""), codec.ChangeHeader(1, b"x", b"new")]


def test_delete_headers_deletes_all_that_were_shown() -> None:
    assert order([DeleteHeaders(b"x")], [X, b"Y", b"x", X]) == [codec.ChangeHeader(n, b"x", b"") for n in (3, 2, 1)]
    assert order([DeleteHeaders(X)], [b"Y"]) == []
    assert order([SetHeader(X, 1, b"v"), DeleteHeaders(X)], [X]) == [codec.ChangeHeader(1, X, b"")]


def test_delete_then_add_leaves_what_was_added() -> None:
    assert order([AppendHeader(X, b"0"), DeleteHeaders(X), AppendHeader(X, b"1")], [X]) == [
        codec.ChangeHeader(1, X, b""),
        codec.AddHeader(X, b"0"),
        codec.AddHeader(X, b"1"),
    ]


def test_a_change_of_what_is_not_there_adds_it_once() -> None:
    assert order([SetHeader(X, 1, b"v")], []) == [codec.AddHeader(X, b"v")]
    assert order([SetHeader(X, 2, b"v")], [X]) == [codec.AddHeader(X, b"v")]
    assert order([SetHeader(X, 1, b"old"), AppendHeader(b"Y", b""), SetHeader(b"x", 1, b"new")], []) == [
        codec.AddHeader(b"x", b"new"),
        codec.AddHeader(b"Y", b""),
    ]
    assert order([SetHeader(X, 1, b"v"), SetHeader(X, 1, None)], []) == []
    assert order([SetHeader(X, 1, b"v"), DeleteHeaders(X)], []) == []
    assert order([SetHeader(X, 5, None)], [X]) == [], "a delete beyond the last does nothing on both MTAs"


def test_without_the_grant_to_add_it_is_still_a_change() -> None:
    edits: list[Edit] = [SetHeader(X, 2, b"new"), SetHeader(X, 1, b"one")]
    assert order(edits, [X], may_add=False) == [codec.ChangeHeader(1, X, b"one"), codec.ChangeHeader(2, X, b"new")]


def test_without_the_header_section_indices_go_out_as_they_are() -> None:
    edits: list[Edit] = [SetHeader(X, 1, b"v"), SetHeader(X, 7, None)]
    assert order(edits, None) == [codec.ChangeHeader(7, X, b""), codec.ChangeHeader(1, X, b"v")]


@pytest.mark.parametrize(
    ("name", "shown", "postfix", "sendmail"),
    [
        (b"X", [], "h", "h"),
        (b"X", [b"x"], "h", "i"),
        (b"X", None, "h", "i"),
        (b"Date", None, "h", "h"),
        (b"Message-Id", None, "h", "h"),
        (b"From", [b"From"], "h", "i"),
    ],
)
def test_an_addition_goes_after_all_others(name: bytes, shown: list[bytes] | None, postfix: str, sendmail: str) -> None:
    """Sendmail would put it before the first of its name."""
    expected = {"h": codec.AddHeader(name, b"v"), "i": codec.InsertHeader(APPEND_INDEX, name, b"v")}
    assert order([AppendHeader(name, b"v")], shown) == [expected[postfix]]
    assert order([AppendHeader(name, b"v")], shown, sendmail=True) == [expected[sendmail]]


def test_two_additions_of_a_name_stay_in_order_on_sendmail() -> None:
    assert order([AppendHeader(X, b"1"), AppendHeader(X, b"2")], [], sendmail=True) == [
        codec.AddHeader(X, b"1"),
        codec.InsertHeader(APPEND_INDEX, X, b"2"),
    ]


def test_adding_twice_or_after_a_deletion() -> None:
    """Postfix would deliver twice."""
    add, drop = codec.AddRecipient(b"<a@b>"), codec.DeleteRecipient(b"<a@b>")
    notified = codec.AddRecipient(b"<a@b>", (b"NOTIFY=NEVER",))

    def envelope(edits: list[Edit], *recipients: bytes) -> list[Any]:
        composed = compose(edits, None, appends_in_place=False, recipients=map(codec.RcptTo, recipients))
        return [codec.decode_response(packet[4:]) for packet in composed.head]

    assert envelope([add]) == [add]
    assert envelope([add, add]) == [add]
    for there in (b"<a@b>", b"a@b"):
        assert envelope([add], there) == []
        assert envelope([drop, add], there) == [drop, add]
        assert envelope([notified, add], there) == [notified], "parameters say something new"
    assert envelope([add], b"<A@b>", b"<c@d>") == [add]


def test_the_last_quarantine_wins() -> None:
    assert order([codec.Quarantine(b"1"), codec.Quarantine(b"2")], None) == [codec.Quarantine(b"2")]


def test_the_last_body_wins_and_the_others_are_let_go() -> None:
    first, last = io.BytesIO(b"1"), io.BytesIO(b"2")
    composed = compose([NewBody(first), NewBody(b"x"), NewBody(last)], None, appends_in_place=False)
    assert (composed.head, composed.body, composed.foot) == ([], last, [])
    assert first.closed
    assert not last.closed
    discard([NewBody(last), NewBody(b"x"), SetHeader(X, 1, None)])
    assert last.closed


# -- bodies -----------------------------------------------------------------------------------------------------------


def pieces() -> Iterator[Any]:
    yield b"one"
    yield b""
    yield bytearray(b"two")


def content(spool: bytes | IO[bytes]) -> bytes:
    if isinstance(spool, bytes):
        return spool
    with spool:
        spool.seek(0)
        return spool.read()


@pytest.mark.parametrize(
    ("source", "body"),
    [
        (b"bytes", b"bytes"),
        (bytearray(b"array"), b"array"),
        (memoryview(b"view"), b"view"),
        (io.BytesIO(b"file"), b"file"),
        ([b"a", b"b"], b"ab"),
        ((), b""),
        (b"", b""),
        (io.BytesIO(b"x" * 200_000), b"x" * 200_000),
    ],
)
def test_sources_of_a_body(source: Any, body: bytes) -> None:
    assert content(spooled(source)) == body


def test_a_generator_is_drained_at_once() -> None:
    source = pieces()
    assert content(spooled(source)) == b"onetwo"
    assert list(source) == []


def test_a_large_body_goes_to_disk() -> None:
    spool = spooled(b"x" * 65536 for _ in range(SPOOL_MEMORY_BYTES // 65536 + 2))
    assert getattr(spool, "_rolled", None) is True
    assert len(content(spool)) == SPOOL_MEMORY_BYTES + 2 * 65536


@pytest.mark.parametrize("source", ["text", io.StringIO("text"), io.StringIO(""), ["text"], 5, None, [5], b"x".decode])
def test_what_is_no_body(source: Any) -> None:
    with pytest.raises(TypeError, match="a body must be"):
        spooled(source)


def test_a_generator_that_raises_comes_through() -> None:
    def broken() -> Iterator[bytes]:
        yield b"x"
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        spooled(broken())


def replaced(packets: list[bytes]) -> list[bytes]:
    messages = [codec.decode_response(packet[4:]) for packet in packets]
    return [message.chunk for message in messages if isinstance(message, codec.ReplaceBody)]


@pytest.mark.parametrize("size", [0, 1, 65534, 65535, 65536, 131070, 131071, 200_000])
def test_body_packets(size: int) -> None:
    body = bytes(range(256)) * 1000
    for source in (body[:size], spooled([body[:size]])):
        *packets, foot = body_packets(source, 65535, CONTINUE.packet)
        assert foot == CONTINUE.packet
        chunks = replaced(packets)
        assert len(chunks) == len(packets), "nothing comes between"
        assert b"".join(chunks) == body[:size]
        assert all(len(chunk) == 65535 for chunk in chunks[:-1])
        assert chunks[-1] or chunks == [b""], "an empty packet empties the body, so only one alone may be empty"


def test_larger_packets_where_they_are_agreed() -> None:
    packets = list(body_packets(b"x" * 300_000, 262143, CONTINUE.packet))
    assert list(map(len, packets)) == [5 + 262143, 5 + 300_000 - 262143, 5]


class BrokenFile(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() >= 100_000:
            raise OSError(28, "No space left on device")
        return super().read(size)


def test_a_body_that_cannot_be_read_ends_in_tempfail() -> None:
    source = BrokenFile(b"x" * 200_000)
    *packets, foot = body_packets(source, 65535, CONTINUE.packet)
    assert foot == TEMPFAIL.packet
    assert packets
    assert source.closed


def test_a_body_is_closed_when_nobody_takes_it() -> None:
    source = io.BytesIO(b"x" * 200_000)
    packets = body_packets(source, 65535, CONTINUE.packet)
    next(packets)
    getattr(packets, "close")()  # noqa: B009 - an iterator by its type, a generator in fact
    assert source.closed
