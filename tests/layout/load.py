"""Many MTAs, or SMTP clients, at once: session after session, and each message is sent until it has its verdict."""

import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final, Self

from fastmilter.client import Client
from fastmilter.codec import AddHeader
from fastmilter.replies import Verdict
from tests.mta.lab import ClosedByServer, SmtpClient, SmtpError
from tests.process.harness import PATIENCE_S, wait_until

SHORT_SESSION: Final = 20
"""Messages in a session of every fourth client. Those of the rest last until they are told to go: so many that, shared
out by their number, some are on each server."""


class Load:
    """Clients in threads, each with session after session; what became of their messages only grows."""

    def __init__(self, port: int, clients: int, source: str = "127.0.0.1") -> None:
        """``source`` is the address that all of them have."""
        self.sent: Final[list[str]] = []
        """The messages that were let through, each time that happened."""
        self.port: Final = port
        self.source: Final = source
        self.over: Final = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        assert not any(thread.is_alive() for thread in self._threads), "a client hangs"

    def _run(self, number: int) -> None:
        count = 0
        most = SHORT_SESSION if number % 4 == 3 else sys.maxsize
        while not self.over.is_set():
            count += self.session(f"{number}.{place}" for place in range(count, count + most))

    def session(self, names: Iterator[str]) -> int:
        """Send messages until the session ends, one way or the other; return how many were let through."""
        raise NotImplementedError


class MilterLoad(Load):
    """MTAs that ask a filter which tells who it is in X-Version."""

    def __init__(self, port: int, clients: int, source: str) -> None:
        super().__init__(port, clients, source)
        self.accepted: Final[Counter[str]] = Counter()
        """Messages that were let through, by the server that said so."""
        self.moved: Final[Counter[str]] = Counter()
        """Messages that got 421 at MAIL, RCPT or DATA, by server: their clients come again."""
        self.broken: Final[list[tuple[str | None, str]]] = []
        """Sessions that broke: the server if it was known by then, and what was seen."""

    def go_on(self, server: str, messages: int) -> None:
        """Wait until ``server`` has let through so many more messages."""
        until = self.accepted[server] + messages
        wait_until(lambda: self.accepted[server] >= until, f"{messages} more messages through {server}: {self!r}")

    def __repr__(self) -> str:
        return f"accepted={dict(self.accepted)} moved={dict(self.moved)} broken={self.broken}"

    def session(self, names: Iterator[str]) -> int:
        server: str | None = None
        done = 0
        try:
            place = ("127.0.0.1", self.port)
            with Client(socket.create_connection(place, PATIENCE_S, source_address=(self.source, 0))) as client:
                client.connect("client.example", "198.51.100.7", 25)
                client.helo("client.example")
                for name in names:
                    answer = self._message(client, name)
                    if isinstance(answer, Verdict):
                        assert answer.code == 421, answer
                        self.moved[server or "unknown"] += 1
                        break
                    server = answer
                    self.accepted[server] += 1
                    self.sent.append(name)
                    done += 1
                    if self.over.is_set():
                        break
                client.quit()
        except (OSError, AssertionError) as error:
            self.broken.append((server, f"{type(error).__name__}: {error}"))
        return done

    def _message(self, client: Client, name: str) -> Verdict | str:
        """Send a message; return the server that let it through, or the verdict that kept it."""
        steps: tuple[Callable[[], Verdict | None], ...] = (
            lambda: client.mail(f"{name}@example.org"),
            lambda: client.rcpt("b@example.net"),
            client.data,
        )
        for step in steps:
            verdict = step()
            if verdict is not None and verdict.kind not in ("accept", "continue"):
                return verdict
        client.header("Message-ID", f"<{name}@example.org>")
        client.end_of_headers()
        client.body(b"text\r\n")
        verdict, edits = client.end_of_message()
        assert verdict.kind in ("accept", "continue"), verdict
        (version,) = (edit.value for edit in edits if isinstance(edit, AddHeader) and edit.name == b"X-Version")
        return version.decode()


class MailLoad(Load):
    """SMTP clients of an MTA."""

    def __init__(self, port: int, clients: int) -> None:
        super().__init__(port, clients)
        self.answers: Final[Counter[int]] = Counter()
        """Replies that refused a message for now, by code: its client comes again in a new session."""
        self.broken: Final[list[str]] = []
        """What must not happen to a client."""

    def go_on(self, messages: int) -> None:
        """Wait until the MTA has taken so many more messages."""
        until = len(self.sent) + messages
        wait_until(lambda: len(self.sent) >= until, f"{messages} more messages: {self.answers} {self.broken}")

    def session(self, names: Iterator[str]) -> int:
        done = 0
        try:
            with SmtpClient.over_tcp(self.port) as client:
                client.command("EHLO client.example")
                for name in names:
                    if not self._message(client, name):
                        break
                    self.sent.append(name)
                    done += 1
                    if self.over.is_set():
                        break
        except (OSError, ClosedByServer, SmtpError) as error:
            self.broken.append(f"{type(error).__name__}: {error}")
        return done

    def _message(self, client: SmtpClient, name: str) -> bool:
        """Send a message; tell whether it was taken."""
        content = f"Message-ID: <{name}@example.org>\r\n\r\ntext\r\n.".encode()
        for line in (f"MAIL FROM:<{name}@example.org>", "RCPT TO:<b@example.net>", "DATA", content):
            reply = client.command(line)
            if reply.code >= 400:
                self.answers[reply.code] += 1
                return False
        return True
