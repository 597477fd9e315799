"""Every modification, asked for on both MTAs: the same message must be delivered, fields of the trace apart."""

from __future__ import annotations

from typing import Any

import pytest

from .case import Case, act, edit, own_fields
from .lab import Delivery, Mta
from .lab.served import Stage

Edits = list[tuple[str, list[Any], dict[str, Any]]]
Fields = list[tuple[str, bytes]]

HEAD: Fields = [
    ("Date", b"Sun, 22 Nov 2026 20:00:00 +0000"),
    ("From", b"a@from.test"),
    ("Message-Id", b"<1@from.test>"),
    ("X-Many", b"one"),
    ("Subject", b"hello"),
    ("X-Many", b"two"),
    ("x-many", b"three"),
    ("X-Last", b"last"),
]
BODY = b"first line\r\n.second\r\n"
MESSAGE = b"".join(b"%b: %b\r\n" % (name.encode(), value) for name, value in HEAD) + b"\r\n" + BODY


def changed(
    *changes: tuple[int, tuple[str, bytes] | None], end: Fields | None = None, top: Fields | None = None
) -> Fields:
    """HEAD with fields replaced or left out by their place, and others around it."""
    by_place = dict(changes)
    kept = [by_place.get(place, field) for place, field in enumerate(HEAD)]
    return (top or []) + [field for field in kept if field is not None] + (end or [])


HEADER_EDITS: dict[str, tuple[Edits, Fields]] = {
    "add a new name": ([edit("add_header", "X-New", "v")], changed(end=[("X-New", b"v")])),
    "add a name that is there": ([edit("add_header", "X-Many", "four")], changed(end=[("X-Many", b"four")])),
    "add several of a name that is there": (
        [edit("add_header", "X-Many", "four"), edit("add_header", "X-Many", "five")],
        changed(end=[("X-Many", b"four"), ("X-Many", b"five")]),
    ),
    "add several of a new name": (
        [edit("add_header", "X-New", "1"), edit("add_header", "X-Other", "2"), edit("add_header", "X-New", "3")],
        changed(end=[("X-New", b"1"), ("X-Other", b"2"), ("X-New", b"3")]),
    ),
    "add an empty value": ([edit("add_header", "X-New", "")], changed(end=[("X-New", b"")])),
    "add a folded value": (
        [edit("add_header", "X-New", "one\r\n\ttwo\n three\n")],
        changed(end=[("X-New", b"one\r\n\ttwo\r\n three")]),
    ),
    "add bytes": ([edit("add_header", "X-New", b"caf\xe9 \xff")], changed(end=[("X-New", b"caf\xe9 \xff")])),
    "add text": ([edit("add_header", "X-New", "caf\xe9")], changed(end=[("X-New", "caf\xe9".encode())])),
    "insert below the trace": ([edit("insert_header", "X-New", "v", index=1)], changed(top=[("X-New", b"v")])),
    "insert above the trace": ([edit("insert_header", "X-New", "v")], changed(top=[("X-New", b"v")])),
    "insert beyond the end": ([edit("insert_header", "X-New", "v", index=1000)], changed(end=[("X-New", b"v")])),
    "insert two at the top": (
        [edit("insert_header", "X-A", "1"), edit("insert_header", "X-B", "2")],
        changed(top=[("X-B", b"2"), ("X-A", b"1")]),
    ),
    "insert a name that is there": (
        [edit("insert_header", "X-Many", "zero", index=1)],
        changed(top=[("X-Many", b"zero")]),
    ),
    "change the only one": ([edit("change_header", "Subject", "bye")], changed((4, ("Subject", b"bye")))),
    "change in another case": ([edit("change_header", "X-LAST", "bye")], changed((7, ("X-LAST", b"bye")))),
    "change the second": ([edit("change_header", "X-Many", "2", index=2)], changed((5, ("X-Many", b"2")))),
    "change all": (
        [edit("change_header", "X-Many", str(index), index=index) for index in (1, 2, 3)],
        changed((3, ("X-Many", b"1")), (5, ("X-Many", b"2")), (6, ("X-Many", b"3"))),
    ),
    "change one twice": (
        [edit("change_header", "Subject", "once"), edit("change_header", "Subject", "twice")],
        changed((4, ("Subject", b"twice"))),
    ),
    "change one that is not there": ([edit("change_header", "X-New", "v")], changed(end=[("X-New", b"v")])),
    "change one beyond the last": ([edit("change_header", "X-Many", "v", index=9)], changed(end=[("X-Many", b"v")])),
    "delete the first": ([edit("delete_header", "X-Many", index=1)], changed((3, None))),
    "delete the first two": (
        [edit("delete_header", "X-Many", index=1), edit("delete_header", "X-Many", index=2)],
        changed((3, None), (5, None)),
    ),
    "delete one of many and change another": (
        [edit("delete_header", "X-Many", index=1), edit("change_header", "X-Many", "2", index=2)],
        changed((3, None), (5, ("X-Many", b"2"))),
    ),
    "delete one twice": (
        [edit("delete_header", "X-Many", index=1), edit("delete_header", "X-Many", index=1)],
        changed((3, None)),
    ),
    "delete all of a name": ([edit("delete_headers", "X-MANY")], changed((3, None), (5, None), (6, None))),
    "delete what is not there": (
        [
            edit("delete_header", "X-New", index=1),
            edit("delete_header", "X-Many", index=4),
            edit("delete_headers", "X-None"),
        ],
        changed(),
    ),
    "delete all and add": (
        [edit("delete_headers", "X-Many"), edit("add_header", "X-Many", "new")],
        changed((3, None), (5, None), (6, None), end=[("X-Many", b"new")]),
    ),
    "add and delete all": (
        [edit("add_header", "X-Many", "new"), edit("delete_headers", "X-Many")],
        changed((3, None), (5, None), (6, None), end=[("X-Many", b"new")]),
    ),
    "everything at once": (
        [
            edit("add_header", "X-New", "end"),
            edit("delete_header", "X-Many", index=2),
            edit("insert_header", "X-Top", "top", index=1),
            edit("change_header", "Subject", "bye"),
            edit("change_header", "X-Many", "3", index=3),
            edit("add_header", "X-Many", "4"),
        ],
        changed(
            (4, ("Subject", b"bye")),
            (5, None),
            (6, ("X-Many", b"3")),
            top=[("X-Top", b"top")],
            end=[("X-New", b"end"), ("X-Many", b"4")],
        ),
    ),
    "change Date, From and Message-Id": (
        [
            edit("change_header", "Date", "Mon, 23 Nov 2026 20:00:00 +0000"),
            edit("change_header", "From", "z@from.test"),
            edit("delete_header", "Message-Id", index=1),
            edit("add_header", "Message-Id", "<2@from.test>"),
        ],
        changed(
            (0, ("Date", b"Mon, 23 Nov 2026 20:00:00 +0000")),
            (1, ("From", b"z@from.test")),
            (2, None),
            end=[("Message-Id", b"<2@from.test>")],
        ),
    ),
}


