"""What the clients of a soak saw, all of them together; judged when the workers have left word of what they had."""

import threading
import time
from collections import Counter
from dataclasses import dataclass

from fastmilter.constants import Step


class Fault(AssertionError):
    """Something that nothing explains."""


@dataclass(frozen=True)
class Broken:
    """A connection that the server broke."""

    name: str
    """The client's name in CONNECT; a worker notes those of its connections."""
    opened: float
    at: float
    was_idle: bool
    """No command was on its way for long: a worker that has drained closes such a connection at last."""
    what: str


@dataclass(frozen=True)
class Moved:
    """A connection that was told 421."""

    name: str
    client: str
    """The client in CONNECT, as the log has it: a callback that was out of time is told there with it."""
    step: Step


class Account:
    """Kept by many threads."""

    def __init__(self, first: int) -> None:
        """``first``: where numbers of messages begin, which say what happens to them."""
        self._lock = threading.Lock()
        self.seen: Counter[str] = Counter()
        self.faults: list[str] = []
        self.broken: list[Broken] = []
        self.moved: list[Moved] = []
        self.late: set[str] = set()
        """Clients that were told that a callback was out of time."""
        self.over = threading.Event()
        """Set at the end of the run, or when the first fault is found."""
        self._number = first

    def saw(self, what: str) -> None:
        with self._lock:
            self.seen[what] += 1

    def fault(self, text: str) -> None:
        """Something is wrong: the run ends."""
        with self._lock:
            self.faults.append(text)
        self.over.set()

    def broke(self, name: str, opened: float, what: str, *, was_idle: bool) -> None:
        with self._lock:
            self.seen["broken"] += 1
            self.broken.append(Broken(name, opened, time.monotonic(), was_idle, what))

    def told_421(self, moved: Moved) -> None:
        with self._lock:
            self.seen["moved (421)"] += 1
            self.moved.append(moved)

    def told_late(self, client: str) -> None:
        with self._lock:
            self.seen["out of time"] += 1
            self.late.add(client)

    def next_number(self) -> int:
        """Return a number that nobody else has."""
        with self._lock:
            self._number += 1
            return self._number
