"""Header fields one after the other without a message each: when there is one, when not, and what is left."""

from typing import Any

import pytest

from fastmilter import ACCEPT, CONTINUE, REJECT, SKIP, Step, Verdict, codec
from fastmilter.constants import STEPS
from fastmilter.errors import RemoteProtocolError
from fastmilter.events import Closed, Dropped, OutOfOrder
from fastmilter.limits import Limits
from fastmilter.negotiation import Offer, Wish, negotiate
from fastmilter.session import Session
from tests.support.playing import (
    ABORT,
    BODY,
    CONNECT,
    EOH,
    EOM,
    HEADER,
    HELO,
    MAIL,
    QUIT,
    RCPT,
    UNKNOWN,
    V2,
    V6,
    Mta,
    letters,
    made,
)
from tests.support.strategies import framed

SUBJECT = framed(b"LSubject\0 hi\0")
SILENT = frozenset(STEPS)


def decoder(data: bytes) -> codec.CommandDecoder:
    made = codec.CommandDecoder()
    made.feed(data)
    return made


# -- the decoder ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "name", "value"),
    [
        (b"Subject\0 hi\0", "Subject", " hi"),
        (b"Subject\0\0", "Subject", ""),
        (b"X\0y\0", "X", "y"),
        (b"X\0y\0more", "X", "y"),
        (b"X\0y\0more\0and more\0", "X", "y"),
        (b"X\0a\n\tb\r\n c\0", "X", "a\n\tb\r\n c"),
        (b"a b\0x\0", "a b", "x"),  # whether a name may be so is the filter's business
        (b"\xc3\xa9\0\xc3\xa9\0", "é", "é"),
        (b"\xff\xe9\0\xfe\0", "\udcff\udce9", "\udcfe"),
        (b"X\0\xed\xa0\x80\0", "X", "\udced\udca0\udc80"),
        (b"Subjec\xf4\0v\0", "Subjec\udcf4", "v"),
    ],
)
def test_a_field(content: bytes, name: str, value: str) -> None:
    one = decoder(framed(b"L" + content))
    assert one.next_field() == (name, value)
    assert (one.buffered, one.next_field(), one.next_message()) == (0, None, None)
    message = decoder(framed(b"L" + content)).next_message()
    assert message == codec.Header(name.encode(errors="surrogateescape"), value.encode(errors="surrogateescape"))


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (b"", "0 bytes"),
        (b"\0", "1 byte"),
        (b"\0\0", "2 bytes"),
        (b"\0\0\0", "the field name is empty"),
        (b"\0value\0", "the field name is empty"),
        (b"name", "no NUL ends the field name"),
        (b"name\0", "no NUL ends the field value"),
        (b"name\0value", "no NUL ends the field value"),
    ],
)
def test_what_is_no_field_is_left_to_be_refused(content: bytes, wrong: str) -> None:
    one = decoder(SUBJECT + framed(b"L" + content) + SUBJECT)
    assert one.next_field() == ("Subject", " hi")
    assert one.next_field() is None
    with pytest.raises(RemoteProtocolError, match=wrong) as first:
        one.next_message()
    assert one.next_field() is None, "after a fault nothing comes"
    with pytest.raises(RemoteProtocolError) as again:
        one.next_message()
    assert str(again.value) == str(first.value)
    fresh = decoder(framed(b"L" + content))
    with pytest.raises(RemoteProtocolError) as alone:
        fresh.next_message()
    assert str(alone.value) == str(first.value)


@pytest.mark.parametrize("command", [EOH, BODY, EOM, ABORT, MAIL, QUIT, UNKNOWN, codec.Macros(b"L", ((b"a", b"b"),))])
def test_what_is_something_else_is_left_where_it_is(command: codec.Command) -> None:
    packet = codec.encode(command)
    one = decoder(packet + SUBJECT)
    for _ in range(2):
        assert one.next_field() is None
        assert one.buffered == len(packet) + len(SUBJECT)
    assert one.next_message() == command
    assert one.next_field() == ("Subject", " hi")


@pytest.mark.parametrize("head", [b"\0\0\0\0", b"\0\1\0\1L", b"\xff\xff\xff\xffL", b"\0\0\0\x05?", b"\0\0\0\x01L"])
def test_a_wrong_head_is_left_to_be_refused(head: bytes) -> None:
    one = decoder(head)
    assert one.next_field() is None
    with pytest.raises(RemoteProtocolError):
        one.next_message()


