"""Several messages on a connection, dropped transactions, dropped clients."""

from __future__ import annotations

import pytest

from .case import MESSAGE, Case, act, edit, own_fields
from .lab import Mta
from .lab.served import Stage

FILTERS = ["Default", "Early", "Silent", "Mute", "Minimal"]


@pytest.fixture(params=FILTERS)
def case(request: pytest.FixtureRequest, stage: Stage, mta: Mta) -> Case:
    return Case(mta, stage.serve(f"planned.py:{request.param}"))


def test_edits_of_one_message_do_not_reach_the_next(case: Case) -> None:
    case.plan(
        act("mail", edit("add_header", "X-Mail", "1"), message=1),
        act("end_of_message", edit("add_header", "X-End", "1"), message=1),
        act("end_of_message", edit("add_header", "X-End", "3"), message=3),
    )
    with case.client() as client:
        client.ehlo()
        for _ in range(3):
            assert case.send(client) == 250
        client.quit()
    first, second, third = case.delivered(3)
    original = [("Date", b"Sun, 22 Nov 2026 20:00:00 +0000"), ("From", b"a@from.test")]
    assert own_fields(second)[:2] == original
    assert own_fields(first)[4:] == [("X-Mail", b"1"), ("X-End", b"1")]
    assert own_fields(second)[4:] == []
    assert own_fields(third)[4:] == [("X-End", b"3")]
    case.closed()
    assert [event["data"][0] for event in case.events("message_end")] == ["continue"] * 3
    assert case.events("abort") == []
    assert MESSAGE
