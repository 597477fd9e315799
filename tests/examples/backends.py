"""Real back-ends for the tests of the examples: programs of Debian, started in a directory of their own."""

import contextlib
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.mta.lab.environment import program, required
from tests.process.harness import wait_until
from tests.support.clamd import VIRUS

STOP_S: Final = 30.0


def need(*names: str, hint: str = "tests/examples/install.sh") -> str:
    """Return the path of one of the programs; fail, or skip where nobody insists, if there is none."""
    for name in names:
        if path := program(name):
            return path
    text = f"{' or '.join(names)} is not installed (see {hint})"
    if required():
        pytest.fail(text)
    pytest.skip(text)


@contextlib.contextmanager
def running(command: list[str], log: Path, is_ready: Callable[[], bool]) -> Iterator[None]:
    """Run a program for the time of the block, which begins when it is ready."""
    with log.open("wb") as sink:
        process = subprocess.Popen(command, cwd=log.parent, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
    try:
        # Gone is ready too, so that nothing is waited for that will not come.
        wait_until(lambda: is_ready() or process.poll() is not None, f"{command[0]} is ready")
        assert process.poll() is None, log.read_text(errors="replace")
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def takes_connections(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.connect(str(path))
        return True
    return False


CLAMD: Final = """
DatabaseDirectory {directory}/signatures
LocalSocket {directory}/clamd
TCPSocket {port}
TCPAddr 127.0.0.1
TemporaryDirectory {directory}
StreamMaxLength 1M
Foreground yes
Bytecode no
SelfCheck 0
"""


@contextlib.contextmanager
def clamd(directory: Path, port: int) -> Iterator[Path]:
    """Run clamd with one signature, on a port and on a unix socket whose path is returned; it needs no network."""
    name = need("clamd")
    (directory / "signatures").mkdir()
    (directory / "signatures" / "test.ndb").write_text(f"Test.Eicar:0:*:{VIRUS.hex()}\n")
    (directory / "clamd.conf").write_text(CLAMD.format(directory=directory, port=port))
    path = directory / "clamd"
    with running([name, "-c", str(directory / "clamd.conf")], directory / "log", lambda: takes_connections(path)):
        yield path


@contextlib.contextmanager
def redis(directory: Path) -> Iterator[Path]:
    """Run a Redis (or Valkey) server on a unix socket, whose path is returned; it writes nothing to disk."""
    name = need("redis-server", "valkey-server")
    path = directory / "redis"
    options = ["--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no", "--dir", str(directory)]
    with running([name, *options], directory / "log", lambda: takes_connections(path)):
        yield path


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A directory for sockets, whose paths are short by law."""
    with tempfile.TemporaryDirectory(prefix="fastmilter-", dir="/tmp") as name:
        yield Path(name)
