"""The README quotes the last whole run of the benchmark, and no other figure."""

import pytest

from bench import readme
from bench.chart import ROWS


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
