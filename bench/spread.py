"""How evenly long-lived connections spread over workers, and how long one takes to be accepted.

    python -m bench.spread [--quick] [--json]

``fastmilter serve`` with four workers gets 400 connections, over unix sockets and TCP: all at once, one after the other
with pauses, and all at once while others come and go with messages. Each negotiates; then the descriptors that each
worker has more than before are counted, from outside. The worst of several runs is shown.

A worker that leaves connections to others must not make any wait: on the idle server, and again while it holds 400
connections, single ones are timed from the connect to the answer to the negotiation, as with the raw loop in C.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import psutil

from bench import programs, report
from bench.loading import Load, Traffic
from bench.programs import BenchFailed
from bench.results import Aim
from bench.rows import LABELS, TYPICAL
from bench.servers import OFFER, POLL_S, START_S, Contestant, Cores, Server, raise_file_limit

CONNECTIONS = 400
WORKERS = 4
LIMIT = 1.25
"""The fullest worker's connections, times the mean."""

LATENCY_LIMIT_MS = 1.0
"""How much longer than with the raw loop a connection may take to be accepted: far less than any timer here."""

ANSWER_BYTES = 17  # without macro lists, which nothing here asks for
ANSWER_S = 30.0
PAUSE_S = 0.002

BUSY = Traffic(connections=8, per_connection=1, warmup=200, seconds=60)
"""What goes on beside: stopped as soon as the connections are open."""


@dataclass(frozen=True)
class Effort:
    """How often it is tried, and how many single connections are timed."""

    runs: int
    singles: int


FULL, QUICK = Effort(runs=10, singles=200), Effort(runs=2, singles=50)


def connect(address: str) -> socket.socket:
    """Open a connection and send the offer of a negotiation."""
    scheme, _, rest = address.partition(":")
    connection = socket.socket(socket.AF_UNIX if scheme == "unix" else socket.AF_INET)
    connection.settimeout(ANSWER_S)
    port, _, host = rest.partition("@")
    connection.connect(rest if scheme == "unix" else (host, int(port)))
    connection.sendall(OFFER)
    return connection


def await_answer(connection: socket.socket) -> None:
    """Read the answer to the negotiation."""
    missing = ANSWER_BYTES
    while missing > 0:
        data = connection.recv(missing)
        if not data:
            raise BenchFailed("the server closed a connection in the negotiation")
        missing -= len(data)


def open_at_once(address: str, count: int) -> list[socket.socket]:
    """Open connections as fast as possible; read the answers when all are open."""
    connections = [connect(address) for _ in range(count)]
    for connection in connections:
        await_answer(connection)
    return connections


def open_slowly(address: str, count: int) -> list[socket.socket]:
    """Open one connection after the other, each when the one before has long been answered."""
    connections = []
    for _ in range(count):
        connections.append(connect(address))
        await_answer(connections[-1])
        time.sleep(PAUSE_S)
    return connections


def open_beside_busy_ones(address: str, count: int) -> list[socket.socket]:
    """Open connections at once while others come, bring a message each, and go."""
    with Load(BUSY, address, Cores.choose().load, "--gate") as load:
        load.await_line("ready")
        load.go_on()
        return open_at_once(address, count)


MANNERS: dict[str, Callable[[str, int], list[socket.socket]]] = {
    "at once": open_at_once,
    "one by one": open_slowly,
    "at once beside busy ones": open_beside_busy_ones,
}


class Workers:
    """The workers of a running server, seen from outside."""

    def __init__(self, server: Server) -> None:
        """Wait until all of them are ready; what they have open then is not a connection."""
        self._server = server
        _wait_until(lambda: server.log.read_text(errors="replace").count(" is ready ") == WORKERS, "all workers ready")
        master, *workers = server.processes()
        for process in (master, *workers):
            process.cpu_affinity(sorted(os.sched_getaffinity(0)))  # they were started on one processor
        self._before = {process: process.num_fds() for process in workers}

    def held(self) -> list[int]:
        """Return how many connections each worker has."""
        return [process.num_fds() - count for process, count in self._before.items()]

    def await_connections(self, total: int) -> list[int]:
        """Return how many connections each worker has when they have noticed that all others are closed."""
        _wait_until(lambda: sum(self.held()) == total, f"the workers to have {total} connections")
        return self.held()


