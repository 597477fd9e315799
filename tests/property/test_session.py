"""Any filter, any order of commands, any bytes: one final reply for each command that expects one, and no surprise."""

import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

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
    Wish,
    codec,
    early_verdict,
    no_reply,
    reply,
)
from fastmilter.errors import RemoteProtocolError
from fastmilter.session import Phase
from tests.support import strategies
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
    POSTFIX,
    QUIET_CALLBACKS,
    QUIT_NC,
    RCPT,
    SENDMAIL,
    STEP_CALLBACKS,
    UNKNOWN,
    V2,
    V4,
    V6,
    Mta,
    letters,
    made,
)

NO_REPLY_BITS = {
    "C": 0x1000,
    "H": 0x2000,
    "M": 0x4000,
    "R": 0x8000,
    "T": 0x10000,
    "U": 0x20000,
    "N": 0x40000,
    "B": 0x80000,
    "L": 0x80,
    "E": 0,
}
"""The commands that expect a reply, and the bit by which the two sides agree on none (SMFIP_NR_*)."""

FINAL = set("cartdsy")
MODIFICATIONS = set("+2-behimq")
ORDER = re.compile("m*[hi]*[+2e-]*b*q?[cartdsy]")
"""Changes, additions, envelope, the body in one run, quarantine, verdict."""

# -- filters ----------------------------------------------------------------------------------------------------------


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


OUTCOMES: list[Any] = [
    None,
    CONTINUE,
    ACCEPT,
    REJECT,
    TEMPFAIL,
    DISCARD,
    SKIP,
    reply(550, "5.7.1", "no"),
    reply(421, None, "100%"),
    KeyError("lost"),
    SystemExit(1),
    Answer(ACCEPT),
    Answer(DISCARD),
    "reject",
    0,
    Unspeakable(),
]


def outcome_of(value: Any, edits: str) -> Any:
    """A callback that asks for edits and progress, and then does what ``value`` says."""

    def callback(self: Any, *arguments: Any) -> Any:
        for edit in edits:
            if edit == "p":
                self.progress()
            elif edit == "h":
                self.message.add_header("X", "1")
            elif edit == "m":
                self.message.change_header("Subject", "new", index=2)
            elif edit == "b":
                self.message.replace_body([b"new"])
            elif edit == "q":
                self.message.quarantine("why")
        if isinstance(value, BaseException):
            raise value
        return value

    return callback


callbacks = st.builds(outcome_of, st.sampled_from(OUTCOMES), st.sampled_from(["", "", "p", "h", "hmb", "qb", "pm"]))
NOTICES = ("on_rejected_rcpt", "on_error")


def failing_init(self: Any) -> None:
    raise KeyError("no pool")


@st.composite
def filter_classes(draw: st.DrawFn) -> type[Filter]:
    """Classes with any callbacks; those that take notice are always there, to be counted."""
    names = draw(st.lists(st.sampled_from([*STEP_CALLBACKS, *NOTICES]), unique=True))
    namespace: dict[str, Any] = {name: draw(callbacks) for name in names}
    for name in names:
        if name in QUIET_CALLBACKS + CONTENT_CALLBACKS and draw(st.booleans()):
            namespace[name] = (no_reply if name in QUIET_CALLBACKS else early_verdict)(namespace[name])
    namespace |= dict.fromkeys(("on_abort", "on_message_end", "on_close"))
    namespace["error_verdict"] = draw(st.sampled_from([TEMPFAIL, REJECT, ACCEPT, DISCARD, CONTINUE]))
    if draw(st.integers(0, 9)) == 0:
        namespace["__init__"] = failing_init
    if draw(st.integers(0, 4)) == 0:
        namespace["on_negotiate"] = draw(
            st.sampled_from([Wish(), Wish(actions=Action(0), leading_space=True), KeyError("lost"), "all"])
        )
    made_class: type[Filter] = made(**namespace)
    return made_class


offers = st.one_of(
    st.sampled_from([V6, V4, V2, codec.Negotiate(6, 0x1FF, 0x100000)]),
    st.builds(codec.Negotiate, st.integers(2, 7), st.integers(0, 0x1FF), st.integers(0, 0x3FFFFFFF)),
)

REFUSED = codec.Macros(b"R", ((b"{rcpt_mailer}", b"error"),))
COMMANDS: list[codec.Command] = [
    CONNECT,
    HELO,
    MAIL,
    RCPT,
    DATA,
    HEADER,
    EOH,
    BODY,
    EOM,
    codec.EndOfMessage(b"last"),
    UNKNOWN,
    ABORT,
    QUIT_NC,
    REFUSED,
    POSTFIX,
    SENDMAIL,
]
ORDERLY = [CONNECT, HELO, MAIL, RCPT, DATA, HEADER, EOH, BODY, EOM]
conversations = st.one_of(
    st.lists(st.sampled_from(COMMANDS), max_size=30),
    # Mostly in order, with something unexpected in some places.
    st.lists(st.tuples(st.integers(0, 8), st.sampled_from(COMMANDS)), max_size=4).map(
        lambda changes: inserted(ORDERLY * 2, changes)
    ),
)


def inserted(commands: list[Any], changes: list[tuple[int, Any]]) -> list[codec.Command]:
    for place, command in changes:
        commands.insert(place, command)
    return commands


def letter_of(command: codec.Command) -> str:
    return chr(codec.encode(command)[4])


