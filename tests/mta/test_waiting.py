"""Callbacks that take their time, in threads, on asyncio, or in threads beside it: real MTAs wait, or are answered for.

All sessions run beside each other before the first test, which therefore seems to take half a minute. The tests look at
what came of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastmilter.codec import AddHeader, Continue, EndOfMessage, Progress

from . import verdicts
from .case import MESSAGE, blamed, edit, transaction
from .lab import Reply, Sink, SmtpClient, wait_until
from .waiting import MODELS, Field, Session, WaitingCase, running_field, waits

LONG_S = 25.0
"""More than the 10 s that Sendmail waits for a packet, and more than Postfix's 30 s leave for surprises."""

BESIDE_S = 10.0
MANY = 30

LINE = b"0123456789abcdef" * 4 + b"\r\n"
LARGE = MESSAGE + LINE * (5_000_000 // len(LINE))

OUTSIDE = ("connect", "helo", "unknown")
"""Steps outside of a message."""

LATER = verdicts.VERDICTS["451"]
"""What the filters with a deadline answer by default."""

MTAS = ("postfix", "sendmail")
BEFORE = edit("add_header", "X-Before", "v")


# -- what is played ----------------------------------------------------------------------------------------------------


def delivered_late(case: WaitingCase, step: str) -> None:
    """A callback that takes long: the MTA is told so, and waits."""
    case.plan(waits(step, takes=LONG_S, shown="Subject" if step == "header" else ""))
    with case.client() as client:
        client.ehlo()
        assert case.send(client, LARGE if step == "body" else MESSAGE) == 250
        client.quit()


def one_beside_many(case: WaitingCase, step: str) -> None:
    """While a callback waits, many messages of another connection have their answers from the same worker."""
    case.plan(waits(step, takes=BESIDE_S, held="until the others are done"))
    with case.client() as client, case.neighbour().client() as other:
        client.ehlo()
        client.envelope("m1@from.test", case.to("b"))
        client.expect(354, "DATA")
        client.write(MESSAGE + b".\r\n")
        case.waiting()
        other.ehlo()
        for number in range(2, MANY + 2):
            assert case.send(other, number=number) == 250
        other.quit()
        assert case.events("goes on") == []
        case.go()
        assert client.read_reply().code == 250
        client.quit()


def first_message(case: WaitingCase, client: SmtpClient, step: str) -> dict[str, Reply]:
    """The greeting, EHLO, and what follows up to the step whose callback is late, and on to the end of the message."""
    replies = {"greeting": client.greeting, "helo": client.ehlo()}
    if step == "unknown":
        replies["unknown"] = client.command("FROBNICATE now")
    else:
        replies |= transaction(case, client, "m1@from.test")
    return replies


def check_refusal(case: WaitingCase, step: str, verdict: str, replies: dict[str, Reply]) -> None:
    """What the client hears of the verdict for a late callback is what it would hear of any."""
    argument = case.to("b")[0] if step == "rcpt" else "m1@from.test"
    expected = verdicts.refusal(case.mta.name, step, verdict, argument)
    reply = replies[expected.at.removesuffix("2")]
    assert (reply.code, reply.lines) == (expected.code, expected.lines)
    asked_before = ["greeting", "helo", "unknown", "mail", "rcpt", "data", "dot"]
    for name in asked_before[: asked_before.index(expected.at.removesuffix("2"))]:
        assert name not in replies or replies[name].code < 400, replies


def next_message(case: WaitingCase, client: SmtpClient, step: str, *, is_refused: bool = False) -> None:
    """Let the callback come back; then another message of the session is a message as any."""
    case.go()
    case.gone_on()
    if is_refused:
        check_refusal(case, step, "451", transaction(case, client, "m2@from.test"))
    else:
        case.is_back(client)
        assert case.send(client, number=2) == 250
    client.quit()


def late(case: WaitingCase, step: str) -> None:
    """A callback out of time is answered with the class's verdict."""
    case.plan(waits(step, *edits_at(step), held="stubbornly"))
    with case.client() as client:
        check_refusal(case, step, "451", first_message(case, client, step))
        # A refusal at connect or HELO is one of the session.
        next_message(case, client, step, is_refused=step in ("connect", "helo"))


def late_and_cancelled(case: WaitingCase, step: str) -> None:
    """A task ends when it is cancelled: nothing is to be waited for."""
    case.plan(waits(step, *edits_at(step), held="unless cancelled"))
    with case.client() as client:
        check_refusal(case, step, "451", first_message(case, client, step))
        wait_until(lambda: case.events("cancelled"), "the callback to be cancelled")
        assert case.events("goes on") == []
        if step not in ("connect", "helo"):
            case.is_back(client)
            assert case.send(client, number=2) == 250
        client.quit()


def stuck(case: WaitingCase, step: str) -> None:
    """A late callback that has not come back when the next message begins: that is put off, the session ends."""
    timeout = "continue" if step in ("connect", "helo") else None
    case.plan(waits(step, *edits_at(step), held="stubbornly", timeout=timeout))
    with case.client() as client:
        if timeout is None:
            check_refusal(case, step, "451", first_message(case, client, step))
        else:
            client.ehlo()
        reply = client.command("MAIL FROM:<m2@from.test>")
        assert (reply.code, reply.text[:6]) == (421, "4.7.0 ")
        assert client.at_end()
    assert case.events("goes on") == []
    case.go()
    case.closed()


def refused_by_on_timeout(case: WaitingCase, step: str) -> None:
    """on_timeout has the say."""
    case.plan(waits(step, *edits_at(step), held="stubbornly", timeout=verdicts.VERDICTS["550"]))
    with case.client() as client:
        check_refusal(case, step, "550", first_message(case, client, step))
        next_message(case, client, step)


def let_through_by_on_timeout(case: WaitingCase, step: str) -> None:
    """on_timeout lets the message pass, without the edits of the callback that is late."""
    case.plan(waits(step, *edits_at(step), held="stubbornly", timeout="continue"))
    with case.client() as client:
        client.ehlo()
        if step == "unknown":
            assert client.command("FROBNICATE now").code == 500
        if step not in OUTSIDE:
            assert case.send(client) == 250
        next_message(case, client, step)


def edits_at(step: str) -> list[tuple[str, list[object], dict[str, object]]]:
    return [] if step in OUTSIDE else [BEFORE]


def sessions_late() -> Iterator[Session]:
    for mta in MTAS:
        for model in MODELS:
            for step in verdicts.STEPS:
                yield Session(late, f"{model}Late", mta, step)
                yield Session(stuck, f"{model}{'Asked' if step in ('connect', 'helo') else 'Late'}", mta, step)
                yield Session(let_through_by_on_timeout, f"{model}Asked", mta, step)
                if step not in ("connect", "helo"):
                    yield Session(refused_by_on_timeout, f"{model}Asked", mta, step)
        for step in verdicts.STEPS:
            yield Session(late_and_cancelled, "AsyncLate", mta, step)


LONG = [
    Session(delivered_late, model, mta, step)
    for mta in (*MTAS, "sendmail-unix")
    for model, steps in (
        *((model, ("header", "body", "end_of_message")) for model in MODELS),
        ("HeadersOnly", ("header",)),
    )
    for step in steps
]
BESIDE = [
    Session(one_beside_many, model, mta, step)
    for mta in MTAS
    for model in MODELS
    for step in ("header", "end_of_message")
]
LATE = list(sessions_late())


@pytest.fixture(scope="module")
def field(sink: Sink) -> Iterator[Field]:
    """Everything has been played."""
    with running_field(sink) as running:
        running.play([*LONG, *BESIDE, *LATE])
        yield running


# -- what came of it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("session", LONG, ids=str)
def test_a_long_callback_is_waited_for(field: Field, session: Session) -> None:
    case = field.result(session)
    delivery = case.sink.wait(case.mine)[0]
    assert case.received() == [("m1@from.test", ["X-After", "X-Now"])]
    assert delivery.body == (LARGE if session.step == "body" else MESSAGE).partition(b"\r\n\r\n")[2]
    assert case.tap is not None
    exchange = case.tap.exchange(case.address)
    at_end = exchange[[type(message) for message in exchange].index(EndOfMessage) :]
    # What was sent before the end of the message waits in the socket until the MTA reads it there.
    assert exchange.count(Progress()) >= LONG_S // 10
    last = [message for message in at_end if isinstance(message, AddHeader | Continue)]
    assert [type(message) for message in last] == [AddHeader, AddHeader, Continue]
    answers = [message for message in exchange if isinstance(message, AddHeader | Continue | Progress)]
    assert answers[-3:] == last
    assert answers[answers.index(Progress()) : -3] == [Progress()] * exchange.count(Progress())


@pytest.mark.parametrize("session", BESIDE, ids=str)
def test_other_connections_do_not_wait(field: Field, session: Session) -> None:
    case = field.result(session)
    assert len(case.received()) == MANY + 1


@pytest.mark.parametrize("session", LATE, ids=str)
def test_a_late_callback_is_answered_for(field: Field, session: Session) -> None:
    case = field.result(session)
    senders = []
    if session.play is let_through_by_on_timeout and session.step not in OUTSIDE:
        senders.append("m1@from.test")
    is_refused = session.step in ("connect", "helo") and session.filter.endswith("Late")
    if session.play is not stuck and not is_refused:
        senders.append("m2@from.test")
    assert case.received() == [(sender, []) for sender in senders]
    assert len(case.log_lines(f"on_{session.step} is out of time after ")) == 1
    if session.play is not late_and_cancelled:
        outcome = "no message" if session.step in OUTSIDE else "MessageEnded"
        assert case.gone_on() == [outcome, outcome]


@pytest.mark.parametrize("name", MTAS)
def test_no_mta_blames_a_filter(field: Field, name: str) -> None:
    """Every answer came before the MTA's own time-out."""
    logs = {mta.log() for (kind, _), mta in field.mtas.items() if kind.startswith(name)}
    assert [line for log in logs for line in blamed(log)] == []
