"""Reading what ``tap`` writes, and plain streams: pieces of bytes with their connection, time and direction.

A recording is JSON Lines, one object per read: ``conn``, ``t`` (seconds), ``dir``, ``segment`` (counts the reads of a
connection and direction) and ``hex``, or ``event`` in place of the last two. A plain stream is one direction of one
connection, as bytes or as hexadecimal digits. Both may be compressed with gzip.

Nothing here fails on what is in a file: what cannot be read is a ``Piece`` with a ``problem``.
"""

import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Literal, TypeAlias, cast

from fastmilter.commands.options import UsageError

Direction: TypeAlias = Literal["mta>filter", "filter>mta"]
TO_FILTER: Final = "mta>filter"
TO_MTA: Final = "filter>mta"

EVENTS: Final = ("open", "eof", "reset", "refused")
"""What can become of a connection: it opened, a side closed, a side broke off, the milter could not be reached."""

_READ_BYTES: Final = 65536
_GZIP: Final = b"\x1f\x8b"
_HEX: Final = re.compile(rb"[0-9A-Fa-f\s]+")


@dataclass(frozen=True, slots=True)
class Piece:
    """What one read of a proxy returned, or an ``event``, or what is wrong with a line (``problem``)."""

    conn: int = 1
    seconds: float | None = None
    direction: Direction = TO_FILTER
    segment: int | None = None
    data: bytes = b""
    event: str = ""
    problem: str = ""


class _Unpacked(io.RawIOBase):
    """A compressed file that gives what it has before it fails."""

    def __init__(self, file: gzip.GzipFile) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def open_input(path: str) -> Iterator[BinaryIO]:
    """Open a file, or standard input for ``-``, decompressing; ``UsageError`` if that cannot be done."""
    with ExitStack() as stack:
        try:
            file = sys.stdin.buffer if path == "-" else stack.enter_context(open(path, "rb"))
            buffered = io.BufferedReader(cast("io.RawIOBase", file), _READ_BYTES)
            head = buffered.peek(len(_GZIP))
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from None
        if head.startswith(_GZIP):
            unpacked = stack.enter_context(gzip.GzipFile(fileobj=buffered))
            yield cast("BinaryIO", io.BufferedReader(_Unpacked(unpacked), _READ_BYTES))
        else:
            yield cast("BinaryIO", buffered)


def read_pieces(file: BinaryIO, direction: Direction | None) -> Iterator[Piece]:
    """Read a recording or a stream; a stream needs its ``direction``: ``UsageError`` without one."""
    try:
        head = cast("io.BufferedReader", file).peek(_READ_BYTES)[:_READ_BYTES]
        if head.lstrip()[:1] == b"{":
            yield from _recording(file)
            return
        if head and direction is None:
            raise UsageError("this is no recording but a stream of bytes: say whose with --from mta or --from filter")
        yield from _stream(file, direction or TO_FILTER, is_hex=_HEX.fullmatch(head) is not None)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield Piece(problem=f"the compressed file is damaged: {error}")


def _stream(file: BinaryIO, direction: Direction, *, is_hex: bool) -> Iterator[Piece]:
    digits = b""
    while data := file.read(_READ_BYTES):
        if not is_hex:
            yield Piece(direction=direction, data=data)
            continue
        digits += b"".join(data.split())
        whole = len(digits) // 2 * 2
        try:
            yield Piece(direction=direction, data=bytes.fromhex(digits[:whole].decode("ascii")))
        except ValueError:
            yield Piece(direction=direction, problem="not hexadecimal from somewhere in here on")
            return
        digits = digits[whole:]
    if digits:
        yield Piece(direction=direction, problem="the last byte has one hexadecimal digit only")


def _recording(file: BinaryIO) -> Iterator[Piece]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                yield _piece(json.loads(line))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
                yield Piece(problem=f"line {number} of the recording cannot be read: {reason}")


def _piece(entry: object) -> Piece:
    if not isinstance(entry, dict):
        raise TypeError("it is no object")
    conn, seconds, direction = entry["conn"], entry["t"], entry["dir"]
    if not isinstance(conn, int) or not isinstance(seconds, int | float):
        raise TypeError("conn and t must be numbers")
    if direction not in (TO_FILTER, TO_MTA):
        raise ValueError(f"dir is neither {TO_FILTER!r} nor {TO_MTA!r}")
    if "event" in entry:
        if entry["event"] not in EVENTS:
            raise ValueError(f"event is none of {', '.join(EVENTS)}")
        return Piece(conn, seconds, direction, event=entry["event"])
    segment = entry["segment"]
    if not isinstance(segment, int):
        raise TypeError("segment must be a number")
    return Piece(conn, seconds, direction, segment, bytes.fromhex(entry["hex"]))
