"""Callbacks at connect, helo and data that return nothing: nobody waits for them, and what they raise is told later."""

from collections.abc import Callable
from typing import Any

import pytest

from fastmilter import (
    ACCEPT,
    CONTINUE,
    DISCARD,
    REJECT,
    TEMPFAIL,
    Answer,
    Filter,
    Step,
    Verdict,
    codec,
    no_reply,
    reply,
)
from fastmilter.constants import ProtocolFlag
from fastmilter.testing import run
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
    MESSAGE,
    NO_BITS,
    POSTFIX,
    QUIT,
    QUIT_NC,
    RCPT,
    SENDMAIL,
    UNKNOWN,
    V2,
    V4,
    V6,
    Mta,
    made,
)

MUTE = ("on_connect", "on_helo", "on_data")
UNANSWERED = ProtocolFlag.NR_CONNECT | ProtocolFlag.NR_HELO | ProtocolFlag.NR_DATA
CONTENT = ("on_header", "on_end_of_headers", "on_body", "on_end_of_message")
BITS = dict(zip(MUTE, (ProtocolFlag.NR_CONNECT, ProtocolFlag.NR_HELO, ProtocolFlag.NR_DATA), strict=True))
SESSION = (CONNECT, HELO, *MESSAGE)
NO = reply(550, "5.7.1", "no")
LETTERS = {ACCEPT: "a", REJECT: "r", TEMPFAIL: "t", DISCARD: "d", NO: "y"}


def notes(self: Any, *arguments: Any) -> None:
    """Returns nothing and raises nothing."""


def raising(error: BaseException) -> Callable[..., None]:
    """A callback that returns nothing; it raises ``error`` once for each object of the filter."""

    def callback(self: Any, *arguments: Any) -> None:
        if not getattr(self, "raised", False):
            self.raised = True
            raise error

    return callback


def quiet(**callbacks: Any) -> Any:
    """A filter that looks at the content, and whose three callbacks return nothing, but for ``callbacks``."""
    return made(**(dict.fromkeys(MUTE, notes) | dict.fromkeys(CONTENT) | callbacks))


def agreed(mta: Mta) -> ProtocolFlag:
    (message,) = mta.agreed
    assert isinstance(message, codec.Negotiate)
    return ProtocolFlag(message.protocol)


# -- negotiation ------------------------------------------------------------------------------------------------------


def test_they_are_called_and_not_waited_for() -> None:
    mta = Mta(quiet())
    assert agreed(mta) & UNANSWERED == UNANSWERED
    assert mta.each(*SESSION) == ["", "", "c", "", "", "", "", "", "c"]
    assert mta.names == ["on_connect", "on_helo", "on_data", *CONTENT]


def test_one_that_returns_something_is_waited_for() -> None:
    for at, name in ((0, "on_connect"), (1, "on_helo"), (4, "on_data")):
        mta = Mta(quiet(**{name: lambda self, *arguments: CONTINUE}))
        assert agreed(mta) & UNANSWERED == UNANSWERED & ~BITS[name]
        answers = mta.each(*SESSION)
        assert [number for number, answer in enumerate(answers) if answer] == sorted({at, 2, 8})


@pytest.mark.parametrize("offer", [V4, V2, NO_BITS], ids=["v4", "v2", "no bits"])
@pytest.mark.parametrize("name", MUTE)
def test_an_mta_that_does_not_offer_it_is_answered_at_once(name: str, offer: codec.Negotiate) -> None:
    def answered(mta: Mta) -> list[str]:
        assert not agreed(mta) & UNANSWERED
        return mta.each(CONNECT, HELO, MAIL, RCPT, *([DATA] if offer is not V2 else []))

    if name == "on_data" and offer is V2:
        return  # it knows no DATA
    place = {"on_connect": 0, "on_helo": 1, "on_data": 4}[name]
    assert answered(Mta(quiet(), offer))[place] == "c"
    assert answered(Mta(quiet(**{name: raising(KeyError("lost"))}), offer))[place] == "t"
    assert answered(Mta(quiet(**{name: raising(Answer(NO))}), offer))[place] == "y"


@pytest.mark.parametrize("offered", MUTE)
def test_each_bit_that_is_offered_is_used_by_itself(offered: str) -> None:
    offer = codec.Negotiate(6, V6.actions, V6.protocol & ~int(UNANSWERED) | int(BITS[offered]))
    mta = Mta(quiet(), offer)
    assert agreed(mta) & UNANSWERED == BITS[offered]
    answers = dict(zip(("on_connect", "on_helo", "", "", "on_data"), mta.each(*SESSION[:5]), strict=True))
    assert [answers[name] for name in MUTE] == ["" if name == offered else "c" for name in MUTE]


