"""What an author of filters relies on: what lives when, and that every message ends exactly once."""

from collections.abc import Iterator
from typing import Any

import pytest

from fastmilter import (
    ACCEPT,
    CONTINUE,
    DISCARD,
    REJECT,
    TEMPFAIL,
    Action,
    Filter,
    MessageEnded,
    NoConnection,
    NoMessage,
    NotNegotiated,
    Verdict,
    codec,
    reply,
)
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
    POSTFIX,
    QUIT,
    QUIT_NC,
    RCPT,
    SENDMAIL,
    UNKNOWN,
    V2,
    V6,
    Mta,
    everything,
    letters,
    made,
)

NO = reply(550, "5.7.1", "no")

# -- what lives when --------------------------------------------------------------------------------------------------


def test_outside_of_a_connection_there_is_nothing() -> None:
    loose = Filter()
    with pytest.raises(NoConnection):
        loose.connection  # noqa: B018
    with pytest.raises(NoMessage):
        loose.message  # noqa: B018
    with pytest.raises(NoConnection):
        loose.macros  # noqa: B018
    assert loose.progress() is False


class Observer(Filter):
    """Notes at each callback whether there is a connection and a message."""

    def __init__(self) -> None:
        self.seen: list[str] = []  # and no super().__init__(), which many forget

    def note(self, callback: str) -> None:
        there = []
        for name in ("connection", "message"):
            try:
                getattr(self, name)
            except (NoConnection, NoMessage):
                continue
            there.append(name)
        self.seen.append(f"{callback}: {' '.join(there)}")

    def on_negotiate(self, offer: object) -> None:
        self.note("negotiate")

    def on_connect(self, hostname: str, address: object) -> None:
        self.note("connect")

    def on_helo(self, name: str) -> None:
        self.note("helo")

    def on_mail(self, sender: object, params: object) -> None:
        self.note("mail")

    def on_unknown(self, command: str) -> None:
        self.note("unknown")

    def on_end_of_message(self) -> None:
        self.note("end_of_message")

    def on_abort(self) -> None:
        self.note("abort")

    def on_message_end(self, verdict: Verdict | None) -> None:
        self.note("message_end")

    def on_close(self) -> None:
        self.note("close")


def test_life_of_connection_and_message() -> None:
    mta = Mta(Observer)
    mta.send(CONNECT, HELO, UNKNOWN, MAIL, UNKNOWN, RCPT, EOM, UNKNOWN, MAIL, ABORT, QUIT)
    (observer,) = mta.filters
    assert isinstance(observer, Observer)
    assert observer.seen == [
        "negotiate: ",
        "connect: connection",
        "helo: connection",
        "unknown: connection",
        "mail: connection message",
        "unknown: connection message",
        "end_of_message: connection message",
        "message_end: connection message",
        "unknown: connection",
        "mail: connection message",
        "abort: connection message",
        "message_end: connection message",
        "close: connection",
    ]
    observer.note("after")
    assert observer.seen[-1] == "after: "


def test_two_messages_share_nothing() -> None:
    seen: list[Any] = []

    class Stateful(Filter[dict[str, int]]):
        def on_mail(self, sender: object, params: object) -> None:
            seen.append((self.message, dict(self.message.state)))
            self.message.state["count"] = 1
            self.message.add_header("X", str(len(seen)))

        def on_end_of_message(self) -> None:
            assert self.message is seen[-1][0]

    mta = Mta(Stateful)
    for number in (1, 2):
        mta.send(MAIL, RCPT)
        assert mta.send(EOM) == [codec.AddHeader(b"X", b"%d" % number), codec.Continue()]
    mta.send(MAIL, ABORT)
    assert [state for _, state in seen] == [{}, {}, {}]
    assert len({id(message) for message, _ in seen}) == 3


