"""Resident memory per connection: ``python -m bench.memory [--quick] [--json]``.

The load generator opens connections and holds them negotiated, after HELO, or after one message; what each contestant's
processes have grown by since they had served one message is divided by their number. Sockets and their buffers are the
kernel's and not part of it.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass

from bench import programs, report
from bench.loading import Load, Traffic
from bench.programs import BenchFailed, why_missing
from bench.results import Aim
from bench.rows import LABELS, TYPICAL
from bench.servers import Contestant, Cores, Server, negotiate, raise_file_limit

CONNECTIONS = 10_000
QUICK_CONNECTIONS = 2_000
MORE_CONNECTIONS = 10
"""Room for those that warm the server up and ask whether the others were served."""
BESIDE = (("threads", "a thread each"), ("debian", "pool"))


@dataclass(frozen=True)
class State:
    """How far the connections have come, in our words and the load generator's, and what we allow ourselves."""

    title: str
    name: str
    limit_kb: float


STATES = (
    State("negotiated", "negotiated", 1.0),
    State("after HELO", "helo", 1.5),
    State("after one message", "message", 2.0),
)


def bytes_per_connection(kind: str, state: State, connections: int, cores: Cores) -> float:
    """Return the growth of a fresh server, for each of ``connections`` that are held in ``state``."""
    room = ("--max-connections-per-worker", str(connections + MORE_CONNECTIONS)) if kind == "fastmilter" else ()
    with Server(Contestant(kind, TYPICAL, "unix", room), cores.server) as server:
        # What is loaded and cached at the first message is the process's.
        with Load(Traffic(connections=1, warmup=0, messages=3), server.address, cores.load) as load:
            load.report()
        before = server.resident()
        held = Traffic(connections=0, warmup=0, idle=connections)
        with Load(held, server.address, cores.load, "--idle-state", state.name, "--hold") as load:
            said = load.report()
            if said["errors"] or said["idle_held"] != connections:
                raise BenchFailed(
                    f"{LABELS[kind]} held {said['idle_held']} of {connections} connections: {said['error_samples']}"
                )
            # Readiness is served in the order in which it came: who asks now is answered after all the others.
            negotiate(server.address)
            return (server.resident() - before) / connections


def measure(quick: bool) -> list[Aim]:
    """Return the aim of each state with its figure; libmilter's are shown beside it."""
    programs.build()
    raise_file_limit()
    cores = Cores.choose()
    connections = QUICK_CONNECTIONS if quick else CONNECTIONS
    aims: list[Aim] = []
    for state in STATES:
        ours = bytes_per_connection("fastmilter", state, connections, cores) / 1024
        beside = [f"{name} {_shown(kind, state, connections, cores)}" for kind, name in BESIDE if not why_missing(kind)]
        aims.append(
            {
                "job": f"memory per connection, {connections} {state.title}",
                "aim": "resident memory beyond the process, KB",
                "value": round(ours, 3),
                "limit": state.limit_kb,
                "at_most": True,
                "shown": f"{ours:.2f} KB" + (f" (libmilter: {', '.join(beside)})" if beside else ""),
            }
        )
    return aims


def _shown(kind: str, state: State, connections: int, cores: Cores) -> str:
    try:
        return f"{bytes_per_connection(kind, state, connections, cores) / 1024:.2f}"
    except BenchFailed as error:
        return f"- ({error})"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description="Measures memory per connection.")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_CONNECTIONS} connections")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        aims = measure(options.quick)
    except BenchFailed as error:
        print(f"memory: {error}", file=sys.stderr)
        return 1
    print(json.dumps(aims, indent=1) if options.json else report.aims_table(aims))
    return 0


if __name__ == "__main__":
    sys.exit(main())
