"""What systemd sees of a server, and the sockets that it hands over; this test is the manager."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastmilter.client import Client
from tests.process.activation import activate
from tests.process.harness import FILTER, PATIENCE_S, ROOT, Server, wait_until, whole_message

UNITS = ROOT / "contrib" / "systemd"


class Manager:
    """The socket that notices come to."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "notify"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path))
        self.socket.settimeout(PATIENCE_S)
        self.lines: list[str] = []

    def wait(self, *expected: str) -> None:
        """Wait for these words, in this order; other lines may come before and between."""
        for word in expected:
            while not any(line.startswith(word) for line in self.lines):
                self.lines += self.socket.recv(4096).decode().split("\n")
            place = next(place for place, line in enumerate(self.lines) if line.startswith(word))
            del self.lines[: place + 1]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path)
    yield manager
    manager.socket.close()


def test_ready_reloading_and_stopping_are_told(server: Server, manager: Manager) -> None:
    server.start("--workers=2", environment={"NOTIFY_SOCKET": str(manager.path)})
    manager.wait("READY=1", f"MAINPID={server.pid}", "STATUS=2 workers serve")
    for number in (signal.SIGHUP, signal.SIGUSR2):
        server.send(number)
        manager.wait("RELOADING=1", "MONOTONIC_USEC=", "STATUS=reloading", "READY=1", f"MAINPID={server.pid}")
    # A reload that fails is over too: the old workers serve.
    server.filter.write_text("class Tagger(:\n")
    for number in (signal.SIGHUP, signal.SIGUSR2):
        server.send(number)
        manager.wait("RELOADING=1", "READY=1")
    server.send(signal.SIGTERM)
    manager.wait("STOPPING=1", "EXTEND_TIMEOUT_USEC=70000000", "STATUS=stopping")
    assert server.finish() == 0


def test_ready_comes_when_all_workers_serve(server: Server, manager: Manager) -> None:
    release = server.directory / "release"
    server.filter.write_text(
        FILTER
        + f"""
    @classmethod
    def worker_started(cls, options):
        import time
        try:
            os.close(os.open({str(release) + ".first"!r}, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            while not os.path.exists({str(release)!r}):
                time.sleep(0.01)
"""
    )
    server.start("--workers=2", environment={"NOTIFY_SOCKET": str(manager.path)}, wait=False)
    manager.wait("STATUS=1 worker serves")
    with server.client() as client:  # one serves already
        whole_message(client)
    release.touch()
    manager.wait("READY=1", "STATUS=2 workers serve")
    assert server.stop() == 0


def test_the_watchdog_hears_of_the_server_before_and_after_an_upgrade(server: Server, manager: Manager) -> None:
    server.start("--workers=1", environment={"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "200000"})
    manager.wait("WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1")
    server.send(signal.SIGUSR2)
    manager.wait("RELOADING=1", "READY=1", "WATCHDOG=1", "WATCHDOG=1")
    assert server.stop() == 0


def test_workers_know_nothing_of_systemd(server: Server, manager: Manager) -> None:
    server.filter.write_text(
        FILTER
        + """
    @classmethod
    def worker_started(cls, options):
        print("sees", [name for name in os.environ if name.startswith(("NOTIFY", "WATCHDOG", "LISTEN"))], flush=True)
"""
    )
    environment = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "10000000", "LISTEN_PID": "1"}
    server.start("--workers=1", environment=environment)
    server.wait_log(r"sees \[\]")
    assert server.stop() == 0


def test_sockets_that_were_opened_by_systemd(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(server.directory / "fm.sock"))
        unix.listen()
        addresses = [f"inet:{tcp.getsockname()[1]}@127.0.0.1", f"unix:{server.directory}/fm.sock"]
        # A connection that came before the server: it started it.
        early = socket.create_connection(tcp.getsockname())
        activate(server, [tcp.fileno(), unix.fileno()], "--listen=systemd")
        assert [server.address(place) for place in (0, 1)] == addresses
        early.close()
        for number, said in ((signal.SIGHUP, "generation 2 serves"), (signal.SIGUSR2, "generation 3 serves")):
            server.send(number)
            server.wait_log(said)
            for address in addresses:
                with Client(address) as client:
                    whole_message(client)
            wait_until(lambda: len(server.workers()) == 1, "the old worker leaves")
        assert server.stop() == 0
        # While it is away connections wait; the next one serves them.
        waiting = [Client(address) for address in addresses]
        queued = [socket.create_connection(tcp.getsockname()), socket.socket(socket.AF_UNIX)]
        queued[1].connect(str(server.directory / "fm.sock"))
        activate(server, [tcp.fileno(), unix.fileno()], "--listen=systemd")
        for client in waiting:
            with client:
                whole_message(client)
        for sock in queued:
            sock.close()
        assert server.stop() == 0


def test_without_such_sockets_it_does_not_start(server: Server) -> None:
    server.start("--listen=systemd", listen=(), wait=False)
    assert server.finish() == 78
    assert "fastmilter: systemd: systemd has handed no sockets to this process" in server.log()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    """It checks that programs exist, too: so they are said to be where one is."""
    names = sorted(path.name for path in UNITS.iterdir() if path.suffix in (".service", ".socket"))
    assert names
    for name in names:
        text = (UNITS / name).read_text().replace("/opt/fastmilter/bin/fastmilter", sys.executable)
        (tmp_path / name).write_text(text)
    units = [name.replace("@.", "@tagger.") for name in names]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / unit) for unit in units)],
        capture_output=True,
        text=True,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:", "SYSTEMD_LOG_LEVEL": "warning"},
        check=False,
    )
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "fastmilter" in line or "tagger" in line]
    assert (done.returncode, ours) == (0, [])
