"""Filters that wait, in threads and on asyncio, in a real server: deadlines, hang-ups, reading ahead, leaving."""

import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from fastmilter import CONTINUE, Step, Verdict, reply
from fastmilter.client import Client
from fastmilter.codec import (
    Abort,
    AddHeader,
    Body,
    Command,
    Connect,
    EndOfMessage,
    Header,
    Helo,
    MailFrom,
    Progress,
    RcptTo,
    ReplaceBody,
)
from fastmilter.constants import STEPS
from tests.process.harness import Server, begin, complete, wait_until, whole_message

SLOW = reply(451, "4.3.2", "slow today")

FILTER = '''
import asyncio, contextvars, os, threading, time
from fastmilter import Answer, Filter, TEMPFAIL, early_verdict, reply

where = contextvars.ContextVar("where", default=0)

def note(word):
    """Append a word to a file, whole whoever else does."""
    log = os.open("notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, word.encode() + b"\\n")
    os.close(log)

class Common(Filter):
    timeout_verdict = reply(451, "4.3.2", "slow today")
    step = ""

    def at(self, step):
        """Tell whether to wait at ``step``."""
        return os.path.exists("gate-" + step)

    def begun(self, step):
        note("begun " + step)

    def edit(self, message, step):
        """Change a message when it is too late."""
        if message is not None:
            try:
                message.add_header("X-Late", step)
            except Exception as error:
                note(type(error).__name__)

    def on_close(self):
        note("close")

    def on_message_end(self, verdict):
        note(f"end {verdict and verdict.kind}")

    def on_abort(self):
        note("abort")

class Threaded(Common):
    blocking = True

    def wait(self, step):
        if self.at(step):
            self.begun(step)
            message = None if step in ("connect", "helo", "unknown") else self.message
            while self.at(step):
                time.sleep(0.005)
            self.edit(message, step)
            self.begun("after " + step)

    def on_connect(self, hostname, address): return self.wait("connect")
    def on_helo(self, name): return self.wait("helo")
    def on_mail(self, sender, params): return self.wait("mail")
    def on_rcpt(self, recipient, params): return self.wait("rcpt")
    def on_data(self): return self.wait("data")
    @early_verdict
    def on_header(self, name, value): return self.wait("header")
    @early_verdict
    def on_end_of_headers(self): return self.wait("end_of_headers")
    @early_verdict
    def on_body(self, chunk): return self.wait("body")
    def on_unknown(self, command): return self.wait("unknown")

    def on_end_of_message(self):
        self.wait("end_of_message")
        self.message.add_header("X-Thread", threading.current_thread().name)

class Waiting(Common):
    async def wait(self, step):
        if self.at(step):
            self.begun(step)
            message = None if step in ("connect", "helo", "unknown") else self.message
            try:
                while self.at(step):
                    await asyncio.sleep(0.005)
            finally:
                while self.at("cancelled"):
                    try:
                        await asyncio.sleep(0.005)
                    except asyncio.CancelledError:
                        pass
                self.edit(message, step)
                self.begun("after " + step)

    async def on_connect(self, hostname, address): return await self.wait("connect")
    async def on_helo(self, name): return await self.wait("helo")
    async def on_mail(self, sender, params): return await self.wait("mail")
    async def on_rcpt(self, recipient, params): return await self.wait("rcpt")
    async def on_data(self): return await self.wait("data")
    @early_verdict
    async def on_header(self, name, value): return await self.wait("header")
    @early_verdict
    async def on_end_of_headers(self): return await self.wait("end_of_headers")
    @early_verdict
    async def on_body(self, chunk): return await self.wait("body")
    async def on_unknown(self, command): return await self.wait("unknown")

    async def on_end_of_message(self):
        await self.wait("end_of_message")
        self.message.add_header("X-Loop", type(asyncio.get_running_loop()).__module__)

class Mixed(Threaded):
    """Async callbacks among blocking ones: those without async run in threads."""
    async def on_helo(self, name): return await Waiting.wait(self, "helo")

class Impatient:
    deadline = 0.5

class ImpatientAtMail(Threaded):
    deadline = {"mail": 0.5}

class ThreadedImpatient(Impatient, Threaded): pass
class WaitingImpatient(Impatient, Waiting): pass
class MixedImpatient(Impatient, Mixed): pass
class Asked(ThreadedImpatient):
    def on_timeout(self, step): return reply(450, "4.2.0", f"late at {step}")
class WaitingAsked(WaitingImpatient):
    async def on_timeout(self, step):
        await asyncio.sleep(0)
        return reply(450, "4.2.0", f"late at {step}")

class Quiet(Filter):
    """Content without answers, as usual; how much of the body came."""
    blocking = True
    def on_header(self, name, value):
        if os.path.exists("gate-header"):
            note("begun header")
            while os.path.exists("gate-header"):
                time.sleep(0.005)
    def on_body(self, chunk):
        self.message.state.size = getattr(self.message.state, "size", 0) + len(chunk)
    def on_end_of_message(self):
        self.message.add_header("X-Size", str(self.message.state.size))

class QuietAsync(Quiet):
    blocking = False
    async def on_header(self, name, value):
        if os.path.exists("gate-header"):
            note("begun header")
            while os.path.exists("gate-header"):
                await asyncio.sleep(0.005)

class Saying(Filter):
    blocking = True
    def on_end_of_message(self):
        note(f"progress {self.progress()}")
        while not os.path.exists("seen"):
            time.sleep(0.005)

class Raising(Filter):
    blocking = True
    def on_mail(self, sender, params):
        if sender.local_part == "exit":
            raise SystemExit(1)
        if sender.local_part == "answer":
            raise Answer(reply(550, "5.7.1", "from below"))
        if sender.local_part == "error":
            raise ValueError("as asked")

class RaisingAsync(Filter):
    async def on_mail(self, sender, params):
        await asyncio.sleep(0)
        Raising.on_mail(self, sender, params)
        if sender.local_part == "cancel":
            raise asyncio.CancelledError

class Streaming(Filter):
    started = None
    @classmethod
    async def worker_started(cls, options):
        await asyncio.sleep(0)
        cls.started = asyncio.get_running_loop()
    @classmethod
    async def worker_stopped(cls):
        await asyncio.sleep(0)
        note("stopped " + str(asyncio.get_running_loop() is cls.started))
    def on_mail(self, sender, params):
        where.set(where.get() + 1)
    async def on_end_of_message(self):
        async def pieces():
            for number in range(3):
                await asyncio.sleep(0)
                yield b"piece %d\\r\\n" % number
        self.message.replace_body(pieces())
        self.message.add_header("X-Where", str(where.get()))
        self.message.add_header("X-Same-Loop", str(asyncio.get_running_loop() is self.started))
'''

