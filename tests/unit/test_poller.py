"""The pollers on real descriptors: epoll, and what stands in for it elsewhere, with one interface."""

import contextlib
import os
import select
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import FrameType
from typing import Any

import pytest

from fastmilter.server import poller as module
from fastmilter.server._sockets import Epoll, Poller
from fastmilter.server.poller import best_poller

has_epoll = pytest.mark.skipif(not hasattr(select, "EPOLLEXCLUSIVE"), reason="no epoll with EPOLLEXCLUSIVE here")
SELECTORS = [name for name in ("DefaultSelector", "PollSelector", "SelectSelector") if hasattr(selectors, name)]
SOON = 0.01
LONG = 10.0


@pytest.fixture(params=[pytest.param("Epoll", marks=has_epoll), *SELECTORS])
def poller(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Poller]:
    """Each poller that can be had here; the last ones are what macOS and the BSDs use."""
    if request.param == "Epoll":
        made: Poller = Epoll()
    else:
        monkeypatch.setattr(selectors, "DefaultSelector", getattr(selectors, request.param))
        made = module._SelectorPoller()
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets that never wait."""
    with ExitStack() as stack:
        ours, theirs = (stack.enter_context(end) for end in socket.socketpair())
        ours.setblocking(False)
        theirs.setblocking(False)
        yield ours, theirs


def fill(end: socket.socket) -> None:
    """Write until there is no room."""
    with contextlib.suppress(BlockingIOError):
        while True:
            end.send(b"x" * 65536)


def empty(end: socket.socket) -> None:
    """Read what there is."""
    with contextlib.suppress(BlockingIOError):
        while end.recv(65536):
            pass


Pair = tuple[socket.socket, socket.socket]


def test_nothing_is_ready_and_time_passes(poller: Poller, pair: Pair) -> None:
    assert poller.wait(0) == []
    poller.add(pair[0].fileno())
    assert poller.wait(0) == []
    began = time.monotonic()
    assert poller.wait(0.05) == []
    assert time.monotonic() - began >= 0.05, "never too early, or the loop would spin"


def test_a_wait_that_is_shorter_than_a_millisecond_is_a_wait(poller: Poller, pair: Pair) -> None:
    poller.add(pair[0].fileno())
    began = time.monotonic()
    assert poller.wait(0.0003) == []
    assert time.monotonic() - began >= 0.0003


def test_what_can_be_read_is_ready_until_it_was_read(poller: Poller, pair: Pair) -> None:
    ours, theirs = pair
    poller.add(ours.fileno())
    theirs.send(b"hello")
    for _ in range(2):
        assert poller.wait(LONG) == [ours.fileno()]
    ours.recv(3)
    assert poller.wait(LONG) == [ours.fileno()], "there is more"
    ours.recv(3)
    assert poller.wait(0) == []


@pytest.mark.parametrize("how", ["close", "shutdown"])
def test_the_end_of_a_stream_is_ready(poller: Poller, pair: Pair, how: str) -> None:
    ours, theirs = pair
    poller.add(ours.fileno())
    if how == "close":
        theirs.close()
    else:
        theirs.shutdown(socket.SHUT_WR)
    assert poller.wait(LONG) == [ours.fileno()]
    assert ours.recv(1) == b""


def test_room_is_waited_for_in_place_of_data(poller: Poller, pair: Pair) -> None:
    ours, theirs = pair
    poller.add(ours.fileno())
    fill(ours)
    theirs.send(b"hello")
    assert poller.wait(LONG) == [ours.fileno()]
    poller.await_room(ours.fileno(), True)
    assert poller.wait(SOON) == [], "what comes meanwhile is not looked at"
    empty(theirs)
    assert poller.wait(LONG) == [ours.fileno()], "now there is room"
    poller.await_room(ours.fileno(), False)
    assert poller.wait(LONG) == [ours.fileno()], "and what came is still there"
    assert ours.recv(9) == b"hello"
    assert poller.wait(0) == [], "room is not waited for any more"


def test_a_peer_that_goes_away_while_room_is_waited_for(poller: Poller, pair: Pair) -> None:
    ours, theirs = pair
    poller.add(ours.fileno())
    fill(ours)
    poller.await_room(ours.fileno(), True)
    theirs.close()
    assert poller.wait(LONG) == [ours.fileno()]
    with pytest.raises(BrokenPipeError):
        ours.send(b"x")


def test_what_is_removed_is_forgotten(poller: Poller, pair: Pair) -> None:
    ours, theirs = pair
    poller.add(ours.fileno())
    poller.add(theirs.fileno())
    ours.send(b"x")
    theirs.send(b"x")
    assert sorted(poller.wait(LONG)) == sorted(end.fileno() for end in pair)
    poller.remove(ours.fileno())
    assert poller.wait(LONG) == [theirs.fileno()]
    poller.add(ours.fileno())
    assert sorted(poller.wait(LONG)) == sorted(end.fileno() for end in pair), "it may come again"


def test_a_listener_and_its_connections(poller: Poller) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack:
        poller.add_listener(listener.fileno())
        assert poller.wait(0) == []
        clients = [stack.enter_context(socket.create_connection(listener.getsockname())) for _ in range(2)]
        for client in clients:
            assert poller.wait(LONG) == [listener.fileno()]
            accepted = stack.enter_context(listener.accept()[0])
            poller.add(accepted.fileno())
            client.send(b"x")
            assert accepted.fileno() in poller.wait(LONG)
            accepted.recv(1)
        assert poller.wait(0) == []
        poller.remove(listener.fileno())
        stack.enter_context(socket.create_connection(listener.getsockname()))
        assert poller.wait(SOON) == [], "others take it"


@pytest.mark.parametrize("wrong", ["twice", "unknown", "changed", "closed"])
def test_mistakes_are_errors(poller: Poller, pair: Pair, wrong: str) -> None:
    fd = pair[0].fileno()
    calls: dict[str, Callable[[], Any]] = {
        "twice": lambda: poller.add(fd),
        "unknown": lambda: poller.remove(pair[1].fileno()),
        "changed": lambda: poller.await_room(pair[1].fileno(), True),
        "closed": lambda: poller.add(-1),
    }
    poller.add(fd)
    with pytest.raises((OSError, KeyError, ValueError)):
        calls[wrong]()
    pair[1].send(b"x")
    assert poller.wait(LONG) == [fd], "it goes on"


def test_closing_twice(poller: Poller) -> None:
    poller.close()
    poller.close()


# -- many --------------------------------------------------------------------------------------------------------------


@has_epoll
def test_more_than_one_wait_can_tell_come_in_turn() -> None:
    """So nobody starves behind 256 others that are always ready."""
    poller = Epoll()
    ready = [os.eventfd(1) for _ in range(300)]
    try:
        for fd in ready:
            poller.add(fd)
        first, second = poller.wait(LONG), poller.wait(LONG)
        assert len(first) == len(set(first)) == 256
        assert set(first) | set(second) == set(ready)
    finally:
        poller.close()
        for fd in ready:
            os.close(fd)


# -- signals -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def alarm(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """SIGALRM in a moment, handled by ``handler``."""
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.03)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_signal_is_handled_during_a_wait(poller: Poller) -> None:
    seen: list[int] = []
    with alarm(lambda number, frame: seen.append(number)):
        assert poller.wait(0.3) == []
    assert seen == [signal.SIGALRM]


def test_a_handler_that_raises_ends_the_wait(poller: Poller) -> None:
    def handler(number: int, frame: FrameType | None) -> None:
        raise KeyError("now")

    began = time.monotonic()
    with alarm(handler), pytest.raises(KeyError, match="now"):
        poller.wait(LONG)
    assert time.monotonic() - began < LONG / 2


@has_epoll
def test_epoll_comes_back_for_a_signal() -> None:
    poller = Epoll()
    began = time.monotonic()
    with alarm(lambda number, frame: None):
        assert poller.wait(LONG) == []
    assert time.monotonic() - began < LONG / 2
    poller.close()


# -- the bell ----------------------------------------------------------------------------------------------------------


@has_epoll
def test_each_stroke_of_the_bell_wakes_once() -> None:
    poller, others = Epoll(), Epoll()
    bell = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        poller.add_bell(bell)
        others.add_bell(bell)
        assert poller.wait(0) == []
        for _ in range(3):
            os.eventfd_write(bell, 1)
            for each in (poller, others):
                assert each.wait(LONG) == [bell], "all are woken"
                assert each.wait(0) == [], "and nobody needs to read it"
    finally:
        poller.close()
        others.close()
        os.close(bell)


def test_elsewhere_there_is_no_bell() -> None:
    poller = module._SelectorPoller()
    with pytest.raises(NotImplementedError):
        poller.add_bell(0)
    poller.close()


# -- which one ---------------------------------------------------------------------------------------------------------


def test_the_best_of_this_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    best = best_poller()
    assert isinstance(best, Epoll) == hasattr(select, "EPOLLEXCLUSIVE")
    best.close()
    monkeypatch.delattr(select, "EPOLLEXCLUSIVE", raising=False)
    other = best_poller()
    assert isinstance(other, Poller)
    assert not isinstance(other, Epoll)
    other.close()


def test_a_poller_of_its_own_must_do_something() -> None:
    bare = Poller()
    calls: list[Callable[[], Any]] = [
        lambda: bare.add(0),
        lambda: bare.add_listener(0),
        lambda: bare.add_bell(0),
        lambda: bare.await_room(0, True),
        lambda: bare.remove(0),
        lambda: bare.wait(0),
        bare.close,
    ]
    for call in calls:
        with pytest.raises(NotImplementedError):
            call()


@has_epoll
def test_a_closed_epoll_is_an_error_and_leaks_nothing() -> None:
    poller = Epoll()
    poller.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        poller.wait(0)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        Epoll()
    assert len(os.listdir("/proc/self/fd")) == before
