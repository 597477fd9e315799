"""The benchmark: ``python -m bench.run [--row NAME] [--rounds N] [--quick]``. See README.md."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from bench import chart, programs, report, results
from bench.accounting import make_account
from bench.measure import Effort, Row, measure
from bench.programs import HERE, OUT, BenchFailed
from bench.rows import ROWS
from bench.servers import Cores, raise_file_limit

# Modules with measure(quick) -> list of aims with their figures: what does not go through the load generator alone.
PARTS = {
    "memory": "resident memory per connection",
    "real_mta": "a message through real Sendmail and Postfix",
    "waiting": "callbacks that wait",
    "spread": "long-lived connections over workers",
}
# The cheaper of libmilter's builds has always been that with a thread per connection.
QUICK = Effort(3, 0.3, contestants=("fastmilter", "raw", "threads"), counted=("fastmilter",))


class Collected:
    """What has been measured so far."""

    def __init__(self) -> None:
        self.sections: list[results.Section] = []
        self.aims: list[results.Aim] = []
        self.missing: list[str] = []
        self.failed = False

    def row(self, row: Row, effort: Effort, cores: Cores) -> None:
        begun = time.monotonic()
        say(f"measuring {row.name}")
        try:
            measured = measure(row, effort, cores, lambda text: say(f"  {text}"))
        except BenchFailed as error:
            self.failed = True
            self.missing.append(f"{row.title}: {error}")
            return
        section = results.section(measured)
        aims, missing = results.aims(measured)
        self.sections.append(section)
        self.aims += aims
        self.missing += missing
        self.failed |= any(line["errors"] for line in section["lines"])
        print(report.section_table(section), flush=True)
        say(f"  {row.name}: {time.monotonic() - begun:.0f} s")

    def part(self, name: str, *, quick: bool) -> None:
        begun = time.monotonic()
        say(f"measuring {name}")
        if not (HERE / f"{name}.py").exists():
            self.missing.append(f"{PARTS[name]}: there is no bench/{name}.py")
            return
        try:
            self.aims += importlib.import_module(f"bench.{name}").measure(quick)
        except Exception as error:  # noqa: BLE001 - a part that fails is named, and the run goes on
            self.failed = True
            self.missing.append(f"{PARTS[name]}: {type(error).__name__}: {error}")
        say(f"  {name}: {time.monotonic() - begun:.0f} s")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description="Measures fastmilter beside others.")
    names = [*(row.name for row in ROWS), *PARTS]
    parser.add_argument("--row", action="append", metavar="NAME", default=[], help=f"only this; of {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds of the main rows")
    parser.add_argument("--rounds", type=int, metavar="N", help="interleaved rounds (5; quick 3)")
    parser.add_argument("--time", type=float, metavar="FACTOR", help="measure so many times as long (1; quick 0.3)")
    parser.add_argument("--only", action="append", metavar="KIND", default=[], help=f"of {', '.join(programs.KINDS)}")
    parser.add_argument("--no-syscalls", action="store_true", help="do not count system calls")
    parser.add_argument(
        "--patience", type=int, metavar="N", default=0, help="repeat so often what other programs disturbed (0)"
    )
    parser.add_argument("--output", type=Path, metavar="DIRECTORY", help="for results.json and chart.svg")
    parser.add_argument(
        "--update",
        action="store_true",
        help="put the rows that are measured in the place of those in bench/results.json",
    )
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the table of a results.json, measure nothing")
    options = parser.parse_args()
    for name in options.row:
        if name not in names:
            parser.error(f"no row {name}; there are {', '.join(names)}")
    return options


def effort_of(options: argparse.Namespace) -> Effort:
    usual = QUICK if options.quick else Effort()
    return Effort(
        rounds=options.rounds or usual.rounds,
        time_factor=options.time or usual.time_factor,
        contestants=tuple(options.only) or usual.contestants,
        counted=() if options.no_syscalls else usual.counted,
        patience=options.patience,
    )


def chosen(options: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """Return the rows and the parts to measure."""
    if options.row:
        return [row for row in ROWS if row.name in options.row], [name for name in PARTS if name in options.row]
    return [row for row in ROWS if row.quick or not options.quick], list(PARTS)


def directory_of(options: argparse.Namespace) -> Path:
    """Only a whole run replaces the committed results, unless a directory is named."""
    whole = not (options.row or options.only or options.quick)
    return options.output or (HERE if whole or options.update else OUT)


def run(options: argparse.Namespace) -> bool:
    """Measure, print, write; return whether everything could be measured without an error."""
    programs.build()
    raise_file_limit()
    effort, cores = effort_of(options), Cores.choose()
    account = make_account()
    account.close()
    collected = Collected()
    rows, parts = chosen(options)
    print(report.head(), flush=True)
    for row in rows:
        collected.row(row, effort, cores)
    for name in parts:
        collected.part(name, quick=options.quick)
    method = results.method(effort, cores, account.kind, quick=options.quick)
    document = results.document(collected.sections, collected.aims, collected.missing, method)
    if options.update:
        document = results.updated(results.read(HERE / "results.json"), document)
    print(report.notes(document))
    print(f"\n{report.aims_table(document['aims'], document['missing'])}")
    directory = directory_of(options)
    results.write(document, directory / "results.json")
    (directory / "chart.svg").write_text(chart.draw(document), encoding="utf-8")
    say(f"written: {directory / 'results.json'}, {directory / 'chart.svg'}")
    return not collected.failed


def stop(number: int, frame: FrameType | None) -> Any:
    raise SystemExit(128 + number)


def main() -> int:
    options = parse()
    if options.show:
        print(report.whole(results.read(options.show)))
        return 0
    signal.signal(signal.SIGTERM, stop)  # the servers must not be left behind
    try:
        return 0 if run(options) else 1
    except BenchFailed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
