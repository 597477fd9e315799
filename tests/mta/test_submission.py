"""Mail from local users: sendmail(1) and `sendmail -bs` of both MTAs.

Postfix asks its non_smtpd_milters in one go, without brackets around addresses; Sendmail's submission program speaks
SMTP to the daemon, and `sendmail -bs` is a daemon of its own whose client has no address.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from .case import MESSAGE, TRACE, Case, act, edit, own_fields
from .lab import Mta, wait_until
from .lab.served import Stage

LOCAL_CLIENTS = ("127.0.0.1", "local")


class LocalCase(Case):
    """As every local client has the same address, plans are for this address, and mail is told apart by its domain."""

    @property
    def sender(self) -> str:
        """By which the events of this test are told apart from the first callback of a message on."""
        return f"a@{self.domain}"

    def plan(self, *acts: dict[str, Any]) -> None:
        for client in LOCAL_CLIENTS:
            self.served.plan(client, acts)

    def events(self, *names: str) -> list[dict[str, Any]]:
        found = [event for client in LOCAL_CLIENTS for event in self.served.events(client)]
        mine = {event["connection"] for event in found if self.domain in str(event["data"])}
        return [event for event in found if event["connection"] in mine and (not names or event["event"] in names)]

    def submit(self, message: bytes = MESSAGE, names: tuple[str, ...] = ("b", "c")) -> int:
        """By sendmail(1); returns its exit status."""
        return self.mta.submit(message.replace(b"\r\n", b"\n"), self.sender, self.to(*names)).returncode

    def over_stdin(self) -> int:
        """By `sendmail -bs`; returns the code of the reply to the dot."""
        with self.mta.smtp_on_stdin() as client:
            client.ehlo()
            code = client.send(MESSAGE, self.sender, self.to("b", "c")).code
            client.quit()
        return code


@pytest.fixture
def case(filter_class: str, stage: Stage, mta: Mta) -> Iterator[LocalCase]:
    case = LocalCase(mta, stage.serve(f"planned.py:{filter_class}"))
    yield case
    case.plan()
    mta.discard_queue()


@pytest.mark.parametrize("filter_class", ["Default", "Early", "Silent", "Mute", "Minimal"])
@pytest.mark.parametrize("stdin", [False, True])
def test_edits(case: LocalCase, stdin: bool) -> None:
    case.plan(
        act(
            "end_of_message",
            edit("add_header", "X-New", "v"),
            edit("change_header", "Subject", "bye"),
            edit("replace_body", b"new\n"),
            edit("add_recipient", f"new@{case.domain}"),
            edit("change_sender", "z@other.test"),
        )
    )
    if stdin:
        assert case.over_stdin() == 250
    else:
        assert case.submit() == 0
    delivery = case.delivered(1)[0]
    assert sorted(delivery.recipients) == case.to("b", "c", "new")
    assert delivery.sender == "z@other.test"
    assert delivery.values("Subject") == [b"bye"]
    assert delivery.values("X-New") == [b"v"]
    assert delivery.body == b"new\r\n"
    assert case.filter_failed() == []
    assert {name for name, _ in own_fields(delivery)}.isdisjoint(TRACE)


@pytest.mark.parametrize("filter_class", ["Default"])
def test_what_the_filter_is_told_of_sendmail(case: LocalCase) -> None:
    assert case.submit() == 0
    case.delivered(1)
    events = {event["event"]: event["data"] for event in case.first_connection()}
    hostname, family, host, port, mta = events["connect"]
    assert (hostname, family, host, mta) == ("localhost", "inet", "127.0.0.1", case.mta.name)
    assert port is None if case.mta.name == "postfix" else port > 0
    assert events["mail"][0] == case.sender
    recipients, sender, queue_id = events["end_of_message"]
    assert sorted(address for address, _ in recipients) == case.to("b", "c")
    assert sender == case.sender
    assert queue_id in case.mta.log()
    assert events["message_end"] == ["continue", case.sender]


@pytest.mark.parametrize("filter_class", ["Default"])
def test_what_the_filter_is_told_of_stdin(case: LocalCase) -> None:
    assert case.over_stdin() == 250
    case.delivered(1)
    hostname, family, host, port, _ = {event["event"]: event["data"] for event in case.first_connection()}["connect"]
    if case.mta.name == "postfix":
        assert (hostname, family, host, port) == ("localhost", "inet", "127.0.0.1", None)
    else:
        assert (hostname, host, port) == ("localhost", None, None)
        assert family in ("unix", "unknown")


@pytest.mark.parametrize("filter_class", ["Default", "Minimal"])
def test_the_null_sender(case: LocalCase) -> None:
    done = case.mta.submit(MESSAGE.replace(b"\r\n", b"\n"), "<>", case.to("b"))
    assert done.returncode == 0
    assert case.delivered(1)[0].sender == ""
    assert [event["data"][0] for event in case.events("mail")] == [""]


@pytest.mark.parametrize("filter_class", ["Default"])
def test_discard(case: LocalCase) -> None:
    case.plan(act("end_of_message", verdict="discard"))
    assert case.submit() == 0
    wait_until(lambda: case.events("message_end"), "the end of the message")
    case.delivered(0)


@pytest.mark.parametrize("filter_class", ["Default"])
@pytest.mark.parametrize("step", ["mail", "end_of_message"])
@pytest.mark.parametrize("verdict", ["tempfail", [421, "4.7.0", "leaving"]])
def test_mail_that_is_put_off_is_not_lost(case: LocalCase, step: str, verdict: str | list[object]) -> None:
    case.plan(act(step, verdict=verdict))
    assert case.submit() == 0
    wait_until(lambda: case.events(step), f"{step} of the first try")
    wait_until(case.mta.waiting, "mail that waits")
    assert case.sink.matching(case.mine) == []
    case.plan()
    case.mta.retry()
    assert case.delivered(1)[0].sender == case.sender
