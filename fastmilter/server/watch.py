"""Which workers stand still, and which of them are given up: decisions alone, without a process or a clock.

A loop that turns changes something in its slot at least once a second: its heartbeat, or the number of callbacks begun.
``Watch`` is shown the slots about once a second, and reports a worker in which nothing has changed for too long: in a
callback after ``slow`` seconds, outside of any after ``STALE_S`` at least, and again after ten times as long each time.
It gives a worker up only if the operator asked for it, and only after a report.

Only time that was watched counts. A look that comes late says that the master itself stood still, by SIGSTOP or with
its whole machine; then its workers stood still with it, which is not their fault.

Times are seconds of ``time.monotonic()``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

LOOK_S: Final = 1.0
"""How often the slots are looked at; more often where less than twice as much is to be reported."""
SHORTEST_LOOK_S: Final = 0.1
LATE_S: Final = 1.0
"""A look that is later than planned by more than this does not count."""
STALE_S: Final = 5.0
"""How long a loop may do nothing outside of a callback: it turns once a second unless the machine is overloaded."""
STACK_S: Final = 1.0
"""How long a worker gets at least to write its stack, which a report shows; the processor may be busy."""
AGAIN: Final = 10.0
"""After how many times the time of one report the next one follows."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What the slot of a worker says; two that are equal mean that nothing moved between them."""

    callback: str
    """The callback in work, "" if none."""
    calls: int
    heartbeat: float
    """0.0: the loop has not begun yet, or is over."""


@dataclass(frozen=True, slots=True)
class StandsStill:
    """A worker has been in ``callback`` ("": in none) for ``seconds`` at least: to be reported."""

    worker: int
    callback: str
    seconds: float


@dataclass(frozen=True, slots=True)
class GoesOn:
    """A worker that was reported moves again; it stood still for ``seconds`` at least."""

    worker: int
    callback: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Hangs:
    """A worker has stood still for as long as the operator allows: to be killed."""

    worker: int
    callback: str
    seconds: float


Finding = StandsStill | GoesOn | Hangs


@dataclass(slots=True)
class _Watched:
    worker: int
    slow: float
    kill: float | None
    sight: Sight
    age: float = 0.0
    """For how long nothing has changed while it was watched."""
    reports: int = 0
    told_at: float = 0.0
    """Its age at the last report."""
    given_up: bool = False

    @property
    def first_report(self) -> float:
        return self.slow if self.kill is None else min(self.slow, self.kill)

    @property
    def shortest(self) -> float:
        return 0.0 if self.sight.callback else STALE_S

    @property
    def next_report(self) -> float:
        return max(self.first_report, self.shortest) * AGAIN**self.reports

    @property
    def is_hung(self) -> bool:
        """Whether its time is over, and it had time to show its stack."""
        if self.kill is None or not self.reports:
            return False
        return self.age >= max(self.kill, self.shortest, self.told_at + STACK_S)


_NOTHING_SEEN: Final = Sight("", 0, 0.0)


class Watch:
    """The decisions about the workers of one master."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        """Begin with no worker to watch."""
        self._clock = clock
        self._workers: dict[int, _Watched] = {}
        self._last_look = 0.0

    def add(self, worker: int, *, slow: float, kill: float | None) -> None:
        """Watch a worker; report it after ``slow`` seconds, give it up after ``kill``."""
        if not self._workers:
            self._last_look = self._clock()
        self._workers[worker] = _Watched(worker, slow, kill, _NOTHING_SEEN)

    def remove(self, worker: int) -> None:
        """Forget a worker that has ended."""
        del self._workers[worker]

    def next_look(self) -> float | None:
        """Return when ``look`` should be called next, ``None`` if there is nothing to watch."""
        return self._last_look + self._interval() if self._workers else None

    def _interval(self) -> float:
        shortest = min(record.first_report for record in self._workers.values())
        return min(max(shortest / 2, SHORTEST_LOOK_S), LOOK_S)

    def look(self, sights: Mapping[int, Sight]) -> list[Finding]:
        """Return what follows from ``sights``, one for each worker."""
        if not self._workers:
            return []
        now = self._clock()
        passed = now - self._last_look
        counts = passed <= self._interval() + LATE_S
        self._last_look = now
        findings: list[Finding] = []
        for record in self._workers.values():
            finding = _judge(record, sights[record.worker], passed if counts else 0.0)
            if finding is not None:
                findings.append(finding)
        return findings


def _judge(record: _Watched, sight: Sight, passed: float) -> Finding | None:
    """Take in what a worker shows after ``passed`` seconds; return what is to be done."""
    if sight != record.sight or not sight.heartbeat:
        former, age, was_reported = record.sight.callback, record.age, record.reports > 0
        record.sight, record.age, record.reports = sight, 0.0, 0
        return GoesOn(record.worker, former, age) if was_reported and not record.given_up else None
    record.age += passed
    if record.given_up:
        return None
    if record.is_hung:
        record.given_up = True
        return Hangs(record.worker, sight.callback, record.age)
    if record.age >= record.next_report:
        record.reports += 1
        record.told_at = record.age
        return StandsStill(record.worker, sight.callback, record.age)
    return None
