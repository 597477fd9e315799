"""Several messages on a connection, dropped transactions, dropped clients: each callback as often as promised."""

from __future__ import annotations

import pytest

from .case import MESSAGE, Case, act, edit, own_fields
from .lab import Mta
from .lab.served import Stage

ANSWERED_AT_MAIL = ["Default", "Early", "Silent", "Minimal"]
ALL = [*ANSWERED_AT_MAIL, "Mute"]
ENDINGS = ("abort", "message_end", "close")


@pytest.fixture
def case(filter_class: str, stage: Stage, mta: Mta) -> Case:
    return Case(mta, stage.serve(f"planned.py:{filter_class}"))


def endings(case: Case) -> list[tuple[str, object, int]]:
    """How messages and the connection ended: event, verdict, number of the message."""
    events = [event for event in case.first_connection() if event["event"] in ENDINGS]
    return [(event["event"], (event["data"] or [""])[0], event["message"]) for event in events]


@pytest.mark.parametrize("filter_class", ALL)
def test_edits_of_one_message_do_not_reach_the_next(case: Case) -> None:
    case.plan(
        act("mail", edit("add_header", "X-Mail", "1"), message=1),
        act("end_of_message", edit("add_header", "X-End", "1"), edit("replace_body", b"new\r\n"), message=1),
        act("end_of_message", edit("add_header", "X-End", "3"), message=3),
    )
    with case.client() as client:
        client.ehlo()
        for number in (1, 2, 3):
            assert case.send(client, number=number) == 250
        client.quit()
    first, second, third = case.delivered(3)
    assert own_fields(first)[4:] == [("X-Mail", b"1"), ("X-End", b"1")]
    assert own_fields(second)[4:] == []
    assert own_fields(third)[4:] == [("X-End", b"3")]
    assert [delivery.body for delivery in (first, second, third)] == [b"new\r\n", b"body\r\n", b"body\r\n"]
    ended = [("message_end", "continue", number) for number in (1, 2, 3)]
    assert endings(case) == [*ended, ("close", "", 3)]
    assert case.filter_failed() == []


@pytest.mark.parametrize("filter_class", ALL)
def test_a_refused_message_between_two_others(case: Case) -> None:
    case.plan(act("end_of_message", edit("add_header", "X-End", "2"), verdict=[550, "5.7.1", "second"], message=2))
    with case.client() as client:
        client.ehlo()
        assert [case.send(client, number=number) for number in (1, 2, 3)] == [250, 550, 250]
        client.quit()
    first, third = case.delivered(2)
    assert (first.sender, third.sender) == ("m1@from.test", "m3@from.test")
    assert own_fields(third)[4:] == []
    assert [ending[:2] for ending in endings(case)] == [
        ("message_end", "continue"),
        ("message_end", "550 5.7.1 second"),
        ("message_end", "continue"),
        ("close", ""),
    ]


@pytest.mark.parametrize("filter_class", ANSWERED_AT_MAIL)
@pytest.mark.parametrize("after", ["mail", "rcpt"])
def test_rset_between_two_messages(case: Case, after: str) -> None:
    case.plan(act("mail", edit("add_header", "X-Dropped", "1"), message=1))
    with case.client() as client:
        client.ehlo()
        client.envelope("m1@from.test", case.to("b") if after == "rcpt" else [])
        client.expect(250, "RSET")
        assert case.send(client, number=2) == 250
        client.expect(250, "RSET")
        client.quit()
    assert own_fields(case.delivered(1)[0])[4:] == []
    assert endings(case) == [
        ("abort", "", 1),
        ("message_end", None, 1),
        ("message_end", "continue", 2),
        ("close", "", 2),
    ]
    assert case.filter_failed() == []


@pytest.mark.parametrize("filter_class", ["Mute"])
def test_rset_where_mail_is_not_answered(case: Case) -> None:
    """Postfix has shown nothing yet; Sendmail says nothing of RSET, so the next MAIL drops the first message."""
    with case.client() as client:
        client.ehlo()
        client.envelope("m1@from.test", case.to("b"))
        client.expect(250, "RSET")
        assert case.send(client, number=2) == 250
        client.quit()
    case.delivered(1)
    told = endings(case)
    assert told[-2][:2] == ("message_end", "continue")
    assert told[-1][0] == "close"
    assert [ending[:2] for ending in told[:-2]] in ([], [("abort", ""), ("message_end", None)])


