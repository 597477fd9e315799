"""Conformance cases of the order of commands and of verdicts, by their numbers (see README.md)."""

from typing import Any

import pytest

from fastmilter import ACCEPT, CONTINUE, DISCARD, REJECT, SKIP, TEMPFAIL, Verdict, codec, reply
from fastmilter.constants import STEPS
from tests.support.playing import (
    ABORT,
    BODY,
    CONNECT,
    CONTENT,
    DATA,
    EOH,
    EOM,
    GREETING,
    HEADER,
    HELO,
    MAIL,
    MESSAGE,
    NO_BITS,
    POSTFIX,
    QUIT,
    QUIT_NC,
    RCPT,
    SENDMAIL,
    STEP_CALLBACKS,
    UNKNOWN,
    V2,
    V6,
    Mta,
    everything,
    letters,
)

ENDS: dict[str, Any] = {"on_abort": None, "on_message_end": None, "on_close": None}


def watched(offer: codec.Negotiate = V6, /, **callbacks: Any) -> Mta:
    return Mta(everything(**(ENDS | callbacks)), offer)


def count(mta: Mta, *names: str) -> list[int]:
    return [mta.names.count(name) for name in names]


@pytest.mark.parametrize("before", [(), GREETING, (*GREETING, *MESSAGE)])
def test_case_71_abort_between_messages(before: tuple[codec.Command, ...]) -> None:
    mta = watched()
    mta.send(*before)
    assert mta.send(ABORT, ABORT) == []
    assert "on_abort" not in mta.names
    assert mta.each(*MESSAGE)[-1] == "c"


def test_case_72_abort_after_the_end() -> None:
    mta = watched()
    mta.send(*GREETING, *MESSAGE, ABORT, *MESSAGE, ABORT, ABORT, QUIT)
    assert count(mta, "on_abort", "on_message_end", "on_close") == [0, 2, 1]


def test_case_73_mail_after_the_end() -> None:
    mta = watched()
    assert letters(mta.send(*GREETING, *MESSAGE, *MESSAGE)).count("c") == 2 + 2 * 4
    assert count(mta, "on_abort", "on_mail", "on_message_end") == [0, 2, 2]


@pytest.mark.parametrize("marks", ["", "no_reply"])
def test_case_74_mail_without_abort(marks: str) -> None:
    mta = Mta(everything(marks, **ENDS))
    mta.send(*GREETING, MAIL, RCPT, codec.MailFrom(b"<second>"))
    assert mta.names[-3:] == ["on_abort", "on_message_end", "on_mail"]
    assert mta.filters[0].message.sender == "second"
    assert letters(mta.send(RCPT, EOM))[-1] == "c"


def test_case_75_helo_within_a_message() -> None:
    mta = watched()
    mta.send(*GREETING, MAIL, RCPT)
    assert letters(mta.send(HELO, ABORT, ABORT)) == "c"
    assert mta.names[-3:] == ["on_abort", "on_message_end", "on_helo"]
    assert count(mta, "on_abort") == [1]


def test_case_76_recipients_after_a_refused_data() -> None:
    mta = watched(on_data=REJECT)
    mta.send(*GREETING, MAIL, RCPT)
    assert mta.each(DATA, RCPT, DATA) == ["r", "c", "r"]
    assert count(mta, "on_abort", "on_message_end") == [0, 0]


def test_case_77_a_refused_recipient() -> None:
    def picky(self: Any, recipient: Any, params: Any) -> Verdict | None:
        return reply(550, "5.1.1", "no") if recipient == "bad@x" else None

    mta = watched(on_rcpt=picky)
    mta.send(*GREETING, MAIL)
    assert mta.each(RCPT, codec.RcptTo(b"<bad@x>"), RCPT, DATA, *CONTENT) == ["c", "y", "c", "c", "", "", "", "c"]


def test_case_78_accept_at_a_recipient() -> None:
    for then in ((MAIL,), (ABORT, MAIL), (QUIT,)):
        mta = watched(on_rcpt=ACCEPT)
        mta.send(*GREETING, MAIL)
        assert letters(mta.send(RCPT)) == "a"
        mta.calls.clear()
        mta.send(*then)
        assert mta.names == (["on_close"] if then == (QUIT,) else ["on_mail"])


@pytest.mark.parametrize("verdict", [ACCEPT, REJECT, TEMPFAIL, reply(421, "4.7.0", "bye")], ids=str)
def test_case_79_the_end_after_a_verdict_on_the_session(verdict: Verdict) -> None:
    mta = watched(on_connect=verdict)
    assert len(mta.send(CONNECT)) == 1
    assert mta.eof() == []
    assert mta.names == ["on_connect", "on_close"]
    assert mta.session.error is None


def test_case_80_quit_within_a_message() -> None:
    mta = watched()
    mta.send(*GREETING, MAIL, RCPT)
    assert mta.send(QUIT) == []
    assert mta.names[-3:] == ["on_abort", "on_message_end", "on_close"]
    assert mta.session.phase.name == "CLOSED"


def test_case_81_the_end_closes_once() -> None:
    for commands in ((), GREETING, (*GREETING, MAIL), (*GREETING, QUIT)):
        mta = watched()
        mta.send(*commands)
        mta.eof()
        mta.eof()
        assert count(mta, "on_close") == [1]


def test_case_82_nothing_but_negotiation_and_quit() -> None:
    mta = watched()
    assert mta.send(QUIT) == []
    assert mta.names == ["on_close"]


