"""ClamAV: has every message looked at by clamd, and refuses those with a virus in them.

Two classes that do the same in two ways; take one of them:

    fastmilter serve examples/clamav.py:ClamAV          # waits for clamd in threads
    fastmilter serve examples/clamav.py:AsyncClamAV     # waits on an event loop: more messages at a time, less memory

The file that is given with --config says where clamd listens, and what happens when it cannot be asked:

    [filter]
    clamd = "unix:/run/clamav/clamd.ctl"    # or inet:3310@127.0.0.1
    unavailable = "tempfail"                # clients come again later; "accept": mail goes through unchecked
    max_bytes = 25000000                    # not more than StreamMaxLength of clamd.conf
    too_large = "accept"                    # what is done above that; or "reject"
    seconds = 30                            # for one message
    at_once = 10                            # MaxThreads of clamd.conf, divided by the number of workers

While clamd is down or hangs nobody waits for it: after `failures` messages in a row that could not be checked it is not
asked for `recovery` seconds. The log says so.
"""

import asyncio
import contextlib
import logging
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import IO, Any, ClassVar

from fastmilter import CONTINUE, SKIP, TEMPFAIL, Answer, Filter, Verdict, reply
from fastmilter.endpoints import Endpoint, EndpointKind, parse_endpoint
from fastmilter.guard import Guard

log = logging.getLogger(__name__)

PIECE_BYTES = 1 << 16
MOST_BYTES_OF_AN_ANSWER = 1000


class NotUnderstood(Exception):
    """Clamd said something else than its protocol has."""


class TooLarge(Exception):
    """Clamd does not look at messages of that size."""


class Mail:
    """What is kept of one message."""

    def __init__(self) -> None:
        """Begin with nothing; in memory up to 1 MB, beyond that in a temporary file."""
        self.size = 0
        self.spool = SpooledTemporaryFile[bytes](max_size=1 << 20)

    def add(self, data: bytes) -> None:
        """Keep the next part."""
        self.size += len(data)
        self.spool.write(data)


class Collector(Filter[Mail]):
    """What both classes share: the message as it comes, and what an answer of clamd means.

    Clamd is asked when all is there. Had it to wait for a slow client, it would have a thread less for the others.
    """

    @dataclass
    class Options:
        """The [filter] table of the configuration."""

        clamd: str = "unix:/run/clamav/clamd.ctl"
        unavailable: str = "tempfail"
        too_large: str = "accept"
        max_bytes: int = 25_000_000
        seconds: float = 30.0
        at_once: int = 10
        failures: int = 5
        recovery: float = 30.0

        def __post_init__(self) -> None:
            """Refuse what would be found out with the first message."""
            clamd = parse_endpoint(self.clamd)
            if clamd.path is None and not (isinstance(clamd.port, int) and clamd.port):
                raise ValueError("clamd must be an address such as unix:/run/clamav/clamd.ctl or inet:3310@127.0.0.1")
            if self.unavailable not in ("tempfail", "accept"):
                raise ValueError(f'unavailable must be "tempfail" or "accept", not {self.unavailable!r}')
            if self.too_large not in ("accept", "reject"):
                raise ValueError(f'too_large must be "accept" or "reject", not {self.too_large!r}')
            if not self.max_bytes > 0 or not self.seconds > 0:
                raise ValueError("max_bytes and seconds must be more than 0")

    options: ClassVar[Options]
    clamd: ClassVar[Endpoint]
    guard: ClassVar[Guard]

    @classmethod
    def worker_started(cls, options: Options) -> None:
        """Take the options, once in each worker."""
        cls.options = options
        cls.clamd = parse_endpoint(options.clamd)
        cls.guard = Guard(
            "clamd",
            limit=options.at_once,
            wait=options.seconds / 2,
            failures=options.failures,
            recovery=options.recovery,
            verdict=CONTINUE if options.unavailable == "accept" else TEMPFAIL,
            ignore=TooLarge,
        )

    def on_header(self, name: str, value: str) -> None:
        """Keep the field: clamd needs those that say how the body is encoded."""
        folded = value.replace("\n", "\r\n")
        self.message.state.add(f"{name}: {folded}\r\n".encode("utf-8", "surrogateescape"))

    def on_end_of_headers(self) -> None:
        """Keep the line between header and body."""
        self.message.state.add(b"\r\n")

    def on_body(self, chunk: bytes) -> Verdict | None:
        """Keep this piece of the body, unless there is too much of it."""
        self.message.state.add(chunk)
        return SKIP if self.message.state.size > self.options.max_bytes else None

    def on_message_end(self, verdict: Verdict | None) -> None:
        """Let go of the temporary file, however the message ended."""
        self.message.state.spool.close()

    def check_size(self) -> None:
        """Raise what a message that is too large is answered with."""
        if self.message.state.size > self.options.max_bytes:
            raise self.too_large()

    def too_large(self) -> Answer:
        """Return the answer for a message that is too large."""
        if self.options.too_large == "reject":
            return Answer(reply(552, "5.3.4", "this message is too large to be scanned for viruses"))
        self.message.add_header("X-Virus-Scanned", "no, too large")
        return Answer(CONTINUE)

    def failed(self, error: Exception) -> Answer:
        """Return the answer for a message that could not be scanned."""
        log.warning("%s: clamd at %s: %r", self.message.queue_id, self.clamd, error)
        return Answer(self.guard.verdict)

    def judge(self, virus: str | None) -> Verdict:
        """Return the verdict of a message in which clamd has found a virus, or none."""
        if virus is not None:
            return reply(550, "5.7.1", f"this message has a virus in it: {virus}")
        self.message.add_header("X-Virus-Scanned", "clean")
        return CONTINUE


