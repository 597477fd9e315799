"""A filter behind a session: whatever its callbacks do, each command that expects a reply gets one."""

from collections.abc import Callable
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
    Filter,
    Step,
    Verdict,
    Wish,
    codec,
    reply,
)
from fastmilter.constants import STEPS
from fastmilter.errors import NotNegotiated, RemoteProtocolError
from tests.support.playing import (
    ABORT,
    BODY,
    CONNECT,
    CONTENT_CALLBACKS,
    DATA,
    EOH,
    EOM,
    HEADER,
    HELO,
    MAIL,
    MESSAGE,
    NO_BITS,
    QUIT,
    QUIT_NC,
    RCPT,
    STEP_CALLBACKS,
    UNKNOWN,
    V2,
    V4,
    V6,
    Mta,
    doing,
    everything,
    letters,
    made,
)

CONNECTION = (CONNECT, HELO, UNKNOWN, *MESSAGE)


def recorded(verdicts: list[Verdict | None]) -> Callable[..., None]:
    def on_message_end(self: Any, verdict: Verdict | None) -> None:
        assert self.message.sender == "ann@from.example"
        verdicts.append(verdict)

    return on_message_end


# -- a callback that fails --------------------------------------------------------------------------------------------

FAILURES: dict[str, Any] = {
    "raises": ValueError("lost"),
    "exits": SystemExit(1),
    "returns text": "reject",
    "returns True": True,
    "returns a class": Verdict,
}


COMMANDS = dict(zip(STEP_CALLBACKS, (*CONNECTION[:2], *MESSAGE, UNKNOWN), strict=True))
END = CONNECTION.index(EOM)


@pytest.mark.parametrize("offer", [V6, V4, V2, NO_BITS], ids=["v6", "v4", "v2", "no bits"])
@pytest.mark.parametrize("marks", ["", "no_reply", "early_verdict"])
@pytest.mark.parametrize("mute", [False, True], ids=["", "mute"])
@pytest.mark.parametrize("name", STEP_CALLBACKS)
def test_every_callback_raising_in_turn(name: str, mute: bool, marks: str, offer: codec.Negotiate) -> None:
    """One answer for each command that expects one, the message fails, and the next one on the connection works.

    ``mute``: the callback has no way to return a verdict, so at some steps nobody waits for it.
    """
    fails: list[bool] = []

    def fail_once(self: Any, *arguments: Any) -> None:
        if fails:
            fails.clear()
            raise KeyError("lost")

    def fail_once_or_continue(self: Any, *arguments: Any) -> Verdict:
        fail_once(self)
        return CONTINUE

    callback = fail_once if mute else fail_once_or_continue
    verdicts: list[Verdict | None] = []
    plain = Mta(everything(marks, **{name: callback}), offer)
    expected = [bool(answer) for answer in plain.each(*CONNECTION, *MESSAGE)]
    mta = Mta(everything(marks, **{name: callback}, on_message_end=recorded(verdicts)), offer)
    fails.append(True)
    answers = mta.each(*CONNECTION, *MESSAGE)
    assert [bool(answer) for answer in answers] == expected
    assert answers.index("t") == first_told(name, expected)
    assert all(len(answer) <= 1 for answer in answers)
    assert mta.failed == [name]
    if name in ("on_connect", "on_helo"):
        assert answers[-1] == answers[-8] == "t", "the session is refused"
        assert verdicts == []
    elif name == "on_unknown":
        assert "".join(answers).count("t") == 1
        assert verdicts == [CONTINUE, CONTINUE]
    elif name in ("on_rcpt", "on_data") and expected[CONNECTION.index(COMMANDS[name])]:
        assert "".join(answers).count("t") == 1, "one recipient, or this DATA"
        assert verdicts == [CONTINUE, CONTINUE]
    else:
        assert verdicts == [TEMPFAIL, CONTINUE]
        assert "t" in "".join(answers[:10])
        assert set("".join(answers[10:])) == {"c"}


