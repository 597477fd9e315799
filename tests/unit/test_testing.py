"""``fastmilter.testing.run``: a filter in the process of its test."""

import asyncio
import email.message
import io
import logging
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

import pytest

from fastmilter import (
    ACCEPT,
    CONTINUE,
    DISCARD,
    REJECT,
    SKIP,
    TEMPFAIL,
    Action,
    Answer,
    ConfigError,
    Filter,
    NotNegotiated,
    Step,
    Verdict,
    early_verdict,
    reply,
)
from fastmilter.addresses import Address, Params, SocketAddress
from fastmilter.client import Client
from fastmilter.errors import LocalProtocolError
from fastmilter.testing import Outcome, run
from tests.examples.support import served
from tests.support.playing import everything, made

MESSAGE = b"Subject: hello\r\nX-Old: 1\r\n\r\nbody\r\n"
STEPS = ["connect", "helo", "mail", "rcpt", "data", "header", "end_of_headers", "body", "end_of_message"]


class Recorder(Filter):
    """Notes what it is called with."""

    seen: list[tuple[Any, ...]]

    @classmethod
    def worker_started(cls, options: Any) -> None:
        cls.seen = [("worker_started", options)]

    @classmethod
    def worker_stopped(cls) -> None:
        cls.seen.append(("worker_stopped",))

    def note(self, *what: Any) -> None:
        self.seen.append(what)

    def on_connect(self, hostname: str, address: SocketAddress) -> None:
        self.note("connect", hostname, str(address.ip), address.port, self.connection.mta)

    def on_helo(self, name: str) -> None:
        self.note("helo", name)

    def on_mail(self, sender: Address, params: Params) -> None:
        self.note("mail", sender, params, self.macros.get("auth_authen"))

    def on_rcpt(self, recipient: Address, params: Params) -> None:
        self.note("rcpt", recipient)

    def on_header(self, name: str, value: str) -> None:
        self.note("header", name, value)

    def on_body(self, chunk: bytes) -> None:
        self.note("body", chunk)

    def on_end_of_message(self) -> None:
        self.note("end_of_message", len(self.message.recipients))

    def on_message_end(self, verdict: Verdict | None) -> None:
        self.note("message_end", verdict)

    def on_close(self) -> None:
        self.note("close")


def test_the_whole_life_with_the_defaults() -> None:
    outcome = run(Recorder, MESSAGE)
    assert isinstance(outcome, Outcome)
    assert outcome.verdict == CONTINUE
    assert Recorder.seen == [
        ("worker_started", {}),
        ("connect", "localhost", "127.0.0.1", 25, "postfix"),
        ("helo", "localhost"),
        ("mail", "a@example.org", (), None),
        ("rcpt", "b@example.net"),
        ("header", "Subject", "hello"),
        ("header", "X-Old", "1"),
        ("body", b"body\r\n"),
        ("end_of_message", 1),
        ("message_end", CONTINUE),
        ("close",),
        ("worker_stopped",),
    ]
    assert outcome.apply().message == MESSAGE


def test_every_argument() -> None:
    outcome = run(
        Recorder,
        io.BytesIO(MESSAGE),
        sender="<x@from.test>",
        recipients=["y@to.test", "z@to.test"],
        macros={"mail": {"{auth_authen}": "ann"}},
        options={"level": 3},
        mta="sendmail",
        hostname="client.test",
        address="2001:db8::1",
        port=4711,
        helo="client",
        sender_params=["SIZE=99"],
    )
    assert Recorder.seen[:5] == [
        ("worker_started", {"level": 3}),
        ("connect", "client.test", "2001:db8::1", 4711, "sendmail"),
        ("helo", "client"),
        ("mail", "x@from.test", ("SIZE=99",), "ann"),
        ("rcpt", "y@to.test"),
    ]
    assert outcome.mta.name == "sendmail"
    assert outcome.recipients == ("y@to.test", "z@to.test")


def test_an_email_message() -> None:
    message = email.message.EmailMessage()
    message["Subject"] = "hello"
    message.set_content("body")
    run(Recorder, message, helo=None)
    assert ("header", "Subject", "hello") in Recorder.seen
    assert "helo" not in [name for name, *_ in Recorder.seen]


