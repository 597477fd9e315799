"""The load generator (native/load.c) as a process on its own core, with a server's CPU time read around its work."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.programs import BenchFailed, program
from bench.servers import Server, pinned

LOAD_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Traffic:
    """What is asked of the load generator; ``seconds`` of work or ``messages``."""

    connections: int = 50
    per_connection: int = 1
    headers: int = 20
    recipients: int = 1
    body: int = 4096
    idle: int = 0
    warmup: int = 300
    messages: int = 0
    seconds: float = 1.0
    mta: str = "postfix"

    def arguments(self, address: str) -> list[str]:
        limit = ["--total", self.messages] if self.messages else ["--duration", self.seconds]
        options = {
            "--address": address,
            "--connections": self.connections,
            "--messages-per-connection": self.per_connection,
            "--headers": self.headers,
            "--recipients": self.recipients,
            "--body": self.body,
            "--idle": self.idle,
            "--warmup": self.warmup,
            "--mta": self.mta,
        }
        return [str(word) for pair in options.items() for word in pair] + [str(word) for word in limit]

    def shorter(self, factor: float) -> Traffic:
        """Return the same for a part of the time; at least one message where they are counted."""
        messages = max(int(self.messages * factor), 1) if self.messages else 0
        return replace(self, seconds=self.seconds * factor, messages=messages)


@dataclass(frozen=True)
class Sample:
    """One run of the load generator against one server."""

    cpu_us: float
    """CPU time of the server per message."""
    per_second: float
    p50_us: float
    p99_us: float
    messages: int
    errors: int
    edits: float
    """Modifications per message."""
    resident: int
    """Peak of the server's resident memory since its start, in bytes, all processes together."""
    load_cpu_share: float
    """Of its core's time: near 1 the load generator would be what is measured."""
    foreign_share: float
    """Of the server's core's time: what others used, whose work makes ours dearer."""
    said: tuple[str, ...]
    """Samples of errors."""


class Load:
    """The load generator, warmed up and waiting at its gate."""

    def __init__(self, traffic: Traffic, address: str, core: int, *options: str) -> None:
        with pinned(core):
            self.process = subprocess.Popen(
                [program("load"), *traffic.arguments(address), *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.process.wait()

    def await_line(self, wanted: str) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()  # ends: the load generator gives up by itself
        if line.strip() != wanted:
            raise BenchFailed(f"the load generator said {line.strip()!r} instead of {wanted!r}")

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def report(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        try:
            report: dict[str, Any] = json.loads(line)
        except ValueError:
            raise BenchFailed(f"the load generator said {line.strip()!r}") from None
        return report


@dataclass(frozen=True)
class Mark:
    """CPU seconds of a server and of its core, at a moment."""

    time: float
    server: float
    core: float

    @classmethod
    def now(cls, server: Server) -> Mark:
        return cls(time.monotonic(), server.cpu_seconds(), core_seconds(server.core))


def core_seconds(core: int) -> float:
    """Return how long a core has been busy, or taken by the hypervisor, in ticks of 10 ms."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            user, nice, system, _, _, irq, softirq, steal = (int(text) for text in ticks[:8])
            return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    raise BenchFailed(f"/proc/stat does not know core {core}")


def run(
    server: Server,
    traffic: Traffic,
    core: int,
    *,
    around: Callable[[Callable[[], None]], None] | None = None,
) -> Sample:
    """Load a server and return what it took; ``around`` is given the measured part as a function to call."""
    with Load(traffic, server.address, core, "--gate") as load:
        load.await_line("ready")
        marks = []

        def work() -> None:
            marks.append(Mark.now(server))
            load.go_on()
            load.await_line("done")
            marks.append(Mark.now(server))

        if around is None:
            work()
        else:
            around(work)
        load.go_on()
        return sample(load.report(), marks[0], marks[1], server.resident("VmHWM"))


def sample(report: dict[str, Any], before: Mark, after: Mark, resident: int) -> Sample:
    """Make a sample of the load generator's report."""
    cpu_seconds = after.server - before.server
    foreign = after.core - before.core - cpu_seconds
    messages = int(report["messages"])
    seconds = float(report["seconds"])
    return Sample(
        cpu_us=cpu_seconds * 1e6 / messages if messages else 0.0,
        per_second=float(report["messages_per_second"]),
        p50_us=float(report["p50_us"]),
        p99_us=float(report["p99_us"]),
        messages=messages,
        errors=int(report["errors"]),
        edits=float(report["modifications_per_message"]),
        resident=resident,
        load_cpu_share=float(report["own_cpu_s"]) / seconds if seconds else 0.0,
        foreign_share=max(foreign, 0.0) / (after.time - before.time),
        said=tuple(report["error_samples"]),
    )