def first_told(name: str, answered: list[bool]) -> int:
    """The command of ``CONNECTION`` that is answered by a verdict given in the callback ``name``."""
    at = CONNECTION.index(COMMANDS[name])
    if name == "on_data" and not answered[at]:
        return END
    return next(number for number in range(at, len(CONNECTION)) if answered[number])


@pytest.mark.parametrize("how", FAILURES)
@pytest.mark.parametrize("name", STEP_CALLBACKS)
def test_what_is_no_verdict_is_a_failure(name: str, how: str) -> None:
    mta = Mta(everything("early_verdict", **{name: doing(FAILURES[how])}))
    assert "t" in "".join(mta.each(*CONNECTION))
    assert mta.failed[0] == name
    if how.startswith("returns"):
        error = mta.failures[0][1]
        assert isinstance(error, TypeError)
        assert f"{name} returned" in str(error)


class Nasty:
    def __repr__(self) -> str:
        raise ValueError("not even shown")


def test_a_result_that_cannot_even_be_shown() -> None:
    mta = Mta(made(on_mail=Nasty()))
    assert letters(mta.send(MAIL)) == "t"
    assert "Nasty" in str(mta.failures[0][1])


def test_a_coroutine_from_a_plain_callback() -> None:
    async def later() -> None: ...

    mta = Mta(made(on_mail=lambda self, sender, params: later()))
    assert letters(mta.send(MAIL)) == "t"
    assert "declare the callback with async def" in str(mta.failures[0][1])


@pytest.mark.parametrize(
    ("verdict", "letter"), [(REJECT, "r"), (ACCEPT, "a"), (CONTINUE, "c"), (DISCARD, "d"), (reply(450, None, "x"), "y")]
)
def test_error_verdict(verdict: Verdict, letter: str) -> None:
    mta = Mta(made(on_mail=KeyError("lost"), error_verdict=verdict))
    assert letters(mta.send(MAIL)) == letter
    assert mta.failed == ["on_mail"]


def test_an_error_verdict_that_is_not_possible_there() -> None:
    mta = Mta(made(on_connect=KeyError("lost"), error_verdict=DISCARD))
    assert letters(mta.send(CONNECT)) == "t"
    assert mta.complaints == ["on_connect gave the verdict discard, which is not possible there: answered tempfail"]


@pytest.mark.parametrize("name", STEP_CALLBACKS)
def test_on_error_decides(name: str) -> None:
    seen: list[tuple[str, BaseException]] = []

    def on_error(self: Any, step: Step, error: BaseException) -> Verdict:
        assert isinstance(step, Step)
        seen.append((step, error))
        return reply(450, "4.7.1", "later")

    error = KeyError("lost")
    mta = Mta(everything("early_verdict", **{name: error}, on_error=on_error))
    assert "y" in "".join(mta.each(*CONNECTION))
    assert seen == [(name.removeprefix("on_"), error)]
    assert mta.failed == [name]


@pytest.mark.parametrize(
    ("outcome", "letter", "failed"),
    [
        (None, "t", 1),
        (ACCEPT, "a", 1),
        (KeyError("twice"), "t", 2),
        ("reject", "t", 2),
        (Answer(REJECT), "r", 1),
        (SKIP, "c", 1),
    ],
)
def test_what_on_error_may_do(outcome: Any, letter: str, failed: int) -> None:
    mta = Mta(made(on_mail=KeyError("lost"), on_error=outcome))
    assert letters(mta.send(MAIL)) == letter
    assert mta.failed == ["on_mail", "on_error"][:failed]
    assert letters(mta.send(ABORT, MAIL)) == letter


def test_on_error_gives_what_is_not_possible_there() -> None:
    mta = Mta(made(on_helo=KeyError("lost"), on_error=DISCARD))
    assert letters(mta.send(HELO)) == "t"
    assert len(mta.complaints) == 1


