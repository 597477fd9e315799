"""What the master and its children say to each other, over one socket pair per child.

Every message is one fixed-size packet with a mark in front, so that a stray byte is noticed. What is not understood is
ignored: a worker may be of another version than its master (upgrade in place). The end of the stream says that the
other process is gone, however it went; nothing else is needed to notice the death of a master, SIGKILL included.

Down to a worker: ``Drain``, ``StopNow``, ``ReopenLogs``; up: ``Ready``, ``Retire``. Down to the monitor: ``News``,
``ReopenLogs``; up: ``Ready``, and as orders of an administrator ``Reload``, ``Stop``, ``StopNow``, ``Scale``,
``ReopenLogs``.

Pure functions and one small buffer; ``send`` and ``receive`` are the only ones that touch a socket, and neither ever
waits.
"""

import math
import socket
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

_PACKET: Final = struct.Struct("!2sBx4x3d")
_MARK: Final = b"fm"
_NO_LIMITS: Final = (0.0, 0.0, 0.0)

PACKET_BYTES: Final = _PACKET.size
"""Size of every message, in bytes."""

MAX_LIMIT_S: Final = 10 * 86400.0
"""Longest limit of a drain, in seconds; a packet with a longer one is not from us."""

MOST_SCALED: Final = 1 << 16
"""Largest number in a ``Scale``; how many workers there may be is not decided here."""

_RECEIVE_BYTES: Final = 64 * PACKET_BYTES
_MOST_FILES: Final = 1
"""How many open files come with a message."""
_MOST_READS: Final = 2
"""How often one ``receive`` reads at most: who never stops sending must not keep its reader."""


@dataclass(frozen=True, slots=True)
class Ready:
    """To the master: connections are accepted. A worker has loaded the filter, and ``worker_started`` is done."""


class Reason(IntEnum):
    """Why a worker wants to be replaced; the numbers are what is sent."""

    STUCK = 0
    """Too many of its threads are."""
    MESSAGES = 1
    """It has served as many as it should (``--max-messages``)."""
    AGE = 2
    """It is as old as it should become (``--max-age``)."""
    MEMORY = 3
    """It has more memory than it should (``--max-rss``)."""


@dataclass(frozen=True, slots=True)
class Retire:
    """Worker to master: it serves on, but wants to be replaced."""

    reason: Reason = Reason.STUCK


@dataclass(frozen=True, slots=True)
class Drain:
    """Master to worker: accept nothing more, finish what is there, leave.

    ``limits`` are seconds from the arrival of the message to the end of each tier (serve on; 421 at MAIL; 421 also at
    RCPT and DATA, then close): not negative and in rising order. A later ``Drain`` replaces the limits of an earlier
    one, counted from its own arrival.
    """

    limits: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class StopNow:
    """Master to worker: close every connection and leave at once. Monitor to master: have all do so."""


@dataclass(frozen=True, slots=True)
class ReopenLogs:
    """Master to all: the log file was opened anew, and comes with this. Monitor to master: open it."""


@dataclass(frozen=True, slots=True)
class News:
    """Master to monitor: something that it may wait for has changed; the counters say what."""


@dataclass(frozen=True, slots=True)
class Reload:
    """Monitor to master: what HUP does."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Monitor to master: what TERM does."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Monitor to master: have so many workers."""

    workers: int


Message = Ready | Retire | Drain | StopNow | ReopenLogs | News | Reload | Stop | Scale

_REASONS: Final = frozenset(float(reason) for reason in Reason)

_DRAIN: Final = 2
_RETIRE: Final = 4
_SCALE: Final = 7
_BARE: Final[dict[int, Message]] = {
    1: Ready(),
    3: StopNow(),
    5: ReopenLogs(),
    6: News(),
    8: Reload(),
    9: Stop(),
}
"""The messages that say no more than what they are."""
_BARE_KINDS: Final = {message: kind for kind, message in _BARE.items()}


def encode(message: Message) -> bytes:
    """Return the packet of a message.

    >>> decode(encode(Drain((20.0, 40.0, 60.0))))
    Drain(limits=(20.0, 40.0, 60.0))
    """
    match message:
        case Scale(workers):
            if not 0 < workers <= MOST_SCALED:
                raise ValueError(f"a number of workers is from 1 to {MOST_SCALED}: {workers}")
            return _PACKET.pack(_MARK, _SCALE, float(workers), *_NO_LIMITS[1:])
        case Retire(reason):
            return _PACKET.pack(_MARK, _RETIRE, float(reason), *_NO_LIMITS[1:])
        case Drain(limits):
            if not _plausible(limits):
                raise ValueError(f"limits of a drain must rise from 0 to at most {MAX_LIMIT_S:.0f} s: {limits}")
            return _PACKET.pack(_MARK, _DRAIN, *limits)
    return _PACKET.pack(_MARK, _BARE_KINDS[message], *_NO_LIMITS)


def decode(packet: bytes) -> Message | None:
    """Return the message in a packet, or ``None`` if it is of a kind we do not know or makes no sense."""
    if len(packet) != PACKET_BYTES:
        return None
    mark, kind, *limits = _PACKET.unpack(packet)
    if mark != _MARK:
        return None
    if kind == _DRAIN:
        return Drain((limits[0], limits[1], limits[2])) if _plausible((limits[0], limits[1], limits[2])) else None
    if kind == _SCALE:
        return Scale(int(limits[0])) if 0 < limits[0] <= MOST_SCALED and limits[0].is_integer() else None
    if kind == _RETIRE:
        return Retire(Reason(int(limits[0]))) if limits[0] in _REASONS else Retire()
    return _BARE.get(kind)


def _plausible(limits: tuple[float, float, float]) -> bool:
    return all(math.isfinite(limit) for limit in limits) and 0 <= limits[0] <= limits[1] <= limits[2] <= MAX_LIMIT_S


class Reader:
    """Cuts the stream of a channel into messages; keeps at most one unfinished packet."""

    def __init__(self) -> None:
        """Start with nothing read."""
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        """Take bytes as they came; return the messages that are complete, without those not understood."""
        data = self._rest + data
        end = len(data) - len(data) % PACKET_BYTES
        self._rest = data[end:]
        packets = (data[start : start + PACKET_BYTES] for start in range(0, end, PACKET_BYTES))
        return [message for packet in packets if (message := decode(packet)) is not None]


def open_channel() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a channel, both non-blocking and closed by ``exec``."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


def send(channel: socket.socket, message: Message, file: int | None = None) -> bool:
    """Send a message without waiting, with ``file`` if one is given: an open one, of which the other side gets a copy.

    ``False`` if the other side is gone or has not read for very long.
    """
    packet = encode(message)
    try:
        # A stream socket takes such a small packet whole or not at all: its buffer holds thousands.
        if file is None:
            return channel.send(packet) == len(packet)
        return socket.send_fds(channel, [packet], [file]) == len(packet)
    except OSError:
        return False


def receive(channel: socket.socket, reader: Reader, files: list[int] | None = None) -> tuple[list[Message], bool]:
    """Read what is there without waiting, a reasonable part at least; return it, and whether the other side is gone.

    Open files that come with it are added to ``files``; without that the system closes them.
    """
    messages: list[Message] = []
    for _ in range(_MOST_READS):
        try:
            if files is None:
                data = channel.recv(_RECEIVE_BYTES)
            else:
                data, came, _, _ = socket.recv_fds(channel, _RECEIVE_BYTES, _MOST_FILES)
                files += came
        except BlockingIOError:
            return messages, False
        except OSError:
            return messages, True
        if not data:
            return messages, True
        messages += reader.feed(data)
    return messages, False
