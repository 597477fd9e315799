"""The programs in C, made once; and what becomes of a test whose contestant cannot run here."""

from __future__ import annotations

import pytest

from bench import programs
from bench.servers import Cores
from tests.mta.lab.environment import required

_skipped: set[str] = set()


@pytest.fixture(scope="session")
def built() -> None:
    programs.build()


@pytest.fixture
def cores(built: None) -> Cores:
    return Cores.choose()


def need(kind: str) -> None:
    """Fail, or skip where nobody insists, if a contestant cannot run here."""
    reason = programs.why_missing(kind)
    if reason is None:
        return
    text = f"{kind} cannot be measured here: {reason}"
    if required():
        pytest.fail(text)
    _skipped.add(text)
    pytest.skip(text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was skipped without being asked for it."""
    if _skipped:
        terminalreporter.section("TESTS OF THE BENCHMARK SKIPPED", sep="!", yellow=True)
        for text in sorted(_skipped):
            terminalreporter.line(text)
