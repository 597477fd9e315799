"""Callbacks that wait, beside others and in numbers: ``python -m bench.waiting [--quick] [--json]``.

While one connection is inside a callback of 10 s, another one brings messages that wait for nothing: their latency is
compared with that before, on the same server. And a few thousand connections bring a message each whose callback waits
for a second, all at the same time: all have to be answered, and the peak of the server's resident memory, beyond what
it had before, is divided by their number.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from bench import programs, report
from bench.filters import WAITING_DOMAIN
from bench.loading import Load, Traffic, run
from bench.programs import BenchFailed
from bench.results import Aim
from bench.servers import Contestant, Cores, Job, Server, raise_file_limit
from fastmilter import CONTINUE, Client

BESIDE = {"blocking": Job("SenderBlocking", "typical", edits=3), "async": Job("SenderAsync", "typical", edits=3)}
LATENCY_LIMIT = 2.0
"""The p99 beside a callback that waits, divided by that without."""

ONE = Traffic(connections=1, per_connection=100, warmup=50, seconds=1.5)
MESSAGE = b"From: a@orchard.example\r\nSubject: Apples\r\n\r\ntwelve boxes\r\n"

MEMORY = "resident memory per waiting connection, KB"


@dataclass(frozen=True)
class Effort:
    """How long a callback waits, how often the other connection is measured meanwhile, and how often all of that."""

    callback_s: int
    runs: int
    rounds: int


FULL, QUICK = Effort(callback_s=10, runs=3, rounds=2), Effort(callback_s=10, runs=3, rounds=1)


@dataclass(frozen=True)
class Crowd:
    """Connections that all wait for a second at the same time."""

    job: Job
    connections: int
    limit_kb: float
    """What we allow ourselves for each, with what the job keeps of its message."""
    options: tuple[str, ...] = ()


CROWDS = {
    "async": Crowd(Job("SecondAsync", "typical", edits=3), 2_000, 20.0),
    "blocking": Crowd(Job("SecondBlocking", "typical", edits=3), 500, 60.0, ("--threads", "500")),
}


@contextlib.contextmanager
def waiting_message(address: str, seconds: int) -> Iterator[Future[tuple[bool, int]]]:
    """Have one connection be inside a callback meanwhile; ``BenchFailed`` if it came back too early, or wrong.

    Yields what becomes of its message: whether it was accepted, and how many edits it got.
    """

    def send() -> tuple[bool, int]:
        with Client(address) as client:
            outcome = client.send_message(
                MESSAGE,
                f"{seconds}@{WAITING_DOMAIN}",
                ["anna@harbour.example"],
                macros={"end_of_message": {"i": "4X1"}},
            )
        return outcome.verdict == CONTINUE, len(outcome.modifications)

    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(send)
        yield sent
        if sent.done():
            raise BenchFailed(f"a callback of {seconds} s ended before the others were measured: {sent.result()}")
        if sent.result() != (True, 3):
            raise BenchFailed("the message of the callback that waits was not answered as it should be")


def latencies(kind: str, effort: Effort, cores: Cores) -> tuple[list[float], list[float]]:
    """Return the p99 of one connection's messages in each run, in us: alone, and beside a callback that waits."""
    alone: list[float] = []
    beside: list[float] = []
    with Server(Contestant("fastmilter", BESIDE[kind], "unix"), cores.server) as server:
        for _ in range(effort.rounds):
            alone += [_p99(server, cores) for _ in range(effort.runs)]
            with waiting_message(server.address, effort.callback_s):
                beside += [_p99(server, cores) for _ in range(effort.runs)]
    return alone, beside


def _p99(server: Server, cores: Cores) -> float:
    sample = run(server, ONE, cores.load)
    if sample.errors:
        raise BenchFailed(f"errors beside a callback that waits: {sample.said}")
    return sample.p99_us


def latency_aim(kind: str, effort: Effort, cores: Cores) -> Aim:
    """Return the aim about a second connection with its figure."""
    alone, beside = (statistics.median(figures) for figures in latencies(kind, effort, cores))
    return {
        "job": f"messages of one connection, another in a callback of {effort.callback_s} s, {kind}",
        "aim": "p99, times that without",
        "value": round(beside / alone, 4),
        "limit": LATENCY_LIMIT,
        "at_most": True,
        "shown": f"{beside / alone:.2f} times ({beside:.0f} us, {alone:.0f} us)",
    }


def crowd_job(kind: str) -> str:
    """Return what the aims about many waiting connections of a kind are called."""
    return f"{CROWDS[kind].connections} connections wait for 1 s, {kind}" if kind in CROWDS else ""


def crowd_aims(kind: str, cores: Cores) -> list[Aim]:
    """Return the aims about many waiting connections with their figures."""
    crowd = CROWDS[kind]
    count = crowd.connections
    with Server(Contestant("fastmilter", crowd.job, "unix", crowd.options), cores.server) as server:
        # What is loaded and cached at the first message is the process's.
        with Load(Traffic(connections=1, warmup=0, messages=1), server.address, cores.load) as load:
            load.report()
        before = server.resident()
        with Load(Traffic(connections=count, warmup=0, messages=count), server.address, cores.load) as load:
            said = load.report()
        each = (server.resident("VmHWM") - before) / count / 1024
    job = crowd_job(kind)
    errors = f", {said['errors']} errors: {said['error_samples']}" if said["errors"] else ""
    return [
        {
            "job": job,
            "aim": "answered",
            "value": said["messages"],
            "limit": count,
            "at_most": False,
            "shown": f"{said['messages']} in {said['seconds']:.2f} s{errors}",
        },
        {
            "job": job,
            "aim": MEMORY,
            "value": round(each, 3),
            "limit": crowd.limit_kb,
            "at_most": True,
            "shown": f"{each:.1f} KB",
        },
    ]


def measure(quick: bool) -> list[Aim]:
    """Measure, and return the aims with their figures."""
    programs.build()
    raise_file_limit()
    cores = Cores.choose()
    aims = [latency_aim(kind, QUICK if quick else FULL, cores) for kind in BESIDE]
    for kind in CROWDS:
        aims += crowd_aims(kind, cores)
    return aims


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.waiting", description="Measures callbacks that wait.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        aims = measure(options.quick)
    except BenchFailed as error:
        print(f"waiting: {error}", file=sys.stderr)
        return 1
    print(json.dumps(aims, indent=1) if options.json else report.aims_table(aims))
    return 0


if __name__ == "__main__":
    sys.exit(main())
