"""``Client.send_message``: a whole message as an MTA plays it, and what the outcome says."""

import io
from collections.abc import Callable, Iterator
from email.message import EmailMessage

import pytest

from fastmilter import codec
from fastmilter.addresses import Params, Recipient
from fastmilter.client import Outcome, Timeouts
from fastmilter.constants import ProtocolFlag, Step
from fastmilter.errors import InvalidMessage, LocalProtocolError
from fastmilter.replies import ACCEPT, CONTINUE, DISCARD, REJECT, SKIP, TEMPFAIL, Verdict, reply
from tests.support.both_clients import BOTH, MakeClient
from tests.support.scripted_milter import Milter, Peer, Play, answer_all, playing

PATIENT = Timeouts(connect=20, command=20, content=20)
MESSAGE = b"Subject: hi\r\nTo: b\r\n\r\nbody\r\n"
STEPS = [
    Step.CONNECT,
    Step.HELO,
    Step.MAIL,
    Step.RCPT,
    Step.RCPT,
    Step.DATA,
    Step.HEADER,
    Step.HEADER,
    Step.END_OF_HEADERS,
    Step.BODY,
    Step.END_OF_MESSAGE,
]
KINDS: dict[Step, type] = {
    Step.CONNECT: codec.Connect,
    Step.HELO: codec.Helo,
    Step.MAIL: codec.MailFrom,
    Step.RCPT: codec.RcptTo,
    Step.DATA: codec.Data,
    Step.HEADER: codec.Header,
    Step.END_OF_HEADERS: codec.EndOfHeaders,
    Step.BODY: codec.Body,
    Step.END_OF_MESSAGE: codec.EndOfMessage,
}

Answer = Callable[[codec.Command], list[codec.Response]]


@pytest.fixture(params=BOTH)
def make_client(request: pytest.FixtureRequest) -> MakeClient:
    made: MakeClient = request.param
    return made


@pytest.fixture
def play() -> Iterator[Play]:
    yield from playing()


def milter_with(play: Play, answer: Answer, protocol: int = 0, macros: tuple[tuple[int, bytes], ...] = ()) -> Milter:
    def script(peer: Peer) -> None:
        peer.negotiate(protocol, 0x1FF, macros)
        peer.serve(answer)

    return play(script)


def verdict_at(step: Step, verdict: Verdict) -> Answer:
    """Answer ``verdict`` at a step, and CONTINUE elsewhere."""

    def answer(command: codec.Command) -> list[codec.Response]:
        if isinstance(command, KINDS[step]):
            return [codec.decode_response(verdict.packet[4:])]
        return answer_all(command)

    return answer


def send(make_client: MakeClient, milter: Milter, mta: str = "postfix") -> Outcome:
    with make_client(milter.address, mta=mta, timeouts=PATIENT) as client:
        outcome: Outcome = client.send_message(MESSAGE, "a@from.test", ["b@rcpt.test", "c@rcpt.test"])
        return outcome


def commands(milter: Milter) -> list[codec.Command]:
    milter.close()
    return [command for peer in milter.peers for command in peer.seen if not isinstance(command, codec.Macros)]


@pytest.mark.parametrize("mta", ["postfix", "sendmail"])
def test_a_message_that_goes_through(make_client: MakeClient, play: Play, mta: str) -> None:
    milter = milter_with(play, answer_all)
    outcome = send(make_client, milter, mta)
    assert outcome.verdict == CONTINUE
    assert [step.step for step in outcome.steps] == STEPS
    assert {step.verdict for step in outcome.steps} == {CONTINUE}
    assert all(step.milliseconds >= 0 for step in outcome.steps)
    assert outcome.recipients == ("b@rcpt.test", "c@rcpt.test")
    assert (outcome.refused, outcome.modifications) == ({}, ())
    assert outcome.apply().message == MESSAGE
    assert outcome.apply().delivered
    assert commands(milter)[1:12] == [
        codec.Connect(b"localhost", b"4", 25, b"127.0.0.1"),
        codec.Helo(b"localhost"),
        codec.MailFrom(b"<a@from.test>"),
        codec.RcptTo(b"<b@rcpt.test>"),
        codec.RcptTo(b"<c@rcpt.test>"),
        codec.Data(),
        codec.Header(b"Subject", b"hi"),
        codec.Header(b"To", b"b"),
        codec.EndOfHeaders(),
        codec.Body(b"body\r\n"),
        codec.EndOfMessage(),
    ]


