"""The filter's side as a state machine, without a filter: events out, verdicts in, one reply where one is due."""

from collections.abc import Iterable, Iterator

import pytest

from fastmilter import codec
from fastmilter.constants import ALL_ACTIONS, ALL_PROTOCOL, STEPS, ProtocolFlag, Step
from fastmilter.errors import NotNegotiated, RemoteProtocolError
from fastmilter.events import CLOSED, DROPPED, Closed, Dropped, Event, OutOfOrder
from fastmilter.negotiation import STEP_NUMBERS, Offer, Wish, negotiate
from fastmilter.replies import ACCEPT, CONTINUE, DISCARD, REJECT, SKIP, TEMPFAIL, Verdict, VerdictKind, reply
from fastmilter.session import ADMISSIBLE, Phase, Session
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
    QUIT,
    QUIT_NC,
    RCPT,
    UNKNOWN,
    V6,
    letters,
)

COMMANDS: dict[Step, codec.Command] = {
    Step.CONNECT: CONNECT,
    Step.HELO: HELO,
    Step.MAIL: MAIL,
    Step.RCPT: RCPT,
    Step.DATA: DATA,
    Step.HEADER: HEADER,
    Step.END_OF_HEADERS: EOH,
    Step.BODY: BODY,
    Step.END_OF_MESSAGE: EOM,
    Step.UNKNOWN: UNKNOWN,
}
SILENT = frozenset(STEPS)
"""A wish for no replies at all; the end of the message is answered all the same."""
NO = reply(550, "5.7.1", "no")
BUSY = reply(451, None, "busy")


class Player:
    """A negotiated session and the filter behind it, played by hand."""

    def __init__(self, no_reply: Iterable[Step] = (), never: Iterable[Step] = (), protocol: int = ALL_PROTOCOL) -> None:
        self.session = Session()
        offer = codec.Negotiate(6, ALL_ACTIONS, protocol)
        self.feed(offer)
        assert isinstance(self.session.next_event(), codec.Negotiate)
        wish = Wish(no_reply=frozenset(no_reply), never=frozenset(never))
        self.session.agree(negotiate(Offer.of(offer), wish))
        assert self.sent() == "O"

    def feed(self, *commands: codec.Command) -> None:
        self.session.receive(b"".join(map(codec.encode, commands)))

    def sent(self) -> str:
        decoder = codec.ResponseDecoder()
        decoder.feed(b"".join(self.session.out))
        self.session.out.clear()
        return letters(decoder)

    def events(self) -> list[Event]:
        return list(iter(self.session.next_event, None))

    def play(self, command: codec.Command, verdict: Verdict | None = CONTINUE) -> str:
        """Send one command, answer it with ``verdict`` if it reaches the filter; return what was sent.

        ``None`` spares it, as a step is whose callback must not be called any more.
        """
        self.feed(command)
        event = self.session.next_event()
        if event is not None and not isinstance(event, Dropped | Closed | OutOfOrder):
            assert event == command
            if isinstance(event, codec.EndOfMessage):
                self.session.finish(verdict or self.session.kept or CONTINUE)
            elif verdict is None:
                self.session.spare()
            else:
                self.session.answer(verdict)
        return self.sent()

    def up_to(self, step: Step) -> None:
        """Play everything before ``step``, answered CONTINUE."""
        for before, command in COMMANDS.items():
            if before is (Step.DATA if step is Step.UNKNOWN else step):
                return
            self.play(command)


def table(player: Player, *steps: Step) -> str:
    """What is sent at each step if the filter is spared: ``-`` for nothing."""
    return " ".join(player.play(COMMANDS[step], None) or "-" for step in steps)


REST = (Step.RCPT, Step.DATA, Step.HEADER, Step.END_OF_HEADERS, Step.BODY, Step.END_OF_MESSAGE)