# -- outcomes ------------------------------------------------------------------------------------------------------


class Editor(Filter):
    def on_header(self, name: str, value: str) -> None:
        if name == "Subject":
            self.message.change_header(name, f"[ext] {value}")

    def on_end_of_message(self) -> None:
        self.message.add_header("X-New", "2")
        self.message.add_recipient("c@example.net")
        self.message.replace_body(b"x" * 3_000_000)
        assert self.progress()


@pytest.mark.parametrize("mta", ["postfix", "sendmail"])
def test_edits_are_applied(mta: str) -> None:
    applied = run(Editor, MESSAGE, mta=mta).apply()
    assert applied.message == b"Subject: [ext] hello\r\nX-Old: 1\r\nX-New: 2\r\n\r\n" + b"x" * 3_000_000 + b"\r\n"
    assert applied.recipients == ("b@example.net", "c@example.net")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("verdict", [REJECT, TEMPFAIL, reply(550, "5.7.1", "no")])
def test_a_refusal_at_each_step(step: str, verdict: Verdict) -> None:
    outcome = run(everything("early_verdict", **{f"on_{step}": verdict}), MESSAGE)
    assert outcome.verdict == verdict
    assert outcome.steps[-1].step == step
    assert not outcome.apply().delivered


@pytest.mark.parametrize("verdict", [ACCEPT, DISCARD, SKIP])
def test_other_verdicts(verdict: Verdict) -> None:
    outcome = run(made("early_verdict", on_body=verdict), MESSAGE)
    assert outcome.verdict == (CONTINUE if verdict is SKIP else verdict)
    assert outcome.apply().delivered == (verdict is not DISCARD)


def test_one_recipient_is_refused() -> None:
    class Policy(Filter):
        def on_rcpt(self, recipient: Address, params: Params) -> Verdict | None:
            return REJECT if recipient.local_part == "x" else None

    outcome = run(Policy, MESSAGE, recipients=["x@to.test", "y@to.test"])
    assert outcome.refused == {"x@to.test": REJECT}
    assert outcome.recipients == ("y@to.test",)


def test_answer_from_any_depth() -> None:
    assert run(made(on_mail=Answer(REJECT)), MESSAGE).verdict == REJECT


@pytest.mark.parametrize("mta", ["postfix", "sendmail"])
def test_the_same_as_over_a_socket(mta: str) -> None:
    """What a test sees is what an MTA would see of the served filter, packet for packet."""
    from examples.tagger import Tagger

    here = run(Tagger, MESSAGE, mta=mta)
    with served("examples/tagger.py:Tagger") as server, Client(server.address, mta=mta) as client:
        there = client.send_message(MESSAGE, "a@example.org", ["b@example.net"])
    assert [(step, verdict) for step, verdict, _ in here.steps] == [(step, verdict) for step, verdict, _ in there.steps]
    assert here.modifications == there.modifications
    assert here.apply() == there.apply()


# -- async ---------------------------------------------------------------------------------------------------------


class Slow(Filter):
    """Awaits in every hook, on one loop."""

    loop: asyncio.AbstractEventLoop
    events: list[str]

    @classmethod
    async def worker_started(cls, options: Any) -> None:
        await asyncio.sleep(0)
        cls.loop = asyncio.get_running_loop()
        cls.events = []

    @classmethod
    async def worker_stopped(cls) -> None:
        assert asyncio.get_running_loop() is cls.loop
        cls.events.append("worker_stopped")

    async def on_mail(self, sender: Address, params: Params) -> Verdict | None:
        assert asyncio.get_running_loop() is self.loop
        await asyncio.sleep(0)
        return reply(450, "4.7.1", "later") if sender == "later@from.test" else None

    def on_header(self, name: str, value: str) -> None:
        assert asyncio.get_running_loop() is self.loop

    async def on_end_of_message(self) -> None:
        await asyncio.sleep(0)
        self.message.add_header("X-Slow", "yes")

    async def on_close(self) -> None:
        self.events.append("close")


