"""The message log of a real server: every message once, no line torn, and no harm from a reader that does not read."""

import fcntl
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastmilter import codec
from fastmilter.client import Client
from fastmilter.endpoints import parse_endpoint
from tests.process.harness import (
    FILTER,
    PATIENCE_S,
    Server,
    begin,
    clean_environment,
    is_gone,
    title,
    wait_until,
    whole_message,
)

LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d{4} info fastmilter\.message: qid='(\w+)' client='192\.0\.2\.1:25'"
    r" helo='client\.example' from='(?:\\udcff|[\w@.])*' rcpts=\d+ verdict=(\w+) edits=(\d) ms=\d+\.\d"
    r" worker=(\d) pid=(\d+)"
)


def message(queue_id: str, sender: bytes = b"<a@example.org>") -> bytes:
    """Everything that an MTA says of a message, in one piece."""
    commands: list[codec.Command] = [
        codec.MailFrom(sender),
        codec.Macros(b"R", ((b"i", queue_id.encode()),)),
        codec.RcptTo(b"<b@example.net>"),
        codec.Data(),
        codec.Header(b"Subject", b"hello"),
        codec.EndOfHeaders(),
        codec.Body(b"text\r\n"),
        codec.EndOfMessage(),
    ]
    return b"".join(map(codec.encode, commands))


class Sender:
    """An MTA that says all of a message at once, and many on one connection."""

    def __init__(self, address: str) -> None:
        endpoint = parse_endpoint(address)
        self.socket = socket.create_connection((endpoint.host, endpoint.port), timeout=PATIENCE_S)
        self._decoder = codec.ResponseDecoder()
        self._say(codec.Negotiate(6, 0x1FF, 0x1FFFFF))
        self._await(codec.Negotiate)
        self._say(codec.Connect(b"client.example", b"4", 25, b"192.0.2.1"), codec.Helo(b"client.example"))

    def _say(self, *commands: codec.Command) -> None:
        self.socket.sendall(b"".join(map(codec.encode, commands)))

    def _await(self, kind: type, count: int = 1) -> None:
        while count:
            data = self.socket.recv(1 << 16)
            assert data, "the server closed the connection"
            self._decoder.feed(data)
            count -= sum(isinstance(response, kind) for response in self._decoder)

    def send(self, *messages: bytes) -> None:
        """Send messages, and wait for the verdict of each."""
        self.socket.sendall(b"".join(messages))
        self._await(codec.AddHeader, 2 * len(messages))


def send_many(address: str, senders: int, rounds: int, together: int) -> set[str]:
    """Send messages from several MTAs at the same time; return their queue ids."""
    sent: set[str] = set()

    def work(number: int) -> None:
        sender = Sender(address)
        for turn in range(rounds):
            names = [f"q{number}r{turn}m{place}" for place in range(together)]
            sender.send(*map(message, names))
            sent.update(names)
        sender.socket.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(senders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sent


def lines_of(log: str) -> list[re.Match[str]]:
    """The lines of messages; none of them, and none beside them, is torn."""
    found = []
    for line in log.splitlines():
        assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]+[+-]\d{4} \w+ fastmilter\.[\w.]+: ", line), line
        assert line.count("fastmilter.message:") <= 1, line
        if " fastmilter.message: qid" in line:
            match = LINE.fullmatch(line)
            assert match, line
            found.append(match)
    return found


class Unread:
    """A server whose standard error is a pipe that is read when the test wants it."""

    def __init__(self, directory: Path) -> None:
        (directory / "tagger.py").write_text(FILTER)
        self.source, sink = os.pipe()
        command = [sys.executable, "-m", "fastmilter", "serve", "tagger:Tagger", "--listen=inet:0@127.0.0.1"]
        self.process = subprocess.Popen(
            [*command, "--workers=2", "--log-messages"],
            cwd=directory,
            env=clean_environment(),
            stderr=sink,
            start_new_session=True,
        )
        os.close(sink)
        self.log = ""
        self.read_until(lambda: self.log.count(" is ready ") == 2)
        match = re.search(r"listening on (\S+)", self.log)
        assert match
        self.address = match[1]
        fcntl.fcntl(self.source, fcntl.F_SETPIPE_SZ, 4096)

    def read_until(self, condition: Callable[[], bool] | None) -> None:
        """Read until something is in the log; to its end, if that is what there is to wait for."""
        deadline = time.monotonic() + PATIENCE_S
        while condition is None or not condition():
            assert select.select([self.source], [], [], max(0.0, deadline - time.monotonic()))[0], self.log[-1000:]
            data = os.read(self.source, 1 << 16)
            if not data:
                assert condition is None, self.log[-1000:]
                return
            self.log += data.decode()

    def pids(self) -> list[int]:
        return [int(pid) for pid in re.findall(r"started pid=(\d+)", self.log)]

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()  # the workers notice, and leave
            self.process.wait()
        for pid in self.pids():
            if title(pid).startswith("fastmilter: worker"):
                os.kill(pid, signal.SIGKILL)
        os.close(self.source)


@pytest.fixture
def unread(tmp_path: Path) -> Iterator[Unread]:
    unread = Unread(tmp_path)
    yield unread
    unread.end()


