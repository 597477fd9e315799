"""What an MTA says while a callback runs is handled after it, in threads and on asyncio alike."""

import threading

import pytest

from fastmilter import codec
from fastmilter.client import Client
from tests.process.harness import Server

FILTER = """
import asyncio, logging, os, time
from fastmilter import Filter

class Slow(Filter):
    def __init__(self):
        self.seen = []
    def on_body(self, chunk):
        self.seen.append(str(len(chunk)))
    def on_end_of_message(self):
        self.message.add_header("X-Seen", " ".join(self.seen))
    def on_message_end(self, verdict):
        logging.warning("the message has ended")

class Blocking(Slow):
    blocking = True
    def on_header(self, name, value):
        logging.warning("in on_header %s", name)
        while not os.path.exists("go"):
            time.sleep(0.01)
        self.seen.append(name)

class Async(Slow):
    async def on_header(self, name, value):
        logging.warning("in on_header %s", name)
        while not os.path.exists("go"):
            await asyncio.sleep(0.01)
        self.seen.append(name)
"""


@pytest.mark.parametrize("kind", ["Blocking", "Async"])
def test_what_comes_during_a_callback(server: Server, kind: str) -> None:
    (server.directory / "slow.py").write_text(FILTER)
    server.start("--workers=1", target=f"slow.py:{kind}")
    with server.client() as client:
        client.connect("client.example", "192.0.2.1", 25)
        client.helo("client.example")
        client.mail("a@example.org")
        client.rcpt("b@example.net")
        client.send(codec.Header(b"A", b"1"))
        server.wait_log("in on_header A")
        for command in (codec.Header(b"B", b"2"), codec.Header(b"C", b"3"), codec.EndOfMessage()):
            client.send(command)
        (server.directory / "go").touch()
        answers = []
        while not isinstance(answer := client.receive(), codec.Continue | codec.TempFail):
            answers.append(answer)
        assert isinstance(answer, codec.Continue)
        assert codec.AddHeader(b"X-Seen", b"A B C") in answers
        server.wait_log("the message has ended")
    assert server.stop() == 0
    assert " failed" not in server.log()


@pytest.mark.parametrize("why", ["--read-ahead-memory, ", "No such file or directory"])
@pytest.mark.parametrize("kind", ["Blocking", "Async"])
def test_an_mta_that_sends_more_than_is_held_has_to_wait_and_loses_nothing(server: Server, kind: str, why: str) -> None:
    no_disk = "import tempfile; tempfile.tempdir = '/nonexistent'\n" if why.startswith("No such") else ""
    (server.directory / "slow.py").write_text(no_disk + FILTER)
    server.start("--workers=1", "--read-ahead-memory=64K", "--read-ahead-disk=1M", target=f"slow.py:{kind}")
    with server.client() as client:
        client.connect("client.example", "192.0.2.1", 25)
        client.helo("client.example")
        client.mail("a@example.org")
        client.rcpt("b@example.net")
        client.send(codec.Header(b"A", b"1"))
        server.wait_log("in on_header A")
        sender = threading.Thread(target=send_bodies, args=(client, 100))
        sender.start()
        (said,) = server.wait_log(rf"(\d+) bytes are read ahead \(.*{why}.*, the MTA has to wait .*client=")
        assert int(said[1]) < 1 << 20 if no_disk else (1 << 20) <= int(said[1]) < 3 << 20
        (server.directory / "go").touch()
        sender.join()
        client.send(codec.EndOfMessage())
        answers = []
        while not isinstance(answer := client.receive(), codec.Continue | codec.TempFail):
            answers.append(answer)
        assert codec.AddHeader(b"X-Seen", b" ".join([b"A", *[b"65535"] * 100])) in answers
    assert server.stop() == 0


def send_bodies(client: Client, count: int) -> None:
    for _ in range(count):
        client.send(codec.Body(bytes(65535)))