@pytest.mark.parametrize("name", [*STEP_CALLBACKS, "on_rejected_rcpt", "on_error"])
def test_a_callback_that_raises_loses_its_own_edits_and_no_others(name: str) -> None:
    def add(self: Any, *arguments: Any) -> None:
        self.message.add_header("X-Kept", "1")

    def spoil(self: Any, *arguments: Any) -> None:
        if self._fastmilter.message is not None:
            self.message.add_header("X-Lost", "1")
            self.message.replace_body([b"lost"])
        raise KeyError("lost")

    callbacks: dict[str, Any] = {"on_rejected_rcpt": None, "on_mail": add, "error_verdict": CONTINUE}
    if name == "on_error":
        callbacks |= {"on_data": KeyError("first"), "on_error": spoil}
    elif name == "on_mail":
        callbacks |= {"on_mail": spoil, "on_rcpt": add}
    else:
        callbacks[name] = spoil
    mta = Mta(everything(**callbacks))
    refused = codec.Macros(b"R", ((b"{rcpt_mailer}", b"error"),))
    accepted = codec.Macros(b"R", ((b"{rcpt_mailer}", b"smtp"),))
    mta.send(CONNECT, HELO, MAIL, UNKNOWN, refused, RCPT, accepted, RCPT, DATA, HEADER, EOH, BODY)
    assert mta.send(EOM) == [codec.AddHeader(b"X-Kept", b"1"), codec.Continue()]
    assert name in mta.failed


@pytest.mark.parametrize("name", ["on_abort", "on_close", "on_message_end"])
def test_notices_that_fail_are_logged_and_change_nothing(name: str) -> None:
    calls: dict[str, Any] = {"on_abort": None, "on_close": None, "on_message_end": None, name: KeyError("lost")}
    mta = Mta(made(**calls))
    assert mta.each(CONNECT, MAIL, ABORT, MAIL, EOM, QUIT) == ["", "c", "", "c", "c", ""]
    assert mta.names == ["on_abort", "on_message_end", "on_message_end", "on_close"]
    assert set(mta.failed) == {name}


# -- Answer -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STEP_CALLBACKS)
def test_an_answer_from_any_depth(name: str) -> None:
    def deep(self: Any, *arguments: Any) -> None:
        def deeper(levels: int) -> None:
            if not levels:
                raise Answer(reply(550, None, "from below"))
            deeper(levels - 1)

        deeper(10)

    def silent(self: Any, *arguments: Any) -> None: ...

    answered = [bool(answer) for answer in Mta(everything("early_verdict", **{name: silent})).each(*CONNECTION)]
    mta = Mta(everything("early_verdict", **{name: deep}))
    assert mta.each(*CONNECTION).index("y") == first_told(name, answered)
    assert mta.failures == []


def test_an_answer_keeps_the_edits_before_it() -> None:
    def answer(self: Any) -> None:
        self.message.add_header("X", "1")
        raise Answer(ACCEPT)

    assert letters(Mta(made(on_end_of_message=answer)).send(MAIL, EOM)) == "cha"


# -- admissible verdicts and SKIP (design 4.2) ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "verdict"),
    [(name, verdict) for name in ("on_connect", "on_helo") for verdict in (DISCARD, SKIP)]
    + [("on_unknown", verdict) for verdict in (ACCEPT, DISCARD, SKIP)],
    ids=str,
)
@pytest.mark.parametrize("marks", ["", "no_reply"])
def test_an_inadmissible_verdict(name: str, verdict: Verdict, marks: str) -> None:
    mta = Mta(made(marks, **{name: verdict}))
    commands: dict[str, codec.Command] = {"on_connect": CONNECT, "on_helo": HELO, "on_unknown": UNKNOWN}
    command = commands[name]
    due = marks == "" or name == "on_unknown"
    assert letters(mta.send(command)) == ("t" if due else "")
    assert mta.complaints == [f"{name} gave the verdict {verdict}, which is not possible there: answered tempfail"]
    if name != "on_unknown":
        assert letters(mta.send(MAIL)) == "t"


