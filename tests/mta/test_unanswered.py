"""Callbacks at connect, helo and data that return nothing: no MTA waits for them, and what they raise is told later.

Exceptions are in test_failures.py; here it is verdicts that come from deeper inside.
"""

from __future__ import annotations

import os

import pytest

from . import verdicts
from .case import MESSAGE, Case, act
from .lab import Mta, wait_until
from .lab.served import Stage
from .test_verdicts import SENDER, Played, without_default_codes
from .verdicts import VERDICTS, effective, refusal, refuses

STEPS = ("connect", "helo", "data")
TOLD_AT = {"connect": "mail", "helo": "mail", "data": "end_of_message"}
"""The step whose answer it is instead."""


@pytest.fixture
def case(stage: Stage, mta: Mta) -> Case:
    return Case(mta, stage.serve("planned.py:Noting"))


@pytest.mark.parametrize("verdict", VERDICTS)
@pytest.mark.parametrize("step", STEPS)
def test_a_verdict_that_is_raised_is_told_later(case: Case, step: str, verdict: str) -> None:
    whole_session = step != "data"
    case.plan(act(step, verdict=VERDICTS[verdict], message=None if whole_session else 1))
    played = Played(case, with_unknown=False)
    effect = effective(step, verdict)
    replies = dict(played.replies)
    if refuses(effect):
        expected = refusal(case.mta.name, TOLD_AT[step], effect, SENDER)
        reply = replies.pop(expected.at)
        assert reply.code == expected.code, reply
        assert without_default_codes(reply) == expected.lines
    codes = {key: reply.code for key, reply in replies.items()}
    good = {"greeting": 220, "data": 354}
    assert codes == {key: good.get(key, 250) for key in codes}, "nothing else is refused, and not the greeting"
    check_delivery(case, played, step, effect)
    check_events(case, step, effect)
    assert case.filter_failed() == []


def check_delivery(case: Case, played: Played, step: str, effect: str) -> None:
    first = not refuses(effect) and effect != "discard"
    second = not played.ended and (step == "data" or not refuses(effect))
    delivered = case.delivered(first + second)
    assert [delivery.sender for delivery in delivered] == [SENDER] * first + ["m2@from.test"] * second
    if step == "data" and not played.ended:
        assert played.second == 250, "the next message has nothing of it"


def check_events(case: Case, step: str, effect: str) -> None:
    """What is refused or accepted as a whole is not looked at any more."""
    events = [event for event in case.first_connection() if event["message"] in (0, 1)]
    names = [event["event"] for event in events]
    assert names.count("connect") == 1
    shown = [name for name in names if name in verdicts.SCRIPT]
    if effect in ("continue", "skip"):
        assert shown == verdicts.SCRIPT
        assert names.count("helo") == 1
    elif step == "data":
        assert shown == verdicts.SCRIPT[: verdicts.SCRIPT.index("data") + 1]
    else:
        assert shown == []
        assert names.count("helo") == (step == "helo")


@pytest.mark.parametrize("step", STEPS)
def test_the_mta_does_not_wait(case: Case, step: str) -> None:
    """The callback returns only after the client has had the replies to everything up to MAIL, or to DATA.

    Postfix keeps what nobody answers back until it has something to ask: there it is called when MAIL comes.
    """
    go = case.served.directory / "go"
    if not go.exists():
        os.mkfifo(go)
    case.plan(act(step, wait=True, message=1 if step == "data" else None))
    with case.client() as client:
        assert client.greeting.code == 220
        client.ehlo()
        client.write(b"MAIL FROM:<m1@from.test>\r\n")
        if step != "data":
            release(case)
        assert client.read_reply().code == 250
        client.expect(250, f"RCPT TO:<{case.to('b')[0]}>")
        client.expect(354, "DATA")
        if step == "data":
            release(case)
        assert client.content(MESSAGE).code == 250
        client.quit()
    case.delivered(1)
    assert case.filter_failed() == []


def release(case: Case) -> None:
    """Let the callback return that waits; it is at its pipe, or comes there."""

    def write() -> bool:
        try:
            pipe = os.open(case.served.directory / "go", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return False  # nobody reads yet
        os.close(pipe)
        return True

    wait_until(write, "the callback to wait")


@pytest.mark.parametrize("ends", ["QUIT", "drop"])
def test_a_session_without_a_message_is_shown_in_the_end(case: Case, ends: str) -> None:
    with case.client() as client:
        client.ehlo()
        if ends == "QUIT":
            client.quit()
    case.closed(1)
    assert [event["event"] for event in case.events()] == ["connect", "helo", "close"]
