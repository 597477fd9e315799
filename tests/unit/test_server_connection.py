"""``ServerConnection``: level 2 of the filter's side, against ``Client`` and against bytes."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from fastmilter import codec
from fastmilter.client import Client, Timeouts
from fastmilter.codec import encode
from fastmilter.constants import ProtocolFlag
from fastmilter.errors import ConnectionLost, InvalidMessage, NoConnection, ProtocolBroken, TimedOut
from fastmilter.replies import reply
from fastmilter.server.connection import ServerConnection


@pytest.fixture
def pair() -> Iterator[tuple[ServerConnection, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ServerConnection(ours, timeout=20) as connection, theirs:
        theirs.settimeout(20)
        yield connection, theirs


Pair = tuple[ServerConnection, socket.socket]


def test_a_filter_of_its_own_kind() -> None:
    """A whole message, played by ``Client`` over TCP."""
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            with ServerConnection(listener.accept()[0], timeout=20) as connection:
                for command in connection:
                    match command:
                        case codec.Negotiate():
                            connection.send(codec.Negotiate(6, 0x1FF, ProtocolFlag.NR_HEADER))
                        case codec.RcptTo(b"<bad@rcpt.test>"):
                            connection.send(codec.ReplyCode(b"550 5.1.1 no"))
                        case codec.EndOfMessage():
                            connection.send(codec.Progress(), codec.AddHeader(b"X-A", b"1"), codec.Accept())
                        case codec.Macros() | codec.Header() | codec.Abort() | codec.Quit():
                            pass
                        case _:
                            connection.send(codec.Continue())
        except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
            failures.append(error)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with Client(f"inet:{listener.getsockname()[1]}@127.0.0.1", timeouts=Timeouts(20, 20, 20)) as client:
            outcome = client.send_message(b"A: b\r\n\r\nc\r\n", "a@b", ["bad@rcpt.test", "good@rcpt.test"])
        thread.join(20)
    assert failures == []
    assert outcome.refused == {"bad@rcpt.test": reply(550, "5.1.1", "no")}
    assert outcome.apply().message == b"A: b\r\nX-A: 1\r\n\r\nc\r\n"


def test_commands_in_pieces_and_together(pair: Pair) -> None:
    connection, mta = pair
    packets = encode(codec.Macros(b"H", ())) + encode(codec.Helo(b"x")) + encode(codec.Data())
    mta.sendall(packets[:7])
    assert connection.receive() == codec.Macros(b"H", ())
    with pytest.raises(TimedOut):
        connection.receive(timeout=0.05)
    mta.sendall(packets[7:])
    assert [connection.receive(timeout=20) for _ in range(2)] == [codec.Helo(b"x"), codec.Data()]
    mta.close()
    assert connection.receive() is None
    assert list(connection) == []
    assert connection.is_open


def test_trickling_does_not_prolong_the_wait(pair: Pair) -> None:
    connection, mta = pair
    stop = threading.Event()

    def trickle() -> None:
        for byte in encode(codec.Helo(b"x" * 60_000)):
            if stop.wait(0.02):
                return
            mta.sendall(bytes([byte]))

    thread = threading.Thread(target=trickle, daemon=True)
    thread.start()
    with pytest.raises(TimedOut, match="sent no command in time"):
        connection.receive(timeout=0.2)
    stop.set()
    thread.join(20)
    assert connection.is_open


@pytest.mark.parametrize("garbage", [b"\0\0\0\0\0", b"\xff\xff\xff\xffH", b"\0\0\0\x01Z", b"GET / HTTP/1.0\r\n\r\n"])
def test_a_broken_command(pair: Pair, garbage: bytes) -> None:
    connection, mta = pair
    mta.sendall(garbage)
    with pytest.raises(ProtocolBroken, match="last received") as caught:
        connection.receive()
    assert caught.value.received == garbage
    assert not connection.is_open
    with pytest.raises(NoConnection):
        connection.receive()
    with pytest.raises(NoConnection):
        connection.send(codec.Continue())


def test_an_end_within_a_packet(pair: Pair) -> None:
    connection, mta = pair
    mta.sendall(encode(codec.Helo(b"x"))[:-1])
    mta.close()
    with pytest.raises(ConnectionLost, match="in the middle of a packet"):
        connection.receive()
    assert not connection.is_open


def test_an_mta_that_is_gone(pair: Pair) -> None:
    connection, mta = pair
    mta.close()
    with pytest.raises(ConnectionLost):
        connection.send(codec.Continue())
    assert not connection.is_open


def test_an_mta_that_takes_no_data(pair: Pair) -> None:
    connection, _ = pair
    with pytest.raises(TimedOut, match="takes no data"):
        connection.send(*[codec.ReplaceBody(b"x" * 65535)] * 1000, timeout=0.1)
    assert not connection.is_open


def test_what_cannot_be_sent_leaves_the_connection_alone(pair: Pair) -> None:
    connection, mta = pair
    with pytest.raises(InvalidMessage):
        connection.send(codec.Continue(), codec.AddHeader(b"a\0b", b""))
    connection.send(codec.Accept())
    assert mta.recv(100) == encode(codec.Accept())


def test_larger_packets_where_they_were_agreed(pair: Pair) -> None:
    connection, mta = pair
    large = b"x" * 200_000
    with pytest.raises(InvalidMessage):
        connection.send(codec.ReplaceBody(large))
    mta.sendall(encode(codec.Negotiate(6, 0x1FF, 0x1FFFFF | ProtocolFlag.MDS_256K)))
    assert isinstance(connection.receive(), codec.Negotiate)
    connection.send(codec.Negotiate(6, 0, ProtocolFlag.MDS_256K))
    writer = threading.Thread(target=mta.sendall, args=(encode(codec.Body(large), 262_143),), daemon=True)
    writer.start()
    assert connection.receive() == codec.Body(large)
    writer.join(20)


def test_larger_packets_that_were_not_offered(pair: Pair) -> None:
    connection, mta = pair
    mta.sendall(encode(codec.Negotiate(6, 0x1FF, 0x1FFFFF)))
    connection.receive()
    connection.send(codec.Negotiate(6, 0, ProtocolFlag.MDS_1M))
    with pytest.raises(InvalidMessage):
        connection.send(codec.ReplaceBody(b"x" * 200_000))


def test_nothing_leaks() -> None:
    before = len(os.listdir("/dev/fd"))
    for number in range(1000):
        ours, theirs = socket.socketpair()
        with contextlib.suppress(OSError), ServerConnection(ours, timeout=0.001) as connection:
            theirs.sendall([b"", b"\0\0\0\0", b"\0\0", encode(codec.Quit())][number % 4])
            if number % 2:
                theirs.close()
            connection.receive()
            connection.send(codec.Continue())
        theirs.close()
        assert not connection.is_open
    assert len(os.listdir("/dev/fd")) <= before
