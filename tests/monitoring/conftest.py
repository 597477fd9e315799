"""promtool, and what becomes of a test where it is missing."""

import shutil
from pathlib import Path

import pytest

from tests.mta.lab.environment import required

_OWN = Path(__file__).parent / ".lab" / "promtool"
_missing: set[str] = set()


@pytest.fixture(scope="session")
def promtool() -> str:
    """The program; skipped without it, unless somebody insists."""
    found = shutil.which("promtool") or (str(_OWN) if _OWN.exists() else None)
    if found is None:
        text = "promtool is missing (see tests/monitoring/install.sh)"
        if required():
            pytest.fail(text)
        _missing.add(text)
        pytest.skip(text)
    return found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was skipped without being asked for it."""
    for text in sorted(_missing):
        terminalreporter.section("TESTS WITH PROMTOOL SKIPPED", sep="!", yellow=True)
        terminalreporter.line(text)
