"""Constant load: SMTP sessions in threads, over several addresses, and an account of everything that went wrong.

Half of the sessions keep their connection for message after message, half open one for each. A ``421`` at MAIL is no
failure: the message *moves*, as a real client's would, to a new connection.
"""

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from fastmilter.client import Client, ConnectionLost
from fastmilter.errors import FastmilterError
from tests.process.harness import PATIENCE_S, complete, wait_until

PAUSE_S: Final = 0.01
"""How long a session rests between two messages: the load is constant, not a race for the processor."""

FILTER: Final = """
import os
import fastmilter

class Tagger(fastmilter.Filter):
    def on_rcpt(self, recipient, params):
        if recipient.local_part == "who":
            return fastmilter.reply(550, "5.1.1", f"pid {os.getpid()}")

    def on_end_of_message(self):
        self.message.add_header("X-Pid", str(os.getpid()))
"""
"""A filter that tells which process it is, before anything of the message."""


@dataclass(frozen=True)
class Failure:
    """What went wrong, and in the hands of which worker (``None``: the connection was too young to tell)."""

    error: Exception
    worker: int | None


@dataclass
class _Session:
    address: str
    keeps: bool
    client: Client | None = None
    worker: int | None = None
    messages: int = 0
    moved: int = 0
    failures: list[Failure] = field(default_factory=list)

    def send_one(self) -> None:
        """Have a message answered, on the connection that is there or on a new one."""
        try:
            while not self._try():
                self.moved += 1
                self.close()
            self.messages += 1
            if not self.keeps:
                self.close()
        except (FastmilterError, OSError, AssertionError) as error:
            self.failures.append(Failure(error, self.worker))
            self._drop()

    def _try(self) -> bool:
        if self.client is None:
            self.worker = None
            self.client = Client(self.address).open()
            self.client.connect("client.example", "192.0.2.1", 25)
            self.client.helo("client.example")
        verdict = self.client.mail("a@example.org")
        if verdict is not None and verdict.code == 421:
            return False
        assert verdict is not None
        assert verdict.kind == "continue", verdict
        refused = self.client.rcpt("who@example.net")
        assert refused is not None
        self.worker = int(re.fullmatch(r"pid (\d+)", refused.text or "")[1])  # type: ignore[index]
        assert complete(self.client) == {"X-Pid": str(self.worker)}
        return True

    def close(self) -> None:
        """End the session as an MTA does."""
        client, self.client = self.client, None
        if client is not None:
            client.quit()
            client.close()

    def _drop(self) -> None:
        client, self.client = self.client, None
        if client is not None:
            client.close()


class Load:
    """So many sessions at ``addresses``, from the beginning of a ``with`` block to its end."""

    def __init__(self, addresses: Sequence[str], sessions: int) -> None:
        self._sessions = [
            _Session(addresses[number % len(addresses)], keeps=number // len(addresses) % 2 == 0)
            for number in range(sessions)
        ]
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(session,)) for session in self._sessions]

    def _run(self, session: _Session) -> None:
        while not self._stop.is_set():
            session.send_one()
            self._stop.wait(PAUSE_S)
        try:
            session.close()
        except (FastmilterError, OSError) as error:
            session.failures.append(Failure(error, session.worker))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.wait_further()
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _traceback: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        print(f"{self.messages} messages answered, {self.moved} moved, {len(self.failures)} failed")

    def wait_further(self) -> None:
        """Wait until every session has had a message answered, or a failure, since now."""
        before = [session.messages + len(session.failures) for session in self._sessions]

        def all_went_on() -> bool:
            now = [session.messages + len(session.failures) for session in self._sessions]
            return all(late > early for late, early in zip(now, before, strict=True))

        wait_until(all_went_on, "every session goes on")

    @property
    def messages(self) -> int:
        """How many messages had their verdict."""
        return sum(session.messages for session in self._sessions)

    @property
    def moved(self) -> int:
        """How many messages went on over another connection."""
        return sum(session.moved for session in self._sessions)

    @property
    def failures(self) -> list[Failure]:
        """Everything that was refused, reset, unanswered, or answered as it should not be."""
        return [failure for session in self._sessions for failure in session.failures]

    def lost(self) -> list[Failure]:
        """Return the connections that broke; fails if anything else went wrong."""
        others = [failure for failure in self.failures if not isinstance(failure.error, ConnectionLost)]
        assert not others
        return self.failures