def test_modifications_and_what_becomes_of_them(make_client: MakeClient, play: Play) -> None:
    def answer(command: codec.Command) -> list[codec.Response]:
        if isinstance(command, codec.EndOfMessage):
            return [
                codec.Progress(),
                codec.AddHeader(b"X-Tagged", b"yes"),
                codec.ChangeHeader(1, b"Subject", b"[tagged] hi"),
                codec.AddRecipient(b"<d@rcpt.test>"),
                codec.DeleteRecipient(b"<b@rcpt.test>"),
                codec.ChangeSender(b"<new@from.test>"),
                codec.ReplaceBody(b"new\r\n"),
                codec.Accept(),
            ]
        return answer_all(command)

    outcome = send(make_client, milter_with(play, answer))
    assert outcome.verdict == ACCEPT
    assert len(outcome.modifications) == 6
    applied = outcome.apply()
    assert applied.message == b"Subject: [tagged] hi\r\nTo: b\r\nX-Tagged: yes\r\n\r\nnew\r\n"
    assert (applied.sender, applied.recipients) == ("new@from.test", ("c@rcpt.test", "d@rcpt.test"))
    assert outcome.sender == "a@from.test"


@pytest.mark.parametrize("mta", ["postfix", "sendmail"])
@pytest.mark.parametrize("step", list(KINDS))
@pytest.mark.parametrize("verdict", [REJECT, TEMPFAIL, reply(550, "5.7.1", "no"), reply(421, None, "bye")])
def test_refusals(make_client: MakeClient, play: Play, mta: str, step: Step, verdict: Verdict) -> None:
    outcome = send(make_client, milter_with(play, verdict_at(step, verdict)), mta)
    assert outcome.verdict == verdict
    assert not outcome.apply().delivered
    played = [played.step for played in outcome.steps]
    last = len(STEPS) - 1 - STEPS[::-1].index(step)
    if step is Step.RCPT:
        # One refusal does not stop the other recipient; 421 stops everything.
        assert played == STEPS[: 4 if verdict.code == 421 else 5]
        assert set(outcome.refused.values()) == {verdict}
    elif step is Step.HEADER:
        assert played == STEPS[: STEPS.index(step) + 1]
    else:
        assert played == STEPS[: last + 1]
    if step in (Step.CONNECT, Step.HELO, Step.MAIL, Step.RCPT):
        assert outcome.recipients == ()
    else:
        assert outcome.recipients == ("b@rcpt.test", "c@rcpt.test")


@pytest.mark.parametrize("step", [step for step in KINDS if step is not Step.END_OF_MESSAGE])
def test_accept_before_the_end(make_client: MakeClient, play: Play, step: Step) -> None:
    outcome = send(make_client, milter_with(play, verdict_at(step, ACCEPT)))
    assert outcome.verdict == ACCEPT
    assert [played.step for played in outcome.steps] == STEPS[: STEPS.index(step) + 1]
    assert outcome.recipients == ("b@rcpt.test", "c@rcpt.test")
    assert outcome.apply().delivered


def test_discard(make_client: MakeClient, play: Play) -> None:
    outcome = send(make_client, milter_with(play, verdict_at(Step.RCPT, DISCARD)))
    assert outcome.verdict == DISCARD
    assert not outcome.apply().delivered
    # Sendmail takes DISCARD at CONNECT for "leave me out of this session".
    outcome = send(make_client, milter_with(play, verdict_at(Step.CONNECT, DISCARD)), "sendmail")
    assert outcome.verdict == ACCEPT
    assert outcome.apply().delivered
    assert len(outcome.steps) == 1
    assert send(make_client, milter_with(play, verdict_at(Step.CONNECT, DISCARD)), "postfix").verdict == CONTINUE


def test_skip_at_mail_on_sendmail_leaves_the_filter_out(make_client: MakeClient, play: Play) -> None:
    outcome = send(make_client, milter_with(play, verdict_at(Step.MAIL, SKIP)), "sendmail")
    assert (outcome.verdict, len(outcome.steps)) == (ACCEPT, 3)
    assert outcome.apply().delivered


def test_one_recipient_refused(make_client: MakeClient, play: Play) -> None:
    """As in case 77, from the side of the MTA."""

    def answer(command: codec.Command) -> list[codec.Response]:
        if isinstance(command, codec.RcptTo) and b"bad" in command.recipient:
            return [codec.ReplyCode(b"550 5.1.1 who")]
        return answer_all(command)

    milter = milter_with(play, answer)
    with make_client(milter.address, timeouts=PATIENT) as client:
        outcome = client.send_message(
            MESSAGE, "", ["bad@x", Recipient(b"<good@x>", Params(["NOTIFY=NEVER"])), "<worse-bad@x>"]
        )
    assert outcome.verdict == CONTINUE
    assert outcome.recipients == ("good@x",)
    assert outcome.refused == {"bad@x": reply(550, "5.1.1", "who"), "worse-bad@x": reply(550, "5.1.1", "who")}
    assert codec.RcptTo(b"<good@x>", (b"NOTIFY=NEVER",)) in commands(milter)
    assert outcome.apply().sender == ""