def test_a_message_that_has_ended_is_sealed_but_readable() -> None:
    kept: list[Any] = []

    class Keeper(Filter):
        def on_mail(self, sender: object, params: object) -> None:
            kept.append(self.message)

        def on_message_end(self, verdict: Verdict | None) -> None:
            with pytest.raises(MessageEnded):
                self.message.add_header("X", "late")

        def on_abort(self) -> None:
            with pytest.raises(MessageEnded):
                self.message.quarantine("late")

    mta = Mta(Keeper)
    mta.send(MAIL, RCPT, EOM, MAIL, ABORT)
    assert mta.failures == []
    for message in kept:
        assert message.sender == "ann@from.example"
        with pytest.raises(MessageEnded):
            message.add_header("X", "later")


def test_narrowed_actions_are_refused_at_the_call() -> None:
    class Narrow(Filter):
        actions = Action.QUARANTINE

        def on_mail(self, sender: object, params: object) -> None:
            assert not self.connection.can(Action.ADD_HEADERS)
            self.message.quarantine("x")
            self.message.add_header("X", "1")

    mta = Mta(Narrow)
    assert mta.agreed == [codec.Negotiate(6, 0x20, mta.session.agreement.protocol)]
    assert letters(mta.send(MAIL)) == "t"
    assert isinstance(mta.failures[0][1], NotNegotiated)


def test_an_edit_before_mail_has_no_message() -> None:
    def too_early(self: Any, name: str) -> None:
        self.message.add_header("X", "1")

    mta = Mta(made(on_helo=too_early))
    assert mta.each(CONNECT, HELO, MAIL) == ["", "", "t"], "nobody waits for an on_helo that returns nothing"
    assert isinstance(mta.failures[0][1], NoMessage)


def test_recipients_are_those_that_were_not_refused() -> None:
    counts: list[tuple[str, ...]] = []

    class Picky(Filter):
        def on_rcpt(self, recipient: Any, params: object) -> Verdict | None:
            counts.append(tuple(self.message.recipients))
            return REJECT if recipient.local_part == "bad" else None

        def on_rejected_rcpt(self, recipient: object, params: object, reason: str) -> None:
            counts.append((str(recipient), reason))

        def on_end_of_message(self) -> None:
            counts.append(tuple(self.message.recipients))

    refused = codec.Macros(b"R", ((b"{rcpt_mailer}", b"error"), (b"{rcpt_addr}", b"User unknown")))
    accepted = codec.Macros(b"R", ((b"{rcpt_mailer}", b"local"),))
    mta = Mta(Picky)
    sent = [codec.RcptTo(b"<%s@x>" % name) for name in (b"a", b"bad", b"gone", b"b")]
    answers = mta.each(MAIL, sent[0], sent[1], refused, sent[2], accepted, sent[3], EOM)
    assert answers == ["c", "c", "r", "", "c", "", "c", "c"]
    assert counts == [(), ("a@x",), ("gone@x", "User unknown"), ("a@x",), ("a@x", "b@x")]


def test_a_recipient_refused_by_the_mta_is_not_shown_once_there_is_a_verdict() -> None:
    mta = Mta(everything("no_reply", on_data=REJECT, on_mail=REJECT, on_rejected_rcpt=None))
    refused = codec.Macros(b"R", ((b"{rcpt_mailer}", b"error"),))
    assert mta.each(MAIL, refused, RCPT, EOM) == ["", "", "", "r"]
    assert mta.names == ["on_mail"]


# -- exactly once -----------------------------------------------------------------------------------------------------

HEAD = (CONNECT, HELO)
ENDINGS: dict[str, tuple[tuple[codec.Command, ...], Verdict | None]] = {
    "abort": ((MAIL, RCPT, ABORT, ABORT), None),
    "abort at once": ((MAIL, ABORT), None),
    "abort in the content": ((MAIL, RCPT, DATA, HEADER, BODY, ABORT), None),
    "quit": ((MAIL, RCPT, QUIT), None),
    "another connection": ((MAIL, RCPT, QUIT_NC), None),
    "HELO": ((MAIL, RCPT, HELO, ABORT, ABORT), None),
    "another MAIL": ((MAIL, RCPT, MAIL, EOM), None),
    "a second negotiation": ((MAIL, V6), None),
    "the end": ((MAIL, RCPT, EOM), CONTINUE),
    "the end, then Postfix's ABORT": ((MAIL, RCPT, EOM, ABORT, ABORT, QUIT), CONTINUE),
    "the end, then QUIT": ((MAIL, RCPT, EOM, QUIT), CONTINUE),
}


