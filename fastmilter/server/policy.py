"""When to start workers, drain them and give them up: what the master decides, without a process or a clock.

``Policy`` is told what happened (``on_...``) and returns what to do (``Action``); the supervisor does it, in order.
The clock and the dice are arguments, so every rule here is tested without waiting.

The rules:

- Workers are numbered from 1. A generation starts with worker 1 alone; the others follow when it is ready. So a filter
  that cannot be loaded is reported once, and costs one process.
- The first generation must become ready: if its first worker dies before, the server ends with a status that tells why.
- A worker that dies while the server runs is replaced. At once, if somebody killed it or if it had been healthy for
  long; after 1, 2, 4 ... 60 s, if it left by itself or crashed soon after its start. If no worker is left, the next is
  never further away than a second: a crash loop must not become an outage.
- A worker that asks to be replaced serves on until its successor is ready, then it drains. A quarter of the workers at
  most, but at least one, is being replaced or draining at a time: the others wait, unless they are stuck.
- So is a worker that ends with ``EXIT_CONFIG`` once its generation has served: what it lacked may be there again, as
  when it started while a deploy copied files.
- A reload starts a new generation beside the old one, which drains only when every new worker is ready. If one of them
  does not make it, the new ones go and the old ones stay. Two generations live at most: a reload that is asked for
  meanwhile waits until the older one is gone, and makes it hurry. An upgrade in place is a reload by another master.
- A worker that does not leave when its time is up is killed.

Times are seconds of ``time.monotonic()``.
"""

import logging
import math
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from fastmilter.server.channel import Reason
from fastmilter.server.decisions import (
    Action,
    CloseListeners,
    EndReload,
    Kill,
    Leave,
    LogAsBefore,
    PrepareReload,
    PrepareUpgrade,
    Say,
    SendDrain,
    SendStopNow,
    Spawn,
)
from fastmilter.server.ends import EXIT_CONFIG, EXIT_OK, EXIT_SOFTWARE, how, was_killed
from fastmilter.server.roster import Generation, Limits, State, Worker

BACKOFF_FIRST_S: Final = 1.0
BACKOFF_LONGEST_S: Final = 60.0
BACKOFF_JITTER: Final = 0.2
"""A delay is multiplied by 1 plus or minus this, so that workers that fell together do not rise together."""
ONLY_WORKER_DELAY_S: Final = 1.0
HEALTHY_AFTER_S: Final = 60.0
"""A worker that was ready for so long has shown that it works."""
KILL_GRACE_S: Final = 5.0
"""What a worker that should leave at once, or that is lost, gets before it is killed."""
DRAIN_GRACE_S: Final = 10.0
"""What a draining worker gets beyond its last limit: it spends some of it on messages that are past DATA."""
MOST_WORKERS: Final = 1024
RECYCLED_TOGETHER: Final = 0.25
"""The share of the workers that may be on their way out at a time because they asked for it."""

_WHY: Final = {
    Reason.STUCK: "too many of its callbacks are stuck",
    Reason.MESSAGES: "it has served its messages (--max-messages)",
    Reason.AGE: "it has reached its age (--max-age)",
    Reason.MEMORY: "it has too much memory (--max-rss)",
}


def _throw() -> float:
    """Return a number from 0 to 1; for so few, the module random with its tables is not worth its memory."""
    return int.from_bytes(os.urandom(4)) / 0xFFFFFFFF