def test_no_recipient_left_is_the_end(make_client: MakeClient, play: Play) -> None:
    milter = milter_with(play, verdict_at(Step.RCPT, TEMPFAIL))
    outcome = send(make_client, milter)
    assert outcome.verdict == TEMPFAIL
    assert outcome.recipients == ()
    assert len(outcome.refused) == 2
    assert not any(isinstance(command, codec.Data) for command in commands(milter))


def test_several_messages_on_one_connection(make_client: MakeClient, play: Play) -> None:
    milter = milter_with(play, answer_all)
    with make_client(milter.address, timeouts=PATIENT) as client:
        first = client.send_message(MESSAGE, "a@x", ["b@x"], hostname="mx.test", address="192.0.2.1", helo="mx.test")
        second = client.send_message(MESSAGE, "c@x", ["d@x"])
        third = client.send_message(MESSAGE, "e@x", ["f@x"], helo="other.test")
        with pytest.raises(LocalProtocolError, match="another SMTP client needs another Client"):
            client.send_message(MESSAGE, "a@x", ["b@x"], address="192.0.2.2")
    assert first.steps[0].step is Step.CONNECT
    assert second.steps[0].step is Step.MAIL
    assert third.steps[0].step is Step.HELO
    milter.close()
    assert milter.peers[0].letters == "ODCDH" + "DMDRDTDLDLDNDBDEA" * 2 + "DHA" + "DMDRDTDLDLDNDBDEA" + "AQ"


def test_a_verdict_on_the_session_holds_for_later_messages(make_client: MakeClient, play: Play) -> None:
    milter = milter_with(play, verdict_at(Step.HELO, REJECT))
    with make_client(milter.address, timeouts=PATIENT) as client:
        assert client.send_message(MESSAGE, "a@x", ["b@x"]).verdict == REJECT
        again = client.send_message(MESSAGE, "a@x", ["b@x"])
    assert (again.verdict, again.steps, again.recipients) == (REJECT, (), ())


def test_no_message_after_421(make_client: MakeClient, play: Play) -> None:
    milter = milter_with(play, verdict_at(Step.MAIL, reply(421, "4.7.0", "bye")))
    with make_client(milter.address, timeouts=PATIENT) as client:
        client.send_message(MESSAGE, "a@x", ["b@x"])
        with pytest.raises(LocalProtocolError, match=r"421 4\.7\.0 bye to mail, which ended the session"):
            client.send_message(MESSAGE, "a@x", ["b@x"])


def test_after_refused_data_the_transaction_is_dropped(make_client: MakeClient, play: Play) -> None:
    milter = milter_with(play, verdict_at(Step.DATA, REJECT))
    with make_client(milter.address, mta="sendmail", timeouts=PATIENT) as client:
        for _ in range(2):
            assert client.send_message(MESSAGE, "a@x", ["b@x"]).verdict == REJECT
    milter.close()
    assert milter.peers[0].letters == "ODCDHDMDRTADMDRTAQ"


def test_a_helo_that_was_not_said(make_client: MakeClient, play: Play) -> None:
    milter = milter_with(play, answer_all)
    with make_client(milter.address, timeouts=PATIENT) as client:
        client.send_message(MESSAGE, "a@x", ["b@x"], helo=None)
    milter.close()
    assert "H" not in milter.peers[0].letters


def test_macros_by_step(make_client: MakeClient, play: Play) -> None:
    milter = milter_with(play, answer_all)
    with make_client(milter.address, mta="sendmail", timeouts=PATIENT) as client:
        client.send_message(
            MESSAGE, "a@x", ["b@x", "c@x"], macros={"connect": {"{if_addr}": "192.0.2.1"}, "rcpt": {"{x}": "1"}}
        )
        with pytest.raises(ValueError, match="nonsense"):
            client.send_message(MESSAGE, "a@x", ["b@x"], macros={"nonsense": {}})
    milter.close()
    macros = [command for command in milter.peers[0].seen if isinstance(command, codec.Macros)]
    assert (b"{if_addr}", b"192.0.2.1") in macros[0].values
    assert [command.values[-1] for command in macros if command.command == b"R"] == [(b"x", b"1")] * 2


