"""Callbacks that fail, hang or take long, and what holds all the same: answers, clocks, guards, contexts."""

import time

import pytest

from fastmilter import CONTINUE, TEMPFAIL, codec, reply
from fastmilter.client import Client
from tests.process.harness import Server, begin, wait_until

UNAVAILABLE = reply(450, "4.4.4", "not today")

FILTER = """
import asyncio
import contextvars
import os
import time

from fastmilter import CONTINUE, REJECT, Answer, Filter, reply
from fastmilter.guard import Guard

UNAVAILABLE = reply(450, "4.4.4", "not today")
who = contextvars.ContextVar("who", default="nobody")


def note(word):
    log = os.open("notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, word.encode() + b"\\n")
    os.close(log)


def hang():
    while not os.path.exists("go"):
        time.sleep(0.01)


async def pieces():
    yield b"one"
    yield b"two"


class Body(Filter):
    async def on_close(self):
        pass

    def on_end_of_message(self):
        self.message.replace_body(pieces())
        how = self.message.sender.local_part
        if how == "error":
            raise ValueError("as planned")
        verdict = UNAVAILABLE if "refused" in how else CONTINUE
        if "raised" in how:
            raise Answer(verdict)
        return verdict


class AsyncBody(Body):
    async def on_end_of_message(self):
        return Body.on_end_of_message(self)


class Sessions(Filter):
    blocking = True
    deadline = {"rcpt": 0.3}

    def on_connect(self, hostname, address):
        note("connect " + hostname)
        return CONTINUE

    def on_helo(self, name):
        if os.path.exists("go"):
            note("helo")
        return REJECT if name == "evil.example" else CONTINUE

    def on_rcpt(self, recipient, params):
        hang()
        note("back " + self.connection.hostname)

    def on_close(self):
        note("close " + self.connection.hostname)


class Guarded(Filter):
    blocking = True
    deadline = {"rcpt": 0.3}
    guard = Guard("backend", failures=1, recovery=60, verdict=UNAVAILABLE)

    def on_rcpt(self, recipient, params):
        with self.guard:
            hang()


class GuardedBesideAsync(Guarded):
    async def on_close(self):
        pass


class SlowEnd(Filter):
    blocking = True

    def on_end_of_message(self):
        pass

    def on_message_end(self, verdict):
        note("telling")
        hang()
        note("told")


class SlowEndOfBody(SlowEnd):
    def on_end_of_message(self):
        self.message.replace_body(bytes(8_000_000))


class SlowEndAsync(Filter):
    async def on_message_end(self, verdict):
        note("telling")
        while not os.path.exists("go"):
            await asyncio.sleep(0.01)
        note("told")


class SlowEndOfBodyAsync(SlowEndAsync):
    def on_end_of_message(self):
        self.message.replace_body(bytes(8_000_000))


class Dropped(Filter):
    blocking = True

    def on_header(self, name, value):
        note("header " + value)

    def on_abort(self):
        note("abort")

    def on_message_end(self, verdict):
        note(f"end {verdict}")

    def on_close(self):
        note("close")


class DroppedAsync(Dropped):
    blocking = False

    async def on_header(self, name, value):
        note("header " + value)


class Tight(Filter):
    blocking = True
    deadline = {"mail": 0.3}

    def on_mail(self, sender, params):
        pass

    def on_abort(self):
        note("abort")
        hang()


class Slow(Filter):
    blocking = True

    def on_header(self, name, value):
        note("header")
        hang()


class Busy(Filter):
    blocking = True
    deadline = 6

    def on_mail(self, sender, params):
        hang()


class BusyBesideAsync(Busy):
    async def on_close(self):
        pass


class Answering(Filter):
    blocking = True
    deadline = 0.3

    def on_rcpt(self, recipient, params):
        hang()

    def on_timeout(self, step):
        raise Answer(UNAVAILABLE)


class AnsweringAsync(Filter):
    deadline = 0.3

    async def on_rcpt(self, recipient, params):
        await asyncio.sleep(60)

    async def on_timeout(self, step):
        raise Answer(UNAVAILABLE)


class Contexts(Filter):
    blocking = True

    async def on_close(self):
        pass

    def on_connect(self, hostname, address):
        who.set(hostname)
        return CONTINUE

    def on_mail(self, sender, params):
        return reply(550, "5.1.1", who.get())


class Blocks(Filter):
    async def on_mail(self, sender, params):
        hang()
"""


