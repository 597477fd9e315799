"""Callbacks that are out of time: the answer, the message, and what is called after it."""

from typing import Any

import pytest

from fastmilter import ACCEPT, CONTINUE, DISCARD, REJECT, TEMPFAIL, MessageEnded, Verdict, codec, reply
from fastmilter.constants import STEPS
from tests.support.playing import (
    ABORT,
    BODY,
    CONNECT,
    DATA,
    EOH,
    EOM,
    HEADER,
    HELO,
    MAIL,
    NO_BITS,
    QUIT,
    RCPT,
    UNKNOWN,
    everything,
    letters,
    made,
)
from tests.support.waiting import Waited

SLOW = reply(451, "4.3.2", "slow today")
COMMANDS: dict[str, codec.Command] = dict(
    zip(STEPS, (CONNECT, HELO, MAIL, RCPT, DATA, HEADER, EOH, BODY, EOM, UNKNOWN), strict=True)
)
MESSAGE_STEPS = ("mail", "rcpt", "data", "header", "end_of_headers", "body", "end_of_message")


def noticing(**namespace: Any) -> Any:
    """A class that looks at every step and takes every notice."""
    return everything(on_abort=None, on_message_end=None, on_close=None, **namespace)


def up_to(waited: Waited, step: str) -> None:
    """Play a session up to ``step``, whose callback then waits to begin."""
    for name, command in COMMANDS.items():
        waited.send(command)
        if name == step:
            if waited.link.callback == "__init__" and waited.is_pending:
                waited.begin()
                waited.come_back()
            assert waited.link.callback == f"on_{step}"
            waited.take_answers()
            return
        waited.run()


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_each_step_gets_the_verdict_and_one_answer(step: str, begun: bool) -> None:
    waited = Waited(noticing(), NO_BITS)
    up_to(waited, step)
    if begun:
        waited.begin()
    waited.out_of_time(SLOW)
    assert waited.take_answers() == [codec.ReplyCode(b"451 4.3.2 slow today")]
    assert waited.link.is_stuck is begun


@pytest.mark.parametrize("step", MESSAGE_STEPS[:-1])
def test_the_rest_of_the_message_gets_it_too_without_callbacks(step: str) -> None:
    waited = Waited(noticing(), NO_BITS)
    up_to(waited, step)
    waited.begin()
    waited.out_of_time(SLOW)
    waited.take_answers()
    before = len(waited.called)
    for later in MESSAGE_STEPS[MESSAGE_STEPS.index(step) + 1 :]:
        waited.send(COMMANDS[later])
        [answer] = waited.take_answers()
        assert isinstance(answer, codec.ReplyCode), later
    assert waited.called[before:] == []
    assert waited.ended == [SLOW]
    waited.come_back_late()
    assert waited.run() == ["on_message_end"]


@pytest.mark.parametrize("step", ["header", "end_of_headers", "body"])
def test_where_no_answer_is_due_it_waits_for_the_end(step: str) -> None:
    waited = Waited(noticing())
    up_to(waited, step)
    waited.begin()
    waited.out_of_time(SLOW)
    for later in MESSAGE_STEPS[MESSAGE_STEPS.index(step) + 1 : -1]:
        waited.send(COMMANDS[later])
    assert waited.take_answers() == []
    waited.send(EOM)
    assert waited.take_answers() == [codec.ReplyCode(b"451 4.3.2 slow today")]


@pytest.mark.parametrize(
    ("verdict", "at_rcpt", "at_end"), [(CONTINUE, "c", "c"), (ACCEPT, "a", ""), (DISCARD, "d", "")]
)
def test_who_lets_mail_pass_lets_it_pass(verdict: Verdict, at_rcpt: str, at_end: str) -> None:
    waited = Waited(noticing(), NO_BITS)
    up_to(waited, "rcpt")
    waited.begin()
    waited.out_of_time(verdict)
    assert letters(waited.take_answers()) == at_rcpt
    if at_end:
        for step in MESSAGE_STEPS[2:]:
            waited.send(COMMANDS[step])
        assert set(letters(waited.take_answers())) == {at_end}
    assert waited.ended == [verdict]


def test_the_next_message_gets_421_until_the_callback_is_back() -> None:
    waited = Waited(noticing())
    up_to(waited, "end_of_message")
    waited.begin()
    waited.out_of_time(TEMPFAIL)
    waited.take_answers()
    waited.send(ABORT, MAIL)
    [answer] = waited.take_answers()
    assert isinstance(answer, codec.ReplyCode)
    assert answer.text.startswith(b"421 4.7.0 ")
    waited.come_back_late()
    assert waited.run() == ["on_message_end"]
    waited.send(ABORT, MAIL)
    assert waited.run() == ["on_mail"]
    assert letters(waited.take_answers()) == "c"


def test_without_an_answer_at_mail_the_next_message_is_refused_later() -> None:
    waited = Waited(everything("no_reply", on_close=None))
    up_to(waited, "end_of_message")
    waited.begin()
    waited.out_of_time(TEMPFAIL)
    waited.take_answers()
    waited.send(MAIL, RCPT, DATA, HEADER, EOH, BODY, EOM)
    [answer] = waited.take_answers()
    assert isinstance(answer, codec.ReplyCode)
    assert waited.called[-1] == "on_body"