@pytest.mark.parametrize(
    ("name", "at", "commands"),
    [
        ("on_rcpt", 1, (RCPT, RCPT, DATA, HEADER)),
        ("on_data", 2, (DATA, DATA, HEADER, EOH)),
        ("on_header", 3, (HEADER, HEADER, EOH, BODY)),
        ("on_end_of_headers", 4, (EOH, EOH, BODY, BODY)),
        ("on_body", 5, (BODY, BODY, BODY, EOM)),
    ],
)
@pytest.mark.parametrize("marks", ["", "early_verdict", "no_reply"])
def test_skip_spares_the_callback_for_this_message(
    name: str, at: int, commands: tuple[codec.Command, ...], marks: str
) -> None:
    mta = Mta(everything(marks, **{name: SKIP}))
    for _ in range(2):
        mta.calls.clear()
        mta.each(*MESSAGE[:at])
        answers = mta.each(*commands, EOM)
        assert mta.names.count(name) == 1
        skipped = "s" if name == "on_body" and marks == "early_verdict" else "c"
        assert answers[0] in ("", skipped)
        assert set("".join(answers[1:])) <= {"c", "t"}, "SKIP is sent for the body only"
        assert answers[-1] in ("c", "t")
        mta.send(ABORT)


def test_skip_where_the_mta_does_not_know_it() -> None:
    mta = Mta(made("early_verdict", on_body=SKIP), V2)
    assert mta.each(MAIL, RCPT, BODY, BODY, EOM) == ["c", "c", "c", "c", "c"]
    assert mta.names == ["on_body"]


def test_skip_at_mail_and_at_the_end_is_continue() -> None:
    mta = Mta(made(on_mail=SKIP, on_rcpt=None, on_end_of_message=SKIP))
    assert mta.each(MAIL, RCPT, EOM) == ["c", "c", "c"]
    assert mta.names == ["on_mail", "on_rcpt", "on_end_of_message"]


# -- ACCEPT with edits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marks", ["", "no_reply", "early_verdict"])
@pytest.mark.parametrize("name", ["on_mail", "on_rcpt", "on_data", *CONTENT_CALLBACKS])
def test_accept_with_edits_is_carried_to_the_end(name: str, marks: str) -> None:
    def accept(self: Any, *arguments: Any) -> Verdict:
        self.message.add_header("X", "1")
        return ACCEPT

    mta = Mta(everything(marks, **{name: accept}))
    answers = mta.each(*MESSAGE)
    assert answers[-1] == "ha"
    assert set("".join(answers[:-1])) <= {"c"}
    assert mta.names[-1] == name, "what is accepted is not looked at any more"
    assert mta.each(*MESSAGE)[-1] == "ha"


@pytest.mark.parametrize("name", ["on_mail", "on_rcpt", "on_data"])
def test_accept_without_edits_ends_the_message_at_once(name: str) -> None:
    verdicts: list[Verdict | None] = []
    mta = Mta(everything(**{name: ACCEPT}, on_message_end=recorded(verdicts)))
    answers = "".join(mta.each(*MESSAGE))
    assert answers.count("a") == 1
    assert set(answers) == {"a", "c"}
    assert verdicts == [ACCEPT]


def test_recipients_after_a_carried_accept_are_known() -> None:
    def accept(self: Any, *arguments: Any) -> Verdict:
        self.message.add_header("X", "1")
        return ACCEPT

    counts: list[int] = []
    mta = Mta(made(on_rcpt=accept, on_message_end=lambda self, verdict: counts.append(len(self.message.recipients))))
    mta.send(MAIL, RCPT, RCPT, RCPT, EOM)
    assert counts == [3]