def test_macros_that_nobody_wants_are_passed_over() -> None:
    macros = framed(b"DLi\x004F\0")
    one = codec.CommandDecoder(65535, 0)
    one.feed((macros + SUBJECT) * 3 + macros + codec.encode(EOH))
    assert [one.next_field() for _ in range(4)] == [("Subject", " hi")] * 3 + [None]
    assert one.next_message() == EOH
    assert one.buffered == 0


def test_a_field_in_pieces_comes_when_it_is_whole() -> None:
    one = codec.CommandDecoder()
    for number in range(len(SUBJECT)):
        one.feed(SUBJECT[number : number + 1])
        assert (one.next_field() is None) == (number + 1 < len(SUBJECT))
    assert one.buffered == 0


def test_what_was_lent_is_copied() -> None:
    memory = bytearray(SUBJECT + framed(b"LX\0\xe9\0") + SUBJECT[:5])
    one = codec.CommandDecoder()
    one.lend(memoryview(memory), 0, len(memory))
    fields = [one.next_field() for _ in range(3)]
    one.settle()
    memory[:] = b"\xaa" * len(memory)
    assert fields == [("Subject", " hi"), ("X", "\udce9"), None]
    one.feed(SUBJECT[5:])
    assert one.next_field() == ("Subject", " hi")


@pytest.mark.parametrize("room", [0, 4, 5, 6, 50])
def test_the_beginning_of_a_packet_is_put_in_front_where_there_is_room(room: int) -> None:
    one = decoder(SUBJECT[:5])
    rest = SUBJECT[5:] + SUBJECT
    memory = bytearray(b"\xbb" * room + rest)
    one.lend(memoryview(memory), room, len(rest))
    assert one.buffered == 2 * len(SUBJECT)
    front = b"\xbb" * (room - 5) + SUBJECT[:5] if room >= 5 else b"\xbb" * room
    assert memory == front + rest, "no more is overwritten than is needed"
    assert [one.next_field() for _ in range(3)] == [("Subject", " hi")] * 2 + [None]
    one.settle()
    assert one.buffered == 0


def test_what_was_lent_twice_is_settled_in_between() -> None:
    one = codec.CommandDecoder()
    memory = bytearray(100)
    memory[50:53] = SUBJECT[:3]
    one.lend(memoryview(memory), 50, 3)
    rest = SUBJECT[3:]
    other = bytearray(b"\xbb" * 3) + rest
    one.lend(memoryview(other), 3, len(rest))
    memory[:] = bytes(100)
    assert one.next_field() == ("Subject", " hi")


@pytest.mark.parametrize(("start", "size"), [(-1, 1), (0, -1), (0, 11), (5, 6), (11, 0), (1 << 62, 1 << 62)])
def test_what_cannot_be_lent(start: int, size: int) -> None:
    one = codec.CommandDecoder()
    with pytest.raises(ValueError, match="cannot take"):
        one.lend(memoryview(bytearray(10)), start, size)
    with pytest.raises(ValueError, match="must be writable"):
        one.lend(memoryview(bytes(10)), 0, 5)
    with pytest.raises(TypeError, match="expected a memoryview"):
        one.lend(bytearray(10), 0, 5)  # type: ignore[arg-type]
    assert one.buffered == 0


# -- the session ------------------------------------------------------------------------------------------------------


def in_headers(no_reply: frozenset[Step] = SILENT, offer: codec.Negotiate = V6) -> Session:
    """A session that has just shown the first field of a message, answered."""
    session = Session()
    session.receive(codec.encode(offer))
    session.next_event()
    session.agree(negotiate(Offer.of(offer), Wish(no_reply=no_reply)))
    for command in (CONNECT, HELO, MAIL, RCPT, HEADER):
        session.receive(codec.encode(command))
        assert session.next_field() is None, "not before there was one"
        assert session.next_event() == command
        session.answer(CONTINUE)
    return session


def test_a_session_gives_fields_between_its_events() -> None:
    session = in_headers()
    session.receive(SUBJECT * 2 + codec.encode(EOH) + SUBJECT)
    assert [session.next_field() for _ in range(3)] == [("Subject", " hi")] * 2 + [None]
    assert session.next_event() == EOH
    assert session.next_field() is None, "the header section is over"
    assert session.next_event() == codec.Header(b"Subject", b" hi")
    assert session.next_field() is None