# -- verdicts where a reply is due ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "verdict"),
    [
        (step, verdict)
        for step in STEPS
        for verdict in (CONTINUE, ACCEPT, REJECT, TEMPFAIL, DISCARD, SKIP, NO)
        if verdict.kind in ADMISSIBLE[STEP_NUMBERS[step]]
    ],
    ids=str,
)
def test_every_admissible_verdict_is_sent_once(step: Step, verdict: Verdict) -> None:
    player = Player()
    player.up_to(step)
    expected = letters([codec.decode_response(verdict.packet[4:])])
    if verdict is SKIP and step is not Step.BODY:
        expected = "c"
    assert player.play(COMMANDS[step], verdict) == expected


def test_the_table_of_admissible_verdicts() -> None:
    every = set(VerdictKind)
    refusals = {VerdictKind.REJECT, VerdictKind.TEMPFAIL, VerdictKind.REPLY}
    assert dict(zip(STEPS, map(set, ADMISSIBLE), strict=True)) == {
        Step.CONNECT: every - {VerdictKind.DISCARD, VerdictKind.SKIP},
        Step.HELO: every - {VerdictKind.DISCARD, VerdictKind.SKIP},
        Step.MAIL: every,
        Step.RCPT: every,
        Step.DATA: every,
        Step.HEADER: every,
        Step.END_OF_HEADERS: every,
        Step.BODY: every,
        Step.END_OF_MESSAGE: every,
        Step.UNKNOWN: refusals | {VerdictKind.CONTINUE},
    }


def test_skip_is_not_sent_where_it_was_not_agreed() -> None:
    player = Player(protocol=int(ALL_PROTOCOL & ~ProtocolFlag.SKIP))
    player.up_to(Step.BODY)
    assert player.play(BODY, SKIP) == "c"


@pytest.mark.parametrize(
    ("verdict", "later"),
    [(ACCEPT, "c c c c c c"), (REJECT, "r r r r r r"), (NO, "y y y y y y"), (DISCARD, "c c c c c d")],
)
def test_a_message_that_is_over_is_answered_without_the_filter(verdict: Verdict, later: str) -> None:
    player = Player()
    player.up_to(Step.MAIL)
    player.play(MAIL, verdict)
    assert not player.session.in_message
    assert table(player, *REST) == later
    assert player.events() == []


@pytest.mark.parametrize("step", [Step.RCPT, Step.DATA])
@pytest.mark.parametrize("verdict", [REJECT, TEMPFAIL, NO, BUSY], ids=str)
def test_a_refused_recipient_or_data_leaves_the_message_open(step: Step, verdict: Verdict) -> None:
    player = Player()
    player.up_to(step)
    player.play(COMMANDS[step], verdict)
    assert player.session.in_message
    assert [player.play(command) for command in (RCPT, DATA, HEADER, EOH, BODY, EOM)] == ["c"] * 6


@pytest.mark.parametrize("step", [Step.MAIL, Step.HEADER, Step.END_OF_HEADERS, Step.BODY])
def test_a_refusal_elsewhere_ends_the_message(step: Step) -> None:
    player = Player()
    player.up_to(step)
    player.play(COMMANDS[step], REJECT)
    assert not player.session.in_message
    assert player.play(MAIL) == "c", "the next one is served"


@pytest.mark.parametrize("step", [Step.CONNECT, Step.HELO])
@pytest.mark.parametrize(("verdict", "mail"), [(REJECT, "r"), (ACCEPT, "a"), (NO, "y")])
def test_a_verdict_on_the_session_holds_for_it(step: Step, verdict: Verdict, mail: str) -> None:
    player = Player()
    player.up_to(step)
    player.play(COMMANDS[step], verdict)
    player.feed(HELO, UNKNOWN, MAIL, RCPT, MAIL)
    assert player.events() == []
    unknown = "c" if verdict is ACCEPT else mail
    rcpt = "c" if verdict is ACCEPT else mail
    assert player.sent() == mail + unknown + mail + rcpt + mail


def test_unknown_changes_nothing() -> None:
    player = Player()
    player.up_to(Step.DATA)
    assert player.play(UNKNOWN, REJECT) == "r"
    assert player.session.in_message
    assert [player.play(command) for command in (DATA, EOM)] == ["c", "c"]


