"""What a worker says of the callback it is in, from the conversation to shared memory and back."""

import types
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import pytest

from fastmilter import Filter
from fastmilter._text import to_bytes
from fastmilter.codec import (
    Body,
    Connect,
    Data,
    EndOfHeaders,
    EndOfMessage,
    Header,
    Helo,
    Macros,
    MailFrom,
    Negotiate,
    RcptTo,
    Unknown,
    encode,
)
from fastmilter.conversation import Conversation
from fastmilter.plan import CALLBACKS
from fastmilter.replies import Verdict
from fastmilter.server._in_work import InWork, Turns
from fastmilter.server.slots import CALLBACK_NAMES, QUEUE_ID_BYTES, Slots

OFFER = encode(Negotiate(6, 0x1FF, 0x1FFFFF, ()))
BEGIN = OFFER + encode(Connect(b"client", b"4", 25, b"192.0.2.1")) + encode(Helo(b"client"))
MAIL = encode(MailFrom(b"<a@example.org>", ()))
RCPT = encode(RcptTo(b"<b@example.net>", ()))
CONTENT = encode(Header(b"Subject", b"hi")) * 3 + encode(EndOfHeaders()) + encode(Body(b"text"))
END = encode(EndOfMessage(b""))


def _nothing(self: Any, *_arguments: Any) -> None: ...


NOTHING: Any = _nothing


class Host:
    """What a driver does besides; here nothing."""

    def callback_failed(self, conversation: Conversation, callback: str, error: BaseException) -> None:
        pass

    def complain(self, conversation: Conversation, text: str) -> None:
        pass

    def transmit(self, conversation: Conversation) -> None:
        pass

    def message_ended(self, conversation: Conversation, verdict: Verdict | None, edits: int) -> None:
        pass


class Everything(Filter):
    """Every callback, all that happens is that ``on_unknown`` fails."""

    on_negotiate = on_connect = on_helo = on_mail = on_rcpt = on_data = on_end_of_headers = NOTHING
    on_rejected_rcpt = on_end_of_message = on_abort = on_close = on_message_end = on_error = NOTHING

    def on_header(self, name: str, value: str) -> None: ...

    def on_body(self, chunk: bytes) -> None: ...

    def on_unknown(self, command: str) -> None:
        raise ValueError


class Driven:
    """A conversation, a slot, and what the slot said during each call."""

    def __init__(self) -> None:
        self.slots = Slots(2)
        self.conversation = Conversation(Everything._fastmilter_plan, Host())
        self.in_work = InWork(self.slots, 1)

    def feed(self, data: bytes, *, end: bool = False) -> list[tuple[str, bytes]]:
        """Work off what the MTA sent; return for each call which callback and queue id the slot showed."""
        conversation, shown = self.conversation, []
        conversation.session.receive(data)
        if end:
            conversation.session.receive_eof()
        while conversation.next_call():
            calls = self.slots.calls(1)
            self.in_work.enter(conversation)
            assert self.slots.calls(1) == calls + 1
            assert self.slots.callback(1) == conversation.callback
            known = to_bytes(conversation.queue_id or "")
            assert self.slots.queue_id(1) == known[:QUEUE_ID_BYTES], "the filter sees the same"
            shown.append((self.slots.callback(1), self.slots.queue_id(1)))
            try:
                conversation.returned(conversation.invoke())
            except ValueError as error:
                conversation.failed(error)
        self.in_work.leave()
        assert (self.slots.callback(1), self.slots.queue_id(1)) == ("", b"")
        assert (self.slots.calls(0), self.slots.callback(0), self.slots.queue_id(0)) == (0, "", b"")
        return shown


def macros(letter: bytes, *pairs: tuple[bytes, bytes]) -> bytes:
    """A MACRO packet."""
    return encode(Macros(letter, pairs))


def test_every_callback_is_shown_by_its_name() -> None:
    driven = Driven()
    rejected = macros(b"R", (b"{rcpt_mailer}", b"error")) + RCPT
    message = MAIL + RCPT + rejected + encode(Data()) + CONTENT + END
    shown = driven.feed(BEGIN + encode(Unknown(b"FOO")) + message)
    shown += driven.feed(MAIL, end=True)  # dropped by the end of the connection
    names = [name for name, _ in shown]
    assert names.count("on_header") == 3
    assert set(names) == {"__init__", *CALLBACKS} - {"on_timeout"}, "on_timeout has no driver yet"
    assert CALLBACK_NAMES[0] == ""
    assert len(set(CALLBACK_NAMES)) == len(CALLBACKS) + 2