def test_the_filter_sees_the_message_without_loss(make_client: MakeClient, play: Play) -> None:
    raw = (
        b"Received: one\r\n\ttwo\r\n  three\r\nX-Latin: caf\xe9\r\nX-Empty:\r\nX-Space:  two\r\nX-Tab:\tt\r\n"
        b"X-None:none\r\n\r\n.dot\r\nbare\rcr\r\n\xff\r\nlast without an end"
    )
    milter = milter_with(play, answer_all)
    with make_client(milter.address, timeouts=PATIENT) as client:
        outcome = client.send_message(raw, "a@x", ["b@x"])
    seen = commands(milter)
    assert [command for command in seen if isinstance(command, codec.Header)] == [
        codec.Header(b"Received", b"one\n\ttwo\n  three"),
        codec.Header(b"X-Latin", b"caf\xe9"),
        codec.Header(b"X-Empty", b""),
        codec.Header(b"X-Space", b" two"),
        codec.Header(b"X-Tab", b"\tt"),
        codec.Header(b"X-None", b"none"),
    ]
    assert codec.Body(b".dot\r\nbare\rcr\r\n\xff\r\nlast without an end\r\n") in seen
    assert outcome.apply().message == raw + b"\r\n"


def test_leading_spaces_where_agreed(make_client: MakeClient, play: Play) -> None:
    def answer(command: codec.Command) -> list[codec.Response]:
        if isinstance(command, codec.EndOfMessage):
            return [codec.AddHeader(b"X", b"close"), codec.Continue()]
        return answer_all(command)

    milter = milter_with(play, answer, ProtocolFlag.LEADING_SPACE)
    outcome = send(make_client, milter)
    assert codec.Header(b"Subject", b" hi") in commands(milter)
    assert b"\r\nX:close\r\n" in outcome.apply().message


def test_suppressed_and_silent_steps_have_no_verdict(make_client: MakeClient, play: Play) -> None:
    flags = ProtocolFlag.NO_HELO | ProtocolFlag.NO_BODY | ProtocolFlag.NR_RCPT | ProtocolFlag.NR_HEADER

    def answer(command: codec.Command) -> list[codec.Response]:
        return [] if isinstance(command, codec.RcptTo | codec.Header) else answer_all(command)

    outcome = send(make_client, milter_with(play, answer, flags))
    assert [step.step for step in outcome.steps] == STEPS
    assert [step.step for step in outcome.steps if step.verdict is None] == [
        Step.HELO,
        Step.RCPT,
        Step.RCPT,
        Step.HEADER,
        Step.HEADER,
        Step.BODY,
    ]
    assert outcome.recipients == ("b@rcpt.test", "c@rcpt.test")


def test_sources_and_sizes(make_client: MakeClient, play: Play) -> None:
    made = EmailMessage()
    made["Subject"] = "hi"
    made.set_content("x" * 60 + "\n", cte="7bit")
    milter = milter_with(play, answer_all)
    with make_client(milter.address, timeouts=PATIENT) as client:
        client.send_message(made, "a@x", ["b@x"])
        client.send_message(io.BytesIO(b"A: 1\n\n" + b"0123456789abcde\n" * 10_000), "a@x", ["b@x"])
        client.send_message(b"", "a@x", ["b@x"])
    chunks = [command.chunk for command in commands(milter) if isinstance(command, codec.Body)]
    assert chunks[0] == b"x" * 60 + b"\r\n"
    assert [len(chunk) for chunk in chunks[1:]] == [65535, 65535, 38930]
    assert b"".join(chunks[1:]) == b"0123456789abcde\r\n" * 10_000


def test_what_cannot_be_sent(make_client: MakeClient, play: Play) -> None:
    milter = milter_with(play, answer_all)
    with make_client(milter.address, timeouts=PATIENT) as client:
        with pytest.raises(LocalProtocolError, match="without recipients"):
            client.send_message(MESSAGE, "a@x", [])
        with pytest.raises(InvalidMessage):
            client.send_message(b"A: x\0y\r\n\r\n", "a@x", ["b@x"])
        # What was begun is dropped, and the connection still good.
        assert not client.in_message
        assert client.send_message(MESSAGE, "a@x", ["b@x"]).verdict == CONTINUE
        client.mail("a@x")
        with pytest.raises(LocalProtocolError, match="a message is open"):
            client.send_message(MESSAGE, "a@x", ["b@x"])
        assert client.rcpt("b@x") == CONTINUE