# -- kept verdicts (design 4.1) ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [Step.CONNECT, Step.HELO])
@pytest.mark.parametrize(
    ("verdict", "later"),
    [(REJECT, "r r r r r r r r"), (NO, "y y y y y y y y"), (TEMPFAIL, "t t t t t t t t"), (ACCEPT, "a a c c c c c c")],
)
def test_kept_from_connect_or_helo(step: Step, verdict: Verdict, later: str) -> None:
    """Delivered at every later answered step of the connection; ACCEPT once to HELO and once a message."""
    player = Player(no_reply={step})
    player.up_to(step)
    assert player.play(COMMANDS[step], verdict) == ""
    replies = [player.play(COMMANDS[name], None) or "-" for name in (Step.HELO, Step.MAIL, *REST)]
    if step is Step.HELO:
        assert replies[0] == "-"
        replies[0] = later[0]
    assert " ".join(replies) == later
    assert player.play(MAIL, None) == later[0], "the next message too"


@pytest.mark.parametrize(
    ("verdict", "later"),
    [
        (REJECT, "r r r r r r"),
        (NO, "y y y y y y"),
        (ACCEPT, "a c c c c c"),
        (DISCARD, "d c c c c d"),
        (CONTINUE, "c c c c c c"),
    ],
)
def test_kept_from_mail(verdict: Verdict, later: str) -> None:
    player = Player(no_reply={Step.MAIL})
    player.up_to(Step.MAIL)
    assert player.play(MAIL, verdict) == ""
    assert table(player, *REST) == later
    assert player.play(MAIL) == ""
    assert table(player, *REST) == "c c c c c c", "the next message is another one"


@pytest.mark.parametrize(
    ("verdict", "letter"), [(REJECT, "r"), (NO, "y"), (ACCEPT, "a"), (DISCARD, "d"), (CONTINUE, "c")]
)
def test_kept_from_mail_to_the_end_if_nothing_before_is_answered(verdict: Verdict, letter: str) -> None:
    player = Player(no_reply=SILENT)
    player.up_to(Step.MAIL)
    assert player.play(MAIL, verdict) == ""
    assert table(player, *REST) == f"- - - - - {letter}"


@pytest.mark.parametrize("step", [Step.DATA, Step.HEADER, Step.END_OF_HEADERS, Step.BODY])
@pytest.mark.parametrize(("verdict", "letter"), [(REJECT, "r"), (NO, "y"), (ACCEPT, "a"), (DISCARD, "d"), (SKIP, "c")])
@pytest.mark.parametrize("others_answer", [True, False])
def test_kept_from_the_content(step: Step, verdict: Verdict, letter: str, others_answer: bool) -> None:
    player = Player(no_reply={step} if others_answer else SILENT)
    player.up_to(step)
    assert player.play(COMMANDS[step], verdict) == ""
    later = REST[REST.index(step) + 1 : -1]
    assert table(player, *later) == " ".join("c" if others_answer else "-" for _ in later)
    assert table(player, Step.END_OF_MESSAGE) == letter


@pytest.mark.parametrize(("verdict", "later"), [(TEMPFAIL, "t t t t t"), (ACCEPT, "a c c c c"), (DISCARD, "d c c c d")])
def test_kept_from_a_recipient(verdict: Verdict, later: str) -> None:
    player = Player(no_reply={Step.RCPT})
    player.up_to(Step.RCPT)
    assert player.play(RCPT, verdict) == ""
    assert table(player, *REST[1:]) == later


def test_unknown_keeps_nothing() -> None:
    player = Player(no_reply={Step.UNKNOWN})
    player.up_to(Step.DATA)
    assert player.play(UNKNOWN, REJECT) == ""
    assert table(player, *REST[1:]) == "c c c c c"


def test_a_kept_verdict_ends_with_its_message() -> None:
    player = Player(no_reply=SILENT - {Step.MAIL})
    player.up_to(Step.DATA)
    player.play(DATA, REJECT)
    player.play(ABORT)
    player.play(MAIL)
    assert table(player, *REST) == "- - - - - c"