def serve(server: Server, name: str, *options: str) -> str:
    """Start the server; return its address."""
    (server.directory / "stuck.py").write_text(FILTER)
    server.start("--workers=1", *options, target=f"stuck:{name}", listen=[f"unix:{server.directory}/socket"])
    return server.address()


def go(server: Server) -> None:
    (server.directory / "go").touch()


def up_to_end(client: Client, sender: str) -> None:
    begin(client, sender)
    client.rcpt("b@example.net")
    client.data()
    client.header("Subject", "hello")
    client.end_of_headers()
    client.body(b"text\r\n")


@pytest.mark.parametrize("model", ["Body", "AsyncBody"])
def test_a_body_to_be_read_goes_with_the_verdict_and_not_with_a_failure(server: Server, model: str) -> None:
    with Client(serve(server, model)) as client:
        for sender, verdict in (("error", TEMPFAIL), ("refused", UNAVAILABLE), ("raised-refused", UNAVAILABLE)):
            up_to_end(client, f"{sender}@example.org")
            assert client.end_of_message() == (verdict, [])
            client.quit()
            client.open()
        for sender in ("returned", "raised"):
            up_to_end(client, f"{sender}@example.org")
            assert client.end_of_message() == (CONTINUE, [codec.ReplaceBody(b"onetwo")])
            client.quit()
            client.open()
    assert server.log().count("ValueError: as planned") == 1


def test_no_message_follows_a_helo_that_the_filter_could_not_see(server: Server) -> None:
    address = serve(server, "Sessions")
    with Client(address) as first, Client(address) as second:
        for client in (first, second):
            begin(client)
            assert client.rcpt("b@example.net") == TEMPFAIL
            client.abort()
            assert client.helo("evil.example") == CONTINUE
        go(server)
        wait_until(lambda: server.notes().count("back client.example") == 2, "both callbacks are back")
        wait_until(lambda: second.helo("client.example") == CONTINUE and "helo" in server.notes(), "on_helo")
        assert second.mail("a@example.org") == CONTINUE, "it has seen that one"
        refused = first.mail("a@example.org")
        assert refused is not None
        assert refused.code == 421


def test_the_next_smtp_connection_never_shows_in_a_stuck_callback(server: Server) -> None:
    with Client(serve(server, "Sessions")) as client:
        begin(client)
        assert client.rcpt("b@example.net") == TEMPFAIL
        client.new_connection()
        refused = client.connect("evil.example", "192.0.2.66", 25)
        assert refused is not None
        assert refused.code == 421
        go(server)
        wait_until(lambda: "close client.example" in server.notes(), "the former connection is closed")
    assert server.notes() == ["connect client.example", "back client.example", "close client.example"]


@pytest.mark.parametrize("model", ["Guarded", "GuardedBesideAsync"])
def test_a_guard_hears_of_a_thread_that_is_given_up(server: Server, model: str) -> None:
    address = serve(server, model)
    with Client(address) as first, Client(address) as second:
        begin(first)
        begin(second)
        assert first.rcpt("b@example.net") == TEMPFAIL
        assert second.rcpt("b@example.net") == UNAVAILABLE, "the breaker is open"
        go(server)


@pytest.mark.parametrize("model", ["SlowEnd", "SlowEndAsync", "SlowEndOfBody", "SlowEndOfBodyAsync"])
def test_the_answer_does_not_wait_for_on_message_end(server: Server, model: str) -> None:
    with Client(serve(server, model)) as client:
        up_to_end(client, "a@example.org")
        verdict, modifications = client.end_of_message()
        assert verdict == CONTINUE
        size = sum(len(edit.chunk) for edit in modifications if isinstance(edit, codec.ReplaceBody))
        assert size == (8_000_000 if "Body" in model else 0), "more than a socket takes at once"
        wait_until(lambda: server.notes() == ["telling"], "on_message_end")
        go(server)
    wait_until(lambda: server.notes() == ["telling", "told"], "on_message_end")