@pytest.mark.parametrize("offer", [V6, V2])
@pytest.mark.parametrize("verdict", [CONTINUE, SKIP, REJECT, ACCEPT])
def test_where_each_is_answered_each_is_answered(offer: codec.Negotiate, verdict: Verdict) -> None:
    """An MTA waits for each, but a peer that does not must get its answers all the same."""
    session = in_headers(frozenset() if offer is V6 else SILENT, offer)
    session.out.clear()
    session.receive(SUBJECT * 3 + codec.encode(EOH))
    assert session.next_field() == ("Subject", " hi")
    assert session.reply_due
    ended = session.answer(verdict)
    assert ended == (verdict in (REJECT, ACCEPT))
    if ended:
        assert session.next_field() is None, "the message is over"
        assert session.next_event() is None
        rest = verdict.packet if verdict is REJECT else CONTINUE.packet
        assert session.out == [verdict.packet] + [rest] * 3
    else:
        assert session.out == [CONTINUE.packet], "SKIP is for the body"
        assert session.next_field() == ("Subject", " hi")
        session.answer(CONTINUE)
        assert session.next_field() == ("Subject", " hi")
        session.answer(CONTINUE)
        assert session.next_field() is None
        assert session.next_event() == EOH
        assert session.out == [CONTINUE.packet] * 3


@pytest.mark.parametrize("command", [ABORT, MAIL, HELO, EOM])
def test_there_is_none_once_the_message_is_over(command: codec.Command) -> None:
    session = in_headers()
    session.receive(codec.encode(command) + SUBJECT)
    assert type(session.next_event()) in (Dropped, codec.EndOfMessage)
    if command is EOM:
        session.finish(CONTINUE)
    assert session.next_field() is None
    assert type(session.next_event()) is {MAIL: codec.MailFrom, HELO: codec.Helo}.get(command, OutOfOrder)
    assert session.next_field() is None


def test_there_is_none_behind_a_new_message_that_waits() -> None:
    """MAIL without ABORT: the drop of the old message comes first, then MAIL, and only then what follows."""
    session = in_headers()
    session.receive(codec.encode(MAIL) + SUBJECT)
    events = []
    while (event := session.next_event()) is not None:
        events.append(type(event).__name__)
        if event == MAIL:
            session.answer(CONTINUE)
        assert session.next_field() is None
    assert events == ["Dropped", "MailFrom", "Header"]


def test_a_fault_comes_as_an_event() -> None:
    session = in_headers()
    session.receive(SUBJECT + framed(b"Lname\0") + SUBJECT)
    assert session.next_field() == ("Subject", " hi")
    assert session.next_field() is None
    assert [type(event).__name__ for event in (session.next_event(), session.next_event())] == ["Dropped", "Closed"]
    assert "no NUL ends the field value" in str(session.error)
    assert session.next_field() is None


def test_a_session_is_worked_off_when_all_that_was_lent_is_taken_up() -> None:
    session = in_headers()
    assert not session.is_worked_off(), "nothing is lent: next_event has to say so"
    memory = memoryview(bytearray(100) + SUBJECT + SUBJECT[:7])
    session.receive_lent(memory, 100, len(SUBJECT))
    assert not session.is_worked_off()
    assert session.next_field() == ("Subject", " hi")
    assert session.is_worked_off()
    assert session.next_event() is None
    session.receive_lent(memory, 100, len(SUBJECT) + 7)
    session.next_field()
    assert not session.is_worked_off(), "the beginning of a packet is left"
    assert session.next_event() is None
    session.settle()


@pytest.mark.parametrize("last", [QUIT, MAIL, None])
def test_a_session_with_more_to_tell_is_not_worked_off(last: codec.Command | None) -> None:
    """QUIT and MAIL drop the message first, and come after that; so does the end of the stream."""
    session = in_headers()
    stream = SUBJECT + (b"" if last is None else codec.encode(last))
    session.receive_lent(memoryview(bytearray(100) + stream), 100, len(stream))
    assert session.next_field() == ("Subject", " hi")
    if last is None:
        session.receive_eof()
        assert not session.is_worked_off()
    assert type(session.next_event()) is Dropped
    assert not session.is_worked_off()
    assert type(session.next_event()) is (codec.MailFrom if last is MAIL else Closed)


def test_the_end_of_the_stream_does_not_hide_fields() -> None:
    session = in_headers()
    session.receive(SUBJECT)
    session.receive_eof()
    assert session.next_field() == ("Subject", " hi")
    assert session.next_field() is None