def check_answer(command: codec.Command, answers: list[codec.Response], protocol: int) -> None:
    """Exactly one final reply where one is expected, the last; edits and PROGRESS only where both MTAs take them."""
    letter = letter_of(command)
    sent = letters(answers)
    expected = letter in NO_REPLY_BITS and not protocol & NO_REPLY_BITS[letter]
    final = [answer for answer in sent if answer in FINAL]
    assert len(final) == expected, (command, sent)
    if sent and expected:
        assert sent[-1] == final[0]
    assert set(sent) <= FINAL | MODIFICATIONS
    if letter != "E":
        assert not set(sent) & MODIFICATIONS, "modifications go out at the end only"
    if letter != "B":
        assert "s" not in sent, "SKIP only for the body"
    if letter in "CHU":
        assert not set(sent) & set("ds")
    if letter == "U":
        assert "a" not in sent
    assert not sent or ORDER.fullmatch(sent), sent


# -- properties -------------------------------------------------------------------------------------------------------


@settings(max_examples=400)
@given(filter_classes(), offers, conversations)
def test_every_command_gets_its_one_answer(
    filter_class: type[Filter], offer: codec.Negotiate, commands: list[codec.Command]
) -> None:
    mta = Mta(filter_class, offer)
    (agreed,) = mta.agreed
    assert isinstance(agreed, codec.Negotiate)
    for command in commands:
        check_answer(command, mta.send(command), agreed.protocol)
    assert mta.session.error is None
    assert mta.eof() == []
    assert mta.session.phase is Phase.CLOSED
    assert mta.conversation.message is None
    assert mta.conversation.filter is None


@settings(max_examples=300)
@given(filter_classes(), conversations)
def test_every_message_ends_once(filter_class: type[Filter], commands: list[codec.Command]) -> None:
    mta = Mta(filter_class)
    for command in commands:
        mta.send(command)
    mta.eof()
    if "__init__" in mta.failed:
        return
    ends = [arguments[0] for name, *arguments in mta.calls if name == "on_message_end"]
    assert ends.count(None) == mta.names.count("on_abort")
    assert len(ends) - ends.count(None) == mta.messages
    assert len(ends) == len(mta.edits)
    if "on_mail" in filter_class._fastmilter_plan.overridden:
        assert len(ends) == mta.names.count("on_mail")
    for name in ("on_connect", "on_helo", "on_mail", "on_close"):
        assert mta.names.count(name) <= len(commands) + 1
    assert mta.names[-1:] == ["on_close"] or commands[-1:] == [QUIT_NC] or QUIT_NC in commands


@settings(max_examples=200)
@given(filter_classes(), offers, conversations, st.data())
def test_any_split_of_the_stream_gives_the_same(
    filter_class: type[Filter], offer: codec.Negotiate, commands: list[codec.Command], data: st.DataObject
) -> None:
    stream = codec.encode(offer) + b"".join(map(codec.encode, commands))
    whole, pieces = Mta(filter_class, None), Mta(filter_class, None)
    answers = whole.feed(stream) + whole.eof() + whole.transmitted
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    received = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += pieces.feed(stream[start:end])
    received += pieces.eof() + pieces.transmitted
    assert shown(pieces) == shown(whole)
    assert sorted(letters(received)) == sorted(letters(answers))
    if not whole.transmitted:
        assert received == answers


def shown(mta: Mta) -> tuple[Any, ...]:
    """What can be compared of two runs of one class: errors are not equal to each other, but their texts are."""
    calls = [tuple(str(part) for part in call if not isinstance(part, BaseException)) for call in mta.calls]
    return calls, mta.failed, mta.complaints, mta.messages


WATCHING = made(**dict.fromkeys([*STEP_CALLBACKS, "on_abort", "on_message_end", "on_close"]))


def check_hostile(mta: Mta, chunks: list[bytes]) -> None:
    for chunk in chunks:
        mta.feed(chunk)
    mta.eof()
    assert mta.session.error is None or isinstance(mta.session.error, RemoteProtocolError)
    assert mta.session.phase is Phase.CLOSED
    assert mta.failures == []
    assert mta.names.count("on_mail") == mta.names.count("on_message_end")
    assert mta.names[-1] == "on_close"


@settings(max_examples=400)
@given(st.booleans(), st.lists(st.binary(max_size=60), max_size=6))
def test_arbitrary_bytes(negotiated: bool, chunks: list[bytes]) -> None:
    mta = Mta(WATCHING, V6 if negotiated else None)
    if negotiated:
        mta.send(CONNECT, MAIL)
    check_hostile(mta, chunks)


@settings(max_examples=400)
@given(st.lists(st.sampled_from(COMMANDS), max_size=10), st.data())
def test_a_stream_with_faults(commands: list[codec.Command], data: st.DataObject) -> None:
    stream = bytearray(b"".join(map(codec.encode, commands)))
    for _ in range(data.draw(st.integers(1, 4))):
        if stream:
            place = data.draw(st.integers(0, len(stream) - 1))
            stream[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    check_hostile(Mta(WATCHING), [bytes(stream)])


@settings(max_examples=200)
@given(st.lists(strategies.commands, max_size=8))
def test_any_well_formed_commands(commands: list[codec.Command]) -> None:
    check_hostile(Mta(WATCHING), [codec.encode(command) for command in commands])
