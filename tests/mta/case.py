"""One test's view: an MTA, the filter behind it, and what belongs to this test alone."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from typing import Any

from .lab import Delivery, Mta, Reply, Sink, SmtpClient, wait_until
from .lab.served import Served

# Every test has an address of the loopback network of its own: plan and events are found by it.
_numbers = itertools.count(os.getpid() % 200 * 256)

MESSAGE = (
    b"Date: Sun, 22 Nov 2026 20:00:00 +0000\r\n"
    b"From: a@from.test\r\n"
    b"Message-Id: <1@from.test>\r\n"
    b"Subject: hello\r\n"
    b"\r\n"
    b"body\r\n"
)

# How the MTAs log a filter that does not answer, or answers what it must not.
_FAILURE = re.compile(
    r"warning: milter|Milter \(\S+\).*(timeout|error|bogus|out of range|write|read)|unreasonable|panic|fatal",
    re.IGNORECASE,
)

# What the MTAs add to the trace: not the filter's business.
TRACE = {"received", "return-path"}


def act(
    step: str,
    *edits: tuple[str, list[Any], dict[str, Any]],
    verdict: str | Sequence[object] | None = None,
    message: int | None = None,
    shown: str = "",
    fail: bool = False,
    kill: bool = False,
    wait: bool = False,
) -> dict[str, Any]:
    """One line of a plan, see filters/planned.py."""
    return {
        "step": step,
        "edits": edits,
        "verdict": verdict,
        "message": message,
        "shown": shown,
        "fail": fail,
        "kill": kill,
        "wait": wait,
    }


def edit(method: str, *arguments: object, **keywords: object) -> tuple[str, list[Any], dict[str, Any]]:
    """A call of a method of `Message`, for `act`; bytes must be Latin-1 text for JSON's sake, which all bytes are."""
    plain = [{"latin-1": value.decode("latin-1")} if isinstance(value, bytes) else value for value in arguments]
    return method, plain, dict(keywords)


class Case:
    """What one test talks to."""

    def __init__(self, mta: Mta, served: Served) -> None:
        """Take an address and a domain that no other test has."""
        number = next(_numbers)
        self.mta = mta
        self.served = served
        self.address = f"127.{20 + number // 65536}.{number // 256 % 256}.{number % 256}"
        self.domain = f"t{number}.test"
        self._log_start = len(mta.log())

    @property
    def sink(self) -> Sink:
        """Where the MTA delivers to."""
        return self.mta.sink

    def plan(self, *acts: dict[str, Any]) -> None:
        """What the filter is to do; before `client`."""
        self.served.plan(self.address, acts)

    def client(self) -> SmtpClient:
        """A session from this test's address; the greeting is read, EHLO is the test's."""
        return self.mta.client(self.address)

    def to(self, *names: str) -> list[str]:
        """Recipients in this test's domain."""
        return [f"{name}@{self.domain}" for name in names]

    def send(
        self, client: SmtpClient, message: bytes = MESSAGE, *, number: int = 1, names: Sequence[str] = ("b",)
    ) -> int:
        """A transaction that is accepted up to DATA; returns the code of the reply to the dot."""
        return client.send(message, f"m{number}@from.test", self.to(*names)).code

    def deliver(self, message: bytes = MESSAGE, *names: str) -> Delivery:
        """A session of one message that must be delivered; returns it as delivered."""
        with self.client() as client:
            client.ehlo()
            assert self.send(client, message, names=names or ("b",)) == 250
            client.quit()
        return self.delivered(1)[0]

    def mine(self, delivery: Delivery) -> bool:
        """Whether a delivery has a recipient in this test's domain."""
        return any(recipient.endswith(f"@{self.domain}") for recipient in delivery.recipients)

    def delivered(self, count: int) -> list[Delivery]:
        """What was delivered to this test's domain when no mail is on its way any more: exactly `count`, by sender."""
        self.mta.settle()
        found = self.sink.wait(self.mine, count=count)
        assert len(found) == count, found
        return sorted(found, key=lambda delivery: delivery.sender)

    def events(self, *names: str) -> list[dict[str, Any]]:
        """What the filter wrote down for this test's client so far; of those names only, if any are given."""
        return [event for event in self.served.events(self.address) if not names or event["event"] in names]

    def first_connection(self) -> list[dict[str, Any]]:
        """The events of the first connection, waited for until it ends.

        For a message that was discarded at MAIL or RCPT Postfix opens another one, if there are non_smtpd_milters.
        """
        wait_until(lambda: self.events("close"), "the first callback of on_close")
        name = self.events()[0]["connection"]

        def told() -> list[dict[str, Any]]:
            return [event for event in self.events() if event["connection"] == name]

        wait_until(lambda: told()[-1]["event"] == "close", f"on_close of {name}")
        return told()

    def closed(self, count: int = 1) -> None:
        """Wait until the filter has seen `count` connections of this test end: then all its events are there."""
        wait_until(lambda: len(self.events("close")) >= count, f"on_close, {[e['event'] for e in self.events()]}")

    def filter_failed(self) -> list[str]:
        """Lines of the MTA's log since this test began in which it says that the filter broke the rules."""
        return blamed(self.mta.log()[self._log_start :])


def blamed(log: str) -> list[str]:
    """Lines of an MTA's log in which it says that a filter broke the rules."""
    return [line for line in log.splitlines() if _FAILURE.search(line)]


def own_fields(delivery: Delivery) -> list[tuple[str, bytes]]:
    """Header fields but for those of the trace: values without the one space after the colon."""
    return [(name, value.removeprefix(b" ")) for name, value in delivery.fields if name.lower() not in TRACE]


def transaction(case: Case, client: SmtpClient, sender: str) -> dict[str, Reply]:
    """As far as it goes: the replies to MAIL, RCPT, DATA and the dot."""
    replies = {"mail": client.command(f"MAIL FROM:<{sender}>")}
    if replies["mail"].code == 250:
        replies["rcpt"] = client.command(f"RCPT TO:<{case.to('b')[0]}>")
    if "rcpt" in replies:
        replies["data"] = client.command("DATA")
    if "data" in replies and replies["data"].code == 354:
        replies["dot"] = client.content(MESSAGE)
    elif replies["mail"].code == 250:
        client.expect(250, "RSET")
    return replies
