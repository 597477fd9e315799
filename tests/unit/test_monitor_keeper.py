"""When the monitor is started again: with real processes, but a clock of the test."""

import os
import selectors
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastmilter.endpoints import Endpoint, EndpointKind
from fastmilter.errors import ConfigError
from fastmilter.server import channel
from fastmilter.server.listen import open_listener
from fastmilter.server.monitor_keeper import (
    LEAVE_S,
    MonitorKeeper,
    Windows,
    open_windows,
)
from fastmilter.server.policy import BACKOFF_LONGEST_S, HEALTHY_AFTER_S
from fastmilter.server.settings import load_settings
from tests.process.harness import is_gone, wait_until


class Bench:
    """A keeper whose monitors are children that say that they are ready, and wait for the end of their channel.

    Or that are ``stubborn``, and wait for ever, or ``slow``, and never get ready.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.orders: list[channel.Message] = []
        self.pids: list[int] = []
        self.stubborn = self.slow = False
        self.selector = selectors.DefaultSelector()
        self.keeper = MonitorKeeper(self.fork, self.orders.extend, clock=lambda: self.now)
        self.windows = Windows(metrics=open_listener(Endpoint(EndpointKind.INET, host="127.0.0.1")))

    def fork(self) -> tuple[int, socket.socket, int]:
        ours, theirs = channel.open_channel()
        stubborn, slow = self.stubborn, self.slow
        pid = os.fork()
        if pid == 0:
            try:
                ours.close()
                self.keeper.forget_in_child()  # a copy of a channel would keep its monitor there
                theirs.setblocking(True)
                if not slow:
                    channel.send(theirs, channel.Ready())
                while stubborn:
                    signal.pause()
                while theirs.recv(4096):  # or it is reset, if nobody has read that we are ready
                    pass
            finally:
                os._exit(0)  # whatever happens: this process must not go on with the tests
        theirs.close()
        self.pids.append(pid)
        return pid, ours, os.pidfd_open(pid)

    def turn(self) -> None:
        """Handle what has happened."""
        for key, _ in self.selector.select(0):
            key.data()

    def until_ready(self) -> None:
        """Handle what the newest monitor says first."""
        (ready,) = self.selector.select(10)
        ready[0].data()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Handle what happens until something has."""

        def has_happened() -> bool:
            self.turn()
            return condition()

        wait_until(has_happened, what)
        self.turn()

    def until_ended(self, pid: int) -> None:
        wait_until(lambda: is_gone(pid), "the process ends")
        self.turn()

    def close(self) -> None:
        self.keeper.close()
        for pid in self.pids:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                continue
        self.selector.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def test_without_anything_to_do_there_is_none(bench: Bench) -> None:
    bench.keeper.begin(Windows(), bench.selector)
    assert bench.pids == []
    assert bench.keeper.next_deadline() is None
    bench.windows.metrics.close()  # type: ignore[union-attr]


def test_a_series_of_deaths_is_answered_more_and_more_slowly(bench: Bench) -> None:
    bench.keeper.begin(bench.windows, bench.selector)
    waits = []
    for count in range(1, 10):
        assert len(bench.pids) == count
        os.kill(bench.pids[-1], signal.SIGKILL)
        bench.until_ended(bench.pids[-1])
        deadline = bench.keeper.next_deadline()
        assert deadline is not None
        waits.append(deadline - bench.now)
        bench.now = deadline
        bench.keeper.on_time()
    assert waits == [0, 1, 2, 4, 8, 16, 32, BACKOFF_LONGEST_S, BACKOFF_LONGEST_S]
    bench.now += HEALTHY_AFTER_S
    os.kill(bench.pids[-1], signal.SIGKILL)
    bench.until_ended(bench.pids[-1])
    assert bench.keeper.next_deadline() == bench.now


