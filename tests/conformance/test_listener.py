"""Conformance cases of the listener and of the road through a real socket, by their numbers (see README.md).

A server runs as a process of its own; 115 and 116 stand with the listeners, in tests/unit/test_listen.py.
"""

import os
import select
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import psutil
import pytest

from fastmilter import codec
from fastmilter.endpoints import EndpointKind, parse_endpoint
from fastmilter.errors import ConfigError
from tests.process.harness import PATIENCE_S, Server, begin, complete, wait_until, whole_message
from tests.support.playing import CONNECT, EOM, GREETING, MAIL, MESSAGE, QUIT, RCPT, SENDMAIL, V6

FILTERS = '''
import os
import resource
import fastmilter

class Large(fastmilter.Filter):
    """Replaces each body with 64 MB."""

    def on_end_of_message(self):
        self.message.replace_body(bytes(65536) for _ in range(1024))

class Poor(fastmilter.Filter):
    """Has few descriptors left."""

    @classmethod
    def worker_started(cls, options):
        used = {int(name) for name in os.listdir("/proc/self/fd")}
        limit = sorted(set(range(1024)) - used)[4]  # four numbers below it are free
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

class Slow(fastmilter.Filter):
    """Says that it works, again and again, until a file is there."""

    def on_end_of_message(self):
        while not os.path.exists("done"):
            assert self.progress()

class Talkative(fastmilter.Filter):
    """Says that it works until nothing more leaves."""

    def on_end_of_message(self):
        while self._fastmilter.unsent is None:
            self.progress()
        self.message.add_header("X", "1")
        open("done", "w").close()

class Plain(fastmilter.Filter):
    def on_end_of_message(self):
        self.message.add_header("X", "1")
'''


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    (tmp_path / "filters.py").write_text(FILTERS)
    yield server
    while Peer.opened:
        Peer.opened.pop().close()
    server.kill_all()
    print(server.log_file.read_text())  # shown where a test fails


