"""Table, JSON and chart from a tiny result; the table of rows; a run from end to end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import chart, report, results
from bench.programs import KINDS, ROOT
from bench.results import Aim, Document, Line, Section
from bench.rows import LABELS, ROWS


def line(kind: str, cpu_us: float, key: str = "", errors: int = 0) -> Line:
    return {
        "key": key or kind,
        "label": LABELS[kind],
        "kind": kind,
        "cpu_us": cpu_us,
        "cpu_us_of_rounds": [cpu_us],
        "per_second": 20_000.0,
        "p50_us": 700.0,
        "p99_us": 900.0,
        "syscalls": 8.25 if kind == "fastmilter" else None,
        "errors": errors,
        "error_samples": ["no reply in time"] * bool(errors),
        "edits": 3.0,
        "resident": 1 << 20,
        "load_cpu_share": 0.95 if kind == "raw" else 0.5,
        "foreign_share": 0.25 if errors else 0.0,
        "answered": "MR",
    }


def aim(value: float, limit: float, *, at_most: bool) -> Aim:
    return {"job": "a job", "aim": "a figure", "value": value, "limit": limit, "at_most": at_most, "shown": "some"}


@pytest.fixture
def document() -> Document:
    lines = [line("fastmilter", 40.0), line("raw", 20.0), line("threads", 480.0), line("debian", 600.0, errors=1)]
    section: Section = {
        "name": "typical-unix",
        "title": "typical <&>",
        "lines": lines,
        "missing": ["pymilter: not there"],
    }
    judged = [aim(12, 11, at_most=False), aim(12, 13, at_most=False), aim(1, 1, at_most=True)]
    method = {"rounds": 5, "cpu_accounting": "control group (v1)", "server_core": 1, "load_core": 0}
    return results.document([section], judged, ["something else"], method)


def test_table(document: Document) -> None:
    table = report.whole(document)
    ours = next(text for text in table.splitlines() if text.startswith("  fastmilter"))
    assert ours.split() == ["fastmilter", "40.0", "20000", "700", "900", "8.2", "MR", "0", "12.00", "0.50"]
    raw = next(text for text in table.splitlines() if text.startswith("  raw C loop"))
    assert "20000*" in raw
    assert "not measured: pymilter: not there" in table
    assert "not measured: something else" in table
    assert "gave an error: no reply in time" in table
    assert "control group (v1)" in table
    assert "other programs had up to 25%" in table
    assert [text.split()[-1] for text in table.splitlines() if text.startswith("a job")] == ["met", "MISSED", "met"]


def test_ratios_are_taken_under_the_same_traffic() -> None:
    lines = [line(kind, cost, f"{kind}@{n}") for kind, cost in (("fastmilter", 10.0), ("raw", 5.0)) for n in (1, 50)]
    lines[3]["cpu_us"] = 2.0
    section: Section = {"name": "scale", "title": "scale", "lines": lines, "missing": []}
    assert [report.raw_loop(section, each) for each in lines] == [5.0, 2.0, 5.0, 2.0]
    assert report.cheapest_libmilter(section, lines[0]) is None


def test_json_keeps_everything(document: Document, tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    results.write(document, path)
    assert results.read(path) == document
    assert document["machine"]["python"]


def test_chart(document: Document) -> None:
    tree = ElementTree.fromstring(chart.draw(document))
    name = "{http://www.w3.org/2000/svg}"
    bars = {bar.get("class"): float(bar.get("width", "0")) for bar in tree.iter(f"{name}rect")}
    assert bars["libmilter"] / bars["fastmilter"] == pytest.approx(12, rel=0.01)
    assert bars["libmilter"] == chart.LONGEST
    texts = [text.text for text in tree.iter(f"{name}text")]
    assert "typical <&>" in texts
    assert "480 (12.0 times as much)" in " ".join(" ".join(str(text).split()) for text in texts)
    assert float(tree.get("height", "0")) > chart.TOP


def test_chart_of_nothing() -> None:
    ElementTree.fromstring(chart.draw(results.document([], [], [], {})))


def test_rows_have_names_of_their_own() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert len({entry.key for entry in row.entries}) == len(row.entries)
        assert {entry.contestant.kind for entry in row.entries} <= set(KINDS)


def test_an_aim_without_its_figures_is_not_judged() -> None:
    for row in ROWS:
        for wanted in row.wanted:
            assert wanted.figure({}) is None


def test_the_chart_draws_rows_that_there_are() -> None:
    assert set(chart.ROWS) <= {row.name for row in ROWS}


@pytest.mark.usefixtures("built")
def test_a_run_from_end_to_end(tmp_path: Path) -> None:
    choice = ["--row", "typical-unix", "--only", "fastmilter", "--only", "raw", "--no-syscalls"]
    short = ["--rounds", "2", "--time", "0.05", "--output", str(tmp_path)]
    run = [sys.executable, "-m", "bench.run"]
    done = subprocess.run([*run, *choice, *short], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    document = results.read(tmp_path / "results.json")
    (section,) = document["sections"]
    assert [each["kind"] for each in section["lines"]] == ["fastmilter", "raw"]
    assert all(each["cpu_us"] > 0 and len(each["cpu_us_of_rounds"]) == 2 for each in section["lines"])
    assert [judged["aim"] for judged in document["aims"]] == ["of the raw loop's speed"]
    ElementTree.parse(tmp_path / "chart.svg")
    shown = subprocess.run([*run, "--show", str(tmp_path / "results.json")], cwd=ROOT, capture_output=True, text=True)
    assert shown.stdout.split() == done.stdout.split()


def test_an_unknown_row_is_refused() -> None:
    run = [sys.executable, "-m", "bench.run", "--row", "typicl"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "typical-unix" in done.stderr


def test_measured_rows_take_the_place_of_the_former_ones() -> None:
    def section(name: str, line: str) -> Any:
        return {"name": name, "title": name, "lines": [line], "missing": []}

    def aim(job: str, what: str, value: float) -> Any:
        return {"job": job, "aim": what, "value": value, "limit": 1.0, "at_most": True, "shown": f"{value}"}

    former: Any = {
        "made": "then",
        "machine": {},
        "method": {"rounds": 5},
        "sections": [section("a", "old"), section("b", "old")],
        "aims": [aim("a", "cpu", 1.0), aim("b", "cpu", 1.0)],
        "missing": ["a: p50"],
    }
    newer: Any = {**former, "made": "now", "sections": [section("b", "new")], "missing": []}
    newer["aims"] = [aim("b", "cpu", 2.0), aim("a", "p50", 2.0)]
    document = results.updated(former, newer)
    assert document["made"] == "then"
    lines: Any = [each["lines"] for each in document["sections"]]
    assert lines == [["old"], ["new"]]
    assert [(each["job"], each["aim"], each["value"]) for each in document["aims"]] == [
        ("a", "cpu", 1.0),
        ("b", "cpu", 2.0),
        ("a", "p50", 2.0),
    ]
    assert document["missing"] == []