@pytest.fixture(params=["Default", "Minimal"])
def filter_class(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def case(filter_class: str, stage: Stage, mta: Mta) -> Case:
    return Case(mta, stage.serve(f"planned.py:{filter_class}"))


def same_fields(delivery: Delivery, expected: Fields) -> None:
    """Names in any case: Sendmail keeps the spelling of a field that was changed, Postfix takes the filter's."""
    assert [(name.lower(), value) for name, value in own_fields(delivery)] == [
        (name.lower(), value) for name, value in expected
    ]


# What must know the header section: a filter that is not shown it cannot ask for it, or gets each MTA's own place.
BLIND = [
    name
    for name, (edits, _) in HEADER_EDITS.items()
    if name not in ("change one beyond the last", "change Date, From and Message-Id")
    and all(method != "delete_headers" for method, _, _ in edits)
]


@pytest.mark.parametrize(
    ("filter_class", "name"), [("Default", name) for name in HEADER_EDITS] + [("Minimal", name) for name in BLIND]
)
def test_header_edits(stage: Stage, mta: Mta, filter_class: str, name: str) -> None:
    case = Case(mta, stage.serve(f"planned.py:{filter_class}"))
    edits, expected = HEADER_EDITS[name]
    case.plan(act("end_of_message", *edits))
    delivery = case.deliver(MESSAGE)
    same_fields(delivery, expected)
    assert delivery.body == BODY
    assert case.filter_failed() == []


@pytest.mark.parametrize(("index", "place"), [(0, 0), (1, 1)])
def test_inserted_above_or_below_the_trace(case: Case, index: int, place: int) -> None:
    case.plan(act("end_of_message", edit("insert_header", "X-New", "v", index=index)))
    names = [name for name, _ in case.deliver(MESSAGE).fields]
    assert names.index("X-New") == place
    assert names.index("Received") == 1 - place


@pytest.mark.parametrize("step", ["mail", "rcpt", "data", "header", "end_of_headers", "body"])
def test_edits_are_kept_until_the_end(stage: Stage, mta: Mta, step: str) -> None:
    case = Case(mta, stage.serve("planned.py:Default"))
    case.plan(act(step, edit("add_header", "X-New", "v"), shown="Subject" if step == "header" else ""))
    same_fields(case.deliver(MESSAGE), changed(end=[("X-New", b"v")]))


BODIES: dict[str, tuple[Edits, bytes]] = {
    "short": ([edit("replace_body", b"new\r\n")], b"new\r\n"),
    "empty": ([edit("replace_body", b"")], b""),
    "line feeds": ([edit("replace_body", b"one\ntwo\n")], b"one\r\ntwo\r\n"),
    "no newline at the end": ([edit("replace_body", b"one\r\ntwo")], b"one\r\ntwo\r\n"),
    "dots": ([edit("replace_body", b".\r\n..\r\n.x\r\n")], b".\r\n..\r\n.x\r\n"),
    "8 bit": ([edit("replace_body", bytes(range(128, 256)) + b"\r\n")], bytes(range(128, 256)) + b"\r\n"),
    "last call wins": ([edit("replace_body", b"one\r\n"), edit("replace_body", b"two\r\n")], b"two\r\n"),
    "large": (
        [("replace_body", [{"latin-1": "0123456789abcdef" * 4 + "\r\n", "times": 3100}], {})],
        (b"0123456789abcdef" * 4 + b"\r\n") * 3100,
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_replaced_bodies(case: Case, name: str) -> None:
    edits, expected = BODIES[name]
    # Around the body's packets other edits must not break its run: Postfix would refuse the message.
    case.plan(act("end_of_message", edit("add_header", "X-New", "v"), *edits, edit("change_header", "Subject", "bye")))
    delivery = case.deliver(MESSAGE)
    assert delivery.body == expected
    same_fields(delivery, changed((4, ("Subject", b"bye")), end=[("X-New", b"v")]))
    assert case.filter_failed() == []


def test_envelope(case: Case) -> None:
    domain = case.domain
    case.plan(
        act(
            "end_of_message",
            edit("add_recipient", f"new@{domain}"),
            edit("add_recipient", f"<brackets@{domain}>"),
            edit("delete_recipient", f"b2@{domain}"),
            edit("delete_recipient", f"never-there@{domain}"),
            edit("change_sender", "z@other.test"),
        )
    )
    delivery = case.deliver(MESSAGE, "b1", "b2", "b3")
    assert sorted(delivery.recipients) == sorted(case.to("b1", "b3", "new", "brackets"))
    assert delivery.sender == "z@other.test"
    same_fields(delivery, changed())
    assert case.filter_failed() == []


@pytest.mark.parametrize(
    ("new", "expected"), [("z@other.test", "z@other.test"), ("<z@other.test>", "z@other.test"), ("", ""), ("<>", "")]
)
def test_senders(case: Case, new: str, expected: str) -> None:
    case.plan(act("end_of_message", edit("change_sender", new)))
    assert case.deliver(MESSAGE).sender == expected


def test_parameters(case: Case) -> None:
    case.plan(
        act(
            "end_of_message",
            edit("add_recipient", f"new@{case.domain}", ["NOTIFY=NEVER", f"ORCPT=rfc822;o@{case.domain}"]),
            edit("change_sender", "z@other.test", ["RET=HDRS", "ENVID=QQ314159"]),
        )
    )
    delivery = case.deliver(MESSAGE)
    params = dict(zip(delivery.recipients, delivery.recipient_params, strict=True))
    assert set(params) == set(case.to("b", "new"))
    assert sorted(params[f"new@{case.domain}"].split()) == ["NOTIFY=NEVER", f"ORCPT=rfc822;o@{case.domain}"]
    assert {"RET=HDRS", "ENVID=QQ314159"} <= set(delivery.sender_params.split())
    assert delivery.sender == "z@other.test"


def test_a_recipient_in_another_case_is_another_recipient(case: Case) -> None:
    case.plan(act("end_of_message", edit("delete_recipient", f"b@{case.domain}")))
    assert case.deliver(MESSAGE, "B").recipients == (f"B@{case.domain}",)


def test_all_recipients_deleted(case: Case) -> None:
    case.plan(act("end_of_message", edit("delete_recipient", f"b@{case.domain}")))
    with case.client() as client:
        client.ehlo()
        assert case.send(client) == 250
        client.quit()
    case.delivered(0)


@pytest.mark.parametrize("verdict", ["reject", "tempfail", "discard"])
def test_edits_of_a_refused_message_are_nothing(case: Case, verdict: str) -> None:
    case.plan(
        act("end_of_message", edit("add_recipient", f"new@{case.domain}"), verdict=verdict, message=1),
        act("end_of_message", edit("quarantine", "suspect"), message=1),
    )
    held = set(case.mta.held())
    rejected = 550 if case.mta.name == "postfix" else 554
    with case.client() as client:
        client.ehlo()
        assert case.send(client) == {"discard": 250, "tempfail": 451}.get(verdict, rejected)
        assert case.send(client, number=2) == 250
        client.quit()
    assert case.delivered(1)[0].recipients == (f"b@{case.domain}",)
    assert set(case.mta.held()) == held


def test_quarantine(case: Case) -> None:
    case.plan(act("end_of_message", edit("quarantine", "suspect 100%"), edit("add_header", "X-New", "v"), message=1))
    held = set(case.mta.held())
    with case.client() as client:
        client.ehlo()
        assert case.send(client) == 250
        assert case.send(client, number=2) == 250
        client.quit()
    assert [delivery.sender for delivery in case.delivered(1)] == ["m2@from.test"]
    assert len(set(case.mta.held()) - held) == 1
    case.mta.discard_queue()