def _wait_until(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + START_S
    while not condition():
        if time.monotonic() > until:
            raise BenchFailed(f"not within {START_S:.0f} s: {what}")
        time.sleep(POLL_S)


@contextlib.contextmanager
def serving(transport: str) -> Iterator[tuple[str, Workers]]:
    """Run the server; yield its address and its workers."""
    contestant = Contestant("fastmilter", TYPICAL, transport, ("--workers", str(WORKERS)))
    with Server(contestant, Cores.choose().server) as server:
        yield server.address, Workers(server)


def close_all(connections: Sequence[socket.socket], workers: Workers) -> None:
    """Close connections and wait until the workers have noticed."""
    for connection in connections:
        connection.close()
    workers.await_connections(0)


def spread(address: str, workers: Workers, manner: str, count: int = CONNECTIONS) -> list[int]:
    """Open connections in a manner and close them; return how many each worker had."""
    connections = MANNERS[manner](address, count)
    try:
        return workers.await_connections(count)
    finally:
        close_all(connections, workers)


def accept_ms(address: str, count: int) -> list[float]:
    """Return how long single connections take from the connect to the answer to the negotiation, sorted."""
    times = []
    for _ in range(count):
        begun = time.perf_counter()
        with connect(address) as connection:
            await_answer(connection)
            times.append((time.perf_counter() - begun) * 1000)
        time.sleep(PAUSE_S)
    return sorted(times)


@dataclass(frozen=True)
class Measured:
    """What was measured over one transport."""

    spreads: dict[str, list[list[int]]]
    """Connections of each worker in each run, by manner."""
    accepting_ms: dict[str, list[float]]
    """By who accepted, and what they held."""


RAW, EMPTY, HOLDING = LABELS["raw"], "fastmilter, idle", f"fastmilter, idle with {CONNECTIONS} connections"


def measure_transport(transport: str, effort: Effort) -> Measured:
    """Measure over one transport."""
    with serving(transport) as (address, workers):
        accepting = {EMPTY: accept_ms(address, effort.singles)}
        workers.await_connections(0)
        spreads = {manner: [spread(address, workers, manner) for _ in range(effort.runs)] for manner in MANNERS}
        held = open_at_once(address, CONNECTIONS)
        accepting[HOLDING] = accept_ms(address, effort.singles)
        close_all(held, workers)
    with Server(Contestant("raw", TYPICAL, transport), Cores.choose().server) as raw:
        psutil.Process(raw.process.pid).cpu_affinity(sorted(os.sched_getaffinity(0)))
        accepting[RAW] = accept_ms(raw.address, effort.singles)
    return Measured(spreads, accepting)


def measure_all(effort: Effort) -> dict[str, Measured]:
    """Measure over unix sockets and TCP."""
    programs.build()
    raise_file_limit()
    try:
        return {transport: measure_transport(transport, effort) for transport in ("unix", "tcp")}
    except (OSError, psutil.Error) as error:
        raise BenchFailed(f"{type(error).__name__}: {error}") from error


def fullest(counts: Sequence[int]) -> float:
    """Return the fullest worker's connections, times the mean."""
    return max(counts) * len(counts) / sum(counts)


def aims_of(measured: dict[str, Measured]) -> list[Aim]:
    """Return the aims with their figures."""
    aims: list[Aim] = []
    for transport, figures in measured.items():
        for manner, runs in figures.spreads.items():
            worst = max(runs, key=fullest)
            counts = " ".join(str(count) for count in sorted(worst, reverse=True))
            aims.append(
                {
                    "job": f"{CONNECTIONS} connections over {WORKERS} workers, {transport}, {manner}",
                    "aim": "the fullest worker, times the mean",
                    "value": round(fullest(worst), 4),
                    "limit": LIMIT,
                    "at_most": True,
                    "shown": f"{fullest(worst):.2f} ({counts}; worst of {len(runs)})",
                }
            )
        raw = statistics.median(figures.accepting_ms[RAW])
        for who, job in ((EMPTY, "idle"), (HOLDING, f"idle with {CONNECTIONS}")):
            ours = statistics.median(figures.accepting_ms[who])
            aims.append(
                {
                    "job": f"accepting a connection, {transport}, {job}",
                    "aim": "longer than the raw loop, ms",
                    "value": round(ours - raw, 4),
                    "limit": LATENCY_LIMIT_MS,
                    "at_most": True,
                    "shown": f"{ours - raw:.3f} ms ({ours:.3f}, {raw:.3f})",
                }
            )
    return aims


def measure(quick: bool) -> list[Aim]:
    """Measure, and return the aims with their figures."""
    return aims_of(measure_all(QUICK if quick else FULL))


def tables(measured: dict[str, Measured]) -> str:
    """Return the accept times, in milliseconds, and the runs."""
    lines = [f"{'from connect to negotiated, ms':<46}{'median':>10}{'95 %':>10}{'longest':>10}"]
    for transport, figures in measured.items():
        for who, times in figures.accepting_ms.items():
            most = times[len(times) * 95 // 100]
            lines.append(
                f"  {f'{transport}, {who}':<44}{statistics.median(times):>10.3f}{most:>10.3f}{times[-1]:>10.3f}"
            )
    lines += ["", f"{'the fullest worker, times the mean, in each run':<46}"]
    for transport, figures in measured.items():
        for manner, runs in figures.spreads.items():
            lines.append(f"  {f'{transport}, {manner}':<44}" + " ".join(f"{fullest(counts):.2f}" for counts in runs))
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit status is 1 if that was not possible."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.spread", description="Measures how connections spread over workers."
    )
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    try:
        measured = measure_all(QUICK if options.quick else FULL)
    except BenchFailed as error:
        print(f"spread: {error}", file=sys.stderr)
        return 1
    aims = aims_of(measured)
    if options.json:
        figures = {transport: asdict(part) for transport, part in measured.items()}
        print(json.dumps({"measured": figures, "aims": aims}, indent=1))
    else:
        print(tables(measured))
        print(report.aims_table(aims))
    return 0


if __name__ == "__main__":
    sys.exit(main())