def test_carry() -> None:
    player = Player()
    player.up_to(Step.RCPT)
    player.feed(RCPT)
    player.session.next_event()
    player.session.carry(ACCEPT)
    assert player.sent() == "c"
    assert table(player, *REST) == "c c c c c a"


# -- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [RCPT, DATA, HEADER, EOH, BODY, EOM])
@pytest.mark.parametrize(
    "before", [(), (CONNECT,), (CONNECT, HELO), (CONNECT, MAIL, ABORT), (CONNECT, MAIL, RCPT, EOM)]
)
def test_a_step_without_a_message_is_out_of_order(before: tuple[codec.Command, ...], command: codec.Command) -> None:
    player = Player()
    for earlier in before:
        player.play(earlier)
    player.feed(command)
    (event,) = player.events()
    assert isinstance(event, OutOfOrder)
    assert COMMANDS[event.step] == command
    assert player.sent() == "t"


def test_out_of_order_is_silent_where_no_reply_was_agreed() -> None:
    player = Player(no_reply=SILENT)
    player.feed(RCPT, BODY)
    assert [type(event) for event in player.events()] == [OutOfOrder, OutOfOrder]
    assert player.sent() == ""


def test_connect_twice_or_within_a_message() -> None:
    player = Player()
    player.play(CONNECT)
    player.feed(CONNECT)
    (event,) = player.events()
    assert isinstance(event, OutOfOrder)
    assert player.sent() == "t"
    player.play(MAIL)
    assert player.play(CONNECT) == "t"
    assert player.session.in_message


@pytest.mark.parametrize(("command", "answer"), [(MAIL, "c"), (HELO, "c"), (QUIT, ""), (QUIT_NC, "")])
@pytest.mark.parametrize("at", [Step.RCPT, Step.DATA, Step.HEADER, Step.BODY, Step.END_OF_MESSAGE])
def test_what_ends_an_open_message(at: Step, command: codec.Command, answer: str) -> None:
    player = Player()
    player.up_to(at)
    player.feed(command)
    assert player.session.next_event() is DROPPED
    event = player.session.next_event()
    if command in (QUIT, QUIT_NC):
        assert event is CLOSED
    else:
        assert event == command
        player.session.answer(CONTINUE)
    assert player.sent() == answer


def test_abort_is_never_answered() -> None:
    player = Player()
    player.feed(ABORT, ABORT)
    assert player.events() == []
    player.up_to(Step.DATA)
    player.feed(ABORT, ABORT)
    assert player.events() == [DROPPED]
    assert player.sent() == ""


def test_quit_closes_and_the_rest_is_nothing() -> None:
    player = Player()
    player.feed(QUIT, MAIL, QUIT)
    assert player.events() == [CLOSED]
    assert player.session.phase is Phase.CLOSED
    player.feed(MAIL)
    player.session.receive_eof()
    assert player.events() == []
    assert player.sent() == ""


@pytest.mark.parametrize("at", [Step.CONNECT, Step.HELO, Step.MAIL, Step.RCPT, Step.BODY])
def test_the_end_of_the_stream(at: Step) -> None:
    player = Player()
    player.up_to(at)
    player.session.receive_eof()
    player.session.receive_eof()
    assert player.events() == ([DROPPED] if at in (Step.RCPT, Step.BODY) else []) + [CLOSED]


def test_what_is_buffered_comes_before_the_end() -> None:
    player = Player()
    player.feed(CONNECT)
    player.session.receive_eof()
    assert player.session.next_event() == CONNECT
    player.session.answer(CONTINUE)
    assert player.events() == [CLOSED]
    assert player.sent() == "c"


def test_a_new_connection_on_the_same_stream() -> None:
    player = Player()
    player.feed(codec.Macros(b"C", ((b"j", b"old"),)))
    player.play(CONNECT, REJECT)
    player.feed(QUIT_NC, CONNECT)
    assert player.session.next_event() is CLOSED
    assert player.session.stages[0] is not None, "on_close still sees them"
    assert player.session.next_event() == CONNECT
    player.session.answer(CONTINUE)
    assert player.session.stages[0] is None
    assert player.sent() == "c"
    assert player.play(MAIL) == "c", "the refusal was of the connection before"


