"""``fastmilter tap`` between the project's own client and a served filter, and between bare sockets."""

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from fastmilter import codec
from fastmilter.client import Client, Outcome
from fastmilter.constants import MAX_DATA_BYTES_1M
from fastmilter.errors import FastmilterError
from tests.process.harness import FILTER, PATIENCE_S, Server, wait_until

from .support import run, run_on_terminal, running

SERVED = (
    FILTER
    + """
    def on_header(self, name, value):
        pass

    def on_body(self, chunk):
        pass
"""
)

MESSAGE = b"Subject: a secret\r\nX-Long: " + b"y" * 3000 + b"\r\n\r\n" + b"some private words\r\n" * 20_000


class Tap:
    """A running tap."""

    def __init__(self, process: "subprocess.Popen[bytes]", out: Path, log: Path) -> None:
        self.process = process
        self.out = out
        self.log = log

    @property
    def address(self) -> str:
        wait_until(lambda: "passing on to" in self.log.read_text() or self.process.poll() is not None, "the tap starts")
        found = re.search(r"listening on (\S+)", self.log.read_text())
        assert found, self.log.read_text()
        return found[1]

    def stop(self) -> str:
        """Stop it cleanly; return its last line."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE_S) == 0, self.log.read_text()
        return self.log.read_text().splitlines()[-1]

    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.read_text().splitlines()]


@contextmanager
def tapping(directory: Path, upstream: str, *more: str, out: Path | None = None, **limits: int) -> Iterator[Tap]:
    where = directory / "out.jsonl" if out is None else out
    words = [] if any(word.startswith("--listen") for word in more) else ["--listen=inet:0@127.0.0.1"]
    words += [f"--upstream={upstream}", f"--out={where}", *more]
    with running("tap", *words, log=directory / "log", limit_bytes=limits.get("limit_bytes")) as process:
        yield Tap(process, where, directory / "log")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("served")
    server = Server(directory)
    server.filter.write_text(SERVED)
    try:
        yield server.start("--workers=1", listen=["inet:0@127.0.0.1", "inet6:0@::1", f"unix:{directory}/milter.sock"])
        assert server.stop() == 0
    finally:
        server.kill_all()


def play(address: str, message: bytes = MESSAGE, sender: str = "ann@example.org") -> Outcome:
    with Client(address) as client:
        return client.send_message(message, sender, ["bob@example.net"])


def stream(entries: list[dict[str, Any]], direction: str, conn: int = 1) -> bytes:
    return b"".join(
        bytes.fromhex(entry["hex"])
        for entry in entries
        if (entry["conn"], entry["dir"]) == (conn, direction) and "hex" in entry
    )


def decoded(entries: list[dict[str, Any]], conn: int = 1) -> tuple[list[codec.Command], list[codec.Response]]:
    commands = codec.CommandDecoder(MAX_DATA_BYTES_1M)
    responses = codec.ResponseDecoder()
    commands.feed(stream(entries, "mta>filter", conn))
    responses.feed(stream(entries, "filter>mta", conn))
    return list(commands), list(responses)


# -- recordings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("listen", "number"), [("inet:0@127.0.0.1", 0), ("inet6:0@::1", 1), ("unix", 2)])
def test_what_was_said_is_what_is_recorded(server: Server, tmp_path: Path, listen: str, number: int) -> None:
    listen = f"unix:{tmp_path}/tap.sock" if listen == "unix" else listen
    with tapping(tmp_path, server.address(number), f"--listen={listen}") as tap:
        outcome = play(tap.address)
        direct = play(server.address(number))
        last = tap.stop()
    assert outcome.verdict == direct.verdict
    assert [type(each) for each in outcome.modifications] == [type(each) for each in direct.modifications]
    assert not (tmp_path / "tap.sock").exists()
    entries = tap.entries()
    assert f"connections=1 records={len(entries)} dropped=0" in last
    assert entries[0] == {"conn": 1, "t": entries[0]["t"], "dir": "mta>filter", "event": "open"}
    ends = [(entry["dir"], entry["event"]) for entry in entries if "event" in entry][1:]
    assert sorted(ends) == [("filter>mta", "eof"), ("mta>filter", "eof")]
    for direction in ("mta>filter", "filter>mta"):
        segments = [entry["segment"] for entry in entries if entry["dir"] == direction and "segment" in entry]
        assert segments == list(range(len(segments)))
    commands, responses = decoded(entries)
    body = b"".join(each.chunk for each in commands if isinstance(each, codec.Body))
    assert codec.Header(b"Subject", b"a secret") in commands
    assert codec.MailFrom(b"<ann@example.org>") in commands
    assert body == MESSAGE.partition(b"\r\n\r\n")[2]
    assert [each for each in responses if isinstance(each, codec.AddHeader)] == list(outcome.modifications)
    shown = run("decode", "--json", str(tap.out))
    assert shown.status == 0
    names = [json.loads(line).get("name") for line in shown.out.splitlines()]
    assert len([name for name in names if name]) == len(commands) + len(responses)


def test_a_redacted_recording(server: Server, tmp_path: Path) -> None:
    with tapping(tmp_path, server.address(), "--redact") as tap:
        play(tap.address)
        tap.stop()
    entries = tap.entries()
    everything = stream(entries, "mta>filter") + stream(entries, "filter>mta")
    for secret in (b"secret", b"Subject", b"private", b"ann", b"bob", b"127.0.0.1", b"X-Version"):
        assert secret not in everything
    commands, responses = decoded(entries)
    assert codec.MailFrom(b"x" * len("<ann@example.org>")) in commands
    assert codec.Header(b"x" * len("Subject"), b"x" * len("a secret")) in commands
    assert any(b"{mail_addr}" in dict(each.values) for each in commands if isinstance(each, codec.Macros))
    assert any(isinstance(each, codec.AddHeader) for each in responses)
    assert run("decode", str(tap.out)).status == 0


def test_many_connections_at_once(server: Server, tmp_path: Path) -> None:
    with tapping(tmp_path, server.address()) as tap, ExitStack() as stack:
        clients = [stack.enter_context(Client(tap.address)) for _ in range(60)]
        for number, client in enumerate(clients):
            client.connect("client.example", "192.0.2.1", 25)
            client.mail(f"sender{number}@example.org")
        for number, client in reversed(list(enumerate(clients))):
            client.rcpt(f"to{number}@example.net")
            client.data()
            client.header("Subject", f"number {number}")
            client.end_of_headers()
            verdict, _ = client.end_of_message()
            assert verdict.kind == "continue"
        stack.close()
        assert "connections=60" in tap.stop()
    entries = tap.entries()
    senders = set()
    for conn in range(1, 61):
        commands, _ = decoded(entries, conn)
        (sender,) = [each.sender for each in commands if isinstance(each, codec.MailFrom)]
        (subject,) = [each.value for each in commands if isinstance(each, codec.Header)]
        assert sender.decode().removeprefix("<sender").partition("@")[0] == subject.decode().removeprefix("number ")
        senders.add(sender)
    assert len(senders) == 60


# -- the disk ------------------------------------------------------------------------------------------------------


def test_a_full_disk_does_not_touch_the_session(server: Server, tmp_path: Path) -> None:
    with tapping(tmp_path, server.address(), out=Path("/dev/full")) as tap:
        for _ in range(5):
            assert play(tap.address).verdict.kind == "continue"
        last = tap.stop()
    assert re.search(r"connections=5 records=0 dropped=\d{2}", last)
    log = tap.log.read_text()
    assert log.count("the recording cannot be written: No space left on device") == 1


def test_a_disk_that_fills_up_leaves_whole_records(server: Server, tmp_path: Path) -> None:
    with tapping(tmp_path, server.address(), limit_bytes=6000) as tap:
        for _ in range(4):
            assert play(tap.address).verdict.kind == "continue"
        last = tap.stop()
    entries = tap.entries()  # every line is whole
    assert 0 < tap.out.stat().st_size <= 6000
    counts = re.search(r"records=(\d+) dropped=(\d+)", last)
    assert counts
    assert int(counts[1]) == len(entries)
    assert int(counts[2]) > 0
    assert tap.log.read_text().count("cannot be written: File too large") == 1


def test_a_disk_that_hangs_does_not_touch_the_session(server: Server, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)  # and never reads
    try:
        with tapping(tmp_path, server.address(), out=fifo) as tap:
            for _ in range(20):
                assert play(tap.address).verdict.kind == "continue"
            tap.stop()
        assert "its disk does not answer" in tap.log.read_text()
    finally:
        os.close(reader)


# -- sockets -------------------------------------------------------------------------------------------------------


class Pair:
    """Both ends of a tapped connection: what the MTA has, and what the milter accepted."""

    def __init__(self, directory: Path, stack: ExitStack, *more: str) -> None:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.settimeout(PATIENCE_S)
        port = listener.getsockname()[1]
        self.tap = stack.enter_context(tapping(directory, f"inet:{port}@127.0.0.1", *more))
        self.port = int(self.tap.address.partition(":")[2].partition("@")[0])
        self.mta = stack.enter_context(socket.create_connection(("127.0.0.1", self.port), PATIENCE_S))
        self.filter, _ = listener.accept()
        stack.enter_context(self.filter)
        self.filter.settimeout(PATIENCE_S)
        self.listener = listener


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with ExitStack() as stack:
        yield Pair(tmp_path, stack)


def events(tap: Tap) -> list[tuple[str, str]]:
    return [(entry["dir"], entry["event"]) for entry in tap.entries() if "event" in entry]


def test_a_closed_half_is_passed_on_as_such(pair: Pair) -> None:
    pair.mta.sendall(b"question")
    pair.mta.shutdown(socket.SHUT_WR)
    received = b""
    while piece := pair.filter.recv(100):
        received += piece
    assert received == b"question"
    pair.filter.sendall(b"answer")  # the other half is open
    pair.filter.close()
    assert pair.mta.recv(100) == b"answer"
    assert pair.mta.recv(100) == b""
    pair.tap.stop()
    assert events(pair.tap) == [("mta>filter", "open"), ("mta>filter", "eof"), ("filter>mta", "eof")]


@pytest.mark.parametrize("breaker", ["mta", "filter"])
def test_a_broken_connection_is_passed_on_as_such(pair: Pair, breaker: str) -> None:
    ends = {"mta": pair.mta, "filter": pair.filter}
    broken = ends.pop(breaker)
    (other,) = ends.values()
    broken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    broken.close()
    with pytest.raises(ConnectionResetError):
        other.recv(100)
    pair.tap.stop()
    direction = "mta>filter" if breaker == "mta" else "filter>mta"
    assert events(pair.tap) == [("mta>filter", "open"), (direction, "reset")]


def test_an_answer_before_the_end_arrives(pair: Pair) -> None:
    pair.filter.sendall(b"421 going")
    pair.filter.close()
    assert pair.mta.recv(100) == b"421 going"
    assert pair.mta.recv(100) == b""


def test_a_slow_reader_slows_the_writer_and_costs_no_memory(pair: Pair) -> None:
    """The milter does not read: the MTA can send what the kernel's buffers hold, and the tap one read."""
    pair.mta.setblocking(False)
    sent = 0
    # Full is what stays full: the tap may only not have come to read yet.
    while sent < 1 << 30 and select.select([], [pair.mta], [], 1.0)[1]:
        with contextlib.suppress(BlockingIOError):
            sent += pair.mta.send(b"x" * 65536)
    assert sent < 1 << 30
    process = psutil.Process(pair.tap.process.pid)
    assert process.memory_info().rss < 200 << 20
    pair.mta.setblocking(True)
    rest: list[int] = []

    def read() -> None:
        count = 0
        while piece := pair.filter.recv(1 << 20):
            count += len(piece)
        rest.append(count)

    reader = threading.Thread(target=read)
    reader.start()
    pair.mta.sendall(b"end")
    pair.mta.shutdown(socket.SHUT_WR)
    reader.join(PATIENCE_S)
    assert rest == [sent + 3]