def test_edits_of_a_late_callback_reach_no_message() -> None:
    def on_header(self: Any, name: str, value: str) -> None:
        self.message.add_header("X-Early", "kept")

    def on_body(self: Any, chunk: bytes) -> None:
        self.message.add_header("X-Late", "lost")

    waited = Waited(made(on_header=on_header, on_body=on_body))
    for command in (CONNECT, HELO, MAIL, RCPT, HEADER, EOH):
        waited.send(command)
        waited.run()
    waited.send(BODY)
    waited.begin()
    waited.out_of_time(CONTINUE)
    with pytest.raises(MessageEnded):
        waited.come_back_late()
    waited.take_answers()
    waited.send(EOM)
    waited.run()
    assert letters(waited.take_answers()) == "hc"


def test_the_own_edits_of_a_callback_are_dropped() -> None:
    def on_end_of_message(self: Any) -> None:
        self.message.add_header("X-Half", "done")

    waited = Waited(made(on_end_of_message=on_end_of_message, on_message_end=None))
    for command in (CONNECT, HELO, MAIL, RCPT, HEADER, EOH):
        waited.send(command)
        waited.run()
    waited.send(EOM)
    assert waited.begin() == "__init__"
    waited.come_back()
    waited.begin()
    message = waited.link.message
    assert message is not None
    message.add_header("X-Half", "done")  # what it did before its time was over
    waited.take_answers()
    waited.out_of_time(ACCEPT)
    assert letters(waited.take_answers()) == "a"
    assert waited.link.message is message, "a late callback keeps its own message"
    with pytest.raises(MessageEnded):
        waited.come_back_late()


@pytest.mark.parametrize("step", ["mail", "header", "end_of_message"])
def test_notices_wait_for_the_late_callback_and_keep_their_order(step: str) -> None:
    waited = Waited(noticing())
    up_to(waited, step)
    waited.begin()
    waited.out_of_time(CONTINUE)
    waited.send(ABORT)
    waited.eof()
    assert not waited.is_pending
    waited.come_back_late()
    ended = ["on_message_end"] if step == "end_of_message" else ["on_abort", "on_message_end"]
    assert waited.run() == [*ended, "on_close"]
    assert len(waited.ended) == 1


@pytest.mark.parametrize("notice", ["on_message_end", "on_close"])
@pytest.mark.parametrize("begun", [False, True])
def test_a_notice_that_takes_too_long_is_still_called_once(notice: str, begun: bool) -> None:
    waited = Waited(noticing())
    up_to(waited, "end_of_message")
    waited.begin()
    waited.come_back()
    if notice == "on_close":
        waited.run()
        waited.eof()
    assert waited.link.callback == notice
    assert waited.link.is_noticing
    if begun:
        waited.begin()
    waited.out_of_time(TEMPFAIL)
    assert waited.link.is_stuck
    if notice == "on_message_end":
        waited.take_answers()
        waited.send(ABORT, MAIL)
        [answer] = waited.take_answers()
        assert isinstance(answer, codec.ReplyCode)
    waited.come_back_late()
    called = waited.run()
    assert called == ([] if begun else [notice])
    if notice == "on_message_end":
        waited.eof()
        assert waited.run() == ["on_close"]


@pytest.mark.parametrize("begun", [False, True])
def test_a_filter_object_that_takes_too_long_to_make(begun: bool) -> None:
    waited = Waited(noticing(), NO_BITS)
    waited.send(CONNECT)
    assert waited.link.callback == "__init__"
    if begun:
        waited.begin()
    waited.out_of_time(SLOW)
    assert letters(waited.take_answers())[-1] == "y"
    if begun:
        waited.come_back_late()
    waited.eof()
    assert waited.run()[-1] == "on_close"


def test_a_negotiation_that_takes_too_long_refuses_what_comes() -> None:
    waited = Waited(noticing(on_negotiate=None), NO_BITS)
    waited.begin()
    waited.come_back()
    assert waited.begin() == "on_negotiate"
    waited.out_of_time(TEMPFAIL)
    assert letters(waited.take_answers()) == "O"
    waited.send(CONNECT, HELO, MAIL)
    assert letters(waited.take_answers())[-2:] in ("tt", "ty")


def test_progress_is_not_said_for_a_callback_that_was_answered() -> None:
    waited = Waited(noticing())
    up_to(waited, "end_of_message")
    waited.begin()
    assert waited.link.progress()
    assert letters(waited.take_answers()) == "p"
    waited.out_of_time(TEMPFAIL)
    waited.take_answers()
    assert not waited.link.progress()
    assert waited.take_answers() == []


@pytest.mark.parametrize("step", ["mail", "rcpt", "header", "body", "end_of_message"])
def test_a_message_that_is_dropped_further_on(step: str) -> None:
    waited = Waited(noticing())
    up_to(waited, step)
    waited.begin()
    waited.link.is_dropped = True
    waited.come_back(REJECT)
    waited.link.is_dropped = False
    assert waited.run() == ["on_abort", "on_message_end"]
    assert waited.ended == [None]
    waited.take_answers()
    waited.send(HEADER, BODY, ABORT)
    assert waited.take_answers() == []
    waited.send(MAIL)
    assert waited.run() == ["on_mail"]
    waited.eof()
    assert waited.run() == ["on_abort", "on_message_end", "on_close"]
    assert waited.complaints == []


def test_a_quit_further_on_leaves_what_belongs_to_no_message() -> None:
    waited = Waited(noticing())
    up_to(waited, "helo")
    waited.begin()
    waited.link.is_dropped = True
    waited.come_back(REJECT)
    waited.link.is_dropped = False
    waited.send(QUIT)
    assert waited.run() == ["on_close"]