# -- negotiation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [*COMMANDS.values(), ABORT, QUIT_NC, codec.Macros(b"C")], ids=str)
def test_nothing_comes_before_the_negotiation(command: codec.Command) -> None:
    session = Session()
    session.receive(codec.encode(command) + codec.encode(V6))
    assert session.next_event() is CLOSED
    assert isinstance(session.error, RemoteProtocolError)
    assert session.next_event() is None
    assert session.out == []


@pytest.mark.parametrize("data", [b"", b"\0\0", codec.encode(QUIT)])
def test_a_connection_that_ends_before_the_negotiation(data: bytes) -> None:
    session = Session()
    session.receive(data)
    session.receive_eof()
    assert session.next_event() is CLOSED
    assert session.error is None


@pytest.mark.parametrize("at", [Step.CONNECT, Step.MAIL, Step.RCPT, Step.END_OF_MESSAGE])
def test_a_second_negotiation(at: Step) -> None:
    player = Player()
    player.up_to(at)
    player.feed(V6, MAIL)
    assert player.events() == ([DROPPED] if at in (Step.RCPT, Step.END_OF_MESSAGE) else []) + [CLOSED]
    assert "second time" in str(player.session.error)
    assert player.sent() == ""


def test_a_refused_negotiation() -> None:
    session = Session()
    session.receive(codec.encode(V6) + codec.encode(CONNECT))
    assert session.next_event() == V6
    error = NotNegotiated("no")
    session.refuse(error)
    assert session.next_event() is CLOSED
    assert session.error is error
    assert session.out == []


@pytest.mark.parametrize(
    "garbage", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"GET / HTTP/1.1\r\n", b"\0\0\0\x01Z", b"\0\0\0\x01H"]
)
@pytest.mark.parametrize("at", [Step.CONNECT, Step.RCPT, Step.END_OF_MESSAGE])
def test_a_peer_that_breaks_the_protocol(at: Step, garbage: bytes) -> None:
    player = Player()
    player.up_to(at)
    player.feed(ABORT)
    player.session.receive(garbage)
    player.session.receive(codec.encode(MAIL))
    assert player.events()[-1] is CLOSED
    assert isinstance(player.session.error, RemoteProtocolError)
    player.session.receive(b"more")
    assert player.events() == []
    assert player.sent() == ""


def test_mid_packet() -> None:
    player = Player()
    assert not player.session.mid_packet
    player.session.receive(codec.encode(MAIL)[:7])
    assert player.events() == []
    assert player.session.mid_packet
    player.session.receive(codec.encode(MAIL)[7:])
    assert player.session.next_event() == MAIL
    assert not player.session.mid_packet


# -- the end of a message ---------------------------------------------------------------------------------------------


def test_what_comes_behind_a_message_waits_for_its_tail() -> None:
    player = Player()
    player.up_to(Step.END_OF_MESSAGE)
    player.feed(EOM, MAIL)
    assert player.session.next_event() == EOM
    tail: Iterator[bytes] = iter([codec.encode(codec.ReplaceBody(b"new")), ACCEPT.packet])
    player.session.finish(ACCEPT, [codec.encode(codec.AddHeader(b"X", b"1"))], tail)
    assert player.session.next_event() is None
    assert player.session.tail is tail
    assert player.sent() == "h"
    player.session.out.extend(tail)
    player.session.tail = None
    assert player.sent() == "ba"
    assert player.session.next_event() == MAIL


def test_skip_at_the_end_means_continue() -> None:
    player = Player()
    player.up_to(Step.END_OF_MESSAGE)
    assert player.play(EOM, SKIP) == "c"


