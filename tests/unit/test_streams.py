"""Accepted connections straight to the kernel: what comes back, and what is an error."""

import gc
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastmilter.server._sockets import Stream, accept, monotonic


@pytest.fixture(params=["tcp", "unix"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    """A listening socket that does not wait."""
    if request.param == "tcp":
        made = socket.create_server(("127.0.0.1", 0))
    else:
        made = socket.socket(socket.AF_UNIX)
        made.bind(str(tmp_path / "socket"))
        made.listen()
    made.setblocking(False)
    with made:
        yield made


def connected(listener: socket.socket) -> tuple[Stream, socket.socket]:
    """Both ends of a connection: ours, and the MTA's."""
    client = socket.socket(listener.family)
    client.connect(listener.getsockname())
    stream = accept(listener.fileno(), listener.family != socket.AF_UNIX)
    assert stream is not None
    return stream, client


@pytest.fixture
def pair(listener: socket.socket) -> Iterator[tuple[Stream, socket.socket]]:
    stream, client = connected(listener)
    yield stream, client
    stream.close()
    client.close()


Pair = tuple[Stream, socket.socket]


def test_nobody_is_there(listener: socket.socket) -> None:
    assert accept(listener.fileno(), False) is None


def test_a_listener_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        accept(-1, False)
    with (tmp_path / "file").open("w") as file, pytest.raises(OSError, match="Socket operation on non-socket"):
        accept(file.fileno(), False)


def test_what_is_accepted(listener: socket.socket, pair: Pair) -> None:
    stream, _ = pair
    assert stream.is_tcp == (listener.family != socket.AF_UNIX)
    assert not os.get_blocking(stream.fileno())
    assert not os.get_inheritable(stream.fileno())


def test_reading(pair: Pair) -> None:
    stream, client = pair
    buffer = bytearray(b"........")
    assert stream.receive(memoryview(buffer)) == -1, "nothing is there"
    client.sendall(b"hello, world")
    assert stream.receive(memoryview(buffer)) == 8
    assert stream.receive(memoryview(buffer)) == 4
    assert buffer == b"orldo, w"
    client.sendall(b"xy")
    assert stream.receive(memoryview(buffer)[2:4]) == 2
    assert buffer == b"orxyo, w"
    client.close()
    assert stream.receive(memoryview(buffer)) == 0
    assert stream.receive(memoryview(buffer)) == 0


def test_reading_into_what_cannot_be_written(pair: Pair) -> None:
    stream, _ = pair
    with pytest.raises(TypeError, match="that can be written to"):
        stream.receive(memoryview(b"constant"))
    with pytest.raises(TypeError, match="expected a memoryview, got bytearray"):
        stream.receive(bytearray(8))  # type: ignore[arg-type]


def test_writing(pair: Pair) -> None:
    stream, client = pair
    assert stream.send(b"hello", 0) == 5
    assert stream.send(b"hello", 3) == 2
    assert stream.send(b"hello", 5) == 0
    assert stream.send(b"", 0) == 0
    assert client.recv(99) == b"hellolo"


def test_writing_until_there_is_no_room(pair: Pair) -> None:
    stream, client = pair
    data = os.urandom(8 << 20)
    sent = stream.send(data, 0)
    assert 0 < sent < len(data)
    while (count := stream.send(data, sent)) > 0:
        sent += count
    assert stream.send(data, sent) == 0
    received = b""
    while len(received) < sent:
        received += client.recv(1 << 20)
    assert received == data[:sent]
    assert stream.send(data, sent) > 0, "there is room again"


@pytest.mark.parametrize("start", [-1, 6, 1 << 40])
def test_writing_from_where_nothing_is(pair: Pair, start: int) -> None:
    with pytest.raises(ValueError, match="expected 0 to 5"):
        pair[0].send(b"hello", start)


def test_a_peer_that_went_away_is_an_error_and_no_signal(pair: Pair) -> None:
    stream, client = pair
    client.close()
    for _ in range(100):  # over TCP the first may still leave
        try:
            stream.send(b"x" * 1000, 0)
        except (BrokenPipeError, ConnectionResetError):
            return
    pytest.fail("100 sends to nobody")


def test_acknowledging_at_once_harms_nothing(pair: Pair) -> None:
    stream, client = pair
    client.sendall(b"x")
    stream.acknowledge()
    assert stream.receive(memoryview(bytearray(4))) == 1
    stream.acknowledge()


def test_closing(pair: Pair) -> None:
    stream, client = pair
    stream.close()
    assert stream.fileno() == -1
    assert client.recv(1) == b""
    stream.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        stream.receive(memoryview(bytearray(4)))
    with pytest.raises(OSError, match="Bad file descriptor"):
        stream.send(b"x", 0)
    stream.acknowledge()


def test_a_stream_that_nobody_holds_is_closed(listener: socket.socket) -> None:
    stream, client = connected(listener)
    del stream
    gc.collect()
    with client:
        assert client.recv(1) == b""


def test_the_clock_is_that_of_python() -> None:
    before = time.monotonic()
    now = monotonic()
    assert before <= now <= time.monotonic()
