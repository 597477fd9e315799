"""What a filter logs tells which connection and message it is about, in every kind of filter and both formats."""

import json
import re

import pytest

from fastmilter.client import Client
from tests.process.harness import Server, wait_until

FILTER = """
import asyncio, logging, threading
from fastmilter import Filter

log = logging.getLogger("tagger")
logging.getLogger("tagger").info("imported")

class Plain(Filter):
    def on_helo(self, name):
        log.info("helo %s", name)
    def on_rcpt(self, recipient, params):
        log.warning("rcpt %s", recipient)
        try:
            raise ValueError("traceback")
        except ValueError:
            log.exception("failed %s", recipient)
        stranger = threading.Thread(target=log.warning, args=("stranger",))
        stranger.start()
        stranger.join()

class Threaded(Plain):
    blocking = True

class Async(Plain):
    async def on_rcpt(self, recipient, params):
        await asyncio.sleep(0.05)
        super().on_rcpt(recipient, params)

class Mixed(Async):
    blocking = True

class Late(Filter):
    deadline = 0.2
    def on_timeout(self, step):
        log.warning("late at %s", step)

class LateThread(Late):
    blocking = True
    def on_rcpt(self, recipient, params):
        stop.wait(1)

class LateTask(Late):
    async def on_rcpt(self, recipient, params):
        await asyncio.sleep(30)

class Gullible(Filter):
    def on_header(self, name, value):
        log.warning("got %s", value)
        raise ValueError(value)

stop = threading.Event()
"""
FORGED = "2026-11-22T22:04:51.123+0000 info fastmilter.message: qid='4Forged'"


def play(client: Client, name: str, queue_id: str, port: int) -> None:
    client.connect("client.example", "192.0.2.1", port)
    client.helo(name)
    client.mail("a@example.org")
    client.macros("rcpt", {"i": queue_id})


@pytest.mark.parametrize("kind", ["Plain", "Threaded", "Async", "Mixed"])
def test_lines_tell_what_they_are_about(server: Server, kind: str) -> None:
    server.filter.write_text(FILTER)
    server.start("--workers=1", target=f"tagger:{kind}")
    with server.client() as first, server.client() as second:
        play(first, "one.example", "4First", 1001)
        play(second, "two.example", "4Second", 1002)
        first.rcpt("one@example.net")
        second.rcpt("two@example.net")
    for name, queue_id, port in (("one", "4First", 1001), ("two", "4Second", 1002)):
        client = rf"client='192\.0\.2\.1:{port}'"
        server.wait_log(rf"info tagger: helo {name}\.example pid=\d+ {client}\n")
        server.wait_log(rf"warning tagger: rcpt {name}@example\.net pid=\d+ qid='{queue_id}' {client}\n")
        server.wait_log(rf"error tagger: failed {name}@example\.net pid=\d+ qid='{queue_id}' {client}\n  Traceback")
    server.wait_log(r"warning tagger: stranger\n", 2)
    assert re.search(r"tagger: imported\n", server.log())
    assert server.stop() == 0


@pytest.mark.parametrize("kind", ["LateThread", "LateTask"])
def test_what_is_logged_when_a_callback_is_out_of_time(server: Server, kind: str) -> None:
    server.filter.write_text(FILTER)
    server.start("--workers=1", target=f"tagger:{kind}")
    with server.client() as client:
        play(client, "one.example", "4First", 1001)
        client.rcpt("one@example.net")
    server.wait_log(r"warning tagger: late at rcpt pid=\d+ qid='4First' client='192\.0\.2\.1:1001'\n")
    assert server.stop() == 0


def test_the_same_as_json(server: Server) -> None:
    server.filter.write_text(FILTER)
    server.start("--workers=1", "--log-format=json", target="tagger:Plain", wait=False)
    wait_until(lambda: "is ready" in server.log(), "the worker is ready")
    address = re.search(r"listening on (\S+)", server.log())
    assert address is not None
    with Client(address[1]) as client:
        play(client, "one.example", "4First", 1001)
        client.rcpt("one@example.net")
    wait_until(lambda: "stranger" in server.log(), "all is written")
    lines = [json.loads(line) for line in server.log().splitlines()]
    (line,) = [line for line in lines if line["message"] == "rcpt one@example.net"]
    assert (line["logger"], line["qid"], line["client"]) == ("tagger", "4First", "192.0.2.1:1001")
    (line,) = [line for line in lines if line["message"] == "stranger"]
    assert "qid" not in line
    assert server.stop() == 0


def test_nobody_who_sends_mail_writes_lines_of_the_log(server: Server) -> None:
    server.filter.write_text(FILTER)
    server.start("--workers=1", target="tagger:Gullible")
    with server.client() as client:
        play(client, "one.example", "4First", 1001)
        client.rcpt("one@example.net")
        client.data()
        client.header("X-Hostile", f"\x1b[31mhi\n{FORGED}\u2028{FORGED}")
        client.end_of_headers()
        client.end_of_message()
    shown = rf"\\x1b\[31mhi\n  {FORGED}\\u2028{FORGED}".replace("+", r"\+")
    server.wait_log(rf"warning tagger: got {shown} pid=")
    server.wait_log(rf"\n  ValueError: {shown}\n")
    assert "\x1b" not in server.log()
    assert not re.search(rf"^{re.escape(FORGED)}", server.log(), re.MULTILINE)
    assert server.stop() == 0