MODELS = ["Threaded", "Waiting", "Mixed"]


class Waits(Server):
    """A server of one of the filters above, and the gates that their callbacks wait at."""

    def begin(self, name: str, *options: str, **keywords: object) -> "Waits":
        (self.directory / "waits.py").write_text(FILTER)
        self.start("--workers=1", *options, target=f"waits:{name}", **keywords)  # type: ignore[arg-type]
        return self

    def close_gate(self, step: str) -> None:
        (self.directory / f"gate-{step}").touch()

    def open_gate(self, step: str) -> None:
        (self.directory / f"gate-{step}").unlink(missing_ok=True)

    def ends(self) -> int:
        """How often on_message_end was called."""
        return len([word for word in self.notes() if word.startswith("end ")])

    def wait_ends(self, count: int) -> None:
        wait_until(lambda: self.ends() >= count, f"{count} times on_message_end in {self.notes()[-20:]}")

    def wait_note(self, word: str, count: int = 1) -> None:
        wait_until(lambda: self.notes().count(word) >= count, f"{count} times {word!r} in {self.notes()[-20:]}")


@pytest.fixture
def waits(tmp_path: Path) -> Iterator[Waits]:
    waits = Waits(tmp_path)
    yield waits
    waits.kill_all()
    print(waits.log_file.read_text())  # shown where a test fails