class Peer:
    """An MTA on a bare socket, which can do what a well-behaved one would not."""

    opened: ClassVar[list[socket.socket]] = []

    def __init__(self, server: Server, receive_bytes: int | None = None) -> None:
        port = int(server.address().split(":")[1].split("@")[0])
        self.socket = socket.socket()
        self.opened.append(self.socket)
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(("127.0.0.1", port))
        self._decoder = codec.ResponseDecoder()
        self._responses: list[codec.Response] = []

    def send(self, *commands: codec.Command) -> None:
        self.socket.sendall(b"".join(map(codec.encode, commands)))

    def receive(self) -> codec.Response:
        while not self._responses:
            data = self.socket.recv(65536)
            assert data, "the filter closed"
            self._decoder.feed(data)
            self._responses = list(self._decoder)
        return self._responses.pop(0)

    def until(self, last: codec.Response) -> list[codec.Response]:
        received = [self.receive()]
        while received[-1] != last:
            received.append(self.receive())
        return received

    def reset(self) -> None:
        """Close so that the other side gets RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def worker_of(server: Server) -> psutil.Process:
    (pid,) = server.workers()
    return psutil.Process(pid)


def is_served(server: Server) -> None:
    with server.client() as client:
        whole_message(client)


def test_case_12_a_peer_that_stops_reading(server: Server) -> None:
    server.start("--workers=1", target="filters:Large", environment={"FASTMILTER_PACKET_TIMEOUT": "5"})
    is_served_large(server)  # whatever the process needs for one such message, it needs once
    worker = worker_of(server)
    before = worker.memory_info().rss
    peer = Peer(server)
    peer.send(V6, *GREETING, *(MAIL, RCPT, EOM) * 5)
    server.wait_log("silent for .* in the middle of a packet")
    assert worker.memory_info().rss - before < 16 << 20, "64 MB wait on disk, and the messages behind it unread"
    is_served_large(server)
    peer.socket.close()


def is_served_large(server: Server) -> None:
    peer = Peer(server)
    peer.send(V6, *GREETING, MAIL, RCPT, EOM)
    replaced = [response for response in peer.until(codec.Continue()) if isinstance(response, codec.ReplaceBody)]
    while not replaced:
        replaced = [response for response in peer.until(codec.Continue()) if isinstance(response, codec.ReplaceBody)]
    assert sum(len(response.chunk) for response in replaced) == 64 << 20
    peer.socket.close()


def test_case_112_descriptors_run_out(server: Server) -> None:
    server.start("--workers=1", target="filters:Poor")
    worker = worker_of(server)
    peers = [Peer(server) for _ in range(8)]
    for peer in peers:
        peer.send(V6, CONNECT, MAIL)
    used = sum(worker.cpu_times()[:2])
    server.wait_log("cannot accept a connection for now: Too many open files", 3)
    tries = server.log().count("cannot accept")
    assert sum(worker.cpu_times()[:2]) - used < tries * 0.4, "it waits between two attempts"
    assert list(server.workers()) == [worker.pid], "it lives"
    for peer in peers:  # each leaves room for one that waits in the queue
        peer.until(codec.Continue())
        peer.socket.close()
    is_served(server)


def test_case_113_aborted_connections_and_interrupted_calls(server: Server) -> None:
    server.start("--workers=1", target="filters:Plain")
    worker = worker_of(server)
    worker.suspend()
    for _ in range(50):
        Peer(server).reset()  # in the queue of the listener, and gone before it is accepted
    worker.resume()
    for _ in range(20):
        worker.suspend()
        worker.resume()
        os.kill(worker.pid, signal.SIGWINCH)
    is_served(server)
    assert list(server.workers()) == [worker.pid]
    assert "rror" not in server.log()


@pytest.mark.parametrize(
    ("text", "kind", "host", "port", "path"),
    [
        ("inet:8894@127.0.0.1", EndpointKind.INET, "127.0.0.1", 8894, None),
        ("inet6:8894@[::1]", EndpointKind.INET6, "::1", 8894, None),
        ("inet:127.0.0.1:8894", EndpointKind.INET, "127.0.0.1", 8894, None),
        ("inet:[::1]:8894", EndpointKind.INET6, "::1", 8894, None),
        ("unix:/run/x", EndpointKind.UNIX, None, 0, "/run/x"),
        ("local:/run/x", EndpointKind.UNIX, None, 0, "/run/x"),
        ("/run/x", EndpointKind.UNIX, None, 0, "/run/x"),
    ],
)
def test_case_114_spellings_of_addresses(
    text: str, kind: EndpointKind, host: str | None, port: int, path: str | None
) -> None:
    address = parse_endpoint(text)
    assert (address.kind, address.host, address.port or 0, address.path) == (kind, host, port, path)
    with pytest.raises(ConfigError, match="inet"):
        parse_endpoint("inet:nonsense@here@there")


def test_case_117_term_lets_messages_end_and_the_second_does_not(server: Server) -> None:
    server.start("--workers=1", "--drain-stop=0.01,3600,3600", target="filters:Plain")
    client = server.client().open()
    begin(client)
    server.send(signal.SIGTERM)
    server.wait_log("stopping: draining")
    complete(client)
    answers = []

    def refused() -> bool:
        verdict = client.mail("next@example.org")
        assert verdict is not None
        answers.append(verdict.code)
        if verdict.code is None:
            complete(client)
        return verdict.code is not None

    wait_until(refused, "the first tier of the drain ends")
    assert answers[-1] == 421
    server.send(signal.SIGTERM)
    assert server.finish() == 0
    client.close()


def test_case_118_a_peer_that_does_not_wait_for_its_answers(server: Server) -> None:
    server.start("--workers=1", target="filters:Large")
    worker = worker_of(server)
    for _ in range(20):
        peer = Peer(server)
        peer.send(V6, *GREETING, *MESSAGE, *MESSAGE)
        peer.reset()
    is_served_large(server)
    assert list(server.workers()) == [worker.pid]
    assert {0, 1, 2} <= {int(name) for name in os.listdir(f"/proc/{worker.pid}/fd")}


def test_case_119_progress_during_long_work(server: Server) -> None:
    """A plain callback asks for it; blocking and async filters, for which the server does it, are a later version's."""
    server.start("--workers=1", target="filters:Slow")
    peer = Peer(server)
    peer.send(V6, SENDMAIL, *GREETING, MAIL, RCPT, EOM)
    received = peer.until(codec.Progress())
    received += [peer.receive() for _ in range(10)]
    assert received[-10:] == [codec.Progress()] * 10, "they leave while the callback still runs"
    (server.directory / "done").touch()
    rest = peer.until(codec.Continue())
    assert set(map(type, rest)) <= {codec.Progress, codec.Continue}
    peer.send(QUIT)
    assert peer.socket.recv(1) == b""
    peer.socket.close()


def test_the_verdict_does_not_overtake_progress_that_could_not_leave(server: Server) -> None:
    server.start("--workers=1", target="filters:Talkative")
    peer = Peer(server, receive_bytes=4096)
    peer.send(V6, *GREETING, MAIL, RCPT, EOM)
    wait_until((server.directory / "done").exists, "the callback is done, and nothing was read yet")
    received = peer.until(codec.AddHeader(b"X", b"1"))
    assert set(map(type, received[2:-1])) == {codec.Progress}
    assert peer.receive() == codec.Continue()
    peer.socket.close()


@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="only Linux can acknowledge at once")
def test_case_120_no_delayed_acknowledgements(server: Server) -> None:
    """MACRO and command in two writes, as Sendmail does: Nagle's algorithm holds the second until we acknowledge.

    Without TCP_QUICKACK each of the five pairs costs 40 ms, every time: the fastest of many shows it on any machine.
    """
    server.start("--workers=1", target="filters:Plain")
    peer = Peer(server)
    assert peer.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
    peer.send(V6)
    peer.receive()
    peer.send(*GREETING)
    fastest = float("inf")
    for _ in range(20):
        begun = time.monotonic()
        pairs: list[tuple[bytes, codec.Command]] = [(b"M", MAIL), (b"R", RCPT), (b"R", RCPT), (b"R", RCPT), (b"E", EOM)]
        for letter, command in pairs:
            peer.send(codec.Macros(letter, ((b"i", b"4F"),)))
            peer.send(command)
            if command is MAIL:
                peer.until(codec.Continue())
        peer.until(codec.AddHeader(b"X", b"1"))
        peer.until(codec.Continue())
        fastest = min(fastest, time.monotonic() - begun)
    assert fastest < 0.04
    assert select.select([peer.socket], [], [], 0)[0] == []
    peer.socket.close()