def ends(verdicts: list[Verdict | None], **callbacks: Any) -> Any:
    def on_message_end(self: Any, verdict: Verdict | None) -> None:
        assert self.message.sender == "ann@from.example"
        verdicts.append(verdict)

    return everything("early_verdict", on_message_end=on_message_end, on_abort=None, on_close=None, **callbacks)


@pytest.mark.parametrize("how", ENDINGS)
def test_a_message_ends_exactly_once(how: str) -> None:
    commands, verdict = ENDINGS[how]
    verdicts: list[Verdict | None] = []
    mta = Mta(ends(verdicts))
    mta.send(*HEAD, *commands)
    mta.eof()
    assert verdicts == ([None, CONTINUE] if how == "another MAIL" else [verdict])
    assert mta.names.count("on_abort") == verdicts.count(None)
    assert mta.names.count("on_close") == 1
    assert mta.names[-1] == "on_close"


@pytest.mark.parametrize("at", range(1, 8))
@pytest.mark.parametrize("how", ["eof", "garbage"])
def test_a_connection_that_breaks(at: int, how: str) -> None:
    verdicts: list[Verdict | None] = []
    mta = Mta(ends(verdicts))
    mta.send(*HEAD, *MESSAGE[:at])
    if how == "eof":
        mta.eof()
    else:
        mta.feed(b"\0\0\0\0")
        mta.eof()
    assert verdicts == ([None] if at < 7 else [CONTINUE])
    assert mta.names.count("on_abort") == (at < 7)
    assert mta.names.count("on_close") == 1


@pytest.mark.parametrize("name", ["on_mail", "on_rcpt", "on_data", *CONTENT_CALLBACKS, "on_end_of_message"])
@pytest.mark.parametrize("verdict", [ACCEPT, REJECT, TEMPFAIL, DISCARD, NO], ids=str)
@pytest.mark.parametrize("then", [(), (ABORT,), (ABORT, ABORT, QUIT), (QUIT,), (MAIL, ABORT)])
def test_a_verdict_at_any_step_ends_the_message_once(
    name: str, verdict: Verdict, then: tuple[codec.Command, ...]
) -> None:
    verdicts: list[Verdict | None] = []
    mta = Mta(ends(verdicts, **{name: verdict}))
    mta.send(*HEAD, *MESSAGE)
    refused_in_part = name in ("on_rcpt", "on_data") and verdict.is_refusal
    expected = CONTINUE if refused_in_part else verdict
    assert verdicts == [expected]
    mta.send(*then)
    mta.eof()
    assert verdicts[1:] == ([] if MAIL not in then else [verdict if name == "on_mail" else None])
    assert mta.names.count("on_close") == 1
    assert mta.messages == len([ended for ended in verdicts if ended is not None])


@pytest.mark.parametrize(
    "commands", [(), (QUIT,), (CONNECT,), (CONNECT, QUIT), (CONNECT, HELO), (CONNECT, HELO, MAIL), (QUIT, QUIT, MAIL)]
)
@pytest.mark.parametrize("offer", [V6, None])
def test_close_comes_exactly_once(commands: tuple[codec.Command, ...], offer: codec.Negotiate | None) -> None:
    mta = Mta(made(on_close=None), offer)
    if offer is not None or commands in ((), (QUIT,), (QUIT, QUIT, MAIL)):
        mta.send(*commands)
    mta.eof()
    mta.eof()
    assert mta.names == ["on_close"]


@pytest.mark.parametrize("name", ["on_abort", "on_message_end", "on_close"])
def test_a_filter_that_only_takes_notice_is_told(name: str) -> None:
    mta = Mta(made(**{name: None}))
    mta.send(CONNECT, MAIL, RCPT, ABORT, QUIT)
    assert mta.names == [name]