@pytest.mark.parametrize("name", [b"i", b"{i}"])
@pytest.mark.parametrize("in_one_read", [True, False])
def test_the_queue_id_is_shown_from_when_the_mta_tells_it(name: bytes, in_one_read: bool) -> None:
    driven = Driven()
    driven.feed(BEGIN)
    for queue_id in (b"4ZkT9c1x2Pz3wYQ", b"short"):  # the second message has nothing of the first
        at_data = macros(b"T", (name, queue_id))
        steps = [macros(b"M", (b"{mail_addr}", b"a")) + MAIL, RCPT, at_data + encode(Data()), CONTENT + END]
        pieces = [b"".join(steps)] if in_one_read else steps
        shown = [seen for piece in pieces for seen in driven.feed(piece)]
        told = [name for name, seen in shown if seen == queue_id]
        assert [name for name, seen in shown if seen == b""] == ["on_mail", "on_rcpt"]
        assert told[0] == "on_data"
        assert told[-1] == "on_message_end"
        assert len(told) + 2 == len(shown)


def test_two_messages_in_one_read_keep_apart() -> None:
    driven = Driven()
    driven.feed(BEGIN)
    first = macros(b"M", (b"i", b"FIRST")) + MAIL + RCPT + encode(Data()) + CONTENT + END
    second = macros(b"M", (b"{mail_addr}", b"a")) + MAIL + RCPT + encode(Data()) + CONTENT + END
    shown = driven.feed(first + second)
    half = len(shown) // 2
    assert {seen for _, seen in shown[:half]} == {b"FIRST"}
    assert {seen for _, seen in shown[half:]} == {b""}


@pytest.mark.parametrize("size", [1, QUEUE_ID_BYTES - 1, QUEUE_ID_BYTES, QUEUE_ID_BYTES + 1, 5000])
def test_a_queue_id_is_cut(size: int) -> None:
    driven = Driven()
    shown = driven.feed(BEGIN + macros(b"M", (b"i", b"\xff" * size)) + MAIL)
    assert shown[-1] == ("on_mail", b"\xff" * min(size, QUEUE_ID_BYTES))


@pytest.mark.parametrize("pairs", [((b"{rcpt_addr}", b"i"),), ((b"ix", b"no"),), ((b"{ix}", b"no"),), ((b"", b"i"),)])
def test_other_macros_are_no_queue_id(pairs: tuple[tuple[bytes, bytes], ...]) -> None:
    driven = Driven()
    assert driven.feed(BEGIN + macros(b"M", *pairs) + MAIL)[-1] == ("on_mail", b"")


class Gate:
    """Something to wait for that is no coroutine: yields once, as what belongs to a loop does."""

    def __await__(self) -> Generator[str, None, str]:
        try:
            yield "waiting"
        except ValueError:
            return "interrupted"
        return "opened"


@types.coroutine
def gate() -> Generator[str, None, str]:
    """A coroutine as they were made before there was ``async``."""
    return (yield from Gate().__await__())


async def through_a_gate() -> str:
    return await Gate()


@pytest.mark.parametrize("awaitable", [Gate, gate, through_a_gate])
@pytest.mark.parametrize("end", ["opened", "interrupted"])
def test_the_turns_of_an_async_callback_are_shown_and_nothing_between_them(
    awaitable: Callable[[], Any], end: str
) -> None:
    driven = Driven()
    driven.conversation.session.receive(BEGIN + MAIL)
    while driven.conversation.next_call() and driven.conversation.callback != "on_mail":
        driven.conversation.returned(driven.conversation.invoke())
    shown: list[str] = []

    async def callback() -> Any:
        shown.append(driven.slots.callback(1))
        try:
            return await awaitable()
        finally:
            shown.append(driven.slots.callback(1))

    async def run() -> Any:
        return await Turns(driven.in_work, driven.conversation, callback())

    running = run()
    assert running.send(None) == "waiting"
    assert driven.slots.callback(1) == "", "the loop has it again"
    go_on = partial(running.send, None) if end == "opened" else partial(running.throw, ValueError())
    with pytest.raises(StopIteration) as done:
        go_on()
    assert done.value.value == end
    assert shown == ["on_mail", "on_mail"]
    assert driven.slots.callback(1) == ""


def test_turns_that_are_not_waited_for_to_the_end_are_closed() -> None:
    driven = Driven()
    ended: list[str] = []

    async def callback() -> None:
        try:
            await Gate()
        finally:
            ended.append("closed")

    turns = Turns(driven.in_work, driven.conversation, callback())
    assert next(turns.__await__()) == "waiting"
    turns.close()
    assert ended == ["closed"]


def test_what_is_waited_for_may_be_a_mere_iterator() -> None:
    class Bare:
        def __await__(self) -> Any:
            return iter(["waiting"])

    driven = Driven()
    turns = Turns(driven.in_work, driven.conversation, Bare())
    assert next(turns.__await__()) == "waiting"
    with pytest.raises(ValueError, match="as planned"):
        turns.throw(ValueError("as planned"))
    turns.close()


def test_a_slot_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(IndexError):
        InWork(Slots(2), 2)