def test_a_wish_of_on_negotiate_has_the_last_word() -> None:
    """It is a copy of the class's wish; a step that is taken out of ``no_reply`` is answered."""

    def on_negotiate(self: Any, offer: Any) -> Any:
        wish = self.wish()
        return type(wish)(actions=wish.actions, never=wish.never, no_reply=wish.no_reply - {Step.HELO})

    mta = Mta(quiet(on_negotiate=on_negotiate))
    assert agreed(mta) & UNANSWERED == UNANSWERED & ~ProtocolFlag.NR_HELO
    assert mta.each(CONNECT, HELO) == ["", "c"]


# -- what is raised is kept -------------------------------------------------------------------------------------------

HOW: dict[str, Callable[[Verdict], dict[str, Any]]] = {
    "Answer": lambda verdict: {"error": Answer(verdict)},
    "error_verdict": lambda verdict: {"error": KeyError("lost"), "error_verdict": verdict},
    "on_error": lambda verdict: {"error": KeyError("lost"), "on_error": verdict},
    "Answer in on_error": lambda verdict: {"error": KeyError("lost"), "on_error": Answer(verdict)},
}


def failing(name: str, how: str, verdict: Verdict, **callbacks: Any) -> Any:
    body = HOW[how](verdict)
    return quiet(**{name: raising(body.pop("error"))}, **body, **callbacks)


@pytest.mark.parametrize("verdict", [REJECT, TEMPFAIL, NO], ids=str)
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["on_connect", "on_helo"])
def test_a_refused_session_is_told_at_every_mail(name: str, how: str, verdict: Verdict) -> None:
    mta = Mta(failing(name, how, verdict))
    told = LETTERS[verdict]
    # An MTA leaves the transaction after the refusal; what it might send of it gets the same answer.
    assert mta.each(*SESSION, *MESSAGE, QUIT) == ["", "", *[told, "", "", "", "", "", told] * 2, ""]
    assert mta.failed == ([] if how == "Answer" else [name])
    assert not {"on_data", *CONTENT} & set(mta.names)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["on_connect", "on_helo"])
def test_an_accepted_session_is_told_once_a_message(name: str, how: str) -> None:
    mta = Mta(failing(name, how, ACCEPT))
    assert mta.each(*SESSION, *MESSAGE) == ["", "", *["a", "", "", "", "", "", "c"] * 2]
    assert "on_data" not in mta.names


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["on_connect", "on_helo"])
def test_what_is_impossible_there_is_a_temporary_failure(name: str, how: str) -> None:
    mta = Mta(failing(name, how, DISCARD))
    assert mta.each(CONNECT, HELO, MAIL) == ["", "", "t"]
    assert len(mta.complaints) == 1


@pytest.mark.parametrize("verdict", LETTERS, ids=str)
@pytest.mark.parametrize("how", HOW)
def test_a_verdict_of_on_data_is_told_at_the_end_of_its_message(how: str, verdict: Verdict) -> None:
    verdicts: list[Verdict | None] = []

    def on_message_end(self: Any, verdict: Verdict | None) -> None:
        verdicts.append(verdict)

    mta = Mta(failing("on_data", how, verdict, on_message_end=on_message_end))
    told = LETTERS[verdict]
    assert mta.each(*SESSION) == ["", "", "c", "", "", "", "", "", told]
    after = ("on_error",) * ("on_error" in how)
    assert mta.names == ["on_connect", "on_helo", "on_data", *after, "on_message_end"], "the content is not looked at"
    assert mta.each(*MESSAGE)[-1] == "c", "the next message has nothing of it"
    assert mta.names[-6:] == ["on_data", *CONTENT, "on_message_end"]
    assert verdicts == [verdict, CONTINUE]


def test_a_helo_that_is_answered_comes_before_mail() -> None:
    mta = Mta(quiet(on_connect=raising(Answer(NO)), on_helo=lambda self, name: CONTINUE, on_unknown=None))
    assert mta.each(CONNECT, HELO, UNKNOWN, MAIL) == ["", "y", "y", "y"]
    assert mta.names == ["on_connect"]
    accepted = Mta(quiet(on_connect=raising(Answer(ACCEPT)), on_unknown=None))
    assert accepted.each(CONNECT, UNKNOWN, MAIL) == ["", "c", "a"], "ACCEPT is not possible at an unknown command"


def test_a_later_verdict_on_the_session_does_not_undo_the_first() -> None:
    mta = Mta(quiet(on_connect=raising(Answer(NO)), on_helo=raising(Answer(ACCEPT))))
    assert mta.each(CONNECT, HELO, MAIL) == ["", "", "y"]
    assert mta.names == ["on_connect"], "a session that is refused is not looked at"


def test_a_new_connection_begins_anew() -> None:
    once = [True]

    def on_connect(self: Any, hostname: str, address: Any) -> None:
        if once:
            once.clear()
            raise Answer(REJECT)

    mta = Mta(quiet(on_connect=on_connect))
    assert mta.each(CONNECT, MAIL, QUIT_NC, CONNECT, MAIL, RCPT, EOM) == ["", "r", "", "", "c", "", "c"]


