"""System calls per message, counted by strace in a short run of its own: what is traced is not timed."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench.loading import Traffic, run
from bench.programs import BenchFailed
from bench.servers import Server

MESSAGES = 150
ALONE = 20  # of one connection, where nothing is read together that came apart
ATTACH_S = 10.0
POLL_S = 0.01
TOTAL = re.compile(r"^\s*100\.00\s+\S+\s+\S+\s+(\d+)\s+(?:\d+\s+)?total\s*$", re.MULTILINE)


def calls_per_message(server: Server, traffic: Traffic, core: int) -> float | None:
    """Count the calls of all processes and threads of a server; ``None`` if strace is not there."""
    strace = shutil.which("strace")
    if strace is None:
        return None
    output = Path(server.directory.name) / "strace"
    messages = ALONE if traffic.connections == 1 else max(MESSAGES, traffic.connections)
    few = replace(traffic, messages=messages, warmup=traffic.connections)
    command = [strace, "-f", "-c", "-o", str(output)]
    for process in server.processes():
        command += ["-p", str(process.pid)]

    def count(work: Callable[[], None]) -> None:
        tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            _await_attached(server, tracer)
            work()
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.wait()

    sample = run(server, few, core, around=count)
    total = TOTAL.search(output.read_text())
    if total is None:
        raise BenchFailed(f"strace counted nothing: {output.read_text()[-500:]}")
    return int(total[1]) / sample.messages if sample.messages else None


def _await_attached(server: Server, tracer: subprocess.Popen[bytes]) -> None:
    """Wait until every task has its tracer."""
    until = time.monotonic() + ATTACH_S
    while not all(_traced(process.pid) for process in server.processes()):
        if time.monotonic() > until or tracer.poll() is not None:
            raise BenchFailed("strace could not attach to the server")
        time.sleep(POLL_S)  # nothing tells when a tracer has attached


def _traced(pid: int) -> bool:
    tasks = Path(f"/proc/{pid}/task").glob("*/status")
    return all("\nTracerPid:\t0\n" not in task.read_text() for task in tasks)
