"""The milters of these tests, and what becomes of a test whose milter cannot run here."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.mta.lab.environment import required

from .running import Milters, missing_for, missing_for_transport

collect_ignore = ["filters"]  # programs, one of them for another Python

_skipped: set[str] = set()

Start = Callable[[str], str]
"""Gives the address of the milter of that name."""


@pytest.fixture(scope="package")
def milters() -> Iterator[Milters]:
    with Milters() as running:
        yield running


def need(what: str, reasons: list[str]) -> None:
    """Fail, or skip where nobody insists, if there are reasons why a milter cannot run here."""
    if not reasons:
        return
    text = f"{what} cannot run here: {'; '.join(reasons)} (see tests/milters/install.sh)"
    if required():
        pytest.fail(text)
    _skipped.add(text)
    pytest.skip(text)


@pytest.fixture(params=["inet", "inet6", "unix"])
def start(request: pytest.FixtureRequest, milters: Milters) -> Start:
    """Over each transport."""
    transport = request.param

    def started(name: str) -> str:
        need(f"{name} over {transport}", missing_for(name) + missing_for_transport(transport))
        return milters.address(name, transport)

    return started


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was skipped without being asked for it."""
    if _skipped:
        terminalreporter.section("TESTS WITH REAL MILTERS SKIPPED", sep="!", yellow=True)
        for text in sorted(_skipped):
            terminalreporter.line(text)
