"""Where the MTAs deliver to: an SMTP server that keeps the envelope and the bytes of every message."""

from __future__ import annotations

import contextlib
import re
import socketserver
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from .environment import LabError

_PATH = re.compile(rb"^(?:FROM|TO):\s*<([^>]*)>\s*(.*)$", re.IGNORECASE)
# SMTPUTF8 and 8BITMIME: an MTA must neither bounce nor convert what a filter made of a message.
_EXTENSIONS = (b"PIPELINING", b"SIZE", b"8BITMIME", b"DSN", b"SMTPUTF8", b"ENHANCEDSTATUSCODES")
_GREETING = b"250-sink.lab.test\r\n" + b"".join(b"250-%b\r\n" % name for name in _EXTENSIONS) + b"250 HELP\r\n"


@dataclass(frozen=True)
class Delivery:
    """One message as an MTA delivered it: paths without brackets, parameters as sent, the message with CRLF lines."""

    sender: str
    sender_params: str
    recipients: tuple[str, ...]
    recipient_params: tuple[str, ...]
    message: bytes

    @property
    def head(self) -> bytes:
        """The header section, without the blank line, with its last line end."""
        if self.message.startswith(b"\r\n"):
            return b""
        head, _, _ = self.message.partition(b"\r\n\r\n")
        return head if head.endswith(b"\r\n") else head + b"\r\n"

    @property
    def body(self) -> bytes:
        """What follows the blank line."""
        return self.message[2:] if self.message.startswith(b"\r\n") else self.message.partition(b"\r\n\r\n")[2]

    @property
    def fields(self) -> list[tuple[str, bytes]]:
        """Header fields in order: name, and all that follows the colon, folding kept."""
        unfolded = re.split(rb"\r\n(?![ \t])", self.head.removesuffix(b"\r\n"))
        pairs = [line.partition(b":") for line in unfolded if line]
        return [(name.decode("utf-8", "surrogateescape"), value) for name, _, value in pairs]

    def values(self, name: str) -> list[bytes]:
        """Values of all fields of that name in order, without the one space after the colon."""
        return [value.removeprefix(b" ") for field, value in self.fields if field.lower() == name.lower()]


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128
    sink: Sink


class _Session(socketserver.StreamRequestHandler):
    server: _Server
    disable_nagle_algorithm = True

    def handle(self) -> None:
        # An MTA that is stopped leaves connections that it kept for later mail.
        with contextlib.suppress(ConnectionError):
            self._talk()

    def _talk(self) -> None:
        self._reset()
        self._say(b"220 sink.lab.test ESMTP\r\n")
        while line := self.rfile.readline(70000):
            verb, _, argument = line.strip().partition(b" ")
            if verb.upper() == b"QUIT":
                self._say(b"221 2.0.0 bye\r\n")
                return
            self._say(self._answer(verb.upper(), argument))

    def _reset(self) -> None:
        self.sender = ("", "")
        self.recipients: list[tuple[str, str]] = []

    def _say(self, reply: bytes) -> None:
        self.wfile.write(reply)

    def _answer(self, verb: bytes, argument: bytes) -> bytes:
        if verb in (b"EHLO", b"HELO"):
            return _GREETING
        if verb == b"MAIL":
            self._reset()
            self.sender = _path(argument)
        elif verb == b"RCPT":
            self.recipients.append(_path(argument))
        elif verb == b"DATA":
            self._say(b"354 go on\r\n")
            self._take_message()
        elif verb == b"RSET":
            self._reset()
        elif verb != b"NOOP":
            return b"502 5.5.2 what?\r\n"
        return b"250 2.0.0 ok\r\n"

    def _take_message(self) -> None:
        lines = []
        while (line := self.rfile.readline()) != b".\r\n":
            if not line:
                return  # the MTA left in mid-message: nothing was delivered
            lines.append(line[1:] if line.startswith(b".") else line)
        self.server.sink.keep(
            Delivery(
                sender=self.sender[0],
                sender_params=self.sender[1],
                recipients=tuple(path for path, _ in self.recipients),
                recipient_params=tuple(params for _, params in self.recipients),
                message=b"".join(lines),
            )
        )


def _path(argument: bytes) -> tuple[str, str]:
    match = _PATH.match(argument)
    if match is None:
        raise LabError(f"the MTA sent {argument!r}")
    return match[1].decode("utf-8", "surrogateescape"), match[2].decode("utf-8", "surrogateescape")


class Sink:
    """An SMTP server on 127.0.0.1 that takes everything; `with Sink() as sink`, then `sink.port`."""

    def __init__(self) -> None:
        """Bind; serving starts with the context."""
        self._server = _Server(("127.0.0.1", 0), _Session)
        self._server.sink = self
        self._changed = threading.Condition()
        self._deliveries: list[Delivery] = []
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> Sink:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def keep(self, delivery: Delivery) -> None:
        """Called by the sessions: a message is complete."""
        with self._changed:
            self._deliveries.append(delivery)
            self._changed.notify_all()

    def matching(self, wanted: Callable[[Delivery], bool]) -> list[Delivery]:
        """Deliveries so far that are wanted, in order."""
        with self._changed:
            return [delivery for delivery in self._deliveries if wanted(delivery)]

    def wait(self, wanted: Callable[[Delivery], bool], *, count: int = 1, seconds: float = 20.0) -> list[Delivery]:
        """Wait until `count` deliveries are wanted ones and return them; LabError after `seconds`."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while len(found := [delivery for delivery in self._deliveries if wanted(delivery)]) < count:
                if not self._changed.wait(deadline - time.monotonic()):
                    raise LabError(f"{len(found)} of {count} messages were delivered within {seconds:g} s")
            return found

    def clear(self) -> None:
        """Forget what was delivered."""
        with self._changed:
            self._deliveries.clear()
