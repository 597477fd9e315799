"""Memory, descriptors and threads of the processes of a server, looked at every second, and what their memory does.

A slope is that of the straight line with the least squares through the samples of one process. Of several processes
(the workers of a generation, the master before and after it replaced itself) the samples have one slope and a height
of their own each: only what grows within a process counts.
"""

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import psutil

EVERY_S: Final = 1.0
WARM_UP_S: Final = 120.0
"""What a worker gets to grow to its size: caches, threads and their heaps, the largest message yet.

With threads it gains about 1 MB in its first minute, a tenth of that in the second, and then next to nothing.
"""
SHORT_WARM_UP_S: Final = 15.0
"""What master and monitor get: there is little that they do for the first time later."""


class Sample(NamedTuple):
    at: float
    resident: int
    is_calm: bool


@dataclass
class Track:
    """One process; a master that has replaced itself is another one."""

    role: str
    pid: int
    samples: list[Sample] = field(default_factory=list)

    def steady(self, *, calm_only: bool, warm_up: float) -> list[Sample]:
        """Return the samples behind the warm-up."""
        samples = [sample for sample in self.samples if sample.is_calm or not calm_only]
        return [sample for sample in samples if sample.at >= samples[0].at + warm_up]


class Slope(NamedTuple):
    """What memory does."""

    kb_per_minute: float
    longest_s: float
    """How long that process was looked at that was for longest."""
    processes: int


class Usage(NamedTuple):
    """What a process has open."""

    role: str
    descriptors: int
    threads: int


def slope_of(groups: Iterable[list[Sample]]) -> Slope | None:
    """Return the common slope of the samples of some processes, ``None`` if there are too few."""
    above = below = longest = 0.0
    processes = 0
    for samples in groups:
        if len(samples) < 3:
            continue
        middle = sum(sample.at for sample in samples) / len(samples)
        mean = sum(sample.resident for sample in samples) / len(samples)
        above += sum((sample.at - middle) * (sample.resident - mean) for sample in samples)
        below += sum((sample.at - middle) ** 2 for sample in samples)
        longest = max(longest, samples[-1].at - samples[0].at)
        processes += 1
    return Slope(above / below / 1024 * 60, longest, processes) if below else None


def role_of(process: psutil.Process) -> str | None:
    """Return what a process of a server is by its title, ``None`` for one that is none yet, or that is gone."""
    try:
        words = " ".join(process.cmdline()).split()
    except psutil.Error:
        return None
    role = words[1] if words[:1] == ["fastmilter:"] else None
    return role if role in ("master", "monitor", "worker") else None


def usage_of(master: int) -> list[Usage]:
    """Return what the processes of a server have open; one that goes meanwhile is left out."""
    found = []
    parent = psutil.Process(master)
    for process in (parent, *parent.children()):
        role = role_of(process)
        try:
            if role is not None:
                found.append(Usage(role, process.num_fds(), process.num_threads()))
        except psutil.Error:
            continue
    return sorted(found)


class Sampler(threading.Thread):
    """Looks at the processes of a server."""

    def __init__(self, master: int) -> None:
        super().__init__(name="sampler")
        self._master = psutil.Process(master)
        self._lock = threading.Lock()
        self._tracks: dict[int, Track] = {}
        self._calm = 0
        self.over = threading.Event()
        self.ended: list[Track] = []
        """The tracks of processes that are gone, or have been replaced in place; in the end of all."""

    def begin_calm(self) -> None:
        """Nothing is done to the server from now on."""
        with self._lock:
            self._calm += 1

    def end_calm(self) -> None:
        with self._lock:
            self._calm -= 1

    def begin_again(self) -> None:
        """The master has replaced itself: what it is from now on is another process."""
        with self._lock:
            self.ended += [track for track in self._tracks.values() if track.role == "master"]
            self._tracks = {pid: track for pid, track in self._tracks.items() if track.role != "master"}

    def run(self) -> None:
        while not self.over.wait(EVERY_S):
            self._look()
        self.ended += self._tracks.values()

    def _look(self) -> None:
        processes = [self._master, *self._master.children()]
        with self._lock:
            gone = set(self._tracks) - {process.pid for process in processes}
            self.ended += [self._tracks.pop(pid) for pid in gone]
            for process in processes:
                role = role_of(process)
                if role is None:
                    continue
                track = self._tracks.setdefault(process.pid, Track(role, process.pid))
                try:
                    resident = process.memory_info().rss
                except psutil.Error:
                    continue
                if resident:  # a dead process that is not reaped yet has none
                    track.samples.append(Sample(time.monotonic(), resident, self._calm > 0))