@pytest.mark.parametrize("filter_class", ANSWERED_AT_MAIL)
@pytest.mark.parametrize("how", ["quit", "drop", "ehlo"])
def test_a_transaction_that_ends_early(case: Case, how: str) -> None:
    with case.client() as client:
        client.ehlo()
        client.envelope("m1@from.test", case.to("b"))
        if how == "ehlo":
            client.ehlo("again.test")
            assert case.send(client, number=2) == 250
        if how != "drop":
            client.quit()
    case.delivered(1 if how == "ehlo" else 0)
    told = [ending[:2] for ending in endings(case)]
    dropped: list[tuple[str, object]] = [("abort", ""), ("message_end", None)]
    second: list[tuple[str, object]] = [("message_end", "continue")] if how == "ehlo" else []
    assert told == [*dropped, *second, ("close", "")]
    assert case.filter_failed() == []


@pytest.mark.parametrize("filter_class", ALL)
def test_the_client_drops_in_data(case: Case) -> None:
    with case.client() as client:
        client.ehlo()
        client.envelope("m1@from.test", case.to("b"))
        client.expect(354, "DATA")
        client.write(MESSAGE[: len(MESSAGE) // 2])
    case.delivered(0)
    assert endings(case) == [("abort", "", 1), ("message_end", None, 1), ("close", "", 1)]
    with case.client() as client:
        client.ehlo()
        assert case.send(client) == 250
        client.quit()
    case.delivered(1)


@pytest.mark.parametrize("filter_class", ALL)
def test_a_client_that_says_nothing(case: Case) -> None:
    with case.client() as client:
        client.quit()
    with case.client() as client:
        client.ehlo()
    case.delivered(0)
    if filter_sees_connect(case):
        case.closed(2)
        assert case.events("abort", "message_end") == []


def filter_sees_connect(case: Case) -> bool:
    """With all steps unanswered Postfix tells nothing of a session before DATA."""
    return not (case.mta.name == "postfix" and case.served.target.endswith("Mute"))


@pytest.mark.parametrize("filter_class", ALL)
def test_two_pipelined_transactions(case: Case) -> None:
    case.plan(act("rcpt", verdict="reject", shown="refused"), act("end_of_message", edit("add_header", "X-End", "v")))
    refusing = case.served.target.endswith(("Default", "Early"))
    with case.client() as client:
        client.ehlo()
        for number in (1, 2):
            recipients = [f"RCPT TO:<{recipient}>" for recipient in case.to("r1", "r2", *(["refused"] * refusing))]
            replies = client.pipeline([f"MAIL FROM:<m{number}@from.test>", *recipients, "DATA"])
            assert [reply.code for reply in replies] == [250, 250, 250, *([550] * refusing), 354]
            assert client.content(MESSAGE).code == 250
        client.quit()
    for delivery in case.delivered(2):
        assert sorted(delivery.recipients) == case.to("r1", "r2")
        assert delivery.values("X-End") == [b"v"]


@pytest.mark.parametrize("filter_class", ["Default", "Silent"])
def test_many_recipients(case: Case) -> None:
    names = [f"r{number:03}" for number in range(60)]
    case.plan(act("end_of_message", edit("delete_recipient", f"r000@{case.domain}")))
    with case.client() as client:
        client.ehlo()
        client.pipeline(["MAIL FROM:<m1@from.test>", *(f"RCPT TO:<{recipient}>" for recipient in case.to(*names))])
        assert client.data(MESSAGE).code == 250
        client.quit()
    end = next(event for event in case.first_connection() if event["event"] == "end_of_message")
    assert [recipient for recipient, _ in end["data"][0]] == case.to(*names)
    case.mta.settle()
    reached = [name for delivery in case.sink.matching(case.mine) for name in delivery.recipients]
    assert sorted(reached) == case.to(*names[1:])
