"""A supervision policy on a bench: its clock and its dice are in the hands of the test."""

import json
import signal
from collections.abc import Callable

from fastmilter.server.decisions import (
    Action,
    PrepareReload,
    Say,
    SendDrain,
    Spawn,
)
from fastmilter.server.policy import Policy
from fastmilter.server.roster import Limits, Worker

STOP = (20.0, 40.0, 60.0)
RELOAD = (600.0, 900.0, 1200.0)
LIMITS = Limits(60.0, STOP, RELOAD)
SIGKILL, SIGSEGV = -signal.SIGKILL, -signal.SIGSEGV


class Bench:
    """A policy, its clock, and what it did."""

    def __init__(self, workers: int = 2, *, capacity: int = 64, dice: float = 0.5) -> None:
        self.now = 1000.0
        self.policy = Policy(workers, LIMITS, capacity=capacity, clock=lambda: self.now, dice=lambda: dice)
        self.said: list[tuple[int, str]] = []

    def acts(self, actions: list[Action]) -> list[Action]:
        """Return what was decided, without what was only said."""
        self.said += [(action.level, action.text) for action in actions if isinstance(action, Say)]
        return [action for action in actions if not isinstance(action, Say)]

    def pass_time(self, seconds: float) -> list[Action]:
        """Let the clock run, calling the policy exactly when it asks for it."""
        end, done = self.now + seconds, list[Action]()
        while (deadline := self.policy.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            done += self.acts(self.policy.on_time())
        self.now = end
        return done

    def running(self, workers: int = 2) -> list[Spawn]:
        """Start, and make all workers ready."""
        (first,) = spawns(self.acts(self.policy.start()))
        others = spawns(self.acts(self.policy.on_ready(first.worker)))
        for spawn in others:
            assert self.acts(self.policy.on_ready(spawn.worker)) == []
        assert len(others) == workers - 1
        return [first, *others]

    def reloaded(self, workers: int = 2) -> tuple[list[Spawn], list[Action]]:
        """Reload to the end; return the new workers, and what was done to the old ones."""
        assert self.acts(self.policy.on_reload()) == [PrepareReload()]
        new = spawns(self.acts(self.policy.begin_reload(workers, LIMITS)))
        done: list[Action] = []
        place = 0
        while place < len(new):
            done = self.acts(self.policy.on_ready(new[place].worker))
            new += spawns(done)
            place += 1
        return new, done


def spawns(actions: list[Action]) -> list[Spawn]:
    return [action for action in actions if isinstance(action, Spawn)]


def drained(actions: list[Action]) -> dict[int, tuple[float, float, float]]:
    return {action.worker: action.limits for action in actions if isinstance(action, SendDrain)}


def next_master(bench: Bench, clock: Callable[[], float] | None = None) -> Policy:
    """Return the policy of the next master, after the way of its state through JSON."""
    before = bench.policy
    text = json.dumps([record.to_state() for record in before.workers()])
    after = Policy(1, LIMITS, capacity=64, clock=clock or (lambda: bench.now), dice=lambda: 0.5)
    workers = [Worker.from_state({**state, "of another version": 1}) for state in json.loads(text)]
    after.adopt(workers, before.generation, before.wanted)
    return after
