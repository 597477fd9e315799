"""What is done to the server of a soak: all that an administrator can do to it, and a worker killed now and then.

Each change is waited for before the next one, so that what came of it can be told; workers that reach their number of
messages are replaced in between all the same.
"""

import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final

from tests.soak.account import Account
from tests.soak.measuring import Sampler
from tests.soak.server import WORKERS, SoakedServer, get

MOST_WORKERS: Final = WORKERS + 2
LONGEST_PAUSE_S: Final = 2.0
"""Between two changes, for the load to go on as usual."""
ASK_PAUSE_S: Final = 0.1
"""Between two rounds of questions to the monitor."""

_GROWS: Final = re.compile(r"^(fastmilter_\w+_total\S*) (\S+)$", re.MULTILINE)
_OF_A_PROCESS: Final = "fastmilter_worker_cpu_seconds_total"


class Storm:
    """Changes in random order, each of them as often as the others."""

    def __init__(self, server: SoakedServer, account: Account, sampler: Sampler, dice: random.Random) -> None:
        self._server = server
        self._account = account
        self._sampler = sampler
        self._dice = dice
        self.done: Counter[str] = Counter()
        self.killed: dict[int, float] = {}
        """The workers that were killed, and when."""
        self.upgrades: list[tuple[float, float]] = []
        """From when to when the monitor may have been away."""

    def rage(self, seconds: float) -> None:
        """Do each thing once, and go on so for some time, unless the run is over.

        There are upgrades in the first third only: in the rest the same master lives through all else that is done, so
        that its memory can tell something.
        """
        start = time.monotonic()
        acts = [self._reload, self._scale, self._kill, self._reopen, self._reload, self._scale]
        waiting: list[Callable[[], None]] = []
        first = True
        while not self._account.over.is_set():
            if not waiting:
                past = time.monotonic() - start
                if past > seconds and not first:
                    self._server.wait_for(self._server.recycled, "a worker is recycled")
                    self._scale_to(WORKERS)
                    return
                waiting = [*acts, self._upgrade] if first or past < seconds / 3 else [*acts]
                self._dice.shuffle(waiting)
                first = False
            waiting.pop()()
            if time.monotonic() < start + seconds:
                self._account.over.wait(self._dice.uniform(0, LONGEST_PAUSE_S))

    def renew(self, *, max_messages: int | None) -> None:
        """Have all workers replaced by some that are recycled after so many messages, or are not."""
        self._server.configure(max_messages=max_messages)
        self._reload()

    def _reload(self) -> None:
        before = self._server.wait_settled("what was before a reload is over")
        self._server.send(signal.SIGHUP)
        self._server.wait_settled("a reload", before["generation"] + 1)
        self.done["reloads"] += 1

    def _upgrade(self) -> None:
        before = self._server.wait_settled("what was before an upgrade is over")
        start = time.monotonic()
        self._sampler.begin_again()
        self._server.send(signal.SIGUSR2)
        self._server.wait_settled("an upgrade", before["generation"] + 1)
        self._sampler.begin_again()  # of what was meanwhile nobody can say which master it was
        self.upgrades.append((start, time.monotonic()))
        self.done["upgrades"] += 1

    def _scale(self) -> None:
        """One worker more or, where there are many, one less."""
        before = self._server.wait_settled("what was before the number of workers changes is over")
        more = before["workers_wanted"] < MOST_WORKERS and (
            before["workers_wanted"] <= WORKERS or self._dice.random() < 0.5
        )
        self._scale_to(before["workers_wanted"] + (1 if more else -1))
        self.done["scaled"] += 1

    def _scale_to(self, wanted: int) -> None:
        """Have so many workers, by a signal for each that is too few or too many."""
        while (now := self._server.must_status()["workers_wanted"]) != wanted:
            after = now + (1 if now < wanted else -1)
            self._server.send(signal.SIGTTIN if after > now else signal.SIGTTOU)
            self._server.wait_for(partial(self._is_size, after), f"{after} workers")
            self._server.wait_settled(f"{after} workers")

    def _is_size(self, wanted: int) -> bool:
        return bool(self._server.must_status()["workers_wanted"] == wanted)

    def _kill(self) -> None:
        workers = self._server.wait_settled("what was before a worker is killed is over")["workers"]
        victim = self._dice.choice(workers)["pid"]
        self.killed[victim] = time.monotonic()
        os.kill(victim, signal.SIGKILL)  # not reaped by us, but by the master, which waits for nothing else
        self._server.wait_for(
            lambda: victim not in [each["pid"] for each in self._server.must_status()["workers"]],
            f"the master learns of the death of {victim}",
        )
        self._server.wait_settled("the killed worker is replaced")
        self.done["kills"] += 1

    def _reopen(self) -> None:
        self._server.reopen_log()
        self.done["logs reopened"] += 1


class Asker(threading.Thread):
    """Asks the monitor all the time; what only grows must do so."""

    def __init__(self, server: SoakedServer, account: Account, port: int) -> None:
        super().__init__(name="asker")
        self._server = server
        self._account = account
        self._port = port
        self._most: dict[str, float] = {}
        self.over = threading.Event()
        self.failed: list[float] = []
        """When there was no answer."""

    def run(self) -> None:
        while not self.over.wait(ASK_PAUSE_S):
            self.ask()

    def ask(self) -> None:
        """Ask once."""
        began = time.monotonic()
        try:
            status, text = get(self._port, "/metrics")
        except OSError:
            self.failed.append(began)
        else:
            self._account.saw("asked /metrics")
            self._look(status, text)
        if self._server.status() is None:
            self.failed.append(began)
        else:
            self._account.saw("asked for the status")

    def _look(self, status: int, text: str) -> None:
        if status != 200:
            self._account.fault(f"/metrics was answered with {status}")
        for name, number in _GROWS.findall(text):
            if not name.startswith(_OF_A_PROCESS):
                if float(number) < self._most.get(name, 0.0):
                    self._account.fault(f"{name} was {self._most[name]:.0f} and is {number}")
                self._most[name] = float(number)

    def of(self, name: str) -> int:
        """Return the last number of a metric, over all its labels."""
        return int(sum(number for each, number in self._most.items() if each.partition("{")[0] == name))
