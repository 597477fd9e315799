"""What happens to listening sockets at the moment the parent of a process dies."""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable

import pytest

from fastmilter.server._orphan import ORPHAN_SIGNAL, shut_down_when_orphaned

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells of a parent's death")
PATIENCE_S = 10.0


def is_listening(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def orphaned(prepare: Callable[[int], socket.socket], *, early: bool = False) -> bytes:
    """Have ``prepare`` called in a process whose parent dies then, or before if ``early``; return whether what it
    returns listens a while later."""
    results, report = os.pipe()
    parent = os.fork()
    if parent == 0:
        parent = os.getpid()
        ready, tell = os.pipe()
        if os.fork() == 0:
            if early:
                wait_until(lambda: os.getppid() != parent)
            sock = prepare(parent)
            os.write(tell, b"x")
            wait_until(lambda: os.getppid() != parent)
            deadline = time.monotonic() + 0.2
            while time.monotonic() < deadline and is_listening(sock):
                pass
            os.write(report, b"listens" if is_listening(sock) else b"shut")
            os._exit(0)
        if not early:
            os.read(ready, 1)
        os._exit(0)
    os.close(report)
    os.waitpid(parent, 0)
    try:
        return os.read(results, 100)
    finally:
        os.close(results)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            os._exit(1)
        time.sleep(0.001)


@pytest.mark.parametrize("early", [False, True])
def test_a_port_is_shut_down_when_the_parent_dies(early: bool) -> None:
    def prepare(parent: int) -> socket.socket:
        sock = socket.create_server(("127.0.0.1", 0))
        assert shut_down_when_orphaned([sock.fileno()], parent)
        return sock

    assert orphaned(prepare, early=early) == b"shut"


def test_another_socket_of_the_same_number_is_left_alone() -> None:
    def prepare(parent: int) -> socket.socket:
        ours = socket.create_server(("127.0.0.1", 0))
        assert shut_down_when_orphaned([ours.fileno()], parent)
        other = socket.create_server(("127.0.0.1", 0))
        os.dup2(other.fileno(), ours.fileno())
        return ours

    assert orphaned(prepare) == b"listens"


def test_what_cannot_be_done_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert not shut_down_when_orphaned([sock.fileno()] * 65, os.getppid())
    read_end, write_end = os.pipe()
    assert not shut_down_when_orphaned([read_end], os.getppid()), "no socket at all"
    os.close(read_end)
    os.close(write_end)
    assert ORPHAN_SIGNAL is not None
    assert signal.getsignal(ORPHAN_SIGNAL) == signal.SIG_DFL