# -- a filter ---------------------------------------------------------------------------------------------------------

FIELDS = tuple(codec.Header(b"X", b"%d" % number) for number in range(4))


def values(mta: Mta) -> list[str]:
    return [call[2] for call in mta.calls if call[0] == "on_header"]


def start(on_header: Any, marks: str = "", **callbacks: Any) -> Mta:
    mta = Mta(made(marks, on_header=on_header, **callbacks))
    mta.send(CONNECT, HELO, MAIL, RCPT)
    mta.calls.clear()
    return mta


@pytest.mark.parametrize("marks", ["", "early_verdict"])
def test_every_field_is_shown_once_in_order(marks: str) -> None:
    mta = start(None, marks)
    mta.send(
        FIELDS[0], codec.Macros(b"L", ((b"i", b"1"),)), *FIELDS[1:3], codec.Macros(b"M", ((b"i", b"2"),)), FIELDS[3]
    )
    assert values(mta) == ["0", "1", "2", "3"]
    assert mta.conversation.message is not None
    assert mta.conversation.message._shown == ["X"] * 4


def at_second(outcome: Any) -> Any:
    """Does ``outcome`` at the second field: it is the first that comes by ``next_field``."""

    def on_header(self: Any, name: str, value: str) -> Any:
        if value != "1":
            return None
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return on_header


@pytest.mark.parametrize("marks", ["", "early_verdict"])
def test_skip_spares_the_fields_behind_it(marks: str) -> None:
    mta = start(at_second(SKIP), marks, on_end_of_message=None)
    mta.send(*FIELDS, EOM)
    assert values(mta) == ["0", "1"]
    assert mta.names[-1] == "on_end_of_message"
    mta.send(MAIL, *FIELDS)
    assert values(mta) == ["0", "1"] * 2, "the next message is looked at again"


@pytest.mark.parametrize(
    ("outcome", "letter"),
    [(REJECT, "r"), (ACCEPT, "a"), (KeyError("lost"), "t"), ("reject", "t"), (SystemExit(1), "t")],
    ids=repr,
)
def test_a_verdict_at_a_field_is_kept_and_the_rest_is_spared(outcome: Any, letter: str) -> None:
    mta = start(at_second(outcome), on_end_of_message=None)
    assert letters(mta.send(*FIELDS, EOM)) == letter
    assert values(mta) == ["0", "1"]
    assert mta.names == ["on_header", "on_header"]
    assert mta.failed == ([] if isinstance(outcome, Verdict) else ["on_header"])
    assert letters(mta.send(MAIL, FIELDS[0], EOM)) == "cc"


def test_on_error_comes_between_two_fields() -> None:
    mta = start(at_second(KeyError("lost")), on_error=CONTINUE)
    mta.send(*FIELDS)
    assert mta.names == ["on_header", "on_header", "on_error", "on_header", "on_header"]
    assert values(mta) == ["0", "1", "2", "3"]


def test_edits_at_fields_count_what_was_shown() -> None:
    """Also what came after a verdict or SKIP, and names of any kind."""

    def on_header(self: Any, name: str, value: str) -> Any:
        self.message.change_header("x", value + "!", index=len([n for n in self.message._shown if n.lower() == "x"]))
        return SKIP if value == "2" else None

    def on_end_of_message(self: Any) -> None:
        self.message.delete_header("X", index=5)
        self.message.change_header("X", "no such field", index=6)
        self.message.delete_headers("Subject")

    mta = start(on_header, on_end_of_message=on_end_of_message)
    odd = codec.Header(b"\xe9", b""), codec.Header(b"Subjec\xf4", b""), codec.Header(b"SUBJECT", b"")
    responses = mta.send(*FIELDS[:3], codec.Header(b"x", b"3"), *odd, HEADER, FIELDS[0], EOM)
    assert responses == [
        codec.ChangeHeader(5, b"X", b""),
        codec.ChangeHeader(3, b"x", b"2!"),
        codec.ChangeHeader(2, b"x", b"1!"),
        codec.ChangeHeader(2, b"Subject", b""),
        codec.ChangeHeader(1, b"x", b"0!"),
        codec.ChangeHeader(1, b"Subject", b""),
        codec.AddHeader(b"X", b"no such field"),
        codec.Continue(),
    ]


