"""The documents quote the last whole run of the benchmark, and no other figure."""

from __future__ import annotations

import pytest

from bench import readme
from bench.chart import ROWS
from bench.results import Line, Section
from bench.waiting import MEMORY, crowd_job


@pytest.fixture(scope="module")
def page() -> str:
    return readme.README.read_text(encoding="utf-8")


def test_the_readme_quotes_the_results(page: str) -> None:
    assert readme.with_quote(page, readme.read()) == page, "run python -m bench.readme --write"


def test_each_job_of_the_chart_is_there(page: str) -> None:
    table = [line for line in page.splitlines() if line.endswith("|") and " times | " in line]
    assert len(table) == len(ROWS)


def test_other_results_are_noticed(page: str) -> None:
    document = readme.read()
    for section in document["sections"]:
        for line in section["lines"]:
            line["cpu_us"] *= 2 if line["kind"] == "fastmilter" else 1
    assert readme.with_quote(page, document) != page


def test_the_page_about_kinds_quotes_the_results() -> None:
    if not readme.KINDS.exists():
        pytest.skip("there is no docs/kinds.md yet")
    kinds = readme.KINDS.read_text(encoding="utf-8")
    assert kinds.count(readme.KINDS_BEGIN) == kinds.count(readme.KINDS_END) == 1
    assert readme.with_kinds(kinds, readme.read()) == kinds, "run python -m bench.readme --write"


def section(name: str, speeds: dict[str, float]) -> Section:
    """A row with these messages per second; the CPU per message is half of a core's."""
    model = readme.read()["sections"][0]["lines"][0]
    lines: list[Line] = [
        {**model, "key": key, "per_second": speed, "cpu_us": 500_000 / speed} for key, speed in speeds.items()
    ]
    return {"name": name, "title": "", "lines": lines, "missing": []}


def test_the_table_of_kinds() -> None:
    document = readme.read()
    document["sections"] = [
        section("waiting-50", {"plain": 200, "blocking": 4000, "async": 5000, "threads": 1000, "debian": 500}),
        section("waiting-500", {"blocking": 3000, "threads": 800}),
    ]
    job = crowd_job("async")
    document["aims"] = [
        {"job": job, "aim": MEMORY, "value": 4.25, "limit": 1, "at_most": True, "shown": ""},
        {"job": job, "aim": "answered", "value": 2000, "limit": 1, "at_most": True, "shown": ""},
    ]
    page = readme.with_kinds(f"before\n{readme.KINDS_BEGIN}\nold\n{readme.KINDS_END}\nafter\n", document)
    assert page.startswith(f"before\n{readme.KINDS_BEGIN}\n")
    assert page.endswith(f"\n{readme.KINDS_END}\nafter\n")
    assert [line for line in page.splitlines() if line.startswith("| ")][2:] == [
        "| plain | 2500 µs | 200 | - | - |",
        "| blocking | 125 µs | 4000 | 3000 | - |",
        "| async | 100 µs | 5000 | - | 4.2 KB |",
        "| libmilter, thread per connection | 500 µs | 1000 | 800 | - |",
    ]


def test_kinds_that_were_not_measured() -> None:
    document = readme.read()
    document["sections"] = []
    assert readme.kinds(document).splitlines()[1:-1] == [readme.UNMEASURED]
