"""What a worker closes when its drain comes to the end: first of all connections on which nothing is under way."""

import signal
import socket
import threading
import time

import pytest

from fastmilter import CONTINUE, Verdict, codec
from fastmilter.client import Client
from fastmilter.session import LEAVING
from tests.process.harness import Server, begin, wait_until

FILTER = """
import asyncio
import os
import time

from fastmilter import Filter


def note(word):
    with open("notes", "a") as notes:
        notes.write(word + "\\n")


class Plain(Filter):
    def on_helo(self, name):
        if name == "slow":
            note("begin")
            while not os.path.exists("go"):
                time.sleep(0.01)


class Blocking(Filter):
    blocking = True

    def on_mail(self, sender, params):
        note("begin")
        while not os.path.exists("go"):
            time.sleep(0.01)


class Async(Filter):
    async def on_mail(self, sender, params):
        note("begin")
        while not os.path.exists("go"):
            await asyncio.sleep(0.01)
"""
MANY = 300
"""More than a worker learns of at once."""


def start(server: Server, name: str, limits: str) -> Server:
    (server.directory / "waits.py").write_text(FILTER)
    return server.start("--workers=1", f"--drain-stop={limits}", target=f"waits:{name}")


@pytest.mark.parametrize("name", ["Blocking", "Async"])
def test_an_answer_that_is_due_is_waited_for(server: Server, name: str) -> None:
    start(server, name, "0.1,0.2,0.3")
    idle = socket.create_connection(("127.0.0.1", int(server.address().split(":")[1].split("@")[0])))
    idle.settimeout(30)
    with server.client() as client, idle:
        answers: list[Verdict | None] = []
        asking = threading.Thread(target=lambda: answers.append(begin(client)))
        asking.start()
        wait_until(lambda: server.notes() == ["begin"], "MAIL is in work")
        server.send(signal.SIGTERM)
        assert idle.recv(1) == b"", "the connection on which nothing happens is closed"
        (server.directory / "go").touch()
        asking.join(30)
        assert answers == [CONTINUE]
        assert server.finish() == 0


def test_what_came_while_the_worker_was_busy_is_answered(server: Server) -> None:
    start(server, "Plain", "1,1.5,2")
    clients = [server.client().open() for _ in range(MANY)]
    slow = server.client().open()
    for client in (*clients, slow):
        client.connect("client.example", "192.0.2.1", 25)
        client.send()
    server.send(signal.SIGTERM)
    server.wait_log("stopping: draining")
    slow.helo("slow")
    slow.send()
    wait_until(lambda: server.notes() == ["begin"], "the worker is busy")
    for client in clients:
        client.send(codec.Helo(b"client.example"), codec.MailFrom(b"<a@example.org>"))
    time.sleep(2.5)  # the drain comes to its end meanwhile
    (server.directory / "go").touch()
    assert {answer_of(client) for client in clients} == {LEAVING.packet}
    slow.close()
    assert server.finish() == 0


def answer_of(client: Client) -> bytes:
    """Return the answer to MAIL, and close."""
    answer = codec.encode(client.receive(timeout=30))
    client.close()
    return answer
