"""The contestants as processes of their own, each pinned to the server's core."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

from bench.accounting import Account, make_account
from bench.programs import DEBIAN_PYTHON, HERE, ROOT, BenchFailed, program

START_S = 30.0
STOP_S = 10.0
POLL_S = 0.01

OFFER = struct.pack("!IcIII", 13, b"O", 6, 0x1FF, 0x1FFFFF)
QUIT = struct.pack("!Ic", 1, b"Q")

# Letter of a command, "never send it", "expect no reply" (constants.py has them too, under other names).
STEP_BITS = {
    "C": (0x1, 0x1000),
    "H": (0x2, 0x2000),
    "M": (0x4, 0x4000),
    "R": (0x8, 0x8000),
    "T": (0x200, 0x10000),
    "L": (0x20, 0x80),
    "N": (0x40, 0x40000),
    "B": (0x10, 0x80000),
}


def raise_file_limit(wanted: int = 65536) -> None:
    """Raise the limit of open files, which the servers inherit, as far as we may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # only root may raise the hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(wanted, hard), max(wanted, hard)))
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass(frozen=True)
class Cores:
    """Which processor the server has and which the load generator."""

    server: int
    load: int

    @classmethod
    def choose(cls) -> Cores:
        """Take two of those we may use that are not one core's two threads; the same one twice if there is one only."""
        allowed = sorted(os.sched_getaffinity(0))
        server = allowed[-1]
        apart = [core for core in allowed if core not in _siblings(server)]
        others = apart or [core for core in allowed if core != server] or [server]
        return cls(server, others[0])


def _siblings(core: int) -> set[int]:
    path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    found = {core}
    with contextlib.suppress(OSError, ValueError):
        for part in path.read_text().strip().split(","):
            first, _, last = part.partition("-")
            found.update(range(int(first), int(last or first) + 1))
    return found


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """Have what is started meanwhile run on one core, with all that it starts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True)
class Job:
    """What a filter does for each message, in every contestant's words."""

    filter_class: str
    libmilter: str
    edits: int = 0
    replace: int = 0
    wait_ms: int = 0
    """How long it waits at the end of each message; fastmilter's filter has it in its class."""


@dataclass(frozen=True)
class Contestant:
    """A program with a job at a transport."""

    kind: str
    """``fastmilter``, ``raw``, ``threads``, ``debian`` or ``pymilter``."""
    job: Job
    transport: str
    options: tuple[str, ...] = ()


def command(contestant: Contestant, address: str, protocol: int | None) -> list[str]:
    """Return the command of a contestant; the raw loop answers the steps of the protocol word ``protocol``."""
    job = contestant.job
    if contestant.kind == "fastmilter":
        target = f"{HERE / 'filters.py'}:{job.filter_class}"
        serve = [
            sys.executable,
            "-m",
            "fastmilter",
            "serve",
            target,
            "--workers",
            "1",
            "--listen",
            address,
            "--allow-root",
        ]
        return [*serve, *contestant.options]
    if contestant.kind == "raw":
        answer, never = steps(protocol or 0)
        loop = [program("raw_loop"), "--address", address, "--answer", answer, "--never", never]
        return [*loop, "--edits", str(job.edits), "--replace", str(job.replace)]
    if contestant.kind == "pymilter":
        return [DEBIAN_PYTHON, str(HERE / "pymilter_filter.py"), job.libmilter, address, str(job.wait_ms)]
    filter_in_c = [program(f"libmilter_{contestant.kind}"), "--address", address, "--job", job.libmilter]
    return [*filter_in_c, "--wait-ms", str(job.wait_ms)]


def steps(protocol: int) -> tuple[str, str]:
    """Return the letters of the commands that are answered by a protocol word, and of those that are not sent."""
    never = "".join(letter for letter, (bit, _) in STEP_BITS.items() if protocol & bit)
    answer = "".join(letter for letter, (_, bit) in STEP_BITS.items() if letter not in never and not protocol & bit)
    return answer, never


def negotiate(address: str) -> int:
    """Negotiate as Postfix does and return the protocol word of the answer; ``OSError`` if there is none."""
    scheme, _, rest = address.partition(":")
    if scheme == "unix":
        connection = socket.socket(socket.AF_UNIX)
        target: str | tuple[str, int] = rest
    else:
        connection = socket.socket()
        port, _, host = rest.partition("@")
        target = (host, int(port))
    with connection:
        connection.settimeout(START_S)
        connection.connect(target)
        connection.sendall(OFFER)
        answer = b""
        while len(answer) < 17:
            data = connection.recv(4096)
            if not data:
                raise ConnectionError("closed during the negotiation")
            answer += data
        connection.sendall(QUIT)
    protocol: int = struct.unpack("!I", answer[13:17])[0]
    return protocol


def _runs(process: psutil.Process) -> bool:
    """Whether a process has not ended; that its new parent has not waited for it yet takes nothing from anyone."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Server:
    """A running contestant. A context manager: its end is the end of all its processes."""

    def __init__(self, contestant: Contestant, core: int, protocol: int | None = None) -> None:
        self.contestant = contestant
        self.core = core
        self.directory = tempfile.TemporaryDirectory(prefix="fmb-")  # paths of unix sockets are short
        self.address = self._address()
        self.account: Account = make_account()
        self.protocol = 0
        self.log = Path(self.directory.name) / "log"
        self._command = command(contestant, self.address, protocol)
        with self.log.open("wb") as log, pinned(core):
            self.process = subprocess.Popen(
                self.account.command(self._command),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _address(self) -> str:
        if self.contestant.transport == "unix":
            return f"unix:{self.directory.name}/milter"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return f"inet:{probe.getsockname()[1]}@127.0.0.1"

    def __enter__(self) -> Server:
        try:
            self._await_readiness()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _await_readiness(self) -> None:
        until = time.monotonic() + START_S
        while True:
            try:
                self.protocol = negotiate(self.address)
                return
            except OSError as error:
                if self.process.poll() is not None or time.monotonic() > until:
                    said = self.log.read_text(errors="replace")[-2000:]
                    raise BenchFailed(f"did not start ({error}): {' '.join(self._command)}\n{said}") from None
            # Nothing tells when a program of others has begun to listen.
            time.sleep(POLL_S)

    def processes(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def cpu_seconds(self) -> float:
        return self.account.cpu_seconds(self.process.pid)

    def resident(self, kind: str = "VmRSS") -> int:
        """Resident memory of all processes, in bytes; ``VmHWM`` for the peak of each."""
        total = 0
        for process in self.processes():
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if line.startswith(f"{kind}:"):
                    total += int(line.split()[1]) * 1024
        return total

    def close(self) -> None:
        """Kill it: how a server stops is not measured, and libmilter takes seconds."""
        left = self.processes() if self.process.poll() is None else []
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        until = time.monotonic() + STOP_S
        while any(_runs(process) for process in left) and time.monotonic() < until:
            time.sleep(POLL_S)
        self.account.close()
        self.directory.cleanup()
