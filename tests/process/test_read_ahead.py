"""What an MTA says while a callback runs is handled after it, in threads and on asyncio alike."""

import pytest

from fastmilter import codec
from tests.process.harness import Server

FILTER = """
import asyncio, logging, os, time
from fastmilter import Filter

class Slow(Filter):
    def __init__(self):
        self.seen = []
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