def test_async_callbacks_and_hooks() -> None:
    outcome = run(Slow, MESSAGE)
    assert outcome.apply().message.startswith(b"Subject: hello\r\nX-Old: 1\r\nX-Slow: yes\r\n\r\n")
    assert Slow.events == ["close", "worker_stopped"]
    assert Slow.loop.is_closed()
    assert run(Slow, MESSAGE, sender="later@from.test").verdict.code == 450


def test_a_body_to_be_read_comes_with_a_verdict_that_is_raised() -> None:
    """As in the server."""

    class Raising(Filter):
        async def on_end_of_message(self) -> None:
            async def pieces() -> AsyncIterator[bytes]:
                yield b"one"
                yield b"two"

            self.message.replace_body(pieces())
            raise Answer(ACCEPT)

    outcome = run(Raising, MESSAGE)
    assert outcome.verdict == ACCEPT
    assert outcome.apply().message.endswith(b"\r\n\r\nonetwo\r\n")


def test_an_async_callback_that_fails() -> None:
    class Failing(Filter):
        async def on_mail(self, sender: Address, params: Params) -> None:
            await asyncio.sleep(0)
            raise KeyError(sender)

    with pytest.raises(KeyError, match=r"a@example\.org"):
        run(Failing, MESSAGE)


def test_within_a_running_loop() -> None:
    async def test() -> None:
        assert run(Editor, MESSAGE).verdict == CONTINUE  # nothing to await
        with pytest.raises(RuntimeError, match=r"to_thread\(run, \.\.\.\)"):
            run(Slow, MESSAGE)
        outcome = await asyncio.to_thread(run, Slow, MESSAGE)
        assert outcome.modifications

    asyncio.run(test())


# -- mistakes of the filter ----------------------------------------------------------------------------------------


class Careless(Filter):
    """Raises where it is told to, and notes what is cleaned up."""

    where = ""
    events: list[str]

    @classmethod
    def worker_started(cls, options: Any) -> None:
        cls.events = []
        cls.where = options["where"]

    @classmethod
    def worker_stopped(cls) -> None:
        cls.events.append("worker_stopped")

    def fail(self, where: str) -> None:
        if where == self.where:
            raise ZeroDivisionError(where)

    def __init__(self) -> None:
        self.fail("init")

    def on_connect(self, hostname: str, address: SocketAddress) -> None:
        self.fail("connect")

    def on_rcpt(self, recipient: Address, params: Params) -> None:
        self.fail("rcpt")

    def on_header(self, name: str, value: str) -> None:
        self.fail("header")

    def on_end_of_message(self) -> None:
        self.message.add_header("X", "y")
        self.fail("end_of_message")

    def on_message_end(self, verdict: Verdict | None) -> None:
        self.events.append(f"message_end {verdict}")
        self.fail("message_end")

    def on_close(self) -> None:
        self.events.append("close")
        self.fail("close")


@pytest.mark.parametrize("where", ["init", "connect", "rcpt", "header", "end_of_message", "message_end", "close"])
def test_what_a_callback_raises_is_raised(where: str) -> None:
    with pytest.raises(ZeroDivisionError, match=where) as caught:
        run(Careless, MESSAGE, options={"where": where})
    assert caught.traceback[-1].name == "fail"
    assert Careless.events[-1] == "worker_stopped"
    assert ("close" in Careless.events) == (where != "init")


def test_an_os_error_of_a_callback_is_not_taken_for_one_of_the_connection() -> None:
    with pytest.raises(FileNotFoundError, match="list"):
        run(made(on_mail=FileNotFoundError("list")), MESSAGE)


@pytest.mark.parametrize("where", ["connect", "rcpt", "header", "end_of_message"])
def test_as_in_the_server(where: str, caplog: pytest.LogCaptureFixture) -> None:
    outcome = run(Careless, MESSAGE, options={"where": where}, raise_errors=False)
    assert outcome.verdict == TEMPFAIL
    assert not outcome.modifications
    assert Careless.events[-2:] == ["close", "worker_stopped"]
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.ERROR, f"Careless.on_{where} failed")
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