@pytest.mark.parametrize(
    ("no_reply", "never", "step", "sendmail", "postfix"),
    [
        ((), (), Step.END_OF_MESSAGE, True, True),
        ((), (), Step.BODY, False, True),
        ((), (), Step.MAIL, False, True),
        ((Step.BODY,), (), Step.BODY, True, True),
        ((Step.END_OF_HEADERS, Step.BODY), (), Step.END_OF_HEADERS, True, True),
        ((Step.END_OF_HEADERS,), (), Step.END_OF_HEADERS, False, False),
        ((Step.RCPT,), (), Step.RCPT, False, False),
        ((Step.CONNECT,), (), Step.CONNECT, False, False),
        ((Step.HEADER,), (Step.END_OF_HEADERS, Step.BODY), Step.HEADER, True, True),
        ((Step.END_OF_HEADERS,), (Step.BODY,), Step.END_OF_HEADERS, True, True),
    ],
)
def test_progress_only_before_the_reply_to_the_end(
    no_reply: tuple[Step, ...], never: tuple[Step, ...], step: Step, sendmail: bool, postfix: bool
) -> None:
    for is_postfix, allowed in ((False, sendmail), (True, postfix)):
        player = Player(no_reply=no_reply, never=never)
        player.up_to(step)
        player.feed(COMMANDS[step])
        player.session.next_event()
        assert [player.session.progress(is_postfix) for _ in range(3)] == [allowed] * 3
        assert player.sent() == ("p" if allowed else ""), "what waits to be sent does not pile up"


# -- leaving (design 4.6) ---------------------------------------------------------------------------------------------


def test_drain_refuses_new_messages_and_serves_the_one_in_work() -> None:
    player = Player()
    player.up_to(Step.RCPT)
    player.session.drain = 1
    assert [player.play(command) for command in (RCPT, DATA, HEADER, EOH, BODY, EOM)] == ["c"] * 6
    player.feed(MAIL, RCPT)
    assert player.events() == []
    assert b"421 4.7.0" in b"".join(player.session.out)
    assert player.sent() == "yy"


def test_further_drain_refuses_recipients_and_data_but_not_content() -> None:
    player = Player()
    player.up_to(Step.RCPT)
    player.session.drain = 2
    player.feed(RCPT, DATA)
    assert player.events() == []
    assert player.sent() == "yy"
    assert player.session.in_message
    player.feed(ABORT)
    assert player.events() == [DROPPED]
    content = Player()
    content.up_to(Step.HEADER)
    content.session.drain = 2
    assert [content.play(command) for command in (HEADER, EOH, BODY, EOM)] == ["c"] * 4


def test_drain_without_an_answer_to_mail_lets_the_message_in() -> None:
    player = Player(no_reply={Step.MAIL})
    player.session.drain = 1
    assert player.play(MAIL) == ""
    assert player.session.in_message


@pytest.mark.parametrize(("verdict", "answer"), [(ACCEPT, b"421"), (NO, b"550 5.7.1")])
def test_drain_and_a_verdict_on_the_session(verdict: Verdict, answer: bytes) -> None:
    player = Player(no_reply={Step.CONNECT})
    player.play(CONNECT, verdict)
    player.session.drain = 1
    player.feed(MAIL)
    assert player.events() == []
    assert answer in b"".join(player.session.out)


@pytest.mark.parametrize(
    ("never", "past"),
    [
        ((), {Step.DATA, Step.HEADER, Step.END_OF_HEADERS, Step.BODY}),
        ((Step.DATA,), {Step.RCPT, Step.UNKNOWN, Step.HEADER, Step.END_OF_HEADERS, Step.BODY}),
        ((Step.DATA, Step.RCPT), {Step.MAIL, Step.UNKNOWN, Step.HEADER, Step.END_OF_HEADERS, Step.BODY}),
    ],
)
def test_past_data(never: tuple[Step, ...], past: set[Step]) -> None:
    found = set()
    for step in list(STEPS)[STEP_NUMBERS[Step.MAIL] :]:
        player = Player(never=never)
        player.play(MAIL)
        if step is not Step.MAIL:
            player.play(COMMANDS[step])
        if player.session.past_data and step not in never:
            found.add(step)
    assert found == past, "with its verdict a message is past nothing"
