"""A row of the benchmark: its contestants, started side by side and loaded in turn, round after round."""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

from bench.loading import Sample, Traffic, run
from bench.programs import KINDS, BenchFailed, why_missing
from bench.servers import Contestant, Cores, Server
from bench.syscalls import calls_per_message

LIBMILTER = ("threads", "debian")
DISTURBED = 0.1  # of the server's core, for other programs


@dataclass(frozen=True)
class Entry:
    """One line of a row: who, and under which traffic."""

    key: str
    """Unique within the row."""
    label: str
    contestant: Contestant
    traffic: Traffic


@dataclass(frozen=True)
class Figures:
    """What the rounds of an entry gave: medians, each of its own."""

    label: str
    kind: str
    median: Sample
    cpu_us_of_rounds: tuple[float, ...]
    errors: int
    """Of all rounds."""
    syscalls: float | None
    protocol: int
    accounting: str


Results = Mapping[str, Figures]
"""By key of the entry; an entry that could not run is not there."""


@dataclass(frozen=True)
class Wanted:
    """An aim of the project: a figure that follows from a row's results, and its bound."""

    aim: str
    figure: Callable[[Results], float | None]
    """``None`` if what it needs could not be measured."""
    limit: float
    at_most: bool = False
    unit: str = " times"
    digits: int = 2


@dataclass(frozen=True)
class Row:
    """A line of the table of aims, with everything that is measured for it."""

    name: str
    title: str
    entries: tuple[Entry, ...]
    wanted: tuple[Wanted, ...] = ()
    quick: bool = True
    """Whether the quick run has it."""
    count_syscalls: bool = True


@dataclass(frozen=True)
class Measured:
    """A row and what became of it."""

    row: Row
    results: Results
    missing: tuple[str, ...]
    """What could not be measured, and why."""


@dataclass(frozen=True)
class Effort:
    """How long and how often to measure."""

    rounds: int = 5
    time_factor: float = 1.0
    contestants: tuple[str, ...] = KINDS
    """The kinds that are measured, and those whose system calls are counted."""
    counted: tuple[str, ...] = KINDS
    patience: int = 0
    """How often a run is repeated that other programs disturbed; the least disturbed one counts."""


def measure(row: Row, effort: Effort, cores: Cores, say: Callable[[str], None] | None = None) -> Measured:
    """Measure a row; contestants that cannot run here are named and left out."""
    tell = say or (lambda text: print(text, file=sys.stderr, flush=True))
    missing = []
    entries = []
    for entry in row.entries:
        if entry.contestant.kind not in effort.contestants:
            continue
        reason = why_missing(entry.contestant.kind, entry.contestant.options)
        if reason is None:
            entries.append(entry)
        else:
            missing.append(f"{entry.label}: {reason}")
    with contextlib.ExitStack() as stack:
        servers = _start(entries, cores, stack)
        samples: dict[str, list[Sample]] = {entry.key: [] for entry in entries}
        for number in range(effort.rounds):
            first = number % len(entries) if entries else 0
            for entry in entries[first:] + entries[:first]:
                traffic = entry.traffic.shorter(effort.time_factor)
                samples[entry.key].append(_run_in_peace(servers[entry.key], traffic, cores, effort.patience))
            tell(f"  {row.name}: round {number + 1} of {effort.rounds}")
        calls = {}
        for entry in entries:
            if row.count_syscalls and entry.contestant.kind in effort.counted:
                calls[entry.key] = calls_per_message(servers[entry.key], entry.traffic, cores.load)
        results = {
            entry.key: _figures(entry, servers[entry.key], samples[entry.key], calls.get(entry.key))
            for entry in entries
        }
    return Measured(row, results, tuple(missing))


def _run_in_peace(server: Server, traffic: Traffic, cores: Cores, patience: int) -> Sample:
    sample = run(server, traffic, cores.load)
    for _ in range(patience):
        if sample.foreign_share <= DISTURBED:
            break
        sample = min(sample, run(server, traffic, cores.load), key=lambda each: each.foreign_share)
    return sample


def _start(entries: list[Entry], cores: Cores, stack: contextlib.ExitStack) -> dict[str, Server]:
    """Start a server for each entry. The raw loop answers the steps that fastmilter answers with the same job."""
    servers = {}
    protocols = {}
    for entry in entries:
        if entry.contestant.kind != "raw":
            server = servers[entry.key] = stack.enter_context(Server(entry.contestant, cores.server))
            if entry.contestant.kind == "fastmilter":
                protocols[entry.contestant.job] = server.protocol
    for entry in entries:
        if entry.contestant.kind == "raw":
            job = entry.contestant.job
            if job not in protocols:
                with Server(replace(entry.contestant, kind="fastmilter"), cores.server) as server:
                    protocols[job] = server.protocol
            servers[entry.key] = stack.enter_context(Server(entry.contestant, cores.server, protocols[job]))
    return servers


def _figures(entry: Entry, server: Server, samples: list[Sample], calls: float | None) -> Figures:
    return Figures(
        label=entry.label,
        kind=entry.contestant.kind,
        median=median(samples),
        cpu_us_of_rounds=tuple(sample.cpu_us for sample in samples),
        errors=sum(sample.errors for sample in samples),
        syscalls=calls,
        protocol=server.protocol,
        accounting=server.account.kind,
    )


def median(samples: list[Sample]) -> Sample:
    """Return the medians of all figures, and the errors' samples together."""
    if not samples:
        raise BenchFailed("nothing was measured")
    values = {
        field.name: statistics.median(getattr(sample, field.name) for sample in samples)
        for field in fields(Sample)
        if field.name != "said"
    }
    for name in ("messages", "errors", "resident"):
        values[name] = int(values[name])
    return Sample(**values, said=tuple(text for sample in samples for text in sample.said)[:5])


def best_libmilter(results: Results, figure: Callable[[Figures], float]) -> float | None:
    """Return the lower of a figure of libmilter's two builds, or of the one that is there."""
    values = [figure(results[key]) for key in LIBMILTER if key in results]
    return min(values) if values else None


def cpu_against_libmilter(results: Results, key: str = "fastmilter") -> float | None:
    """How many times less CPU a message takes than with libmilter."""
    best = best_libmilter(results, lambda figures: figures.median.cpu_us)
    ours = results[key].median.cpu_us if key in results else 0
    return best / ours if best and ours else None


def share_of_raw_speed(results: Results, key: str = "fastmilter") -> float | None:
    """The raw loop's CPU time per message divided by ours."""
    if "raw" not in results or key not in results or not results[key].median.cpu_us:
        return None
    return results["raw"].median.cpu_us / results[key].median.cpu_us