@pytest.mark.parametrize("verdict", [REJECT, TEMPFAIL, DISCARD, reply(550, None, "no")], ids=str)
def test_a_refusal_overrules_a_quarantine_and_says_so(verdict: Verdict) -> None:
    def hold(self: Any, *arguments: Any) -> None:
        self.message.quarantine("look")
        self.message.replace_body([b"new"])

    for name in ("on_end_of_message", "on_end_of_headers"):
        mta = Mta(everything("early_verdict", on_mail=hold, **{name: verdict}))
        assert letters(mta.send(*MESSAGE))[-1] in "rtdy"
        assert mta.complaints == [f"the message was to be quarantined, but the verdict {verdict.kind} wins"]
    dropped = Mta(everything(on_mail=hold))
    dropped.send(MAIL, ABORT)
    assert dropped.complaints == []


def test_refusing_a_recipient_without_a_reply_fails_the_message() -> None:
    mta = Mta(made("no_reply", on_rcpt=REJECT, on_end_of_message=None))
    assert mta.each(MAIL, RCPT, RCPT, EOM) == ["c", "", "", "t"]
    assert mta.names == ["on_rcpt"]
    assert len(mta.complaints) == 1
    assert "@no_reply" in mta.complaints[0]


# -- the filter object ------------------------------------------------------------------------------------------------


def test_an_init_that_raises_still_answers() -> None:
    def fail(self: Any) -> None:
        raise KeyError("no pool")

    everywhere = everything(__init__=fail, on_close=None, on_message_end=None, on_abort=None)
    mta = Mta(everywhere)
    answers = mta.each(*CONNECTION, *MESSAGE, QUIT)
    assert set("".join(answers)) == {"t"}
    assert mta.names == []
    assert mta.failed == ["__init__"], "refused at CONNECT, and not made once more to be closed"


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("on_connect", CONNECT),
        ("on_helo", HELO),
        ("on_mail", MAIL),
        ("on_rcpt", RCPT),
        ("on_data", DATA),
        ("on_header", HEADER),
        ("on_end_of_headers", EOH),
        ("on_body", BODY),
        ("on_end_of_message", EOM),
        ("on_end_of_message", codec.EndOfMessage(b"last")),
        ("on_unknown", UNKNOWN),
    ],
)
@pytest.mark.parametrize("verdict", [TEMPFAIL, CONTINUE, ACCEPT])
def test_an_init_that_raises_at_a_later_step(name: str, command: codec.Command, verdict: Verdict) -> None:
    def fail(self: Any) -> None:
        raise KeyError("no pool")

    mta = Mta(made(**{name: None}, __init__=fail, error_verdict=verdict), NO_BITS)
    if name not in ("on_connect", "on_helo", "on_mail", "on_unknown"):
        mta.send(MAIL)
    letter = letters([codec.decode_response(verdict.packet[4:])])
    if name == "on_unknown" and verdict is ACCEPT:
        letter = "t"
    assert letters(mta.send(command)) == letter
    assert mta.failed == ["__init__"]


def test_a_header_without_a_filter_still_counts() -> None:
    attempts: list[int] = []

    def fail_once(self: Any) -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise KeyError("not yet")

    def change(self: Any, name: str, value: str) -> None:
        self.message.change_header("subject", "new", index=2)

    mta = Mta(made(on_header=change, __init__=fail_once, error_verdict=CONTINUE))
    assert mta.send(MAIL, RCPT, HEADER, HEADER, EOM)[1:] == [
        codec.ChangeHeader(2, b"subject", b"new"),
        codec.Continue(),
    ]


def test_the_object_is_made_late_once_and_not_without_need() -> None:
    mta = Mta(made(on_end_of_message=None))
    mta.send(CONNECT, HELO, MAIL, RCPT)
    assert mta.filters == []
    mta.send(EOM, MAIL, EOM, QUIT)
    assert len(mta.filters) == 1
    idle = Mta(made())
    idle.send(*CONNECTION, QUIT)
    assert idle.filters == []


# -- negotiation ------------------------------------------------------------------------------------------------------


