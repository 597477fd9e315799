"""``Chain``: several milters in a row, as Postfix and Sendmail play a message to them."""

import os
import socket
from collections.abc import Callable, Iterator

import pytest

from fastmilter import codec
from fastmilter.client import Chain, ChainOutcome, ConnectFailed, ConnectionLost, ProtocolBroken, TimedOut, Timeouts
from fastmilter.constants import Step
from fastmilter.errors import ConfigError, LocalProtocolError
from fastmilter.mta import MTAS
from fastmilter.replies import ACCEPT, CONTINUE, DISCARD, REJECT, TEMPFAIL, Verdict, reply
from tests.support.scripted_milter import Milter, Peer, Play, playing

PATIENT = Timeouts(connect=20, command=20, content=20)
MESSAGE = b"Subject: hi\r\nTo: b\r\n\r\nbody\r\n"
LETTERS: dict[str, type] = {
    "C": codec.Connect,
    "H": codec.Helo,
    "M": codec.MailFrom,
    "R": codec.RcptTo,
    "T": codec.Data,
    "L": codec.Header,
    "N": codec.EndOfHeaders,
    "B": codec.Body,
    "E": codec.EndOfMessage,
}
Answer = Callable[[codec.Command], list[codec.Response] | None]
"""What a milter answers; ``None``: nothing, it goes away."""


@pytest.fixture
def play() -> Iterator[Play]:
    yield from playing()


def milter(play: Play, *answers: tuple[str, Verdict | None], edits: tuple[codec.Modification, ...] = ()) -> Milter:
    """A milter that answers these verdicts at these commands (``None``: it dies there), and CONTINUE elsewhere."""
    planned = {LETTERS[letter]: verdict for letter, verdict in answers}

    def answer(command: codec.Command) -> list[codec.Response] | None:
        verdict = planned.get(type(command), CONTINUE)
        said = [] if verdict is None else [codec.decode_response(verdict.packet[4:])]
        before = list(edits) if isinstance(command, codec.EndOfMessage) else []
        return None if verdict is None else [*before, *said]

    return answering(play, answer)


def answering(play: Play, answer: Answer) -> Milter:
    def script(peer: Peer) -> None:
        peer.negotiate(actions=0x1FF)
        while (command := peer.read()) is not None and not isinstance(command, codec.Quit):
            if not isinstance(command, codec.Abort):
                said = answer(command)
                if said is None:
                    return
                peer.say(*said)

    return play(script)


def chain(*milters: Milter, mta: str = "postfix", action: str = "tempfail") -> Chain:
    return Chain([(milter.address, action) for milter in milters], mta=mta, timeouts=PATIENT)


def send(made: Chain, *names: str) -> ChainOutcome:
    return made.send_message(MESSAGE, "a@from.test", [f"{name}@rcpt.test" for name in names or ("b", "c")])


def letters(played: Milter) -> list[str]:
    """The commands of each connection, without macros."""
    played.close()
    return [peer.letters.replace("D", "") for peer in played.peers]


def test_each_sees_the_message_as_the_former_ones_left_it(play: Play) -> None:
    first = milter(
        play,
        edits=(
            codec.AddHeader(b"X-First", b"1"),
            codec.ChangeHeader(1, b"To", b""),
            codec.ReplaceBody(b"first\r\n"),
            codec.ChangeSender(b"<new@from.test>"),
            codec.AddRecipient(b"<d@rcpt.test>"),
        ),
    )
    second = milter(play, ("E", ACCEPT), edits=(codec.ChangeHeader(1, b"X-First", b"2"),))
    third = milter(play, edits=(codec.InsertHeader(0, b"X-Third", b"3"), codec.DeleteRecipient(b"<b@rcpt.test>")))
    outcome = send(chain(first, second, third))
    assert outcome.verdict == CONTINUE
    applied = outcome.apply()
    assert applied.message == b"X-Third: 3\r\nSubject: hi\r\nX-First: 2\r\n\r\nfirst\r\n"
    assert (applied.sender, applied.recipients) == ("new@from.test", ("c@rcpt.test", "d@rcpt.test"))
    assert applied.delivered
    assert [len(each.modifications) for each in outcome.milters] == [5, 1, 2]
    assert len(outcome.modifications) == 8
    assert [each.verdict for each in outcome.milters] == [CONTINUE, ACCEPT, CONTINUE]
    assert outcome.milters[1].message == b"Subject: hi\r\nX-First: 1\r\n\r\nfirst\r\n"
    assert outcome.milters[2].message == b"Subject: hi\r\nX-First: 2\r\n\r\nfirst\r\n"
    assert outcome.sender == "a@from.test"
    assert letters(first) == ["OCHMRRTLLNBEAAQ"]
    assert letters(third) == ["OCHMRRTLLNBEAAQ"]
    shown = [command for command in third.peers[0].seen if isinstance(command, codec.Header | codec.Body)]
    assert shown == [codec.Header(b"Subject", b"hi"), codec.Header(b"X-First", b"2"), codec.Body(b"first\r\n")]
    # The envelope is not told again.
    assert [command.sender for command in third.peers[0].seen if isinstance(command, codec.MailFrom)] == [
        b"<a@from.test>"
    ]


