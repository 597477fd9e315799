"""CPU time of a whole process tree, as the operating system accounts it.

A control group of our own where one can be made: it counts every process that was ever in it, to the nanosecond (v1)
or microsecond (v2). Elsewhere the tree is walked: what the scheduler has counted for each task (``schedstat`` of
``/proc/PID``), for tasks that have ended as part of their process (its CPU clock), and for children that were waited
for (``cutime`` and ``cstime``, in clock ticks).
"""

import contextlib
import itertools
import os
import time
from abc import ABC, abstractmethod
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")
NANOSECONDS = 1_000_000_000
_numbers = itertools.count()


class Account(ABC):
    """The CPU time of one server and all its children."""

    kind: str
    """Where the figures come from, for the table."""

    @abstractmethod
    def command(self, words: list[str]) -> list[str]:
        """Return the command that runs ``words`` under this account."""

    @abstractmethod
    def cpu_seconds(self, pid: int) -> float:
        """CPU time used so far; ``pid`` is the root of the tree."""

    @abstractmethod
    def close(self) -> None:
        """Called when all processes have ended."""


class ControlGroup(Account):
    """A control group below the one of this process, or at the top where that is not shown."""

    def __init__(self, directory: Path, version: int) -> None:
        self.directory = directory
        self.version = version
        self.kind = f"control group (v{version})"

    @classmethod
    def make(cls) -> "ControlGroup | None":
        """Make one, or return ``None`` where that is not possible."""
        name = f"fastmilter-bench-{os.getpid()}-{next(_numbers)}"
        for version, parent in _parents():
            group = cls(parent / name, version)
            try:
                group.directory.mkdir()
            except OSError:
                continue
            try:
                os.close(os.open(group.directory / "cgroup.procs", os.O_WRONLY))
                group.cpu_seconds(0)
                return group
            except (OSError, ValueError):
                group.close()
        return None

    def command(self, words: list[str]) -> list[str]:
        """Go into the group, then become the program."""
        return ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(self.directory / "cgroup.procs"), *words]

    def cpu_seconds(self, pid: int) -> float:
        if self.version == 1:
            return int((self.directory / "cpuacct.usage").read_text()) / NANOSECONDS
        for line in (self.directory / "cpu.stat").read_text().splitlines():
            if line.startswith("usage_usec "):
                return int(line.split()[1]) / 1e6
        raise ValueError("cpu.stat without usage_usec")

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a process is still in it: an empty directory that stays does no harm
            self.directory.rmdir()


def _parents() -> list[tuple[int, Path]]:
    """Where a control group that counts CPU time may be made, with the version: the likeliest first."""
    found: list[tuple[int, Path]] = []
    for line in (PROC / "self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "cpuacct" in controllers.split(","):
            roots = [(1, CGROUPS / name) for name in (controllers, "cpuacct")]
        elif not controllers:
            roots = [(2, CGROUPS), (2, CGROUPS / "unified")]
        else:
            continue
        for version, root in roots:
            found += [(version, root / path.lstrip("/")), (version, root)]
    return found


class ProcessTree(Account):
    """The tree as ``/proc`` shows it. A child that leaves the tree (a daemon) is lost."""

    kind = "/proc/PID/schedstat over the process tree"

    def command(self, words: list[str]) -> list[str]:
        return words

    def cpu_seconds(self, pid: int) -> float:
        total = 0.0
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(pid)
            for process in (root, *root.children(recursive=True)):
                total += _process_seconds(process.pid)
        return total

    def close(self) -> None:
        pass


def _process_seconds(pid: int) -> float:
    """CPU time of one process, of its ended threads, and of the children it has waited for."""
    tasks = 0
    for task in (PROC / str(pid) / "task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # the thread has just ended
            tasks += int(task.read_text().split()[0])
    with contextlib.suppress(OSError):
        tasks = max(tasks, time.clock_gettime_ns(_process_clock(pid)))
    try:
        children = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return tasks / NANOSECONDS
    return tasks / NANOSECONDS + children.children_user + children.children_system


def _process_clock(pid: int) -> int:
    """Return the id of the CPU-time clock of another process, as clock_getcpuclockid(3) makes it."""
    return ~pid << 3 | 2


def make_account() -> Account:
    """Make the best account that this machine allows."""
    return ControlGroup.make() or ProcessTree()
