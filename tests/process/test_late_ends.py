"""What follows a callback that is late, or the last one, in a real server: when it has come back, in its own time."""

import socket

from fastmilter import CONTINUE, TEMPFAIL, Verdict, codec, reply
from fastmilter.client import Client
from tests.process.harness import Server, begin, wait_until, whole_message

SLOW = reply(451, "4.3.2", "slow today")

FILTER = """
import asyncio
import gc
import os
import time

from fastmilter import CONTINUE, Filter, reply


def note(word):
    with open("notes", "a") as notes:
        notes.write(word + "\\n")


class Late(Filter):
    deadline = {"rcpt": 0.3}
    timeout_verdict = reply(451, "4.3.2", "slow today")

    def on_message_end(self, verdict):
        note("message_end")


class BesideAsyncio(Late):
    blocking = True

    def on_mail(self, sender, params):
        if sender.local_part == "fail":
            raise ValueError("as planned")

    def on_rcpt(self, recipient, params):
        note("rcpt")
        while not os.path.exists("go"):
            time.sleep(0.01)
        note("back")

    async def on_close(self):
        gc.collect()
        note("close")


class Queued(Late):
    blocking = True
    deadline = {"mail": 0.3, "rcpt": 60}

    async def on_mail(self, sender, params):
        pass

    def on_rcpt(self, recipient, params):
        note("rcpt")
        while not os.path.exists("go"):
            time.sleep(0.01)


class Crowded(Filter):
    blocking = True
    deadline = {"helo": 0.3, "mail": 60, "rcpt": 60}
    timeout_verdict = CONTINUE

    def on_helo(self, name):
        note("helo:" + name)
        return CONTINUE

    def on_mail(self, sender, params):
        if sender.local_part == "slow":
            note("begin")
            while not os.path.exists("on"):
                time.sleep(0.01)
            note("end")

    def on_rcpt(self, recipient, params):
        note("rcpt")
        while not os.path.exists("go"):
            time.sleep(0.01)


class Outrun(Late):
    deadline = {"mail": 0.3}
    has_returned = False

    async def on_mail(self, sender, params):
        while not os.path.exists("go"):
            await asyncio.sleep(0.01)
        self.has_returned = True

    async def on_timeout(self, step):
        open("go", "w").close()
        while not self.has_returned:
            await asyncio.sleep(0.01)


class Closing(Filter):
    async def on_close(self):
        note("begun")
        while not os.path.exists("go"):
            await asyncio.sleep(0.01)
        note("closed")
"""


def serve(server: Server, name: str, *options: str) -> None:
    (server.directory / "late.py").write_text(FILTER)
    server.start("--workers=1", *options, target=f"late:{name}", listen=[f"unix:{server.directory}/socket"])


def code(verdict: Verdict | None) -> int | None:
    assert verdict is not None
    return verdict.code


def test_a_thread_beside_asyncio_is_waited_for(server: Server) -> None:
    """Cancelling the task that waits for it does not end it."""
    serve(server, "BesideAsyncio")
    with Client(server.address()) as client:
        begin(client)
        assert client.rcpt("b@example.net") == SLOW
        client.abort()
        assert code(client.mail("a@example.org")) == 421
        (server.directory / "go").touch()
        wait_until(lambda: "message_end" in server.notes(), "on_message_end")
    wait_until(lambda: "close" in server.notes(), "on_close")
    assert server.notes() == ["rcpt", "back", "message_end", "close"]


def test_the_end_of_a_message_that_waits_for_a_thread_is_told_all_the_same(server: Server) -> None:
    """A callback that has not begun when its time is up is never run; one that must be called is no such one."""
    serve(server, "Queued", "--threads=1")
    with Client(server.address()) as first, Client(server.address()) as second:
        begin(first)
        begin(second)
        first.send(codec.RcptTo(b"<b@example.net>"))
        wait_until(lambda: server.notes() == ["rcpt"], "the only thread is taken")
        second.abort()
        assert code(second.mail("a@example.org")) == 421, "the end of its first message is still to be told"
        (server.directory / "go").touch()
        wait_until(lambda: "message_end" in server.notes(), "on_message_end")


def test_a_job_answered_in_the_queue_leaves_the_next_one_of_its_connection_alone(server: Server) -> None:
    """It comes out of the queue when a thread is free, beside a later job of the same connection that still runs."""
    serve(server, "Crowded", "--threads=2")
    with Client(server.address()) as first, Client(server.address()) as second, Client(server.address()) as third:
        for holder in (first, second):
            begin(holder)
            holder.send(codec.RcptTo(b"<b@example.net>"))
        wait_until(lambda: server.notes().count("rcpt") == 2, "both threads are taken")
        third.connect("client.example.com")
        assert third.helo("late") == CONTINUE
        third.send(codec.MailFrom(b"<slow@example.org>"))
        (server.directory / "go").touch()
        wait_until(lambda: "begin" in server.notes(), "on_mail to begin")
        for holder in (first, second):
            assert isinstance(holder.receive(), codec.Continue)
            holder.abort()
        pass_through_queue(first)  # behind the job that was answered
        third.send(codec.RcptTo(b"<b@example.net>"))
        pass_through_queue(second)  # the loop has seen that RCPT by then
        (server.directory / "on").touch()
        assert isinstance(third.receive(), codec.Continue)
        assert isinstance(third.receive(), codec.Continue)
    of_all = [word for word in server.notes() if word != "helo:client.example"]
    assert of_all == ["rcpt", "rcpt", "begin", "end", "rcpt"], "and never on_helo of the third"


def pass_through_queue(client: Client) -> None:
    assert client.mail("a@example.org") == CONTINUE


def test_a_callback_may_come_back_while_on_timeout_is_asked(server: Server) -> None:
    serve(server, "Outrun")
    with Client(server.address()) as client:
        assert begin(client) == SLOW
        wait_until(lambda: "message_end" in server.notes(), "on_message_end")
        assert client.mail("a@example.org") == CONTINUE
    assert "failed" not in server.log()


def test_the_end_of_an_idle_connection_has_its_own_time(server: Server) -> None:
    """Not that of what the MTA said last, which may be hours ago, or of nothing: then it is the start of the system."""
    serve(server, "Closing")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(server.directory / "socket"))
    wait_until(lambda: "begun" in server.notes(), "on_close to begin")
    with Client(server.address()) as client:
        whole_message(client)
    (server.directory / "go").touch()
    wait_until(lambda: server.notes().count("closed") == 2, "two ends of on_close")
    assert "out of time" not in server.log()


def test_what_a_thread_beside_asyncio_raises_is_told_once(server: Server) -> None:
    serve(server, "BesideAsyncio")
    with Client(server.address()) as client:
        assert begin(client, "fail@example.org") == TEMPFAIL
        assert client.mail("a@example.org") == CONTINUE
    wait_until(lambda: "close" in server.notes(), "on_close")
    assert server.log().count("ValueError: as planned") == 1