def test_steps_are_in_the_order_in_which_they_were_played(play: Play) -> None:
    outcome = send(chain(milter(play), milter(play)), "b")
    envelope = [Step.CONNECT, Step.HELO, Step.MAIL, Step.RCPT, Step.DATA]
    content = [Step.HEADER, Step.HEADER, Step.END_OF_HEADERS, Step.BODY, Step.END_OF_MESSAGE]
    assert [step.step for step in outcome.steps] == [step for step in envelope for _ in range(2)] + content * 2


# What Postfix 3.7.11 did with two milters: what the first one answers at a command, and which commands came to both.
STOPPED: list[tuple[str, Verdict, str, str]] = [
    ("C", REJECT, "OC", ""),
    ("H", REJECT, "OCH", "OCQ"),
    ("M", REJECT, "OCHMAAQ", "OCHAQ"),
    ("M", reply(451, "4.7.1", "later"), "OCHMAAQ", "OCHAQ"),
    ("M", DISCARD, "OCHMAAQ", "OCHAQ"),
    ("R", DISCARD, "OCHMRAAQ", "OCHMAAQ"),
    ("T", REJECT, "OCHMRRTAAQ", "OCHMRRAAQ"),
    ("L", REJECT, "OCHMRRTLAAQ", "OCHMRRTAAQ"),
    ("B", DISCARD, "OCHMRRTLLNBAAQ", "OCHMRRTAAQ"),
    ("E", TEMPFAIL, "OCHMRRTLLNBEAAQ", "OCHMRRTAAQ"),
    ("R", REJECT, "OCHMRRAAQ", "OCHMAAQ"),
]


@pytest.mark.parametrize(("at", "verdict", "first_sees", "second_sees"), STOPPED)
def test_a_negative_verdict_of_the_first_keeps_the_event_from_the_second(
    play: Play, at: str, verdict: Verdict, first_sees: str, second_sees: str
) -> None:
    first, second = milter(play, (at, verdict)), milter(play)
    outcome = send(chain(first, second))
    assert outcome.verdict == verdict
    assert outcome.milters[0].verdict == (CONTINUE if (at, verdict) == ("R", REJECT) else verdict)
    assert outcome.milters[1].verdict == CONTINUE
    assert not outcome.apply().delivered
    assert outcome.apply().message == MESSAGE
    assert letters(first) == [first_sees]
    assert letters(second) == ([second_sees] if second_sees else [])


@pytest.mark.parametrize(("at", "verdict", "second_sees", "first_sees"), STOPPED)
def test_a_negative_verdict_of_the_second_aborts_the_message_of_the_first(
    play: Play, at: str, verdict: Verdict, first_sees: str, second_sees: str
) -> None:
    first, second = milter(play), milter(play, (at, verdict))
    outcome = send(chain(first, second))
    assert outcome.verdict == verdict
    assert not outcome.apply().delivered
    assert letters(second) == [second_sees]
    (seen,) = letters(first)
    # The first one had the event, and for the content everything.
    content = at in "LBE"
    assert seen.rstrip("AQ") == "OCHMRRTLLNBE" if content else second_sees.rstrip("AQ")


