"""The benchmark: python -m bench.run [--row NAME] [--rounds N]. See README.md."""

from __future__ import annotations

import argparse
import sys

from bench import programs, report
from bench.measure import Effort, measure
from bench.programs import BenchFailed
from bench.rows import ROWS
from bench.servers import Cores


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description="Measures fastmilter beside others.")
    parser.add_argument("--row", action="append", metavar="NAME", choices=[row.name for row in ROWS], default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--time", type=float, default=1.0, metavar="FACTOR", help="measure so many times as long (1)")
    parser.add_argument("--only", action="append", default=[], metavar="KIND")
    parser.add_argument("--no-syscalls", action="store_true")
    options = parser.parse_args()
    effort = Effort(options.rounds, options.time, not options.no_syscalls, tuple(options.only))
    cores = Cores.choose()
    errors = 0
    try:
        programs.build()
        for row in ROWS:
            if options.row and row.name not in options.row:
                continue
            measured = measure(row, effort, cores)
            errors += sum(figures.errors for figures in measured.results.values())
            print(report.table(measured), flush=True)
    except BenchFailed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