@pytest.mark.parametrize("model", ["Dropped", "DroppedAsync"])
def test_a_message_whose_end_came_with_its_content_is_spared(server: Server, model: str) -> None:
    """As an MTA sends it that was held up while its client went away."""
    commands: list[codec.Command] = [
        codec.Header(b"A", b"seen"),
        codec.Header(b"B", b"with the abort"),
        codec.Abort(),
        codec.MailFrom(b"<next@example.org>"),
    ]
    packets = [codec.encode(command) for command in commands]
    with Client(serve(server, model)) as client:
        begin(client)
        client.rcpt("b@example.net")
        client.data()
        wire = client._socket
        assert wire is not None
        wire.sendall(packets[0])
        wait_until(lambda: server.notes() == ["header seen"], "the first header field")
        wire.sendall(b"".join(packets[1:]))
        assert isinstance(client.receive(), codec.Continue), "the next message"
    wait_until(lambda: "close" in server.notes(), "the end")
    assert server.notes() == ["header seen", "abort", "end None", "abort", "end None", "close"]


def test_a_command_that_comes_while_a_callback_runs_is_answered_in_its_own_time(server: Server) -> None:
    with Client(serve(server, "Tight")) as client:
        begin(client)
        client.send(codec.Abort())
        wait_until(lambda: server.notes() == ["abort"], "on_abort to begin")
        time.sleep(0.5)  # the worker has looked at the clocks, and has nothing to look at for seconds
        client.send(codec.MailFrom(b"<c@example.org>"))
        answer = client.receive()
        assert isinstance(answer, codec.ReplyCode)
        assert answer.text.startswith(b"421 4.7.0")
        go(server)
    (late,) = server.wait_log(r"on_abort is out of time after (\d+\.\d) s")
    assert float(late[1]) < 2.5, "from MAIL on; the next look at all clocks would come after 4 s"


def test_half_a_packet_behind_a_callback_is_no_silence(server: Server) -> None:
    """Its rest is read ahead; the MTA waits for us."""
    packets: list[codec.Command] = [
        codec.Header(b"Subject", b" x"),
        codec.EndOfHeaders(),
        codec.Body(b"x" * 1000),
        codec.EndOfMessage(),
    ]
    data = b"".join(codec.encode(packet) for packet in packets)
    with Client(serve(server, "Slow", "--packet-timeout=1")) as client:
        begin(client)
        client.rcpt("b@example.net")
        client.data()
        wire = client._socket
        assert wire is not None
        wire.sendall(data[:200])
        wait_until(lambda: server.notes() == ["header"], "on_header to begin")
        wire.sendall(data[200:])
        time.sleep(2.5)  # more than the time-out and the sweep that looks for it
        go(server)
        assert isinstance(client.receive(), codec.Continue)


@pytest.mark.parametrize("model", ["Busy", "BusyBesideAsync"])
def test_new_connections_wait_while_callbacks_wait_for_a_thread_for_long(server: Server, model: str) -> None:
    address = serve(server, model, "--threads=1")
    with Client(address) as first, Client(address) as second:
        for client in (first, second):
            client.connect("client.example", "192.0.2.1", 25)
            client.helo("client.example")
            client.send(codec.MailFrom(b"<a@example.org>"))
        server.wait_log("callbacks wait for a thread for long: no new connections for now; raise --threads")
        go(server)
        assert isinstance(first.receive(), codec.Continue)
        assert isinstance(second.receive(), codec.Continue)
    with Client(address) as third:
        begin(third)


@pytest.mark.parametrize("model", ["Answering", "AnsweringAsync"])
def test_on_timeout_may_raise_its_verdict(server: Server, model: str) -> None:
    with Client(serve(server, model)) as client:
        begin(client)
        assert client.rcpt("b@example.net") == UNAVAILABLE
        go(server)
    assert "failed" not in server.log()


def test_variables_of_a_context_pass_from_a_thread_to_the_next_callback(server: Server) -> None:
    with Client(serve(server, "Contexts")) as client:
        verdict = begin(client)
        assert verdict is not None
        assert verdict.text == "client.example"


def test_an_async_callback_that_blocks_is_named(server: Server) -> None:
    with Client(serve(server, "Blocks")) as client:
        client.connect("client.example")
        client.helo("client.example")
        client.send(codec.MailFrom(b"<a@example.org>"))
        server.wait_log(r"stands still: Blocks\.on_mail has run for .* and awaits .*(?s:.*)in on_mail")
        go(server)