def test_one_that_stays_after_a_change_is_killed(bench: Bench) -> None:
    bench.stubborn = True
    bench.keeper.begin(bench.windows, bench.selector)
    bench.until_ready()
    bench.stubborn = False
    bench.keeper.change(bench.windows)
    bench.until_ready()
    old, new = bench.pids
    assert bench.keeper.next_deadline() == bench.now + LEAVE_S
    bench.now += LEAVE_S
    bench.keeper.on_time()
    bench.until_ended(old)
    assert not is_gone(new)
    assert bench.keeper.next_deadline() is None, "the old one is not replaced a second time"


def test_the_old_one_serves_until_the_new_one_does(bench: Bench) -> None:
    bench.keeper.begin(bench.windows, bench.selector)
    bench.until_ready()
    bench.slow = True
    bench.keeper.change(bench.windows, may_overlap=True)
    bench.turn()
    old, new = bench.pids
    os.kill(new, signal.SIGKILL)
    bench.until_ended(new)
    assert bench.keeper.next_deadline() == bench.now, "there is no successor, although the old one is there"
    bench.slow = False
    bench.keeper.on_time()
    bench.keeper.change(bench.windows, may_overlap=True)  # a second change, before the first is over
    assert not is_gone(old)
    assert len(bench.pids) == 4
    bench.until(lambda: is_gone(old) and is_gone(bench.pids[2]), "the old ones end")
    assert not is_gone(bench.pids[3])
    assert bench.keeper.pids() == [bench.pids[3]]
    assert bench.keeper.next_deadline() is None


def test_an_old_one_whose_sockets_are_closed_goes_at_once(bench: Bench) -> None:
    bench.keeper.begin(bench.windows, bench.selector)
    bench.until_ready()
    (old,) = bench.pids
    bench.slow = True
    others = Windows(metrics=open_listener(Endpoint(EndpointKind.INET, host="127.0.0.1")))
    bench.keeper.change(others, may_overlap=True)
    bench.until_ended(old)
    assert bench.keeper.pids() == bench.pids[1:]


def test_if_both_the_old_and_the_new_one_die_there_is_one_again(bench: Bench) -> None:
    bench.stubborn = True
    bench.keeper.begin(bench.windows, bench.selector)
    bench.keeper.change(bench.windows)
    old, new = bench.pids
    os.kill(new, signal.SIGKILL)
    bench.until_ended(new)
    bench.keeper.on_time()
    assert len(bench.pids) == 3
    assert not is_gone(old)


def test_a_flood_does_not_keep_the_master_and_orders_come_through(bench: Bench) -> None:
    ours, theirs = channel.open_channel()
    bench.keeper = MonitorKeeper(lambda: (os.getpid(), ours, -1), bench.orders.extend, clock=lambda: bench.now)
    bench.keeper.begin(bench.windows, bench.selector)
    with theirs:
        while channel.send(theirs, channel.Reload()):
            pass
        bench.turn()
        assert 0 < len(bench.orders) < 10000
        for _ in range(10000):  # nor does a monitor that does not read
            bench.keeper.tell(channel.News())


def test_a_monitor_that_cannot_be_started_is_tried_again(bench: Bench) -> None:
    def fail() -> tuple[int, socket.socket, int]:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    bench.keeper = MonitorKeeper(fail, bench.orders.extend, clock=lambda: bench.now)
    bench.keeper.begin(bench.windows, bench.selector)
    assert bench.keeper.next_deadline() == bench.now
    bench.keeper.on_time()
    assert bench.keeper.next_deadline() == bench.now + 1


def test_a_window_that_cannot_be_opened(tmp_path: Path) -> None:
    where = {"target": "a:B", "control": str(tmp_path / "nowhere" / "control")}
    with pytest.raises(ConfigError, match="does not exist"):
        open_windows(load_settings(where, {}), Windows())
    by_default = load_settings({"target": "a:B"}, {"RUNTIME_DIRECTORY": "/nonexistent:/run"})
    assert by_default.control == "/nonexistent/control"
    assert open_windows(by_default, Windows()) == Windows()
