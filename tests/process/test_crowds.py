"""Many connections: limits, few descriptors, silence, hang-ups. The service goes on, and what was used comes back."""

import array
import fcntl
import os
import re
import resource
import selectors
import socket
import termios
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from fastmilter import codec
from fastmilter.replies import CONTINUE, reply
from tests.process.harness import FILTER, PATIENCE_S, Server, begin, complete, wait_until, whole_message
from tests.support.playing import CONNECT, MESSAGE, QUIT, V6

SILENT = 5000
HANG_UPS = 100_000 if os.environ.get("FASTMILTER_SOAK") else 20_000
SPARE_DESCRIPTORS = 100


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Let this process hold thousands of connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = SILENT + SPARE_DESCRIPTORS
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"needs {wanted} open files, and the hard limit is {hard}")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def connected(path: Path) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.settimeout(PATIENCE_S)
    peer.connect(str(path))
    return peer


class Used:
    """What the workers of a server hold."""

    def __init__(self, server: Server) -> None:
        self.workers = [psutil.Process(pid) for pid in server.workers()]

    def descriptors(self) -> int:
        return sum(worker.num_fds() for worker in self.workers)

    def memory(self) -> int:
        return sum(worker.memory_info().rss for worker in self.workers)

    def cpu(self) -> float:
        return sum(sum(worker.cpu_times()[:2]) for worker in self.workers)


def test_200_clients_with_64_descriptors(server: Server) -> None:
    path = server.directory / "fm.sock"
    server.start("-n", "64", f"unix:{path}", target="", listen=(), command=(str(_limited(server)),), wait=False)
    server.wait_ready(1)
    assert "the hard limit of 64 open files leaves each worker 31 connections" in server.log()
    before = Used(server)
    at_start = before.descriptors()
    session = b"".join([codec.encode(command) for command in (V6, CONNECT, *MESSAGE, QUIT)])
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for _ in range(200):
            peer = stack.enter_context(connected(path))
            peer.sendall(session)
            selector.register(peer, selectors.EVENT_READ, bytearray())
        while selector.get_map():
            ready = selector.select(PATIENCE_S)
            assert ready, f"{len(selector.get_map())} clients are not served"
            for key, _ in ready:
                assert isinstance(key.fileobj, socket.socket)
                data = key.fileobj.recv(65536)
                key.data.extend(data)
                if not data:
                    decoder = codec.ResponseDecoder()
                    decoder.feed(bytes(key.data))
                    assert list(decoder)[-1] == codec.Continue()
                    selector.unregister(key.fileobj)
    assert "cannot accept" not in server.log()  # nobody ran into the limit
    wait_until(lambda: before.descriptors() == at_start, "the descriptors come back")
    assert server.stop() == 0


def _limited(server: Server) -> Path:
    """A program that lowers the hard limit of open files and becomes a server with one worker."""
    script = server.directory / "limited.py"
    script.write_text("""
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[2])))
listen = [f"--listen={sys.argv[3]}", "--workers=1", *sys.argv[4:]]
os.execv(sys.executable, [sys.executable, "-m", "fastmilter", "serve", "tagger:Tagger", *listen])
""")
    return script


def test_a_limit_that_the_descriptors_cannot_hold_is_refused(server: Server) -> None:
    words = ("-n", "64", "unix:fm.sock", "--max-connections-per-worker=40")
    server.start(*words, target="", listen=(), command=(str(_limited(server)),), wait=False)
    assert server.finish() == 78
    assert "40 connections per worker need 73 open files, and the hard limit is 64: raise it" in server.log()
    assert not (server.directory / "fm.sock").exists()


def test_the_soft_limit_is_raised_to_what_is_needed(server: Server) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))  # of the server, which inherits it
    try:
        server.start("--workers=1", "--max-connections-per-worker=1000")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    (pid,) = server.workers()
    assert psutil.Process(pid).rlimit(psutil.RLIMIT_NOFILE)[0] == 1000 + 32 + 1


def in_mb(sizes: list[int]) -> str:
    return " ".join(f"{size / 1e6:.2f}" for size in sizes)


def answered(peer: socket.socket) -> bool:
    peer.settimeout(PATIENCE_S)
    peer.sendall(codec.encode(V6))
    return bool(peer.recv(1000))


@pytest.mark.parametrize(
    ("options", "most", "says"),
    [
        (("--workers=1", "--max-connections-per-worker=3"), 3, "this worker has 3 connections, its limit"),
        (("--workers=2", "--max-connections-per-worker=2"), 4, "this worker has 2 connections, its limit"),
        (("--workers=2", "--max-connections=3"), 3, "there are 3 connections, the limit of this server"),
    ],
)
def test_beyond_a_limit_connections_wait_until_there_is_room(
    server: Server, options: tuple[str, ...], most: int, says: str
) -> None:
    path = server.directory / "fm.sock"
    server.start(*options, listen=[f"unix:{path}"])
    used = Used(server)
    at_start = used.descriptors()
    peers: list[socket.socket] = []
    with ExitStack() as stack:
        for _ in range(most):
            peers.append(stack.enter_context(connected(path)))
            assert answered(peers[-1])
        server.wait_log(rf"{says} \(--max-connections[a-z-]*\): new ones wait until there is room pid=")
        waiting = stack.enter_context(connected(path))
        waiting.sendall(codec.encode(V6))
        turns = [psutil.Process(pid).num_ctx_switches().voluntary for pid in server.workers()]
        wait_until(
            lambda: all(
                psutil.Process(pid).num_ctx_switches().voluntary > before + 2
                for pid, before in zip(server.workers(), turns, strict=True)
            ),
            "every worker has looked around again",
        )
        assert used.descriptors() == at_start + most
        peers[0].close()
        assert waiting.recv(1000)
        assert used.descriptors() == at_start + most
    wait_until(lambda: used.descriptors() == at_start, "all have gone")
    with server.client() as client:
        whole_message(client)
    assert server.stop() == 0