def test_a_milter_that_is_not_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with tapping(tmp_path, f"inet:{port}@127.0.0.1") as tap:
        with pytest.raises(FastmilterError):
            play(tap.address)
        with pytest.raises(FastmilterError):
            play(tap.address)
        tap.stop()
    assert events(tap) == [("mta>filter", "open"), ("filter>mta", "refused")] * 2
    shown = run("decode", str(tap.out))
    assert shown.status == 0
    assert "<-- (refused)" in shown.out


def test_a_milter_whose_queue_is_full_is_waited_for(tmp_path: Path) -> None:
    """On a unix socket a connection is refused with EAGAIN then, where a program that blocks would wait."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(str(tmp_path / "milter.sock"))
        listener.listen(0)
        listener.settimeout(PATIENCE_S)
        tap = stack.enter_context(tapping(tmp_path, f"unix:{tmp_path}/milter.sock"))
        port = int(re.findall(r":(\d+)@", tap.address)[0])
        mtas = [stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE_S)) for _ in range(6)]
        for number, mta in enumerate(mtas):
            mta.sendall(b"%d" % number)
        wait_until(lambda: len(events(tap)) == 6, "all are accepted by the tap")
        seen = set()
        for _ in mtas:
            connection, _ = listener.accept()
            stack.enter_context(connection)
            connection.settimeout(PATIENCE_S)
            seen.add(connection.recv(100))
        assert seen == {b"%d" % number for number in range(6)}
        assert set(events(tap)) == {("mta>filter", "open")}


def test_it_leaks_nothing(server: Server, tmp_path: Path) -> None:
    with tapping(tmp_path, server.address()) as tap:
        play(tap.address)
        process = psutil.Process(tap.process.pid)
        wait_until(lambda: len(process.net_connections()) == 1, "only the listener is open")
        before = process.num_fds()
        for _ in range(50):
            play(tap.address, b"Subject: x\r\n\r\n")
            socket.create_connection(("127.0.0.1", int(re.findall(r":(\d+)@", tap.address)[0]))).close()
        wait_until(lambda: process.num_fds() == before, "all descriptors are closed")
        tap.stop()


# -- the end -------------------------------------------------------------------------------------------------------


def test_term_waits_for_open_connections_and_a_second_one_does_not(pair: Pair) -> None:
    pair.tap.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "stopping: 1 connections are open" in pair.tap.log.read_text(), "the tap drains")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", pair.port), PATIENCE_S)
    pair.mta.sendall(b"still here")
    assert pair.filter.recv(100) == b"still here"
    pair.tap.process.send_signal(signal.SIGTERM)
    assert pair.tap.process.wait(PATIENCE_S) == 0
    with pytest.raises(ConnectionResetError):
        pair.mta.recv(100)
    assert bytes.fromhex(pair.tap.entries()[1]["hex"]) == b"still here"


def test_it_ends_with_the_last_connection(pair: Pair) -> None:
    pair.tap.process.send_signal(signal.SIGINT)
    wait_until(lambda: "stopping" in pair.tap.log.read_text(), "the tap drains")
    pair.mta.close()
    pair.filter.close()
    assert pair.tap.process.wait(PATIENCE_S) == 0


def test_the_grace_ends(tmp_path: Path) -> None:
    with ExitStack() as stack:
        pair = Pair(tmp_path, stack, "--grace=0.1")
        pair.tap.stop()
        assert events(pair.tap) == [("mta>filter", "open")]


# -- usage ---------------------------------------------------------------------------------------------------------


def refusal(run_it: Callable[..., Any], directory: Path, *words: str) -> tuple[int, str]:
    done = run_it("tap", *words, cwd=directory)
    assert "Traceback" not in done.out + done.err
    return done.status, done.out + done.err


@pytest.mark.parametrize("run_it", [run, run_on_terminal], ids=["pipe", "terminal"])
def test_wrong_usage_and_configuration(tmp_path: Path, run_it: Callable[..., Any]) -> None:
    (tmp_path / "old").write_text("x")
    good = ("--listen=inet:0@127.0.0.1", "--upstream=inet:9@127.0.0.1")
    for words, status, error in (
        ((), 64, "--listen is missing"),
        ((*good,), 64, "--out is missing"),
        ((*good, "--out=x", "--grace=no"), 64, "--grace: 'no' is not a time"),
        (("--listen=smtp", *good[1:], "--out=x"), 64, "--listen: address 'smtp' is not one of"),
        ((*good, "--out=old"), 78, "the file exists and is not empty"),
        ((*good, "--out=no/where"), 78, "No such file or directory"),
        ((good[0], "--upstream=inet:nothing-like-this@127.0.0.1", "--out=x"), 78, "nothing-like-this"),
    ):
        found, text = refusal(run_it, tmp_path, *words)
        assert (found, error in text) == (status, True), text
    help_text = refusal(run_it, tmp_path, "--help")[1]
    assert "--redact" in help_text
    assert "TERM, INT" in help_text
