"""The part of the README that quotes the benchmark, made from its results: ``python -m bench.readme [--write]``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import cast

from bench.chart import ROWS
from bench.programs import HERE, ROOT
from bench.report import cheapest_libmilter, raw_loop
from bench.results import Document, Section, is_met

RESULTS = HERE / "results.json"
README = ROOT / "README.md"
BEGIN = "<!-- from bench/results.json by python -m bench.readme --write -->"
END = "<!-- to here -->"


def read(path: Path = RESULTS) -> Document:
    """Return the document of the last whole run."""
    return cast(Document, json.loads(path.read_text(encoding="utf-8")))


def _row(section: Section) -> str | None:
    for line in section["lines"]:
        libmilter, raw = cheapest_libmilter(section, line), raw_loop(section, line)
        if line["kind"] == "fastmilter" and libmilter is not None and raw is not None:
            ours = line["cpu_us"]
            return f"| {section['title']} | {ours:.0f} µs | {libmilter / ours:.1f} times | {raw / ours:.2f} |"
    return None


def quoted(document: Document) -> str:
    """Return the table and the sentence below it."""
    rows = [_row(section) for section in document["sections"] if section["name"] in ROWS]
    aims = document["aims"]
    table = [
        "| job | CPU of fastmilter per message | libmilter takes | share of the raw loop's speed |",
        "| --- | --- | --- | --- |",
        *(row for row in rows if row is not None),
    ]
    met = sum(is_met(aim) for aim in aims)
    machine = document["machine"]
    below = f"{machine['processor']}, Python {machine['python']}; {met} of the project's {len(aims)} aims are met."
    return "\n".join([BEGIN, "", *table, "", below, "", END])


def with_quote(readme: str, document: Document) -> str:
    """Return the README with its part about the benchmark replaced."""
    before, _, rest = readme.partition(BEGIN)
    return before + quoted(document) + rest.partition(END)[2]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description="Quotes the benchmark in the README.")
    parser.add_argument("--write", action="store_true", help="into README.md; else print")
    document = read()
    if parser.parse_args().write:
        README.write_text(with_quote(README.read_text(encoding="utf-8"), document), encoding="utf-8")
    else:
        print(quoted(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
