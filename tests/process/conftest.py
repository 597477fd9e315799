"""Servers for tests, which leave no process behind."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.harness import Server


@pytest.fixture(scope="session", autouse=True)
def signals_have_their_meaning() -> Iterator[None]:
    """Undo what ``nohup`` (HUP) and ``&`` in a script (INT) do: servers and programs would inherit what is ignored."""
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGHUP, hangup)
    signal.signal(signal.SIGINT, interrupt)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.kill_all()
    print(server.log_file.read_text())  # shown where a test fails
