"""The SMTP client of the tests: says exactly what it is told to, and hands back exactly what it hears."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import IO, NamedTuple

_TIMEOUT = 40.0


class Reply(NamedTuple):
    """An SMTP reply: the code, and the lines without code and separator."""

    code: int
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """The lines, joined by newlines."""
        return "\n".join(self.lines)

    def __str__(self) -> str:
        return f"{self.code} {self.text}"


class ClosedByServer(Exception):
    """The server closed the connection where a reply was due."""


class SmtpError(AssertionError):
    """A reply has another code than the test expects."""


class SmtpClient:
    """A scripted dialogue with an SMTP server over a socket or a pair of pipes; the greeting is read at once."""

    def __init__(self, reader: IO[bytes], write: Callable[[memoryview], int | None], close: Callable[[], None]) -> None:
        """`write` is told bytes and says how many it took; `close` ends the connection and may come twice."""
        self._reader = reader
        self._write = write
        self._close = close
        self.greeting = self.read_reply()

    @classmethod
    def over_tcp(cls, port: int, source: str = "127.0.0.1") -> SmtpClient:
        """Connect to a port of 127.0.0.1 from an address of the loopback network."""
        connection = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT, source_address=(source, 0))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = connection.makefile("rb")

        def close() -> None:
            reader.close()
            connection.close()

        try:
            return cls(reader, connection.send, close)
        except BaseException:
            close()
            raise

    @classmethod
    def over_pipes(cls, command: Sequence[str], environment: dict[str, str]) -> SmtpClient:
        """Talk to a program that speaks SMTP on its standard input and output."""
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        reader, writer = process.stdout, process.stdin
        assert reader is not None
        assert writer is not None

        def write(data: memoryview) -> int:
            writer.write(data)
            writer.flush()
            return len(data)

        def close() -> None:
            with contextlib.suppress(BrokenPipeError):
                writer.close()
            reader.close()
            process.wait(_TIMEOUT)

        try:
            return cls(reader, write, close)
        except BaseException:
            close()
            raise

    def __enter__(self) -> SmtpClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drop()

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        view = memoryview(data)
        while view:
            view = view[self._write(view) or 0 :]

    def read_reply(self) -> Reply:
        """The next reply; ClosedByServer if there is none, SmtpError if it is not one."""
        lines: list[str] = []
        code, more = 0, True
        while more:
            raw = self._reader.readline()
            if not raw:
                raise ClosedByServer
            match = re.fullmatch(rb"(\d{3})(?:([ -])(.*?))?\r\n", raw, re.DOTALL)
            if match is None or (lines and int(match[1]) != code):
                raise SmtpError(f"not a line of a reply: {raw!r} after {lines}")
            code, more = int(match[1]), match[2] == b"-"
            lines.append((match[3] or b"").decode("utf-8", "surrogateescape"))
        return Reply(code, tuple(lines))

    def command(self, line: str | bytes) -> Reply:
        """Send one line, return its reply."""
        self.write((line.encode("utf-8", "surrogateescape") if isinstance(line, str) else line) + b"\r\n")
        return self.read_reply()

    def expect(self, code: int, line: str | bytes) -> Reply:
        """Send one line whose reply must have that code."""
        reply = self.command(line)
        if reply.code != code:
            raise SmtpError(f"{line!r}: {reply}, not {code}")
        return reply

    def pipeline(self, lines: Sequence[str]) -> list[Reply]:
        """Send several lines in one write, return their replies."""
        self.write(b"".join(line.encode() + b"\r\n" for line in lines))
        return [self.read_reply() for _ in lines]

    def ehlo(self, name: str = "client.test") -> Reply:
        """EHLO, which must be welcome."""
        return self.expect(250, f"EHLO {name}")

    def envelope(self, sender: str, recipients: Sequence[str]) -> None:
        """MAIL and RCPT, all of which must be accepted."""
        self.expect(250, f"MAIL FROM:<{sender}>")
        for recipient in recipients:
            self.expect(250, f"RCPT TO:<{recipient}>")

    def data(self, message: bytes) -> Reply:
        """DATA, which must be welcome, and the message; returns the reply to its final dot."""
        self.expect(354, "DATA")
        return self.content(message)

    def content(self, message: bytes) -> Reply:
        """The message (CRLF lines) and its final dot; returns the reply."""
        stuffed = re.sub(rb"^\.", b"..", message, flags=re.MULTILINE)
        if stuffed and not stuffed.endswith(b"\r\n"):
            stuffed += b"\r\n"
        self.write(stuffed + b".\r\n")
        return self.read_reply()

    def send(self, message: bytes, sender: str, recipients: Sequence[str]) -> Reply:
        """A whole transaction; returns the reply to the final dot."""
        self.envelope(sender, recipients)
        return self.data(message)

    def at_end(self) -> bool:
        """Whether the server closes now (waits for it, or for something else to read)."""
        try:
            return self._reader.read(1) == b""
        except ConnectionResetError:
            return True

    def quit(self) -> None:
        """QUIT, its reply, and the end of the connection."""
        self.expect(221, "QUIT")
        self.drop()

    def drop(self) -> None:
        """Close without a word; may be called again."""
        self._close()