def play(client: Client) -> Iterator[tuple[Step, Verdict | None]]:
    """Play a session step by step."""
    yield Step.CONNECT, client.connect("client.example", "192.0.2.1", 25)
    yield Step.HELO, client.helo("client.example")
    yield Step.UNKNOWN, client.unknown("FOO")
    yield Step.MAIL, client.mail("a@example.org")
    yield Step.RCPT, client.rcpt("b@example.net")
    yield Step.DATA, client.data()
    yield Step.HEADER, client.header("Subject", "hello")
    yield Step.END_OF_HEADERS, client.end_of_headers()
    yield Step.BODY, client.body(b"text\r\n")
    yield Step.END_OF_MESSAGE, client.end_of_message()[0]


@contextmanager
def in_thread(work: object) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=work)  # type: ignore[arg-type]
    thread.start()
    yield thread
    thread.join()


# -- deadlines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["ThreadedImpatient", "WaitingImpatient", "MixedImpatient"])
def test_each_step_is_answered_in_time_and_the_next_message_is_handled(waits: Waits, model: str) -> None:
    waits.begin(model)
    for sessions, step in enumerate(STEPS, 1):
        ended = waits.ends()
        waits.close_gate(step)
        with waits.client() as client:
            for reached, verdict in play(client):
                if reached == step:
                    assert verdict == SLOW, step
                    break
                assert verdict is None or verdict.kind == "continue", (step, reached)
            waits.open_gate(step)
            waits.wait_note(f"begun after {step}")
            if step not in (Step.CONNECT, Step.HELO):  # there the whole session is refused
                if step not in (Step.UNKNOWN, Step.END_OF_MESSAGE):
                    client.send(Abort())  # now: as Postfix, the client has it go with MAIL only
                    client.abort()
                if step != Step.UNKNOWN:
                    # Comes when the callback has returned; until then MAIL would be told 421.
                    waits.wait_ends(ended + 1)
                    assert client.mail("a@example.org") in (None, CONTINUE), step
                    added = complete(client)
                    assert "X-Late" not in added
        waits.wait_note("close", sessions)
    log = waits.log()
    for step in STEPS:
        assert re.search(rf"error .*{model}\.on_{step} is out of time after \d+\.\d s, its step is answered with", log)
    assert "waits.py" in log, "the stack of the callback"
    assert waits.stop() == 0


@pytest.mark.parametrize("model", ["ThreadedImpatient", "WaitingImpatient"])
def test_a_stuck_callback_refuses_the_next_message_of_its_session_only(waits: Waits, model: str) -> None:
    waits.begin(model)
    waits.close_gate("cancelled")  # where asyncio would end it
    waits.close_gate("end_of_message")
    with waits.client() as client:
        assert list(play(client))[-1][1] == SLOW
        refused = client.mail("a@example.org")
        assert refused is not None
        assert (refused.code, refused.enhanced) == (421, "4.7.0")
        assert "end reply" not in waits.notes()
        waits.open_gate("end_of_message")
        waits.open_gate("cancelled")
        waits.wait_note("end reply")
    waits.wait_note("close")
    assert waits.notes()[-2:] == ["end reply", "close"], "nothing before the callback was back"


@pytest.mark.parametrize("model", ["Asked", "WaitingAsked"])
def test_the_class_may_be_asked_for_the_verdict(waits: Waits, model: str) -> None:
    waits.begin(model)
    waits.close_gate("rcpt")
    with waits.client() as client:
        begin(client)
        assert client.rcpt("b@example.net") == reply(450, "4.2.0", "late at rcpt")
        waits.open_gate("rcpt")


def test_a_callback_that_no_thread_is_free_for_is_answered_and_never_runs(waits: Waits) -> None:
    waits.begin("ImpatientAtMail", "--threads=1")
    with waits.client() as first, waits.client() as second:
        for client in (first, second):
            client.connect("client.example", "192.0.2.1", 25)
            client.helo("client.example")
        waits.close_gate("unknown")
        with in_thread(lambda: first.unknown("FOO")):
            waits.wait_note("begun unknown")
            (waits.directory / "gate-mail").touch()
            assert second.mail("a@example.org") == SLOW
            waits.open_gate("mail")
            waits.open_gate("unknown")
        second.abort()
        assert second.mail("a@example.org") == CONTINUE
    assert "begun mail" not in waits.notes()
    waits.wait_log(r"ImpatientAtMail\.on_mail is out of time after .* before it could begin, its step is answered")