@pytest.mark.usefixtures("many_descriptors")
def test_5000_connections_that_send_nothing(server: Server) -> None:
    path = server.directory / "fm.sock"
    server.start("--workers=2", "--negotiation-timeout=1h", listen=[f"unix:{path}"])
    used = Used(server)
    at_start = used.descriptors()
    after: list[int] = []
    for _ in range(2):
        peers = [connected(path) for _ in range(SILENT)]
        wait_until(lambda: used.descriptors() == at_start + SILENT, "all are accepted")
        cpu, clock = used.cpu(), time.monotonic()
        wait_until(lambda: time.monotonic() - clock > 2, "the workers have turned twice")  # noqa: B023 - called here
        spent, passed = used.cpu() - cpu, time.monotonic() - clock
        print(f"{SILENT} silent connections: {spent:.2f} s of processor time in {passed:.1f} s")
        assert spent < 0.1 * passed, "they are idle"
        with server.client() as client:
            whole_message(client)
        for peer in peers:
            peer.close()
        wait_until(lambda: used.descriptors() == at_start, "all have gone")
        after.append(used.memory())
    print(f"MB of memory when they have gone, twice {in_mb(after)}")
    assert after[1] - after[0] < 2 << 20, "what they needed is used again, and given back"
    assert server.stop() == 0


def test_hang_ups(server: Server) -> None:
    path = server.directory / "fm.sock"
    server.start("--workers=2", listen=[f"unix:{path}"])
    used = Used(server)
    at_start = used.descriptors()
    memory: list[int] = []
    offer = codec.encode(V6)
    for _ in range(4):
        for number in range(HANG_UPS // 4):
            with connected(path) as peer:
                if number % 4 == 1:
                    peer.sendall(offer[: number % len(offer)])
                elif number % 4 == 2:
                    peer.sendall(offer)
                elif number % 64 == 3:
                    assert answered(peer)
        wait_until(lambda: used.descriptors() == at_start, "all have gone")
        memory.append(used.memory())
    print(f"{HANG_UPS} hang-ups: {used.descriptors() - at_start} descriptors more, MB of memory {in_mb(memory)}")
    # What is allocated once is allocated in the first part.
    assert max(memory[1:]) - memory[0] < 2 << 20, memory
    with server.client() as client:
        whole_message(client)
    assert server.stop() == 0


def test_a_byte_at_a_time(server: Server) -> None:
    """Each byte is read alone, however long the next one takes to come."""
    path = server.directory / "fm.sock"
    server.start("--workers=1", listen=[f"unix:{path}"])
    decoder = codec.ResponseDecoder()
    responses: list[codec.Response] = []
    with connected(path) as peer:
        for byte in b"".join([codec.encode(command) for command in (V6, CONNECT, *MESSAGE)]):
            peer.sendall(bytes([byte]))
            wait_until(lambda: _unread(peer) == 0, "the byte is read")
        while not responses or responses[-1] != codec.Continue() or not _has_edits(responses):
            decoder.feed(peer.recv(65536))
            responses += decoder
    assert server.stop() == 0


def _unread(peer: socket.socket) -> int:
    """How many bytes the other side has not read yet."""
    number = array.array("i", [0])
    fcntl.ioctl(peer.fileno(), termios.TIOCOUTQ, number)
    return number[0]


def _has_edits(responses: list[codec.Response]) -> bool:
    return any(isinstance(response, codec.AddHeader) for response in responses)


def test_the_limits_of_a_message_reach_every_connection(server: Server) -> None:
    looking = "\n    def on_rcpt(self, recipient, params): pass\n\n    def on_header(self, name, value): pass\n"
    server.filter.write_text(FILTER + looking)
    server.start("--workers=1", "--max-recipients=2", "--max-header-fields=3", "--max-header-bytes=100")
    for fields in ([("A", "1")] * 4, [("Subject", "x" * 100)]):
        with server.client() as client:
            begin(client)
            answers = [client.rcpt(f"b{number}@example.net") for number in range(3)]
            assert answers[:2] == [CONTINUE, CONTINUE]
            assert answers[2] == reply(452, "4.5.3", "Too many recipients")
            client.data()
            for name, value in fields:
                client.header(name, value)
            client.end_of_headers()
            assert client.end_of_message()[0] == reply(552, "5.3.4", "Message header too large")
            client.mail("a@example.org")
            complete(client)
    server.wait_log(r"the message has more than 2 recipients \(--max-recipients\): 452 4\.5\.3 pid=\d+", 2)
    server.wait_log(r"the header has more than 3 fields \(--max-header-fields\): the message gets 552 5\.3\.4 pid=\d+")
    server.wait_log(r"the header has more than 100 bytes \(--max-header-bytes\): the message gets 552 5\.3\.4 pid=\d+")
    assert server.stop() == 0


def test_who_breaks_the_protocol_again_and_again_does_not_fill_the_log(server: Server) -> None:
    path = server.directory / "fm.sock"
    server.start("--workers=1", listen=[f"unix:{path}"])
    for _ in range(50):
        with connected(path) as peer:
            peer.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert peer.recv(1) == b""
    assert server.stop() == 0
    lines = [line for line in server.log().splitlines() if "the peer broke the protocol" in line]
    assert len(lines) < 50 // 2
    left_out = sum(int(number) for line in lines for number in re.findall(r"\((\d+) more like it\)$", line))
    assert len(lines) + left_out == 50, "those that are not said are counted"
