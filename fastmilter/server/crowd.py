"""How many connections a worker takes, and how much of a message each of them.

A worker that is full leaves the listeners until there is room again; where all are full, new connections wait in the
queue of the listening socket. That is better for an MTA than a refusal, which means its default action at once: its own
time-out (30 s in Postfix) is long enough for a peak to pass.
"""

import logging
import os
import time
from typing import Final

from fastmilter.limits import Limits
from fastmilter.server.descriptors import connections_of_a_worker
from fastmilter.server.settings import Settings
from fastmilter.server.slots import Slots
from fastmilter.session import Session

log = logging.getLogger(__name__)

SAY_AGAIN_S: Final = 60.0
"""How long a worker that is still, or again, full says nothing more of it."""


class Crowd:
    """The connections of one worker, and the limits of its settings."""

    def __init__(self, settings: Settings, slots: Slots) -> None:
        """Take the limits; made in the worker, whose descriptors may bound its connections."""
        self._most = connections_of_a_worker(settings)
        self._most_of_all = settings.max_connections
        self._slots = slots
        self._limits = Limits(settings.max_recipients, settings.max_header_fields, settings.max_header_bytes)
        self._said_at = float("-inf")

    def limit(self, session: Session) -> None:
        """Set the limits of a message for a new connection."""
        session.limits = self._limits

    def is_full(self, connections: int) -> bool:
        """Tell whether a worker with so many connections must not take another one."""
        if connections >= self._most:
            self._say(f"this worker has {connections} connections, its limit (--max-connections-per-worker)")
            return True
        return self.all_are_full()

    def all_are_full(self) -> bool:
        """Tell whether no worker at all must take another connection."""
        if not self._most_of_all or self._slots.all_connections() < self._most_of_all:
            return False
        self._say(f"there are {self._most_of_all} connections, the limit of this server (--max-connections)")
        return True

    def _say(self, text: str) -> None:
        now = time.monotonic()
        if now - self._said_at >= SAY_AGAIN_S:
            self._said_at = now
            log.warning("%s: new ones wait until there is room pid=%d", text, os.getpid())
