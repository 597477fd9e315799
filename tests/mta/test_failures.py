"""Filters and workers that fail: the MTA always gets an answer, and what comes next is processed normally."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from .case import MESSAGE, Case, act, edit, transaction
from .lab import Mta, Reply, SmtpError, wait_until
from .lab.served import Served, Stage

PUT_OFF = {"postfix": "4.7.1 Service unavailable - try again later", "sendmail": "4.3.2 Please try again later"}

STEPS = ["connect", "helo", "mail", "rcpt", "data", "header", "end_of_headers", "body", "end_of_message", "unknown"]
NOTICES = ["abort", "message_end", "close"]
# Which steps are answered, by class: where one is not, its failure is told at the next step that is.
UNANSWERED = {
    "Default": {"header", "end_of_headers", "body"},
    "Early": set[str](),
    "Noting": {"connect", "helo", "data", "header", "end_of_headers", "body"},
    "Silent": {"connect", "helo", "rcpt", "data", "header", "end_of_headers", "body"},
    "Mute": {"connect", "helo", "mail", "rcpt", "data", "header", "end_of_headers", "body"},
}


@pytest.fixture
def case(filter_class: str, stage: Stage, mta: Mta) -> Case:
    return Case(mta, stage.serve(f"planned.py:{filter_class}"))


def told_at(filter_class: str, step: str) -> str:
    """The command of the client that is answered TEMPFAIL when the callback of a step raises."""
    unanswered = UNANSWERED[filter_class]
    if step in ("connect", "helo"):
        return "dot" if "mail" in unanswered else "mail"
    if step in unanswered or step in ("header", "end_of_headers", "body", "end_of_message"):
        return "dot"
    return step


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("filter_class", UNANSWERED)
def test_a_callback_that_raises(case: Case, filter_class: str, step: str) -> None:
    """Its own edits are gone, the client is put off, and the next message on the connection is a message as any."""
    whole_session = step in ("connect", "helo")
    edits = [edit("add_header", "X-Lost", "v")] if step not in ("connect", "helo", "unknown") else []
    case.plan(act(step, *edits, fail=True, message=None if whole_session or step == "unknown" else 1))
    with case.client() as client:
        client.ehlo()
        if step == "unknown":
            assert client.command("FROBNICATE now").lines == (PUT_OFF[case.mta.name],)
        first = transaction(case, client, "m1@from.test")
        second = transaction(case, client, "m2@from.test")
        client.quit()
    told = told_at(filter_class, step)
    check = [first, second] if whole_session else [first] if step != "unknown" else []
    for replies in check:
        assert replies[told].lines == (PUT_OFF[case.mta.name],)
        assert replies[told].code == 451
    good = [replies for replies in (first, second) if replies not in check]
    assert [replies["dot"].code for replies in good] == [250] * len(good)
    deliveries = case.delivered(len(good))
    assert all(delivery.values("X-Lost") == [] for delivery in deliveries)
    assert case.filter_failed() == []
    assert "planned for" in case.served.log()


IN_MESSAGE = STEPS[2:9]


@pytest.mark.parametrize("step", IN_MESSAGE)
@pytest.mark.parametrize("filter_class", ["Lenient"])
def test_where_a_failure_lets_mail_through_its_edits_are_gone(case: Case, step: str) -> None:
    kept = act("mail", edit("add_header", "X-Kept", "v")) if step != "mail" else act("rcpt")
    failing = act(step, edit("add_header", "X-Lost", "v"), edit("replace_body", b"lost\r\n"), fail=True)
    case.plan(kept, failing)
    delivery = case.deliver()
    assert delivery.values("X-Lost") == []
    assert delivery.values("X-Kept") == ([b"v"] if step != "mail" else [])
    assert delivery.body == b"body\r\n"
    assert case.filter_failed() == []


@pytest.mark.parametrize("step", IN_MESSAGE)
@pytest.mark.parametrize("filter_class", ["Answering"])
def test_on_error_gives_the_verdict(case: Case, step: str) -> None:
    case.plan(act(step, fail=True, message=1))
    with case.client() as client:
        client.ehlo()
        told = transaction(case, client, "m1@from.test")[told_at("Default", step)]
        assert (told.code, told.text.split("... ")[-1].removeprefix("5.6.0 ")) == (550, f"failed at {step}")
        assert transaction(case, client, "m2@from.test")["dot"].code == 250
        client.quit()
    case.delivered(1)
    assert case.filter_failed() == []


@pytest.mark.parametrize("notice", NOTICES)
@pytest.mark.parametrize("filter_class", UNANSWERED)
def test_a_notice_that_raises_changes_nothing(case: Case, notice: str) -> None:
    case.plan(act(notice, fail=True))
    for _ in range(2):
        with case.client() as client:
            client.ehlo()
            client.envelope("m1@from.test", case.to("b"))
            client.expect(250, "RSET")
            assert case.send(client, number=2) == 250
            assert case.send(client, number=3) == 250
            client.quit()
    case.delivered(4)
    case.closed(2)
    assert case.filter_failed() == []


@pytest.mark.parametrize("filter_class", ["Default", "Mute"])
def test_an_edit_that_cannot_be_sent_raises_in_the_callback(case: Case) -> None:
    case.plan(act("end_of_message", edit("add_header", "X-New", "one\ntwo"), message=1))
    with case.client() as client:
        client.ehlo()
        assert case.send(client) == 451
        assert case.send(client, number=2) == 250
        client.quit()
    assert case.delivered(1)[0].sender == "m2@from.test"
    assert "ValueError" in case.served.log()


def serve(own_server: list[Served], port: int, *, workers: int = 1, options: tuple[str, ...] = ()) -> Served:
    served = Served("planned.py:Default", port, workers=workers, options=options)
    own_server.append(served)
    served.__enter__()
    return served


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("step", ["mail", "rcpt", "header", "body", "end_of_message"])
def test_a_worker_that_is_killed(mta: Mta, own_server: list[Served], milter_port: int, workers: int, step: str) -> None:
    """kill -9 in mid-session: the MTA's default action for that session, and the next one works."""
    case = Case(mta, serve(own_server, milter_port, workers=workers))
    case.plan(act(step, kill=True))
    with case.client() as client:
        client.ehlo()
        replies = transaction(case, client, "m1@from.test")
    last = replies[step if step in replies else "dot"]
    assert (last.code, last.text) == (451, PUT_OFF[mta.name])
    after = Case(mta, case.served)
    wait_until(lambda: session_works(after), "a session that works", 10)
    assert case.delivered(0) == []
    assert {delivery.sender for delivery in after.sink.matching(after.mine)} == {"m1@from.test"}