@pytest.mark.parametrize("model", ["ThreadedImpatient", "MixedImpatient"])
def test_a_worker_with_too_many_stuck_threads_is_replaced(waits: Waits, model: str) -> None:
    waits.begin(model, "--threads=2", "--drain-reload=1,2,3")
    first = waits.started()
    waits.close_gate("mail")
    clients = [waits.client().open() for _ in range(2)]
    for client in clients:
        assert begin(client) == SLOW
    waits.wait_log(r"2 callbacks are stuck: this worker asks to be replaced")
    waits.wait_log(r"worker 1: too many of its callbacks are stuck: starting its successor")
    waits.wait_ready(2)
    (waits.directory / "gate-mail").rename(waits.directory / "gate-other")
    with waits.client() as client:
        assert "X-Thread" in whole_message(client)
    for client in clients:
        client.close()
    wait_until(lambda: set(waits.workers()).isdisjoint(first), "the old worker leaves")
    assert waits.stop() == 0


# -- reading ahead ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["Quiet", "QuietAsync"])
def test_reading_goes_on_while_a_callback_runs(waits: Waits, model: str) -> None:
    waits.begin(model)
    [pid] = waits.workers()
    waits.close_gate("header")
    size = 40 << 20
    with waits.client() as client:
        begin(client)
        client.send(RcptTo(b"<b@example.net>"), Header(b"Subject", b"hello"))
        waits.wait_note("begun header")
        before = psutil.Process(pid).memory_info().rss
        # None of this is awaited: it could not be written if nobody read it.
        for _ in range(size >> 16):
            client.send(Body(bytes((1 << 16) - 1)))
        assert psutil.Process(pid).memory_info().rss - before < 4 << 20, "what is read ahead is in a file"
        waits.open_gate("header")
        verdict, [added] = client.end_of_message()
        assert isinstance(added, AddHeader)
        assert int(added.value) == (size >> 16) * ((1 << 16) - 1)
        assert verdict.kind == "continue"
        assert complete_again(client)
    assert waits.stop() == 0


def complete_again(client: Client) -> dict[str, str]:
    assert client.mail("a@example.org") == CONTINUE
    return complete(client)


@pytest.mark.parametrize("model", MODELS)
def test_others_are_served_meanwhile(waits: Waits, model: str) -> None:
    waits.begin(model)
    waits.close_gate("mail")
    with waits.client() as slow, waits.client() as quick, in_thread(lambda: begin(slow)) as thread:
        waits.wait_note("begun mail")
        quick.connect("client.example", "192.0.2.1", 25)
        quick.helo("client.example")
        assert quick.unknown("FOO") == CONTINUE
        assert thread.is_alive()
        waits.open_gate("mail")
    assert waits.stop() == 0


def test_progress_from_a_thread(waits: Waits) -> None:
    waits.begin("Saying")
    with waits.client() as client:
        begin(client)
        client.rcpt("b@example.net")
        client.send(EndOfMessage())
        assert client.receive(progress=True) == Progress()
        (waits.directory / "seen").touch()
    waits.wait_note("progress True")


# -- the MTA goes -----------------------------------------------------------------------------------------------------

HANG_UPS = 1000


@pytest.mark.parametrize("model", MODELS)
def test_a_thousand_hang_ups_during_a_callback(waits: Waits, model: str) -> None:
    waits.begin(model, "--threads=16", listen=[f"unix:{waits.directory}/fm.sock"])
    [pid] = waits.workers()
    process = psutil.Process(pid)

    def round_of(count: int) -> tuple[int, int, int]:
        before = waits.notes().count("close")
        waits.close_gate("mail")
        for number in range(0, count, 100):
            clients = [waits.client().open() for _ in range(100)]
            for client in clients:
                client.send(*_to_mail())
            waits.wait_note("begun mail", 1)
            if number >= count // 2:
                waits.open_gate("mail")  # from now on they come back by themselves
            for client in clients:
                client.close()
        waits.open_gate("mail")
        waits.wait_note("close", before + count)
        assert waits.notes().count("close") == before + count
        wait_until(lambda: waits.notes().count("abort") == waits.notes().count("end None"), "each is dropped once")
        return process.num_fds(), process.num_threads(), process.memory_info().rss

    first = round_of(100)
    second = round_of(HANG_UPS)
    wait_until(lambda: process.num_fds() <= first[0], "no descriptor stays open")  # a last note may be being written
    assert second[1] <= 16 + 2, "threads"
    assert second[2] - first[2] < 8 << 20, "memory"
    assert waits.stop() == 0
    assert "Traceback" not in waits.log()


