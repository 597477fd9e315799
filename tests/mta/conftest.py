"""One Postfix and one Sendmail for the whole run; tests start their filters behind one milter port."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from .case import Case
from .lab import Mta, Postfix, Sendmail, Sink, free_port, missing_for_postfix, missing_for_sendmail, required
from .lab.served import Served, Stage

_MISSING = {"postfix": missing_for_postfix, "sendmail": missing_for_sendmail}
_skipped: dict[str, str] = {}


def need(name: str) -> None:
    """Fail, or skip where nobody insists, when an MTA cannot run here."""
    reasons = _MISSING[name]()
    if not reasons:
        return
    text = f"{name} cannot run here: {'; '.join(reasons)} (see tests/mta/install.sh)"
    if required():
        pytest.fail(text)
    _skipped[name] = text
    pytest.skip(text)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything below this directory is marked `mta`, and tests of the same filter follow one another.

    A server is started for each change of the filter, which takes longer than most tests.
    """
    here = Path(__file__).parent
    mine = [number for number, item in enumerate(items) if item.path.is_relative_to(here)]
    for number in mine:
        items[number].add_marker(pytest.mark.mta)
    for number, item in zip(mine, sorted((items[number] for number in mine), key=_file_and_filter), strict=True):
        items[number] = item


def _file_and_filter(item: pytest.Item) -> tuple[str, str]:
    parameters = getattr(item, "callspec", None)
    return str(item.path), str(parameters.params.get("filter_class", "")) if parameters is not None else ""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was skipped without being asked for it."""
    for text in _skipped.values():
        terminalreporter.section("MTA TESTS SKIPPED", sep="!", yellow=True)
        terminalreporter.line(text)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows the end of the log of its MTA."""
    report = yield
    running = getattr(item, "funcargs", {}).get("mta")
    if report.failed and isinstance(running, Mta):
        report.sections.append((f"log of {running.name}", running.log()[-4000:]))
    case = getattr(item, "funcargs", {}).get("case")
    if report.failed and isinstance(case, Case):
        report.sections.append(("log of the filter", case.served.log()[-4000:]))
    return report


@pytest.fixture(scope="session")
def sink() -> Iterator[Sink]:
    """Where both MTAs deliver to."""
    with Sink() as running:
        yield running


@pytest.fixture(scope="session")
def milter_port() -> int:
    """The port at which both MTAs expect a filter."""
    return free_port()


@pytest.fixture(scope="session")
def postfix(sink: Sink, milter_port: int) -> Iterator[Mta]:
    """Postfix with the filter at `milter_port`."""
    need("postfix")
    with Postfix(sink, [f"inet:{milter_port}@127.0.0.1"]) as running:
        yield running


@pytest.fixture(scope="session")
def sendmail(sink: Sink, milter_port: int) -> Iterator[Mta]:
    """Sendmail with the filter at `milter_port`."""
    need("sendmail")
    with Sendmail(sink, [f"inet:{milter_port}@127.0.0.1"]) as running:
        yield running


@pytest.fixture(params=["postfix", "sendmail"])
def mta(request: pytest.FixtureRequest) -> Mta:
    """Each of the two."""
    running = request.getfixturevalue(request.param)
    assert isinstance(running, Mta)
    return running


@pytest.fixture(scope="session")
def stage(milter_port: int) -> Iterator[Stage]:
    """Where tests put their filters."""
    running = Stage(milter_port)
    yield running
    running.clear()


@pytest.fixture
def own_server(stage: Stage, milter_port: int) -> Iterator[list[Served]]:
    """Room for a server that a test may harm; nothing else is at the milter port meanwhile."""
    stage.clear()
    started: list[Served] = []
    yield started
    for served in started:
        served.kill()