# -- macros and progress ----------------------------------------------------------------------------------------------


def test_macros_live_as_long_as_in_libmilter() -> None:
    """protocol.md 5.2: MACRO comes before its command; MAIL clears from RCPT on, RCPT from DATA on, ABORT nothing."""
    seen: dict[str, list[Any]] = {}

    def note(self: Any, *arguments: Any) -> None:
        seen.setdefault(self._fastmilter.callback, []).append({name: self.macros.get(name) for name in "jhmrte"})

    def macros(letter: bytes, name: bytes, value: bytes) -> codec.Macros:
        return codec.Macros(letter, ((name, value),))

    callbacks = dict.fromkeys(["on_helo", "on_mail", "on_rcpt", "on_data", "on_end_of_message", "on_message_end"], note)
    mta = Mta(made(**callbacks))
    mta.send(macros(b"C", b"j", b"1"), CONNECT, macros(b"H", b"h", b"1"), HELO)
    mta.send(macros(b"M", b"m", b"1"), MAIL, macros(b"R", b"r", b"1"), RCPT, macros(b"T", b"t", b"1"), DATA)
    mta.send(macros(b"E", b"e", b"1"), EOM, ABORT)
    mta.send(MAIL, RCPT, macros(b"T", b"t", b"2"), DATA, RCPT, ABORT, HELO, macros(b"M", b"m", b"3"), MAIL, EOM)
    connection = {"j": "1", "h": "1", "m": None, "r": None, "t": None, "e": None}
    assert seen["on_helo"] == [connection, connection], "HELO clears what belonged to MAIL"
    assert seen["on_mail"] == [
        connection | {"m": "1"},
        connection | {"m": "1"},  # without a new packet the set of the message before is still there
        connection | {"m": "3"},
    ]
    assert seen["on_rcpt"] == [connection | {"m": "1", "r": "1"}] + [connection | {"m": "1"}] * 2
    assert seen["on_data"] == [connection | {"m": "1", "r": "1", "t": "1"}, connection | {"m": "1", "t": "2"}]
    assert seen["on_end_of_message"] == [
        connection | {"m": "1", "r": "1", "t": "1", "e": "1"},
        connection | {"m": "3"},
    ]
    assert seen["on_message_end"][1] == connection | {"m": "1"}


def test_the_queue_id() -> None:
    ids: list[str | None] = []

    def note(self: Any, *arguments: Any) -> None:
        ids.append(self.message.queue_id)

    mta = Mta(made(on_mail=note, on_rcpt=note, on_end_of_message=note))
    mta.send(MAIL, codec.Macros(b"R", ((b"i", b"4F"),)), RCPT, EOM, codec.Macros(b"M", ((b"{i}", b"5A"),)), MAIL)
    assert ids == [None, "4F", "4F", "5A"]


@pytest.mark.parametrize(("macros", "postfix"), [(POSTFIX, True), (SENDMAIL, False), (codec.Macros(b"C"), False)])
def test_progress(macros: codec.Macros, postfix: bool) -> None:
    sent: list[tuple[str, bool]] = []

    def work(self: Any, *arguments: Any) -> None:
        sent.append((self._fastmilter.callback, self.progress()))

    def asked(self: Any, *arguments: Any) -> Verdict:
        work(self)
        return CONTINUE

    names = [
        "on_negotiate",
        "on_mail",
        "on_rcpt",
        "on_body",
        "on_end_of_message",
        "on_message_end",
        "on_close",
    ]
    mta = Mta(made(**dict.fromkeys(names, work), on_connect=asked))
    assert mta.each(macros, CONNECT, HELO, MAIL, RCPT, BODY, EOM, QUIT) == ["", "c", "", "c", "c", "", "c", ""]
    assert mta.failures == []
    assert dict(sent) == {
        "on_negotiate": False,
        "on_connect": postfix,
        "on_mail": postfix,
        "on_rcpt": postfix,
        "on_body": True,
        "on_end_of_message": True,
        "on_message_end": False,
        "on_close": False,
    }
    assert mta.transmitted.count(codec.Progress()) == (5 if postfix else 2)