def test_a_callback_that_fails_at_a_field_loses_its_own_edits_only() -> None:
    def on_header(self: Any, name: str, value: str) -> None:
        self.message.add_header("X-Seen", value)
        if value == "1":
            raise KeyError("lost")

    mta = start(on_header, error_verdict=CONTINUE)
    assert mta.send(*FIELDS, EOM) == [*(codec.AddHeader(b"X-Seen", b"%d" % n) for n in (0, 2, 3)), codec.Continue()]


def test_fields_are_counted_before_the_filter_can_be_made() -> None:
    made_once: list[int] = []

    def fail_once(self: Any) -> None:
        made_once.append(1)
        if len(made_once) == 1:
            raise KeyError("not yet")

    mta = start(None, __init__=fail_once, error_verdict=CONTINUE)
    mta.send(*FIELDS)
    assert values(mta) == ["1", "2", "3"]
    assert mta.conversation.message is not None
    assert mta.conversation.message._shown == ["X"] * 4


def test_an_instance_may_have_a_callback_of_its_own() -> None:
    seen: list[str] = []

    def init(self: Any) -> None:
        self.on_header = lambda name, value: seen.append(value)

    mta = start(None, __init__=init)
    mta.send(*FIELDS)
    assert seen == ["0", "1", "2", "3"]


def in_a_row(mta: Mta, *commands: codec.Command) -> list[tuple[str, bool]]:
    """Have the calls made that ``commands`` lead to; return each callback and whether a field follows it in a row."""
    conversation, calls = mta.conversation, []
    mta.session.receive(b"".join([codec.encode(command) for command in commands]))
    while conversation.next_call():
        result = conversation.invoke()
        while result is None and conversation.next_in_row():
            calls.append((conversation.callback, True))
            result = conversation.invoke()
        calls.append((conversation.callback, False))
        conversation.returned(result)
    return [call for call in calls if call != ("__init__", False)]


def test_fields_come_in_a_row_where_nobody_waits_for_an_answer() -> None:
    mta = start(None, on_rcpt=None, on_end_of_message=None)
    calls = in_a_row(mta, RCPT, *FIELDS, EOM)
    assert calls == [
        ("on_rcpt", False),
        *[("on_header", True)] * 3,  # the first one comes by itself
        ("on_header", False),
        ("on_end_of_message", False),
    ]
    assert mta.session.out == [CONTINUE.packet] * 2


def test_no_fields_come_in_a_row_where_each_is_answered() -> None:
    mta = start(None, "early_verdict")
    assert in_a_row(mta, *FIELDS) == [("on_header", False)] * 4
    assert mta.session.out == [CONTINUE.packet] * 4


def test_a_verdict_ends_a_row() -> None:
    given = iter([None, None, REJECT])
    mta = start(lambda self, name, value: next(given))
    assert in_a_row(mta, *FIELDS, EOM) == [("on_header", True), ("on_header", True), ("on_header", False)]
    assert mta.session.out == [REJECT.packet]


def test_a_field_that_fails_in_a_row_is_answered_as_any_other() -> None:
    def on_header(self: Any, name: str, value: str) -> None:
        self.message.add_header("X-Seen", value)
        if value == "2":
            raise KeyError("lost")

    mta = start(on_header)
    assert mta.send(*FIELDS, EOM) == [codec.TempFail()]
    assert values(mta) == ["0", "1", "2"]
    assert mta.failed == ["on_header"]


@pytest.mark.parametrize("limit", [1, 2])
def test_a_limit_ends_a_row(limit: int) -> None:
    mta = start(None)
    mta.session.limits = Limits(fields=limit)
    mta.send(ABORT, MAIL, RCPT)
    mta.calls.clear()
    answers = mta.send(*FIELDS, EOM)
    assert values(mta) == ["0", "1", "2"][: limit + 1], "the first one beyond is still shown"
    assert [type(answer) for answer in answers] == [codec.ReplyCode]


def test_what_a_conversation_is_going_to_call_can_be_seen() -> None:
    mta = Mta(made(on_header=None))
    conversation = mta.conversation
    stream = b"".join([codec.encode(command) for command in (MAIL, FIELDS[0], FIELDS[1])])
    mta.session.receive(stream)
    shown = []
    while conversation.next_call():
        shown.append((conversation.callback, conversation.arguments))
        conversation.returned(conversation.invoke())
    assert shown == [("__init__", ()), ("on_header", ("X", "0")), ("on_header", ("X", "1"))]
