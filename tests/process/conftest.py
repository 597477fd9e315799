"""Servers for tests, which leave no process behind."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.harness import Server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.kill_all()
    print(server.log_file.read_text())  # shown where a test fails