def test_no_progress_where_nothing_is_answered() -> None:
    sent: list[bool] = []

    def work(self: Any, *arguments: Any) -> None:
        sent.append(self.progress())

    mta = Mta(made(on_rejected_rcpt=work, on_abort=work, on_helo=work, on_data=work))
    refused = codec.Macros(b"R", ((b"{rcpt_mailer}", b"error"),))
    assert mta.each(POSTFIX, CONNECT, HELO, MAIL, refused, RCPT, DATA, ABORT) == ["", "", "", "c", "", "", "", ""]
    assert mta.names == ["on_helo", "on_rejected_rcpt", "on_data", "on_abort"]
    assert sent == [False] * 4


# -- bodies -----------------------------------------------------------------------------------------------------------


def test_a_new_body_leaves_in_one_run() -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(30):
            yield b"x" * 10_000

    def replace(self: Any) -> None:
        self.message.quarantine("why")
        self.message.replace_body(b"first")
        self.message.replace_body(pieces())
        self.message.add_header("X", "1")

    mta = Mta(made(on_end_of_message=replace))
    assert letters(mta.send(MAIL, RCPT, EOM, MAIL)) == "ch" + "b" * 5 + "qc" + "c"


def test_a_body_that_raises_fails_the_callback_and_nothing_leaves() -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise OSError("disk")

    def replace(self: Any) -> None:
        self.message.replace_body(broken())

    mta = Mta(made(on_end_of_message=replace))
    assert letters(mta.send(MAIL, RCPT, EOM)) == "ct"
    assert mta.failed == ["on_end_of_message"]


@pytest.mark.parametrize(("macros", "letter"), [(POSTFIX, "h"), (SENDMAIL, "i"), (codec.Macros(b"C"), "h")])
def test_an_added_field_comes_last_on_both_mtas(macros: codec.Macros, letter: str) -> None:
    """Sendmail would put it before the first of its name, so there it is inserted beyond the end."""

    def add(self: Any) -> None:
        self.message.add_header("Subject", "second")

    mta = Mta(made(on_header=None, on_end_of_message=add))
    mta.send(macros, CONNECT, MAIL, RCPT, HEADER)
    assert letters(mta.send(EOM)) == letter + "c"


def test_indices_count_what_was_shown() -> None:
    def change(self: Any) -> None:
        self.message.add_header("Subject", "new")  # does not count: it was not shown
        self.message.delete_header("subject", index=1)
        self.message.change_header("Subject", "2", index=2)
        self.message.change_header("Subject", "3", index=3)

    mta = Mta(made(on_header=None, on_end_of_message=change))
    mta.send(POSTFIX, CONNECT, MAIL, RCPT, HEADER, codec.Header(b"To", b"x"), HEADER)
    assert mta.send(EOM) == [
        codec.ChangeHeader(2, b"Subject", b"2"),
        codec.ChangeHeader(1, b"subject", b""),
        codec.AddHeader(b"Subject", b"new"),
        codec.AddHeader(b"Subject", b"3"),
        codec.Continue(),
    ]


def test_text_survives_unchanged() -> None:
    seen: list[str] = []

    class Lossless(Filter):
        def on_header(self, name: str, value: str) -> None:
            seen.append(value)
            self.message.add_header("X-Copy", value)

        def on_body(self, chunk: bytes) -> None:
            self.message.replace_body(chunk)

    every = bytes(byte for byte in range(1, 256) if byte not in b"\r\n") + b"\n\tfolded"
    mta = Mta(Lossless, V2)
    mta.send(MAIL, RCPT, codec.Header(b"Subject", every), EOH, codec.Body(bytes(range(256))))
    assert mta.send(EOM) == [
        codec.AddHeader(b"X-Copy", every),
        codec.ReplaceBody(bytes(range(256))),
        codec.Continue(),
    ]
    assert seen[0].encode("utf-8", "surrogateescape") == every
