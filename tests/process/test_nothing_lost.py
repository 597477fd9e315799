"""Under constant load, over a unix socket and TCP: whatever is done to the server, nothing is lost that need not be."""

import os
import random
import signal
import threading

import psutil
import pytest

from tests.process.harness import Server, is_gone, wait_until
from tests.process.load import FILTER, Load

SOAK = bool(os.environ.get("FASTMILTER_SOAK"))
SESSIONS = 50 if SOAK else 24
QUICK_DRAIN = ("--drain-reload=0.2,20,30", "--drain-stop=0.2,20,30")
"""Sessions that keep their connection are told soon to leave (421 at MAIL); there is time to end what has begun."""


@pytest.fixture
def loaded(server: Server) -> Server:
    server.filter.write_text(FILTER)
    return server


def start(server: Server, *options: str, workers: int = 2) -> list[str]:
    """Start it with a unix socket and a port; return both addresses."""
    addresses = [f"unix:{server.directory}/fm.sock", "inet:0@127.0.0.1"]
    server.start(f"--workers={workers}", *QUICK_DRAIN, *options, listen=addresses)
    return [server.address(0), server.address(1)]


def open_descriptors(pid: int) -> int:
    return psutil.Process(pid).num_fds()


def test_reloads(loaded: Server) -> None:
    with Load(start(loaded), SESSIONS) as load:
        for number in range(30 if SOAK else 10):
            loaded.send(signal.SIGHUP)
            loaded.wait_log(rf"generation {number + 2} serves")
        load.wait_further()
    assert load.failures == []
    assert load.moved > 0, "sessions that stayed were asked to come again"
    wait_until(lambda: len(loaded.workers()) == 2, "the older workers leave")
    assert loaded.stop() == 0


def test_more_and_fewer_workers(loaded: Server) -> None:
    with Load(start(loaded, workers=1), SESSIONS) as load:
        for number in range(30 if SOAK else 5):
            loaded.send(signal.SIGTTIN)
            loaded.wait_ready(number + 2)
            load.wait_further()
            loaded.send(signal.SIGTTOU)
            loaded.wait_log(r"worker 2 ended", number + 1)
    assert load.failures == []
    assert loaded.stop() == 0


def test_recycling(loaded: Server) -> None:
    with Load(start(loaded, "--max-messages=200"), SESSIONS) as load:
        loaded.wait_log(r"it has served its messages \(--max-messages\): starting its successor", 20 if SOAK else 5)
        loaded.wait_log(r"worker \d+ ended .* status=0", 20 if SOAK else 4)
        load.wait_further()
    assert load.failures == []
    assert load.moved > 0
    assert loaded.stop() == 0


def test_upgrades_in_place(loaded: Server) -> None:
    addresses = start(loaded)
    master, descriptors = loaded.pid, open_descriptors(loaded.pid)
    with Load(addresses, SESSIONS) as load:
        for number in range(10 if SOAK else 3):
            loaded.send(signal.SIGUSR2)
            loaded.wait_log("upgrade: the master is new, 2 workers serve on", number + 1)
            loaded.wait_log(rf"generation {number + 2} serves")
        load.wait_further()
    assert load.failures == []
    assert load.moved > 0
    wait_until(lambda: len(loaded.workers()) == 2, "the older workers leave")
    assert loaded.pid == master
    wait_until(lambda: open_descriptors(master) == descriptors, "the master has as many descriptors as before")
    assert loaded.stop() == 0
    assert not (loaded.directory / "fm.sock").exists()


def test_killed_workers_take_only_their_own_sessions_with_them(loaded: Server) -> None:
    dice = random.Random(1)
    killed: set[int] = set()
    second = threading.Event()  # never set: a kill a second is what is asked for
    with Load(start(loaded, workers=3), SESSIONS) as load:
        for number in range(60 if SOAK else 10):
            victim = dice.choice(sorted(loaded.workers()))
            killed.add(victim)
            os.kill(victim, signal.SIGKILL)
            loaded.wait_ready(3 + number + 1)
            second.wait(1.0)
        load.wait_further()
    lost = load.lost()
    assert lost, "the sessions of the killed workers broke"
    assert {failure.worker for failure in lost} <= killed | {None}
    assert not is_gone(loaded.pid)
    assert loaded.stop() == 0


def test_after_a_killed_master_the_next_one_serves_at_once(loaded: Server) -> None:
    addresses = start(loaded)
    old = loaded.workers()
    with Load(addresses, SESSIONS):
        os.kill(loaded.pid, signal.SIGKILL)
        loaded.finish()
        # The same addresses: the port that the first one was given among them.
        loaded.start("--workers=2", *QUICK_DRAIN, listen=addresses)
        with Load(addresses, sessions=8) as fresh:
            fresh.wait_further()
        assert fresh.failures == []
    wait_until(lambda: all(is_gone(pid) for pid in old), "the workers of the dead master leave")
    assert loaded.stop() == 0
