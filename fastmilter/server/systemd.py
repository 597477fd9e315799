"""What systemd and a server say to each other: sockets that it has opened, and how the server is.

The master tells by datagrams (``sd_notify``) when it serves, reloads and stops, what it is at, and, where systemd asks
for it (``WatchdogSec=``), that its loop turns and somebody serves. Nothing is ever waited for, and without systemd
nothing is sent.
"""

import contextlib
import logging
import os
import socket
from collections import deque
from collections.abc import Mapping, MutableMapping
from enum import Enum
from typing import Final

from fastmilter.errors import ConfigError

log = logging.getLogger(__name__)

FIRST_SOCKET: Final = 3
"""The number of the first descriptor that is handed over; the others follow."""

_AGAIN_S: Final = 0.5
_MOST_UNSENT: Final = 16
_MOST_SOCKETS: Final = 1024
_OF_SOCKETS: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_OF_NOTICES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


def take_sockets(environment: MutableMapping[str, str]) -> list[int]:
    """Return the descriptors that systemd has opened for this process; nobody finds them after that.

    Raises ``ConfigError`` if there are none.
    """
    count, pid = _number(environment.get("LISTEN_FDS")), _number(environment.get("LISTEN_PID"))
    if not count or pid != os.getpid() or count > _MOST_SOCKETS:
        raise ConfigError("systemd has handed no sockets to this process: a .socket unit must start it")
    for name in _OF_SOCKETS:
        environment.pop(name, None)
    return list(range(FIRST_SOCKET, FIRST_SOCKET + count))


def forget_in_child(environment: MutableMapping[str, str]) -> None:
    """Take out of the environment of a worker, and so of what it starts, what is meant for the master."""
    for name in _OF_SOCKETS + _OF_NOTICES:
        environment.pop(name, None)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 20 else None


class Phase(Enum):
    """What the server is at, as far as systemd wants to know; the value is what it is sent."""

    SERVING = "READY=1\nMAINPID={pid}"
    RELOADING = "RELOADING=1\nMONOTONIC_USEC={now}"
    STOPPING = "STOPPING=1\nEXTEND_TIMEOUT_USEC={leave}"


class Notifier:
    """Tells systemd how the master is."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Read where to send notices, and how often systemd wants to hear from us."""
        self._to = _address_in(environment.get("NOTIFY_SOCKET", ""))
        period_us = _number(environment.get("WATCHDOG_USEC"))
        is_ours = _number(environment.get("WATCHDOG_PID")) in (None, os.getpid())
        self._period_s = period_us / 2e6 if period_us and is_ours and self._to is not None else None
        self._next_sign = 0.0
        self._told: Phase | None = None
        self._status = ""
        self._unsent: deque[str] = deque(maxlen=_MOST_UNSENT)
        self._again_at = 0.0

    def next_sign(self) -> float | None:
        """Return when ``look`` must be called at the latest (``time.monotonic()``), ``None`` if it need not be."""
        sign = None if self._period_s is None else self._next_sign
        if not self._unsent:
            return sign
        return self._again_at if sign is None else min(sign, self._again_at)

    def look(self, now: float, phase: Phase | None, serving: int, *, leave_s: float = 0.0) -> None:
        """Tell what has changed; ``serving`` is how many workers take connections, ``phase`` ``None``: as before.

        ``leave_s`` is how long a stop may take, which may be more than ``TimeoutStopSec=`` of the unit.
        """
        if self._to is None:
            return
        words = []
        if phase is Phase.RELOADING and self._told is not Phase.SERVING:
            phase = None  # nobody has been told yet that there is something to reload
        if phase is not None and phase is not self._told and self._told is not Phase.STOPPING:
            self._told = phase
            words.append(phase.value.format(pid=os.getpid(), now=int(now * 1e6), leave=int(leave_s * 1e6)))
        status = f"{serving} workers serve" if serving != 1 else "1 worker serves"
        if self._told is Phase.STOPPING:
            status = "stopping"
        elif self._told is Phase.RELOADING:
            status = f"reloading, {status}"
        if status != self._status:
            self._status = status
            words.append(f"STATUS={status}")
        if self._period_s is not None and now >= self._next_sign:
            self._next_sign = now + self._period_s
            if serving or self._told is Phase.STOPPING:  # a server that cannot serve had better be started anew
                words.append("WATCHDOG=1")
        if words:
            self._unsent.append("\n".join(words))
        if self._unsent:
            self._send(now)

    def _send(self, now: float) -> None:
        """Send what is to be sent, in order; what systemd has no room for now is kept: it would wait for READY."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            while self._unsent:
                try:
                    sock.sendto(self._unsent[0].encode(), self._to or "")
                except BlockingIOError:
                    self._again_at = now + _AGAIN_S
                    return
                self._unsent.popleft()
        self._unsent.clear()  # there is nobody to send it to


def _address_in(text: str) -> str | None:
    """Return the address of a datagram socket: a path, or an abstract name."""
    if text[:1] == "@":
        return "\0" + text[1:]
    if text and text[0] != "/":
        log.warning("NOTIFY_SOCKET is %r, which is not a socket that can be written to", text)
    return text if text[:1] == "/" else None