def test_a_refused_recipient_is_not_shown_to_the_second(play: Play) -> None:
    def refuse_b(command: codec.Command) -> list[codec.Response] | None:
        if isinstance(command, codec.RcptTo) and command.recipient.startswith(b"<b"):
            return [codec.ReplyCode(b"550 5.1.1 no")]
        return [codec.Continue()]

    def refuse_c(command: codec.Command) -> list[codec.Response] | None:
        if isinstance(command, codec.RcptTo) and command.recipient.startswith(b"<c"):
            return [codec.TempFail()]
        return [codec.Continue()]

    first, second = answering(play, refuse_b), answering(play, refuse_c)
    outcome = send(chain(first, second), "b", "c", "d")
    assert outcome.verdict == CONTINUE
    assert outcome.refused == {"b@rcpt.test": reply(550, "5.1.1", "no"), "c@rcpt.test": TEMPFAIL}
    assert outcome.recipients == ("d@rcpt.test",)
    assert outcome.apply().recipients == ("d@rcpt.test",)
    assert [each.refused for each in outcome.milters] == [
        {"b@rcpt.test": reply(550, "5.1.1", "no")},
        {"c@rcpt.test": TEMPFAIL},
    ]
    assert letters(first) == ["OCHMRRRTLLNBEAAQ"]
    assert letters(second) == ["OCHMRRTLLNBEAAQ"]
    outcome = send(chain(answering(play, refuse_b), answering(play, refuse_c)), "b", "c")
    assert (outcome.verdict, outcome.recipients) == (TEMPFAIL, ())


@pytest.mark.parametrize("at", ["C", "H", "M", "R", "T", "L", "N", "B"])
def test_one_accepts_and_the_other_is_still_asked(play: Play, at: str) -> None:
    first, second = milter(play, (at, ACCEPT)), milter(play, edits=(codec.AddHeader(b"X-Second", b"2"),))
    outcome = send(chain(first, second))
    assert outcome.verdict == CONTINUE
    assert outcome.recipients == ("b@rcpt.test", "c@rcpt.test")
    assert [each.verdict for each in outcome.milters] == [ACCEPT, CONTINUE]
    assert outcome.apply().message == b"Subject: hi\r\nTo: b\r\nX-Second: 2\r\n\r\nbody\r\n"
    assert letters(second) == ["OCHMRRTLLNBEAAQ"]


def test_held_by_one_and_seen_by_the_next(play: Play) -> None:
    first = milter(play, edits=(codec.Quarantine(b"odd"),))
    second = milter(play, edits=(codec.AddHeader(b"X-Second", b"2"),))
    applied = send(chain(first, second)).apply()
    assert (applied.quarantined, applied.quarantine_reason, applied.delivered) == (True, "odd", False)
    assert b"X-Second" in applied.message


# -- failures ----------------------------------------------------------------------------------------------------------

REPLIES = {mta: table.default_actions for mta, table in MTAS.items()}
FAILURES: list[str] = ["O", "C", "H", "M", "R", "T", "L", "N", "B", "E"]


def failing(play: Play, at: str) -> Milter:
    return milter(play, (at, None)) if at != "O" else play(lambda peer: None)


@pytest.mark.parametrize("at", FAILURES)
@pytest.mark.parametrize(("mta", "action"), [(mta, action) for mta in REPLIES for action in REPLIES[mta]])
def test_the_default_action_holds_when_one_fails(play: Play, mta: str, action: str, at: str) -> None:
    first, second, third = milter(play), failing(play, at), milter(play)
    made = Chain(
        [(first.address, "accept"), (second.address, action), (third.address, "reject")], mta=mta, timeouts=PATIENT
    )
    outcome = send(made)
    failed = outcome.milters[1]
    assert isinstance(failed.error, ConnectionLost)
    assert failed.verdict == REPLIES[mta][action]
    assert (failed.address, failed.default_action) == (second.address, action)
    applied = outcome.apply()
    third_sees = "".join(letters(third)).rstrip("AQ")
    if action == "accept":
        assert outcome.verdict == CONTINUE
        assert applied.delivered
        assert third_sees == "OCHMRRTLLNBE"
    elif action == "quarantine":
        assert outcome.verdict == CONTINUE
        assert (applied.quarantined, applied.delivered) == (True, False)
        assert "closed the connection" in applied.quarantine_reason
        before = {"O": "", "C": "", "H": "OC", "M": "OCH", "R": "OCHM", "T": "OCHMRR"}
        assert third_sees == before.get(at, "OCHMRRT")
        assert letters(first)[0].rstrip("AQ") == "OCHMRRTLLNBE"
    else:
        assert outcome.verdict == REPLIES[mta][action]
        assert not applied.delivered
        assert "E" not in third_sees