def session_works(case: Case) -> bool:
    """Whether a message passes the filter now; while a worker starts anew a session may be put off."""
    try:
        with case.client() as client:
            client.ehlo()
            return case.send(client) == 250
    except SmtpError:
        return False


def test_a_stop_lets_a_message_finish(mta: Mta, own_server: list[Served], milter_port: int) -> None:
    """TERM with the default times: the session goes on as if nothing were, and its end is the server's."""
    served = serve(own_server, milter_port)
    case = Case(mta, served)
    case.plan(act("end_of_message", edit("add_header", "X-New", "v")))
    with case.client() as client:
        client.ehlo()
        client.envelope("m1@from.test", case.to("b"))
        client.expect(354, "DATA")
        served.signal(signal.SIGTERM)
        wait_until(lambda: not listening(milter_port), "the end of listening")
        assert client.content(MESSAGE).code == 250
        client.quit()
    assert served.wait() == 0
    assert case.delivered(1)[0].values("X-New") == [b"v"]
    assert case.filter_failed() == []


def listening(port: int) -> bool:
    """Whether a socket listens at a port of 127.0.0.1; asking the kernel takes no connection."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(int(row[1].split(":")[1], 16) == port and row[3] == "0A" for row in rows)


def test_a_stop_between_messages_is_a_421_and_loses_nothing(
    mta: Mta, own_server: list[Served], milter_port: int
) -> None:
    served = serve(own_server, milter_port, options=("--drain-stop=0.01,20,40",))
    case = Case(mta, served)
    case.plan(act("end_of_message", edit("add_header", "X-New", "v")))
    with case.client() as client, case.client() as busy:
        client.ehlo()
        assert case.send(client, number=1) == 250
        busy.ehlo()
        busy.envelope("m2@from.test", case.to("b"))
        busy.expect(354, "DATA")
        served.signal(signal.SIGTERM)
        wait_until(lambda: not listening(milter_port), "the end of listening")
        replies: list[Reply] = []

        def asked_to_leave() -> bool:
            if replies:
                client.expect(250, "RSET")
            replies.append(client.command("MAIL FROM:<m3@from.test>"))
            return replies[-1].code != 250

        wait_until(asked_to_leave, "421 at MAIL")
        assert replies[-1].code == 421
        assert replies[-1].text.startswith("4.7.0 ")
        assert client.at_end()
        # The other session is past DATA: its message gets its verdict.
        assert busy.content(MESSAGE).code == 250
        busy.quit()
    assert served.wait() == 0
    assert [delivery.values("X-New") for delivery in case.delivered(2)] == [[b"v"], [b"v"]]
    assert case.filter_failed() == []


def test_while_the_server_is_away_mail_is_put_off(mta: Mta, own_server: list[Served], milter_port: int) -> None:
    served = serve(own_server, milter_port)
    case = Case(mta, served)
    assert served.stop() == 0
    with case.client() as client:
        client.ehlo()
        assert client.command("MAIL FROM:<m1@from.test>").code == 451
    served.start()
    case.deliver()


def test_reload_under_sessions(mta: Mta, own_server: list[Served], milter_port: int) -> None:
    """HUP: a session of the old worker goes on there, a new one is served by the new worker; both are delivered."""
    served = serve(own_server, milter_port)
    case = Case(mta, served)
    with case.client() as client:
        client.ehlo()
        assert case.send(client, number=1) == 250
        old = case.events()[0]["connection"].partition("-")[0]
        served.signal(signal.SIGHUP)

        def newcomer() -> str:
            with case.client() as other:
                other.ehlo()
                assert case.send(other, number=2) == 250
            return str(case.events("mail")[-1]["connection"]).partition("-")[0]

        wait_until(lambda: newcomer() != old, "a session served by the new worker")
        assert case.send(client, number=3) == 250
        client.quit()
    senders = {delivery.sender for delivery in case.sink.wait(case.mine, count=3)}
    case.mta.settle()
    assert senders <= {"m1@from.test", "m2@from.test", "m3@from.test"}
    assert case.sink.matching(lambda delivery: case.mine(delivery) and delivery.sender == "m3@from.test")
    assert case.filter_failed() == []


@pytest.mark.parametrize("filter_class", ["Minimal", "Default"])
def test_an_edit_at_the_end_waits_for_no_delayed_acknowledgement(case: Case) -> None:
    """Linux delays an acknowledgement by 40 ms, so one such wait in every message shows in each of them.

    Not a measurement: of many messages the quickest is looked at, on a machine as busy as it likes. Without
    TCP_QUICKACK the quickest of 20 took 37 ms and more, with it 1 to 5 ms.
    """
    case.plan(act("end_of_message", edit("add_header", "X-New", "v")))
    quickest = 1.0
    with case.client() as client:
        client.ehlo()
        for _ in range(20):
            client.envelope("m1@from.test", case.to("b"))
            client.expect(354, "DATA")
            started = time.monotonic()
            assert client.content(MESSAGE).code == 250
            quickest = min(quickest, time.monotonic() - started)
        client.quit()
    case.delivered(20)
    assert quickest < 0.030