def test_every_message_has_one_line_and_none_is_torn(server: Server) -> None:
    server.start("--workers=2", "--log-messages")
    sent = send_many(server.address(), senders=8, rounds=10, together=25)
    assert server.stop() == 0
    lines = lines_of(server.log())
    assert Counter(match[1] for match in lines) == Counter(sent)
    assert {(match[2], match[3]) for match in lines} == {("continue", "2")}
    assert {match[4] for match in lines} == {"1", "2"}
    assert {int(match[5]) for match in lines} == set(server.started())


def test_every_message_has_one_line_on_a_pipe_too(unread: Unread) -> None:
    sent: set[str] = set()
    thread = threading.Thread(target=lambda: sent.update(send_many(unread.address, 8, 10, 25)))
    thread.start()
    unread.read_until(lambda: unread.log.count("fastmilter.message:") == 2000)
    thread.join()
    unread.process.send_signal(signal.SIGTERM)
    unread.read_until(None)
    assert unread.process.wait() == 0
    lines = lines_of(unread.log)
    assert Counter(match[1] for match in lines) == Counter(sent)
    assert {match[4] for match in lines} == {"1", "2"}


def test_a_full_pipe_stops_nobody_and_what_is_lost_is_told(unread: Unread) -> None:
    senders = [Sender(unread.address) for _ in range(4)]
    long_sender = b"<" + b"\xff" * 256 + b">"  # 1536 bytes in the log
    count = 0
    for _ in range(20):  # more than may wait in both workers together
        for sender in senders:
            sender.send(*(message(f"q{count + place}", long_sender) for place in range(25)))
            count += 25
    for sender in senders:
        sender.socket.close()
    with Client(unread.address) as client:
        begin(client)  # whoever serves this one is not blocked either
        client.abort()
        count += 1

    def told() -> int:
        return sum(map(int, re.findall(r"warning fastmilter\.message: .* lost=(\d+) worker=\d pid=\d+\n", unread.log)))

    def logged() -> int:
        return unread.log.count(" verdict=")

    unread.read_until(lambda: logged() + told() == count)
    assert logged() > 500
    assert told() > 100
    unread.process.send_signal(signal.SIGTERM)
    unread.read_until(None)
    assert unread.process.wait() == 0
    names = re.findall(r" qid='(\w+)' .* verdict=continue ", unread.log)
    assert len(names) == len(set(names)) >= logged() - 1


def test_the_server_stops_while_its_log_is_full(unread: Unread) -> None:
    sender = Sender(unread.address)
    for turn in range(20):
        sender.send(*(message(f"t{turn}m{place}") for place in range(10)))
    sender.socket.sendall(b"GET / HTTP/1.1")  # worth a warning
    sender.socket.close()
    unread.process.send_signal(signal.SIGTERM)
    assert unread.process.wait(PATIENCE_S) == 0
    wait_until(lambda: all(map(is_gone, unread.pids())), "the workers leave")


def test_a_reader_that_has_gone_costs_no_message(unread: Unread) -> None:
    os.close(unread.source)
    unread.source = os.open(os.devnull, os.O_RDONLY)
    for _ in range(3):
        with Client(unread.address) as client:
            assert int(whole_message(client)["X-Pid"]) in unread.pids()
    unread.process.send_signal(signal.SIGTERM)
    assert unread.process.wait(PATIENCE_S) == 0


def test_lines_are_written_whatever_the_level_of_the_log(server: Server) -> None:
    server.start(
        "--workers=1",
        "--log-level=error",
        listen=("unix:sock",),
        wait=False,
        environment={"FASTMILTER_LOG_MESSAGES": "1"},
    )
    wait_until((server.directory / "sock").exists, "the server listens")
    client = Client(f"unix:{server.directory}/sock").open()
    begin(client, "one@example.org")
    client.abort()
    client.mail("two@example.org")
    server.wait_log(r"from='one@example.org' rcpts=0 verdict=dropped edits=0")
    client.close()  # in the middle of a message
    server.wait_log(r"from='two@example.org' rcpts=0 verdict=dropped edits=0")
    assert server.stop() == 0
    assert len(server.log().splitlines()) == 2


def test_what_is_cut_off_by_the_stop_is_told(server: Server) -> None:
    server.start("--workers=1", "--log-messages")
    client = server.client().open()
    begin(client)
    server.send(signal.SIGQUIT)
    assert server.finish() == 0
    assert " from='a@example.org' rcpts=0 verdict=dropped edits=0 " in server.log()
    client.close()


def test_without_the_option_there_are_no_lines(server: Server) -> None:
    server.start("--workers=1", "--log-level=debug")
    with server.client() as client:
        whole_message(client)
    assert server.stop() == 0
    assert "fastmilter.message" not in server.log()


def test_a_reload_keeps_it_and_the_file_may_change_it(server: Server) -> None:
    config = server.directory / "fm.toml"
    config.write_text("log-messages = true\n")
    server.start("--workers=1", "--config=fm.toml")
    with server.client() as client:
        whole_message(client)
    server.wait_log("fastmilter.message: .* worker=1 ", 1)
    server.send(signal.SIGHUP)
    server.wait_log("generation=1 status=0")
    with server.client() as client:
        pid = whole_message(client)["X-Pid"]
    server.wait_log(rf"fastmilter.message: .* worker=1 pid={pid}", 1)
    config.write_text('log-messages = "off"\n')
    server.send(signal.SIGHUP)
    server.wait_log("generation=2 status=0")
    with server.client() as client:
        whole_message(client)
    assert server.stop() == 0
    assert server.log().count("fastmilter.message:") == 2