def agreed(mta: Mta) -> codec.Negotiate:
    (message,) = mta.agreed
    assert isinstance(message, codec.Negotiate)
    return message


def test_on_negotiate_may_change_the_wish() -> None:
    seen: list[Any] = []

    def on_negotiate(self: Any, offer: Any) -> Wish:
        seen.append((offer.version, offer.actions, offer.protocol))
        return Wish(actions=Action.QUARANTINE, leading_space=True, never=frozenset(STEPS))

    mta = Mta(made(on_negotiate=on_negotiate, on_mail=None))
    assert seen == [(6, 0x1FF, 0x1FFFFF)]
    assert agreed(mta).actions == Action.QUARANTINE
    assert agreed(mta).protocol == 0x10037F & ~0x4
    assert mta.each(MAIL, EOM) == ["c", "c"]
    assert mta.names == ["on_negotiate", "on_mail"]


def test_on_negotiate_may_leave_the_wish() -> None:
    plain, asked = Mta(made(on_mail=None)), Mta(made(on_mail=None, on_negotiate=None))
    assert asked.agreed == plain.agreed


@pytest.mark.parametrize("outcome", [KeyError("lost"), "all", ACCEPT, Answer(REJECT), 0x1FF])
def test_on_negotiate_that_fails(outcome: Any) -> None:
    """The MTA gets the class's own wish and no mail passes, since nobody knows what the author wanted."""
    mta = Mta(made(on_negotiate=outcome, on_mail=None))
    assert mta.agreed == Mta(made(on_mail=None)).agreed
    assert mta.failed == ["on_negotiate"]
    assert mta.each(CONNECT, MAIL, EOM, MAIL) == ["", "t", "t", "t"]
    lenient = Mta(made(on_negotiate=outcome, on_mail=None, error_verdict=CONTINUE))
    assert lenient.each(CONNECT, MAIL, EOM) == ["", "c", "c"]


def test_an_init_that_raises_before_on_negotiate() -> None:
    def fail(self: Any) -> None:
        raise KeyError("no pool")

    mta = Mta(made(__init__=fail, on_negotiate=None))
    assert agreed(mta).version == 6
    assert mta.each(CONNECT, MAIL, QUIT) == ["", "t", ""]
    assert mta.failed == ["__init__"]


@pytest.mark.parametrize("ask", ["class", "wish"])
def test_what_is_required_and_not_offered(ask: str) -> None:
    if ask == "class":
        mta = Mta(made(requires=Action.CHANGE_SENDER, on_close=None), V2)
    else:
        mta = Mta(made(on_negotiate=Wish(requires=Action.CHANGE_SENDER), on_close=None), V2)
    assert mta.agreed == []
    assert isinstance(mta.session.error, NotNegotiated)
    assert mta.names[-1] == "on_close"
    assert mta.send(CONNECT) == []


def test_a_version_that_nobody_speaks() -> None:
    mta = Mta(made(on_close=None), codec.Negotiate(1, 0xF, 0x3F))
    assert mta.agreed == []
    assert isinstance(mta.session.error, RemoteProtocolError)
    assert mta.names == ["on_close"]


def test_a_new_connection_gets_a_new_object() -> None:
    class Counts(Filter):
        def on_connect(self, hostname: str, address: object) -> Verdict:
            self.hostname = hostname
            return CONTINUE

        def on_close(self) -> None:
            assert self.connection.hostname == self.hostname
            assert self.macros["j"] == self.hostname

    mta = Mta(Counts)
    for host in (b"one", b"two"):
        macros = codec.Macros(b"C", ((b"j", host),))
        assert letters(mta.send(macros, codec.Connect(host, b"U"), MAIL, QUIT_NC)) == "cc"
    assert mta.names == ["on_connect", "on_close"] * 2
    assert len(mta.filters) == 2
    mta.send(QUIT)
    assert mta.names == ["on_connect", "on_close"] * 2, "there was no third connection to close"
    assert mta.failures == []