def test_every_kind_of_failure_and_what_it_is_called(play: Play) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    nobody = f"inet:{listener.getsockname()[1]}@127.0.0.1"
    listener.close()

    def silent(peer: Peer) -> None:
        while peer.read() is not None:
            pass

    made = Chain(
        [
            (nobody, "accept"),
            (play(silent).address, "accept"),
            (play(lambda peer: peer.connection.sendall(b"\0\0\0\0\0")).address, "accept"),
            (failing(play, "O").address, "accept"),
        ],
        timeouts=Timeouts(connect=20, command=0.2, content=0.2),
    )
    outcome = send(made)
    assert [type(each.error) for each in outcome.milters] == [ConnectFailed, TimedOut, ProtocolBroken, ConnectionLost]
    assert outcome.verdict == CONTINUE
    assert outcome.apply().message == MESSAGE


def test_who_failed_is_out_for_the_rest_of_the_session(play: Play) -> None:
    first, second = milter(play, ("M", None)), milter(play)
    made = Chain([(first.address, "accept"), (second.address, "accept")], timeouts=PATIENT)
    with made:
        for _ in range(2):
            outcome = send(made)
            assert outcome.verdict == CONTINUE
            assert isinstance(outcome.milters[0].error, ConnectionLost)
    with made:
        assert isinstance(send(made).milters[0].error, ConnectionLost)
    assert letters(first) == ["OCHM", "OCHM"]
    assert letters(second) == ["OCHMRRTLLNBEAMRRTLLNBEAAQ", "OCHMRRTLLNBEAAQ"]


# -- sessions ----------------------------------------------------------------------------------------------------------


def test_each_message_of_its_own_is_a_session_of_its_own(play: Play) -> None:
    only = milter(play)
    made = chain(only)
    send(made)
    send(made)
    assert letters(only) == ["OCHMRRTLLNBEAAQ"] * 2


@pytest.mark.parametrize("mta", ["postfix", "sendmail"])
@pytest.mark.parametrize("at", ["C", "H"])
def test_a_verdict_on_the_session_holds_for_every_message(play: Play, mta: str, at: str) -> None:
    first, second = milter(play), milter(play, (at, REJECT))
    with chain(first, second, mta=mta) as made:
        for _ in range(2):
            assert send(made).verdict == REJECT
    (seen,) = letters(first)
    assert "M" not in seen


def test_after_421_the_session_is_over(play: Play) -> None:
    bye = reply(421, "4.7.0", "bye")
    first, second = milter(play), milter(play, ("R", bye))
    with chain(first, second) as made:
        assert send(made).verdict == bye
        with pytest.raises(LocalProtocolError, match=r"the SMTP session is over: the milter at .* answered 421"):
            send(made)


def test_a_block_that_fails_says_no_quit(play: Play) -> None:
    only = milter(play)

    def fail() -> None:
        with chain(only) as made:
            send(made)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert letters(only) == ["OCHMRRTLLNBE"]


def test_sessions_do_not_nest(play: Play) -> None:
    with chain(milter(play)) as made, pytest.raises(LocalProtocolError, match="not over yet"):
        made.__enter__()


def test_no_milters_at_all() -> None:
    outcome = send(Chain([]))
    assert (outcome.verdict, outcome.milters, outcome.apply().message) == (CONTINUE, (), MESSAGE)


def test_wrong_actions() -> None:
    with pytest.raises(ConfigError, match="default action 'hold' of postfix is not one of accept, reject, tempfail"):
        Chain([("inet:1@127.0.0.1", "hold")])
    with pytest.raises(ConfigError, match="default action 'quarantine' of sendmail is not one of"):
        Chain([("inet:1@127.0.0.1", "quarantine")], mta="sendmail")


def test_nothing_leaks(play: Play) -> None:
    milters = [milter(play), failing(play, "L"), failing(play, "O"), milter(play, ("R", DISCARD))]
    before = len(os.listdir("/dev/fd"))
    for number in range(100):
        made = [milters[(number + offset) % 4] for offset in range(3)]
        send(chain(*made, action=("accept", "quarantine", "tempfail")[number % 3]))
    for each in milters:
        each.close()
    assert len(os.listdir("/dev/fd")) <= before