def test_an_init_that_raises_is_told_too() -> None:
    def fail(self: Any) -> None:
        raise KeyError("no pool")

    mta = Mta(quiet(__init__=fail))
    assert mta.each(CONNECT, HELO, MAIL) == ["", "", "t"]
    assert mta.failed == ["__init__"]
    late = Mta(made(__init__=fail, on_data=notes))
    assert late.each(CONNECT, HELO, MAIL, RCPT, DATA, EOM) == ["", "", "c", "", "", "t"]


def test_a_callback_that_fails_after_edits_loses_its_own() -> None:
    def add(self: Any, *arguments: Any) -> None:
        self.message.add_header("X-Kept", "1")

    def fail(self: Any) -> None:
        self.message.add_header("X-Lost", "1")
        raise KeyError("lost")

    accepting = Mta(quiet(on_mail=add, on_data=fail, error_verdict=CONTINUE))
    assert accepting.send(*MESSAGE)[1:] == [codec.AddHeader(b"X-Kept", b"1"), codec.Continue()]
    refusing = Mta(quiet(on_mail=add, on_data=fail))
    assert refusing.send(*MESSAGE)[1:] == [codec.TempFail()]


def test_what_was_edited_before_an_accept_goes_out() -> None:
    def accept(self: Any) -> None:
        self.message.add_header("X", "1")
        raise Answer(ACCEPT)

    assert Mta(quiet(on_data=accept)).send(*MESSAGE)[1:] == [codec.AddHeader(b"X", b"1"), codec.Accept()]


def test_a_message_that_is_dropped_takes_its_verdict_with_it() -> None:
    mta = Mta(quiet(on_data=raising(Answer(REJECT)), on_abort=None))
    assert mta.each(CONNECT, MAIL, RCPT, DATA, ABORT, MAIL, RCPT, DATA, EOM) == ["", "c", "", "", "", "c", "", "", "c"]
    assert mta.names.count("on_abort") == 1


# -- beside other things ----------------------------------------------------------------------------------------------


def test_the_mark_changes_nothing() -> None:
    class Plain(Filter):
        def on_helo(self, name: str) -> None: ...

    class Marked(Filter):
        @no_reply
        def on_helo(self, name: str) -> None: ...

    assert Marked.wish() == Plain.wish()


def test_draining_is_as_with_callbacks_that_answer() -> None:
    mta = Mta(quiet())
    assert mta.each(CONNECT, HELO) == ["", ""]
    mta.session.drain = 1
    assert mta.each(MAIL) == ["y"], "a new message is refused"
    mta.session.drain = 0
    assert mta.each(MAIL, RCPT) == ["c", ""]
    assert not mta.session.past_data
    mta.session.drain = 2
    assert mta.each(DATA) == [""], "nobody reads an answer there"
    assert mta.session.past_data, "its client may have sent the message: it gets its verdict"
    assert mta.each(HEADER, EOH, BODY, EOM) == ["", "", "", "c"]
    assert mta.each(MAIL) == ["y"]


def test_draining_and_a_session_that_is_refused_already() -> None:
    mta = Mta(quiet(on_helo=raising(Answer(REJECT))))
    mta.send(CONNECT, HELO)
    mta.session.drain = 1
    assert mta.each(MAIL) == ["r"]


@pytest.mark.parametrize("macros", [POSTFIX, SENDMAIL])
def test_what_the_mta_says_of_itself_is_the_same(macros: codec.Macros) -> None:
    """The steps come all the same, so connection and message are complete."""
    seen: list[tuple[Any, ...]] = []

    def look(self: Any) -> None:
        connection = self.connection
        seen.append((connection.hostname, connection.helo, connection.mta, self.message.sender))

    mta = Mta(quiet(on_data=look))
    mta.send(macros, *SESSION)
    name = "postfix" if macros is POSTFIX else "sendmail"
    assert seen == [("client.example", "client.example", name, "ann@from.example")]


class Blocks(Filter):
    """What an author may write: a check that raises, called from a callback that returns nothing."""

    def on_connect(self, hostname: str, address: object) -> None:
        self.check(hostname)

    def on_data(self) -> None:
        self.check(self.message.sender.domain)

    def check(self, name: str) -> None:
        if name.startswith("bad"):
            raise Answer(reply(550, "5.7.1", f"not from {name}"))


@pytest.mark.parametrize("mta", ["postfix", "sendmail"])
def test_in_the_test_kit(mta: Any) -> None:
    message = b"Subject: x\r\n\r\nbody\r\n"
    fine = run(Blocks, message, mta=mta)
    assert fine.verdict == CONTINUE
    assert {step.step: step.verdict for step in fine.steps}[Step.CONNECT] is None
    refused = run(Blocks, message, hostname="bad.example", mta=mta)
    assert (refused.verdict, refused.steps[-1].step) == (reply(550, "5.7.1", "not from bad.example"), Step.MAIL)
    late = run(Blocks, message, sender="a@bad.test", mta=mta)
    assert (late.verdict, late.steps[-1].step) == (reply(550, "5.7.1", "not from bad.test"), Step.END_OF_MESSAGE)
