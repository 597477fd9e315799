"""Servers for tests, which leave no process behind."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.harness import Server


@pytest.fixture(scope="session", autouse=True)
def hangup_has_its_meaning() -> Iterator[None]:
    """Undo what ``nohup`` did to this process: servers and their programs would inherit that HUP is ignored."""
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, former)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.kill_all()
    print(server.log_file.read_text())  # shown where a test fails