def _to_mail() -> list[Command]:
    return [Connect(b"client.example", b"4", 25, b"192.0.2.1"), Helo(b"x"), MailFrom(b"<a@b>")]


# -- leaving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_a_message_in_work_is_finished_before_the_server_stops(waits: Waits, model: str) -> None:
    waits.begin(model)
    waits.close_gate("end_of_message")
    with waits.client() as client:
        steps = play(client)
        for _ in range(9):
            next(steps)
        verdicts: list[Verdict | None] = []
        with in_thread(lambda: verdicts.append(next(steps)[1])):
            waits.wait_note("begun end_of_message")
            waits.send(signal.SIGTERM)
            waits.wait_log("draining all workers")
            waits.open_gate("end_of_message")
        assert verdicts == [CONTINUE]
    assert waits.finish() == 0


@pytest.mark.parametrize("model", MODELS)
def test_what_never_comes_back_does_not_keep_a_server_that_must_stop_now(waits: Waits, model: str) -> None:
    waits.begin(model)
    waits.close_gate("cancelled")
    waits.close_gate("mail")
    client = waits.client().open()
    client.send(*_to_mail())
    waits.wait_note("begun mail")
    waits.send(signal.SIGQUIT)
    assert waits.finish() == 0
    waits.wait_log("1 connections are left without their last callbacks")
    client.close()


# -- other things that callbacks do -----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["Raising", "RaisingAsync"])
def test_whatever_is_raised_is_answered(waits: Waits, model: str) -> None:
    waits.begin(model)
    expected = {"error": "tempfail", "exit": "tempfail", "answer": "reply", "fine": "continue"}
    if model == "RaisingAsync":
        expected["cancel"] = "tempfail"
    with waits.client() as client:
        client.connect("client.example", "192.0.2.1", 25)
        client.helo("client.example")
        for sender, kind in expected.items():
            verdict = client.mail(f"{sender}@example.org")
            assert verdict is not None
            assert verdict.kind == kind, sender
            client.abort()
    assert len(re.findall(rf"error .*{model}\.on_mail failed", waits.log())) == len(expected) - 2
    assert waits.stop() == 0


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_one_loop_for_everything_and_a_context_for_each_connection(waits: Waits, loop: str) -> None:
    if loop == "asyncio":
        (waits.directory / "uvloop.py").write_text("raise ImportError")
    waits.begin("Streaming")
    for _ in range(2):
        with waits.client() as client:
            begin(client)
            for number in (1, 2):
                if number == 2:
                    client.mail("a@example.org")
                client.rcpt("b@example.net")
                client.body(b"old")
                verdict, changes = client.end_of_message()
                assert verdict.kind == "continue"
                added = {change.name: change.value for change in changes if isinstance(change, AddHeader)}
                assert added == {b"X-Where": str(number).encode(), b"X-Same-Loop": b"True"}
                body = b"".join(change.chunk for change in changes if isinstance(change, ReplaceBody))
                assert body == b"piece 0\r\npiece 1\r\npiece 2\r\n"
    assert waits.stop() == 0
    assert waits.notes() == ["stopped True"]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_which_loop_is_used(waits: Waits, loop: str) -> None:
    if loop == "asyncio":
        (waits.directory / "uvloop.py").write_text("raise ImportError")
    waits.begin("Waiting")
    with waits.client() as client:
        assert whole_message(client)["X-Loop"].split(".")[0] == loop


def test_a_socket_that_sends_nonsense_ends_alone(waits: Waits) -> None:
    waits.begin("Threaded", listen=[f"unix:{waits.directory}/fm.sock"])
    with waits.client() as client:
        begin(client)
        with socket.socket(socket.AF_UNIX) as hostile:
            hostile.connect(str(waits.directory / "fm.sock"))
            hostile.sendall(b"GET / HTTP/1.0\r\n\r\n" + os.urandom(100000))
            assert hostile.recv(1) == b""
        assert complete(client)
    waits.wait_log("the peer broke the protocol")
