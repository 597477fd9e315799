"""When a worker asks to be replaced: after so many messages, at an age, or with too much memory.

It asks once a second, in its own loop; the master starts the successor first (``policy``). What a filter leaks, or a
library keeps, goes with the process.

The limits of workers that started together are spread by a tenth, so that they are not replaced together.
"""

import logging
import os
import socket
import time
from collections.abc import Callable
from typing import Final

from fastmilter.server import channel
from fastmilter.server.channel import Reason
from fastmilter.server.settings import Settings

log = logging.getLogger(__name__)

JITTER: Final = 0.1
"""A limit is multiplied by 1 plus or minus this."""
SAMPLE_S: Final = 2.0
"""How often the memory is looked at."""
SAMPLES: Final = 3
"""How many looks in a row must find too much: a large message is no leak."""

_MB: Final = 1 << 20


def _throw() -> float:
    """Return a number from 0 to 1."""
    return int.from_bytes(os.urandom(4)) / 0xFFFFFFFF


class Lifetime:
    """How long one worker lives, at most."""

    def __init__(
        self, settings: Settings, now: float, *, memory: Callable[[], int], dice: Callable[[], float] = _throw
    ) -> None:
        """Begin at ``now``; ``memory`` gives the resident bytes of this process."""
        spread = 1 + JITTER * (2 * dice() - 1)
        self._messages = max(1, round(settings.max_messages * spread)) if settings.max_messages else None
        self._end = now + settings.max_age * spread if settings.max_age is not None else None
        self._most = settings.max_rss
        self._memory = memory
        self._next_sample = now
        self._is_first = True
        self._above = 0

    def is_over(self, now: float, messages: int) -> Reason | None:
        """Return why the worker should go, ``None`` if it should not; ``messages`` is how many it has served."""
        if self._messages is not None and messages >= self._messages:
            return Reason.MESSAGES
        if self._end is not None and now >= self._end:
            return Reason.AGE
        if self._most is not None and now >= self._next_sample:
            self._next_sample = now + SAMPLE_S
            self._sample(self._most)
            if self._above >= SAMPLES:
                return Reason.MEMORY
        return None

    def _sample(self, most: int) -> None:
        size = self._memory()
        if self._is_first and size > most:  # so will its successor have, and so on
            log.warning(
                "a worker has %d MB before its first message, and --max-rss is %d MB: its memory is not limited pid=%d",
                size // _MB,
                most // _MB,
                os.getpid(),
            )
            self._most = None
        self._is_first = False
        self._above = self._above + 1 if size > most else 0


class Recycler:
    """Asks the master for a successor when the time has come; made in the worker."""

    def __init__(self, lifetime: Lifetime, to_master: socket.socket) -> None:
        """Take the worker's end of its channel."""
        self._lifetime: Lifetime | None = lifetime
        self._to_master = to_master

    def look(self, now: float, messages: int) -> None:
        """Ask if it is time; once, unless the master could not be reached."""
        if self._lifetime is None:
            return
        reason = self._lifetime.is_over(now, messages)
        if reason is not None and channel.send(self._to_master, channel.Retire(reason)):
            self._lifetime = None


def open_recycler(settings: Settings, to_master: socket.socket) -> Recycler | None:
    """Return what asks for the successor of this worker; ``None`` if it may live for ever."""
    if not settings.max_messages and settings.max_age is None and settings.max_rss is None:
        return None
    return Recycler(Lifetime(settings, time.monotonic(), memory=_resident), to_master)


def _resident() -> int:
    import psutil  # here: most workers do without it

    return int(psutil.Process().memory_info().rss)
