"""Many MTAs at once: sessions with message after message, each of which is sent until it has its verdict."""

import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import Final

from fastmilter.client import Client
from fastmilter.codec import AddHeader
from fastmilter.replies import Verdict
from tests.process.harness import PATIENCE_S, wait_until

SHORT_SESSION: Final = 20
"""Messages in a session of every other MTA; those of the rest last until they are told to go."""


class Load:
    """MTAs in threads; what became of their messages, in public attributes that only grow."""

    def __init__(self, port: int, mtas: int, source: str) -> None:
        """``source`` is the address that all of them have."""
        self.accepted: Final[Counter[str]] = Counter()
        """Messages that were let through, by the server that said so."""
        self.moved: Final[Counter[str]] = Counter()
        """Messages that got 421 at MAIL, or later at DATA and RCPT, by server: their clients came again."""
        self.broken: Final[list[tuple[str | None, str]]] = []
        """Sessions that broke: the server if it was known by then, and what was seen."""
        self.sent: Final[list[str]] = []
        """The messages that were let through, each time that happened."""
        self._port = port
        self._source = source
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(mtas)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        assert not any(thread.is_alive() for thread in self._threads), "an MTA hangs"

    def go_on(self, server: str, messages: int) -> None:
        """Wait until ``server`` has let through so many more messages."""
        until = self.accepted[server] + messages
        wait_until(lambda: self.accepted[server] >= until, f"{messages} more messages through {server}: {self!r}")

    def __repr__(self) -> str:
        return f"accepted={dict(self.accepted)} moved={dict(self.moved)} broken={self.broken}"

    def _run(self, number: int) -> None:
        count = 0
        while not self._over.is_set():
            count += self._session(number, count)

    def _session(self, number: int, count: int) -> int:
        """Send messages until the session ends, one way or the other; return how many were let through."""
        server: str | None = None
        done = 0
        most = SHORT_SESSION if number % 2 else sys.maxsize
        try:
            place = ("127.0.0.1", self._port)
            with Client(socket.create_connection(place, PATIENCE_S, source_address=(self._source, 0))) as client:
                client.connect("client.example", "198.51.100.7", 25)
                client.helo("client.example")
                while done < most and not self._over.is_set():
                    answer = self._message(client, f"{number}.{count + done}")
                    if isinstance(answer, Verdict):
                        assert answer.code == 421, answer
                        self.moved[server or "unknown"] += 1
                        break
                    server = answer
                    self.accepted[server] += 1
                    self.sent.append(f"{number}.{count + done}")
                    done += 1
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
