"""Programs in the documentation: found by the comment with their name, run as processes of their own."""

import contextlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.examples.support import ROOT, environment

DEFAULT_PORT = "8894"
PATIENCE_S = 60.0


class Program(NamedTuple):
    """A block of a page that begins with ``# name.py``, and the output that the page shows behind it."""

    source: str
    output: str | None


def programs(page: str) -> dict[str, Program]:
    """The programs of a page, by name."""
    text = (ROOT / page).read_text()
    pattern = r"^```python\n(# (\w+\.py)\n.*?)^```$(?:\n+prints\n+```text\n(.*?)^```$)?"
    return {name: Program(source, output or None) for source, name, output in re.findall(pattern, text, re.M | re.S)}


def write(page: str, directory: Path, port: int) -> dict[str, Program]:
    """Write the programs of a page into a directory, with another port; returns them."""
    found = programs(page)
    for name, program in found.items():
        (directory / name).write_text(program.source.replace(DEFAULT_PORT, str(port)))
    return found


def run(directory: Path, name: str) -> str:
    """Run a program to its end, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", name],
        cwd=directory,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


@contextlib.contextmanager
def running(directory: Path, *command: str, port: int) -> Iterator[None]:
    """Run a server for the time of the block, which begins when its port takes connections."""
    process = subprocess.Popen([sys.executable, *command], cwd=directory, env=environment(), stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not _takes_connections(port):
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def _takes_connections(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False