class ClamAV(Collector):
    """Asks clamd in a thread."""

    blocking = True

    def on_end_of_message(self) -> Verdict:
        """Have the message scanned."""
        self.check_size()
        try:
            # Where the guard does not let the call through, its verdict is the answer: nothing is to be done for that.
            with self.guard:
                virus = scan(self.clamd, self.message.state.spool, self.options.seconds)
        except TooLarge:
            raise self.too_large() from None
        except (OSError, NotUnderstood) as error:  # a time-out is an OSError too
            raise self.failed(error) from error
        return self.judge(virus)


class AsyncClamAV(Collector):
    """Asks clamd on the event loop."""

    async def on_end_of_message(self) -> Verdict:
        """Have the message scanned."""
        self.check_size()
        try:
            # The time-out stands within the guard: so it counts as a failure of clamd.
            async with self.guard, asyncio.timeout(self.options.seconds):
                virus = await scan_async(self.clamd, self.message.state.spool)
        except TooLarge:
            raise self.too_large() from None
        except (OSError, NotUnderstood) as error:
            raise self.failed(error) from error
        return self.judge(virus)


# -- clamd's protocol: a command, pieces with their length before them, an empty piece; then the answer ------------


def pieces(mail: IO[bytes]) -> Iterator[bytes]:
    """Cut a message into what is sent to clamd."""
    mail.seek(0)
    yield b"zINSTREAM\0"
    while piece := mail.read(PIECE_BYTES):
        yield struct.pack("!I", len(piece)) + piece
    yield struct.pack("!I", 0)


def read_answer(answer: bytes) -> str | None:
    """Return the name of the virus, ``None`` if there is none."""
    text = answer.removesuffix(b"\0").decode("utf-8", "replace")
    if text == "stream: OK":
        return None
    if text.startswith("stream: ") and text.endswith(" FOUND"):
        return text[len("stream: ") : -len(" FOUND")]
    if text == "INSTREAM size limit exceeded. ERROR":
        raise TooLarge
    raise NotUnderstood(text)


def open_socket(clamd: Endpoint) -> tuple[socket.socket, Any]:
    """Return a socket and the address to connect it to."""
    if clamd.path is not None:
        return socket.socket(socket.AF_UNIX), clamd.path
    family = socket.AF_INET6 if clamd.kind is EndpointKind.INET6 else socket.AF_INET
    return socket.socket(family), (clamd.host or "localhost", clamd.port)


def scan(clamd: Endpoint, mail: IO[bytes], seconds: float) -> str | None:
    """Have a message scanned; returns the name of the virus, or ``None``. Takes as many seconds at most."""
    until = time.monotonic() + seconds
    connection, address = open_socket(clamd)
    answer = b""
    with connection:
        connection.settimeout(seconds)
        connection.connect(address)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it wants no more, and has said why
            for piece in pieces(mail):
                connection.settimeout(left(until))
                connection.sendall(piece)
        while not answer.endswith(b"\0") and len(answer) < MOST_BYTES_OF_AN_ANSWER:
            connection.settimeout(left(until))
            received = connection.recv(MOST_BYTES_OF_AN_ANSWER)
            if not received:
                break
            answer += received
    return read_answer(answer)


def left(until: float) -> float:
    """Return the seconds that are left of those for one message."""
    seconds = until - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("no answer in time")
    return seconds


async def scan_async(clamd: Endpoint, mail: IO[bytes]) -> str | None:
    """Have a message scanned; returns the name of the virus, or ``None``. The caller sees to the time."""
    loop = asyncio.get_running_loop()
    connection, address = open_socket(clamd)
    answer = b""
    with connection:
        connection.setblocking(False)
        await loop.sock_connect(connection, address)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces(mail):
                await loop.sock_sendall(connection, piece)
        while not answer.endswith(b"\0") and len(answer) < MOST_BYTES_OF_AN_ANSWER:
            received = await loop.sock_recv(connection, MOST_BYTES_OF_AN_ANSWER)
            if not received:
                break
            answer += received
    return read_answer(answer)
