"""What the master and a worker say to each other, over one socket pair per worker.

Every message is one fixed-size packet with a mark in front, so that a stray byte is noticed. What is not understood is
ignored: a worker may be of another version than its master (upgrade in place). The end of the stream says that the
other process is gone, however it went; nothing else is needed to notice the death of a master, SIGKILL included.

Down: ``Drain`` and ``StopNow``. Up: ``Ready`` and ``Retire``. Pure functions and one small buffer; ``send`` and
``receive`` are the only ones that touch a socket, and neither ever waits.
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

_RECEIVE_BYTES: Final = 64 * PACKET_BYTES


@dataclass(frozen=True, slots=True)
class Ready:
    """Worker to master: the filter is loaded, ``worker_started`` is done, connections are being accepted."""


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
    """Master to worker: close every connection and leave at once."""


Message = Ready | Retire | Drain | StopNow

_REASONS: Final = frozenset(float(reason) for reason in Reason)

_READY: Final = 1
_DRAIN: Final = 2
_STOP_NOW: Final = 3
_RETIRE: Final = 4


def encode(message: Message) -> bytes:
    """Return the packet of a message.

    >>> decode(encode(Drain((20.0, 40.0, 60.0))))
    Drain(limits=(20.0, 40.0, 60.0))
    """
    match message:
        case Ready():
            return _PACKET.pack(_MARK, _READY, *_NO_LIMITS)
        case Retire(reason):
            return _PACKET.pack(_MARK, _RETIRE, float(reason), 0.0, 0.0)
        case StopNow():
            return _PACKET.pack(_MARK, _STOP_NOW, *_NO_LIMITS)
        case Drain(limits):
            if not _plausible(limits):
                raise ValueError(f"limits of a drain must rise from 0 to at most {MAX_LIMIT_S:.0f} s: {limits}")
            return _PACKET.pack(_MARK, _DRAIN, *limits)


def decode(packet: bytes) -> Message | None:
    """Return the message in a packet, or ``None`` if it is of a kind we do not know or makes no sense."""
    if len(packet) != PACKET_BYTES:
        return None
    mark, kind, *limits = _PACKET.unpack(packet)
    if mark != _MARK:
        return None
    if kind == _READY:
        return Ready()
    if kind == _STOP_NOW:
        return StopNow()
    if kind == _RETIRE:
        return Retire(Reason(int(limits[0]))) if limits[0] in _REASONS else Retire()
    if kind == _DRAIN and _plausible((limits[0], limits[1], limits[2])):
        return Drain((limits[0], limits[1], limits[2]))
    return None


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


def send(channel: socket.socket, message: Message) -> bool:
    """Send a message without waiting; ``False`` if the other side is gone or has not read for very long."""
    packet = encode(message)
    try:
        # A stream socket takes such a small packet whole or not at all: its buffer holds thousands.
        return channel.send(packet) == len(packet)
    except OSError:
        return False


def receive(channel: socket.socket, reader: Reader) -> tuple[list[Message], bool]:
    """Read what is there without waiting; return the messages, and whether the other side is gone."""
    messages: list[Message] = []
    while True:
        try:
            data = channel.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return messages, False
        except OSError:
            return messages, True
        if not data:
            return messages, True
        messages += reader.feed(data)