class Policy:
    """The decisions of one master, from its start to its end."""

    def __init__(
        self,
        workers: int,
        limits: Limits,
        *,
        capacity: int,
        clock: Callable[[], float],
        dice: Callable[[], float] = _throw,
    ) -> None:
        """Prepare to run ``workers``; ``capacity`` is the number of slots, ``dice`` gives numbers from 0 to 1."""
        self._clock = clock
        self._dice = dice
        self._capacity = capacity
        self._workers: dict[int, Worker] = {}
        self._current = Generation(1, workers, limits)
        self._next: Generation | None = None
        self._last_worker = 0
        self._last_generation = 1
        self._reload_asked = False
        self._upgrade_asked = False
        self._reload_meant = False  # by somebody else than who asked for the upgrade that is tried
        self._stopping = False
        self._status = EXIT_OK
        self._left = False
        self._actions: list[Action] = []

    @property
    def stopping(self) -> bool:
        """Whether the server is on its way out."""
        return self._stopping

    @property
    def wanted(self) -> int:
        """How many workers there should be."""
        return (self._next or self._current).wanted

    @property
    def newest(self) -> int:
        """The number of the newest generation."""
        return self._last_generation

    @property
    def generation(self) -> int:
        """The number of the generation that serves."""
        return self._current.generation

    @property
    def proven(self) -> bool:
        """Whether a worker of the generation that serves ever became ready."""
        return self._current.proven

    @property
    def changing(self) -> bool:
        """Whether a reload or an upgrade is under way, or remembered."""
        return self._next is not None or self._reload_asked or self._upgrade_asked

    @property
    def settled(self) -> bool:
        """Whether one generation serves as a whole and no change of it is under way or asked for."""
        if self._stopping or self.changing or not self.proven:
            return False
        return not any(record.state is State.STARTING for record in self._members(self._current))

    @property
    def may_be_followed(self) -> bool:
        """Whether another master can take over now: there is one generation, which has shown that it works."""
        return self.proven and self._next is None and not self._stopping and not self._older()

    @property
    def serving(self) -> int:
        """How many workers take new connections."""
        return sum(record.state is State.SERVING for record in self._workers.values())

    # -- from one master to the next (upgrade in place) ----------------------------------------------------------

    def workers(self) -> list[Worker]:
        """Return the records of all workers, for the master that follows."""
        return list(self._workers.values())

    def adopt(self, workers: Iterable[Worker], generation: int, wanted: int) -> None:
        """Begin with the workers of a former master, in place of ``start``; ``generation`` was its newest."""
        self._current.wanted = wanted
        self._workers = {record.worker: record for record in workers}
        self._last_worker = max(self._workers, default=0)
        self._last_generation = self._current.generation = generation
        self._current.proven = True

    # -- what happened -------------------------------------------------------------------------------------------

    def start(self) -> list[Action]:
        """Begin."""
        self._fill(self._current)
        return self._take()

    def on_ready(self, worker: int) -> list[Action]:
        """A worker says that it serves."""
        record = self._workers.get(worker)
        if record is None or record.was_ready:
            return self._take()
        record.ready_at = self._clock()
        if record.state is State.DRAINING:  # asked to leave while it was starting: now it may finish what it accepted
            if not record.told_to_stop and not record.killed:
                record.deadline = record.drained_by
            return self._take()
        record.state, record.deadline = State.SERVING, math.inf
        generation = self._generation_of(record)
        if generation is not None:
            generation.proven = True
            self._fill(generation)
            self._relieve(generation, record.number)
            if generation is self._next and self._serving(generation) == generation.wanted:
                self._commit_reload()
        self._consider_retiring()
        self._consider_reload()
        return self._take()

    def on_exit(self, worker: int, status: int) -> list[Action]:
        """A worker is gone; ``status`` is its exit code, or the negative number of the signal that ended it."""
        record = self._workers.pop(worker, None)
        if record is None:
            return self._take()
        generation = self._generation_of(record)
        if self._stopping:
            if status != EXIT_OK and record.was_ready and not record.told_to_stop and not self._status:
                self._status = EXIT_SOFTWARE
        elif record.state is State.DRAINING or generation is None:
            pass  # it was asked to leave
        elif record.retiring and any(other.number == record.number for other in self._members(generation)):
            pass  # its successor is on the way
        elif not generation.proven and generation is self._current:
            self._say(logging.ERROR, f"no worker became ready: {how(status)}")
            self._begin_stop(EXIT_CONFIG if status == EXIT_CONFIG else EXIT_SOFTWARE)
        elif generation is self._next and (not record.was_ready or not was_killed(status)):
            self._abort_reload(f"worker {record.number} of the new generation {how(status)}")
        else:
            self._replace(generation, record, status)
        self._consider_retiring()
        self._consider_reload()
        self._consider_leaving()
        return self._take()

    def on_lost(self, worker: int) -> list[Action]:
        """A worker closed its channel: it ends by itself, or can no longer be reached."""
        record = self._workers.get(worker)
        if record is not None and record.state is not State.DRAINING:
            record.lost = True
            record.deadline = min(record.deadline, self._clock() + KILL_GRACE_S)
        return self._take()

    def on_retire(self, worker: int, reason: Reason = Reason.STUCK) -> list[Action]:
        """A worker wants to be replaced: its successor starts first, then it drains."""
        record = self._workers.get(worker)
        if record is not None and record.asks is None:
            record.asks = reason
            self._consider_retiring()
        return self._take()

    def on_stop(self) -> list[Action]:
        """TERM or INT: drain and leave; the second time, now."""
        if self._stopping:
            return self.on_stop_now()
        self._say(logging.INFO, "stopping: draining all workers")
        self._begin_stop(EXIT_OK)
        self._consider_leaving()
        return self._take()

    def on_stop_now(self) -> list[Action]:
        """QUIT, or the second TERM: leave without waiting for connections."""
        self._say(logging.INFO, "stopping now")
        if not self._stopping:
            self._begin_stop(EXIT_OK)
        for record in self._workers.values():
            record.told_to_stop = True
            record.deadline = min(record.deadline, self._clock() + KILL_GRACE_S)
            self._actions.append(SendStopNow(record.worker))
        self._consider_leaving()
        return self._take()

    def on_reload(self) -> list[Action]:
        """HUP: start a new generation, now or as soon as at most one lives."""
        if self._stopping:
            return self._take()
        self._reload_asked = True
        return self._change("reload")

    def on_upgrade(self) -> list[Action]:
        """USR2: the same by a new master in place of this one."""
        if self._stopping:
            return self._take()
        self._upgrade_asked = True
        return self._change("upgrade")

    def on_upgrade_failed(self) -> list[Action]:
        """The new code cannot take over: a reload that was asked for beside the upgrade comes now, alone."""
        meant, self._reload_meant = self._reload_meant, False
        return self.on_reload() if meant else self._take()

    def _change(self, what: str) -> list[Action]:
        if self._next is not None or not self._current.proven or self._older():
            self._say(logging.INFO, f"{what}: remembered, another change of generations is under way")
            for record in self._older():
                self._drain(record, self._current.limits.drain_stop)
        self._consider_reload()
        return self._take()

    def on_more(self) -> list[Action]:
        """TTIN: one worker more."""
        return self._scale(self.wanted + 1)

    def on_fewer(self) -> list[Action]:
        """TTOU: one worker less, but never the last one."""
        return self._scale(self.wanted - 1)

    def on_scale(self, workers: int) -> list[Action]:
        """Have so many workers."""
        return self._scale(workers)

    def begin_reload(self, workers: int, limits: Limits) -> list[Action]:
        """Start the new generation, after ``PrepareReload``."""
        if self._stopping or self._next is not None:
            return self._take()
        self._last_generation += 1
        self._next = Generation(self._last_generation, workers, limits)
        self._say(logging.INFO, f"reload: starting generation {self._next.generation}")
        self._fill(self._next)
        return self._take()

    def refuse_reload(self) -> list[Action]:
        """Go on with the generation that serves, after ``PrepareReload``; workers that it lacks are started."""
        if not self._stopping:
            self._fill(self._current)
        return self._take()

    def on_time(self) -> list[Action]:
        """Do what is due; to be called whenever ``next_deadline`` has come, other calls do not harm."""
        now = self._clock()
        for record in [record for record in self._workers.values() if record.deadline <= now]:
            self._expire(record)
        for generation in self._generations():
            for number in sorted(number for number, at in generation.missing.items() if at <= now):
                self._spawn(generation, number)
        return self._take()

    def next_deadline(self) -> float | None:
        """Return when ``on_time`` has something to do, ``None`` if nothing is planned."""
        times = [record.deadline for record in self._workers.values()]
        times += [at for generation in self._generations() for at in generation.missing.values()]
        nearest = min(times, default=math.inf)
        return nearest if nearest < math.inf else None

    def shift(self, gap: float) -> None:
        """Move everything that is planned: the process was stopped for ``gap`` seconds, and its workers perhaps too."""
        for record in self._workers.values():
            record.deadline += gap
            record.drained_by += gap
            record.ready_at += gap
        for generation in self._generations():
            generation.missing = {number: at + gap for number, at in generation.missing.items()}

    # -- what follows from it ------------------------------------------------------------------------------------

    def _take(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions

    def _say(self, level: int, text: str) -> None:
        self._actions.append(Say(level, text))

    def _generations(self) -> Iterator[Generation]:
        """The generations whose workers are replaced: none once the server stops."""
        if not self._stopping:
            yield self._current
            if self._next is not None:
                yield self._next

    def _generation_of(self, record: Worker) -> Generation | None:
        return next((known for known in self._generations() if known.generation == record.generation), None)

    def _members(self, generation: Generation) -> list[Worker]:
        """The workers of a generation that are there to stay."""
        return [
            record
            for record in self._workers.values()
            if record.generation == generation.generation and record.state is not State.DRAINING
        ]

    def _serving(self, generation: Generation) -> int:
        return sum(record.state is State.SERVING for record in self._members(generation))

    def _older(self) -> list[Worker]:
        """The workers of generations that were replaced, or that were given up by a failed reload."""
        known = {generation.generation for generation in self._generations()}
        return [record for record in self._workers.values() if record.generation not in known]

    def _fill(self, generation: Generation) -> None:
        """Start the workers that a generation lacks, drain those that it has too many of."""
        members = self._members(generation)
        present = {record.number for record in members} | generation.missing.keys()
        for number in range(1, (generation.wanted if generation.proven else 1) + 1):
            if number not in present:
                self._spawn(generation, number)
        for number in [number for number in generation.missing if number > generation.wanted]:
            del generation.missing[number]
        # Where none within the number is there yet, the first one beyond it stays until one is: somebody must serve.
        there = sorted(record.number for record in members)
        kept = [number for number in there if number <= generation.wanted] or there[:1]
        for record in members:
            if record.number not in kept:
                self._drain(record, self._current.limits.drain_reload)
        self._hurry(generation)

    def _relieve(self, generation: Generation, number: int) -> None:
        """Drain who waited for this worker to become ready."""
        for record in self._members(generation):
            if record.number == number and record.retiring:
                self._drain(record, generation.limits.drain_reload)

    def _consider_retiring(self) -> None:
        """Start the successors that workers asked for, as many at a time as the others can do without."""
        if self._stopping or self._next is not None:
            return  # they all go, or it shows soon whether they do
        current = self._current
        ours = [record for record in self._workers.values() if record.generation == current.generation]
        leaving = sum(record.retiring or record.state is State.DRAINING for record in ours)
        for record in ours:
            if record.state is not State.SERVING or record.asks is None or record.retiring:
                continue
            if record.asks is Reason.STUCK or leaving < max(1, int(current.wanted * RECYCLED_TOGETHER)):
                leaving += 1
                record.retiring = True
                level = logging.WARNING if record.asks is Reason.STUCK else logging.INFO
                self._say(level, f"worker {record.number}: {_WHY[record.asks]}: starting its successor")
                self._spawn(current, record.number)

    def _hurry(self, generation: Generation) -> None:
        """Where no worker is left, bring the next one near."""
        if generation.missing and not self._members(generation):
            first = min(generation.missing, key=lambda number: generation.missing[number])
            generation.missing[first] = min(generation.missing[first], self._clock() + ONLY_WORKER_DELAY_S)

    def _spawn(self, generation: Generation, number: int) -> None:
        generation.missing.pop(number, None)
        taken = {record.slot for record in self._workers.values()}
        slot = next((slot for slot in range(self._capacity) if slot not in taken), None)
        now = self._clock()
        if slot is None:
            self._say(logging.ERROR, f"worker {number} cannot start: {self._capacity} processes are there already")
            generation.missing[number] = now + BACKOFF_LONGEST_S
            return
        self._last_worker += 1
        record = Worker(self._last_worker, number, slot, generation.generation, now + generation.limits.ready)
        self._workers[record.worker] = record
        self._actions.append(Spawn(record.worker, number, slot, generation.generation))

    def _replace(self, generation: Generation, record: Worker, status: int) -> None:
        """Plan the successor of a worker that died while it was needed."""
        number, now = record.number, self._clock()
        healthy = record.was_ready and now - record.ready_at >= HEALTHY_AFTER_S
        if healthy or (record.was_ready and was_killed(status)):
            failures = 0 if healthy else generation.failures.get(number, 0)
            delay = 0.0
        else:
            failures = generation.failures.get(number, 0) + 1
            delay = min(BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 30), BACKOFF_LONGEST_S)
            delay *= 1 + BACKOFF_JITTER * (2 * self._dice() - 1)
        generation.failures[number] = failures
        generation.missing[number] = now + delay
        self._hurry(generation)
        wait = generation.missing[number] - now
        when = f"in {wait:.1f} s" if wait > 0 else "now"
        level = logging.ERROR if status == EXIT_CONFIG else logging.WARNING
        self._say(level, f"worker {number} {how(status)}: starting another {when}")
        if wait <= 0:
            self._spawn(generation, number)

    def _drain(self, record: Worker, limits: tuple[float, float, float]) -> None:
        """Tell a worker to drain; one that drains already is told again only if that makes it leave earlier."""
        drained_by = self._clock() + limits[2] + DRAIN_GRACE_S
        if record.drained_by <= drained_by:
            return
        record.state, record.drained_by = State.DRAINING, drained_by
        # A worker that is not ready yet has no connections: it has nothing to finish, and may hang.
        record.deadline = drained_by if record.was_ready else self._clock() + KILL_GRACE_S
        self._actions.append(SendDrain(record.worker, limits))

    def _expire(self, record: Worker) -> None:
        """Act on a worker whose time is up."""
        if record.killed:  # it does not even die: the kernel holds it; count it as gone
            self._say(logging.ERROR, f"worker {record.number} does not end although it was killed")
            self._actions = self.on_exit(record.worker, -signal.SIGKILL)
            return
        if record.state is State.DRAINING:
            why = "did not leave in time"
        elif record.lost:
            why = "let go of its channel and did not end"
        else:
            why = f"was not ready within {self._ready_limit(record):.0f} s"
        self._say(logging.ERROR, f"worker {record.number} {why}: killed")
        record.killed = True
        record.deadline = self._clock() + KILL_GRACE_S
        self._actions.append(Kill(record.worker))

    def _ready_limit(self, record: Worker) -> float:
        generation = self._generation_of(record)
        return (generation or self._current).limits.ready

    def _scale(self, wanted: int) -> list[Action]:
        if self._stopping or not 1 <= wanted <= MOST_WORKERS:
            self._say(logging.INFO, f"the number of workers stays {self.wanted}")
            return self._take()
        for generation in self._generations():  # both: should the reload fail, the old one has the new size
            generation.wanted = wanted
        self._say(logging.INFO, f"the number of workers is now {wanted}")
        if self._next is None:
            self._fill(self._current)
        else:
            self._fill(self._next)
            if self._serving(self._next) == self._next.wanted:
                self._commit_reload()
                self._consider_reload()
        return self._take()

    def _consider_reload(self) -> None:
        asked = self._reload_asked or self._upgrade_asked
        if not asked or self._stopping or self._next is not None or not self._current.proven:
            return
        for record in self._older():
            self._drain(record, self._current.limits.drain_stop)
        if self._older():
            return
        if self._upgrade_asked:
            self._reload_meant = self._reload_meant or self._reload_asked
        self._actions.append(PrepareUpgrade() if self._upgrade_asked else PrepareReload())
        self._reload_asked = self._upgrade_asked = False

    def _commit_reload(self) -> None:
        """The new generation is ready as a whole: the old one leaves."""
        assert self._next is not None
        self._current, self._next = self._next, None
        self._say(logging.INFO, f"reload: generation {self._current.generation} serves, the old workers drain")
        self._actions.append(EndReload(self._current.generation))
        for record in self._older():
            self._drain(record, self._current.limits.drain_reload)

    def _abort_reload(self, why: str) -> None:
        """The new generation did not make it: the old one stays."""
        self._next = None
        self._actions.append(LogAsBefore())
        self._say(logging.ERROR, f"reload failed, the old workers stay: {why}")
        for record in self._older():
            self._drain(record, self._current.limits.drain_stop)
        self._actions.append(EndReload(self._current.generation))
        self._fill(self._current)

    def _begin_stop(self, status: int) -> None:
        self._stopping, self._status = True, status
        self._next = None
        self._actions.append(CloseListeners())
        for record in self._workers.values():
            self._drain(record, self._current.limits.drain_stop)

    def _consider_leaving(self) -> None:
        if self._stopping and not self._workers and not self._left:
            self._left = True
            self._actions.append(Leave(self._status))
