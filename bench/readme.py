"""The parts of README.md and docs/kinds.md that quote the benchmark: ``python -m bench.readme [--write]``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from bench.chart import ROWS
from bench.measure import LIBMILTER
from bench.programs import HERE, ROOT
from bench.report import cheapest_libmilter, raw_loop
from bench.results import Document, Line, Section, is_met
from bench.rows import LABELS, WAITING
from bench.waiting import MEMORY, crowd_job

RESULTS = HERE / "results.json"
README = ROOT / "README.md"
KINDS = ROOT / "docs" / "kinds.md"
BEGIN = "<!-- from bench/results.json by python -m bench.readme --write -->"
END = "<!-- to here -->"
UNMEASURED = "What each kind costs per message is measured by `make bench` (see [bench/README.md](../bench/README.md))."
KINDS_BEGIN, KINDS_END = "<!-- bench:kinds -->", "<!-- /bench:kinds -->"


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
    return _replaced(readme, BEGIN, quoted(document), END)


def _replaced(page: str, begin: str, part: str, end: str) -> str:
    before, _, rest = page.partition(begin)
    return before + part + rest.partition(end)[2]


def _costs(name: str, line: Line, crowded: Mapping[str, Line], memory: str) -> str:
    many = f"{crowded[line['key']]['per_second']:.0f}" if line["key"] in crowded else "-"
    return f"| {name} | {line['cpu_us']:.0f} µs | {line['per_second']:.0f} | {many} | {memory} |"


def kinds(document: Document) -> str:
    """Return the table of what each kind of filter costs, between its marks."""
    few, many = (
        {line["key"]: line for section in document["sections"] if section["name"] == name for line in section["lines"]}
        for name in ("waiting-50", "waiting-500")
    )
    memory = {aim["job"]: f"{aim['value']:.1f} KB" for aim in document["aims"] if aim["aim"] == MEMORY}
    rows = [_costs(kind, few[kind], many, memory.get(crowd_job(kind), "-")) for kind in WAITING if kind in few]
    if not rows:
        return f"{KINDS_BEGIN}\n{UNMEASURED}\n{KINDS_END}"
    libmilter = [few[kind] for kind in LIBMILTER if kind in few]
    if libmilter:
        fastest = max(libmilter, key=lambda line: line["per_second"])
        rows.append(_costs(LABELS[fastest["key"]], fastest, many, "-"))
    machine = document["machine"]
    above = (
        "Each message of these waits 5 ms at its end, as for an answer over the network; one worker on one core, a "
        f"connection for\neach message. {machine['processor']}, Python {machine['python']}."
    )
    table = [
        "| | CPU per message | messages/s, 50 connections | messages/s, 500 | memory of a connection that waits |",
        "| --- | --- | --- | --- | --- |",
        *rows,
    ]
    return "\n".join([KINDS_BEGIN, above, "", *table, KINDS_END])


def with_kinds(page: str, document: Document) -> str:
    """Return docs/kinds.md with its table replaced."""
    return _replaced(page, KINDS_BEGIN, kinds(document), KINDS_END)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.readme", description="Quotes the benchmark in the documentation."
    )
    parser.add_argument("--write", action="store_true", help="into the documents; else print")
    document = read()
    if not parser.parse_args().write:
        print(f"{quoted(document)}\n\n{kinds(document)}")
        return 0
    for path, changed in ((README, with_quote), (KINDS, with_kinds)):
        if path.exists():
            path.write_text(changed(path.read_text(encoding="utf-8"), document), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