@pytest.mark.parametrize("at", range(len((*GREETING, *MESSAGE)) + 1))
def test_case_83_another_connection_on_the_same_stream(at: int) -> None:
    mta = watched(on_connect=None)
    mta.send(codec.Macros(b"C", ((b"j", b"old"),)), *(*GREETING, *MESSAGE)[:at])
    mta.calls.clear()
    assert mta.send(QUIT_NC) == []
    assert mta.names[-1] == "on_close"
    mta.calls.clear()
    assert letters(mta.send(codec.Macros(b"C"), codec.Connect(b"second", b"U"))) == "c"
    assert mta.calls == [("__init__",), ("on_connect", "second", mta.calls[-1][2])]
    assert (mta.filters[-1].macros.get("j"), mta.filters[-1].connection.helo) == (None, None)
    assert mta.each(HELO, *MESSAGE)[-1] == "c"


def test_case_84_packets_before_the_end_of_the_stream() -> None:
    mta = watched(NO_BITS)
    mta.session.receive(b"".join(codec.encode(command) for command in (*GREETING, MAIL, RCPT, EOM, MAIL)))
    assert letters(mta.eof()) == "cccccc"
    assert mta.names[-3:] == ["on_abort", "on_message_end", "on_close"]


@pytest.mark.parametrize("command", [RCPT, DATA, HEADER, EOH, BODY, EOM])
def test_case_85_hopeless_order(command: codec.Command) -> None:
    for before in ((), GREETING, (*GREETING, *MESSAGE), (*GREETING, MAIL, ABORT)):
        mta = watched(NO_BITS)
        mta.send(*before)
        mta.calls.clear()
        assert letters(mta.send(command)) == "t"
        assert mta.names == []
        assert "out of order" in mta.complaints[-1]
        assert mta.each(*MESSAGE)[-1] == "c"


@pytest.mark.parametrize("outcome", [KeyError("lost"), "reject", 5, object])
@pytest.mark.parametrize("name", STEP_CALLBACKS)
def test_case_86_a_callback_that_fails(name: str, outcome: Any) -> None:
    for verdict, letter in ((TEMPFAIL, "t"), (REJECT, "r")):
        mta = Mta(everything(error_verdict=verdict, **{name: outcome}), NO_BITS)
        answers = mta.each(CONNECT, HELO, UNKNOWN, *MESSAGE)
        assert all(len(answer) == 1 for answer in answers)
        assert letter in answers
        assert mta.failed[0] == name


@pytest.mark.parametrize(
    "name", [name for name in STEP_CALLBACKS if name not in ("on_connect", "on_helo", "on_unknown")]
)
@pytest.mark.parametrize("mta_macros", [POSTFIX, SENDMAIL])
def test_case_87_skip_elsewhere(name: str, mta_macros: codec.Macros) -> None:
    mta = Mta(everything("early_verdict", **{name: SKIP}))
    commands: tuple[codec.Command, ...] = (CONNECT, HELO, *MESSAGE)
    again = next(command for step, command in zip(STEPS, commands, strict=False) if name == f"on_{step}")
    before = MESSAGE[: MESSAGE.index(again)]
    mta.send(mta_macros, *GREETING, *before)
    once = letters(mta.send(again))
    assert once == ("s" if name == "on_body" else "c")
    if name not in ("on_mail", "on_end_of_message"):
        assert letters(mta.send(again)) == "c"
        assert count(mta, name) == [1]


def test_case_88_skip_that_was_not_agreed() -> None:
    mta = Mta(everything("early_verdict", on_body=SKIP), V2)
    mta.send(*GREETING, MAIL, RCPT)
    assert mta.each(BODY, BODY, EOM) == ["c", "c", "c"]
    assert count(mta, "on_body") == [1]


@pytest.mark.parametrize(("name", "command"), [("on_connect", CONNECT), ("on_helo", HELO)])
def test_case_89_discard_of_a_session(name: str, command: codec.Command) -> None:
    """Refused as the author's error; answered TEMPFAIL (design 4.2), since CONTINUE would let the mail through."""
    mta = watched(**{name: DISCARD})
    assert letters(mta.send(command)) == "t"
    assert "not possible there" in mta.complaints[0]


def test_case_90_what_is_never_sent() -> None:
    verdicts = (CONTINUE, ACCEPT, REJECT, TEMPFAIL, DISCARD, SKIP, reply(421, "4.7.0", "bye"))
    sent = set()
    for name in STEP_CALLBACKS:
        for verdict in verdicts:
            mta = Mta(everything("early_verdict", **{name: verdict}), NO_BITS)
            sent |= set("".join(mta.each(CONNECT, HELO, UNKNOWN, *MESSAGE, QUIT)))
    assert sent == set("cartdy")
    assert letters(Mta(everything(on_connect=reply(421, "4.7.0", "bye"))).send(CONNECT)) == "y"


@pytest.mark.parametrize("mta_macros", [SENDMAIL, POSTFIX, codec.Macros(b"C")])
def test_case_91_progress_elsewhere(mta_macros: codec.Macros) -> None:
    def work(self: Any, *arguments: Any) -> None:
        self.progress()

    mta = Mta(everything(**dict.fromkeys(STEP_CALLBACKS, work)), NO_BITS)
    for command in (mta_macros, CONNECT, HELO, UNKNOWN, *MESSAGE[:-1]):
        mta.send(command)
        if mta_macros is not POSTFIX:
            assert mta.transmitted == [], "Sendmail, and any MTA that is not known, drops the filter for it"
    mta.transmitted.clear()
    assert letters(mta.send(EOM)) == "c"
    assert mta.transmitted == [codec.Progress()]
