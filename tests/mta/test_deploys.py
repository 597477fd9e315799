"""Postfix under constant load while the server behind it is reloaded, upgraded and started again: no mail is lost."""

import re
import shutil
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Self

import pytest

from tests.process.activation import activate
from tests.process.harness import PATIENCE_S, Server, wait_until

from .conftest import need
from .lab import Delivery, Mta, Postfix, Sink, free_port
from .lab.environment import new_directory, program

RELOADS = 10
UPGRADES = 3
RESTARTS = 3
MESSAGES = 40
"""Messages that one run of smtp-source sends."""
DELIVERY_S = 120.0
"""How long Postfix may take to deliver what has queued up."""


class Source:
    """smtp-source(1), again and again, until told otherwise: it ends with an error at the first reply that is not 250.

    Two run side by side: one with a session for each message, and one whose sessions stay for many.
    """

    def __init__(self, port: int) -> None:
        self.sent = 0
        """Messages that were answered 250."""
        self.failures: list[str] = []
        self._port = port
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._runs = 0
        self._threads = [threading.Thread(target=self._run, args=(options,)) for options in ((), ("-d",))]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        assert not any(thread.is_alive() for thread in self._threads), "smtp-source hangs"

    def _run(self, options: tuple[str, ...]) -> None:
        while not self._over.is_set():
            with self._lock:
                self._runs += 1
                recipient = f"-of-run-{self._runs}@example.net"  # -N puts a number before it
            sends = [program("smtp-source") or "smtp-source", *options, "-s", "4", "-m", str(MESSAGES), "-N"]
            sends += ["-f", "source@example.org", "-t", recipient, f"inet:127.0.0.1:{self._port}"]
            done = subprocess.run(sends, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
            with self._lock:
                if done.returncode != 0:
                    self.failures.append(done.stderr)
                    return
                self.sent += MESSAGES

    def go_on(self) -> None:
        """Wait until each of the two may have sent what it began later than now."""
        until = self.sent + 3 * MESSAGES
        wait_until(lambda: self.failures or self.sent >= until, "more messages are sent")


@pytest.fixture
def server() -> Iterator[Server]:
    """A server whose directory Postfix may enter."""
    need("postfix")
    directory = new_directory("deploys")
    server = Server(directory)
    yield server
    server.kill_all()
    print(server.log_file.read_text()[-4000:])  # shown where a test fails
    shutil.rmtree(directory, ignore_errors=True)


def postfix_with(sink: Sink, milter: str) -> Postfix:
    return Postfix(sink, [milter], {"milter_default_action": "tempfail"})


def check(source: Source, sink: Sink, postfix: Mta, server: Server) -> Counter[int]:
    """Check that every message was taken, and delivered once, filtered; return how many each generation has seen."""
    assert source.failures == [], f"{source.failures}\n{postfix.log()[-4000:]}\n{server.log()[-4000:]}"
    postfix.settle(DELIVERY_S)
    deliveries = sink.matching(lambda _: True)
    times = Counter(recipient for delivery in deliveries for recipient in delivery.recipients)
    assert set(times.values()) == {1}, "a message was delivered twice"
    assert len(times) == source.sent, f"{source.sent} messages were answered 250, {len(times)} were delivered"
    print(f"{source.sent} messages answered 250, each delivered once")
    generations = generations_of(server)
    return Counter(generations[worker_of(delivery)] for delivery in deliveries)


def worker_of(delivery: Delivery) -> int:
    """Return the worker that a message was filtered by."""
    pids = delivery.values("X-Pid")
    assert len(pids) == 1, f"the filter has seen it {len(pids)} times: {delivery.head!r}"
    return int(pids[0])


def generations_of(server: Server) -> dict[int, int]:
    """Return the generation of each worker, counted over restarts of the server too."""
    found, before = {}, 0
    starts = re.split(r"^.* listening on .*$", server.log_file.read_text(), flags=re.MULTILINE)
    for text in starts:
        started = re.findall(r"worker \d+ started pid=(\d+) generation=(\d+)", text)
        found.update({int(pid): before + int(generation) for pid, generation in started})
        before = max(found.values(), default=0)
    return found


@pytest.mark.parametrize("transport", ["unix", "inet"])
def test_reloads_and_upgrades(server: Server, transport: str) -> None:
    address = f"unix:{server.directory}/fm.sock?mode=0666" if transport == "unix" else f"inet:{free_port()}@127.0.0.1"
    server.start("--workers=2", listen=[address])
    kinds = [signal.SIGHUP] * RELOADS + [signal.SIGUSR2] * UPGRADES
    milter = address.partition("?")[0]
    with Sink() as sink, postfix_with(sink, milter) as postfix:
        with Source(postfix.port) as source:
            source.go_on()
            for number, kind in enumerate(kinds, start=2):
                server.send(kind)
                server.wait_log(rf"generation {number} serves")
                source.go_on()
        seen = check(source, sink, postfix, server)
    assert sorted(seen) == list(range(1, 2 + len(kinds))), "every generation has had its part"
    assert server.stop() == 0


@pytest.mark.parametrize("transport", ["unix", "inet"])
def test_restarts_with_sockets_of_systemd(server: Server, transport: str) -> None:
    """The sockets stay open while the server is away: Postfix's connections wait in their queue."""
    with socket.socket(socket.AF_UNIX if transport == "unix" else socket.AF_INET) as sock:
        if transport == "unix":
            path = server.directory / "fm.sock"
            sock.bind(str(path))
            path.chmod(0o666)
            milter = f"unix:{path}"
        else:
            sock.bind(("127.0.0.1", 0))
            milter = f"inet:{sock.getsockname()[1]}@127.0.0.1"
        sock.listen(1000)
        activate(server, [sock.fileno()], "--listen=systemd", workers=2)
        with Sink() as sink, postfix_with(sink, milter) as postfix:
            with Source(postfix.port) as source:
                source.go_on()
                for _ in range(RESTARTS):
                    assert server.stop() == 0
                    activate(server, [sock.fileno()], "--listen=systemd", workers=2)
                    source.go_on()
            seen = check(source, sink, postfix, server)
        assert sorted(seen) == list(range(1, 2 + RESTARTS))
        assert server.stop() == 0