def test_on_error_as_in_the_server(caplog: pytest.LogCaptureFixture) -> None:
    class Lenient(Filter):
        def on_mail(self, sender: Address, params: Params) -> None:
            raise LookupError

        def on_error(self, step: Step, error: Exception) -> Verdict:
            assert (step, type(error)) == (Step.MAIL, LookupError)
            return ACCEPT

    assert run(Lenient, MESSAGE, raise_errors=False).verdict == ACCEPT
    with pytest.raises(LookupError):
        run(Lenient, MESSAGE)


def test_what_is_no_verdict() -> None:
    with pytest.raises(TypeError, match=r"on_mail returned 'no', which is neither"):
        run(made(on_mail="no"), MESSAGE)


def test_a_verdict_that_is_not_possible_is_a_warning_where_run_was_called() -> None:
    with pytest.warns(RuntimeWarning, match="on_helo gave the verdict discard") as caught:
        outcome = run(made(on_helo=DISCARD), MESSAGE)
    assert outcome.verdict == TEMPFAIL
    assert [warning.filename for warning in caught] == [__file__]


def test_a_negotiation_that_fails() -> None:
    class Wanting(Filter):
        requires = Action(0x400)  # nobody offers this

        @classmethod
        def worker_stopped(cls) -> None:
            stopped.append(cls)

    stopped: list[type] = []
    with pytest.raises(NotNegotiated, match="requires"):
        run(Wanting, MESSAGE)
    assert stopped == [Wanting]


class Interrupted(BaseException):
    """As a test framework's own."""


def test_nothing_more_is_called_after_an_interruption() -> None:
    class Stopped(Filter):
        def on_rcpt(self, recipient: Address, params: Params) -> None:
            raise Interrupted

        def on_close(self) -> None:
            raise AssertionError("called")

        @classmethod
        def worker_stopped(cls) -> None:
            stopped.append(cls)

    stopped: list[type] = []
    with pytest.raises(Interrupted):
        run(Stopped, MESSAGE)
    assert stopped == [Stopped]


def test_a_hook_that_fails() -> None:
    class Unready(Filter):
        @classmethod
        def worker_started(cls, options: Any) -> None:
            raise ConnectionRefusedError("no database")

        @classmethod
        def worker_stopped(cls) -> None:
            raise AssertionError("called")

    with pytest.raises(ConnectionRefusedError, match="no database"):
        run(Unready, MESSAGE)


# -- mistakes of the test ------------------------------------------------------------------------------------------


class Optioned(Filter):
    @dataclass
    class Options:
        level: int = 1

    level = 0

    @classmethod
    def worker_started(cls, options: Options) -> None:
        cls.level = options.level


def test_options() -> None:
    for options, level in ((None, 1), ({"level": 2}, 2), (Optioned.Options(3), 3)):
        run(Optioned, MESSAGE, options=options)
        assert Optioned.level == level
    with pytest.raises(ConfigError, match="unknown key 'lvl'; did you mean level"):
        run(Optioned, MESSAGE, options={"lvl": 2})


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"message": "Subject: x\n\n"}, TypeError, "a message is bytes"),
        ({"recipients": []}, LocalProtocolError, "without recipients"),
        ({"mta": "exim"}, ConfigError, "'exim' is not one of"),
        ({"macros": {"mial": {}}}, ValueError, "mial"),
        ({"filter_class": Recorder()}, TypeError, "takes a filter class"),
        ({"filter_class": dict}, TypeError, "takes a filter class"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        run(**{"filter_class": Recorder, "message": MESSAGE, **arguments})


def test_names_for_later_are_free() -> None:
    import fastmilter.testing

    names: Iterable[str] = vars(fastmilter.testing)
    assert not {"keep_headers", "keep_body", "message", "headers", "body"} & set(names)


def test_early_verdicts_are_seen_at_their_step() -> None:
    class Early(Filter):
        @early_verdict
        def on_header(self, name: str, value: str) -> Verdict | None:
            return REJECT if name == "X-Old" else None

    assert [step for step, *_ in run(Early, MESSAGE).steps][-2:] == [Step.HEADER, Step.HEADER]
