"""The MTA's side without a socket: when which command goes out, and what an answer does."""

import pytest

from fastmilter import codec
from fastmilter.client_session import MAX_ANSWER_BYTES, ClientSession, Phase
from fastmilter.codec import encode
from fastmilter.constants import ProtocolFlag, Step
from fastmilter.errors import InvalidMessage, LocalProtocolError, RemoteProtocolError
from fastmilter.replies import ACCEPT, CONTINUE, DISCARD, REJECT, SKIP, TEMPFAIL, Verdict, reply
from tests.support.mta_side import LOCALHOST, answer, ask, letters, sent, session, up_to

# -- what is not sent, not answered ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mta", "protocol", "expected"),
    [
        ("postfix", 0x37F, "DCDHDMDRDTDEA"[:0] + "DDDDDDEA"),
        ("sendmail", 0x37F, "DDDDDE"),
        ("postfix", ProtocolFlag.NO_HEADERS | ProtocolFlag.NO_BODY, "DCDHDMDRDTDNDEA"),
    ],
)
def test_suppressed_steps_are_not_sent_but_their_macros_up_to_data_are(mta: str, protocol: int, expected: str) -> None:
    made = session(mta, protocol)
    for step in Step:
        if step is not Step.UNKNOWN and ask(made, step):
            answer(made, True)
    assert letters(made) == expected


def test_steps_without_reply_pile_up_until_an_answer_is_due() -> None:
    made = session("postfix", 0x0FF080)
    for step in Step:
        if step not in (Step.UNKNOWN, Step.END_OF_MESSAGE):
            assert not ask(made, step)
    assert ask(made, Step.END_OF_MESSAGE)
    assert letters(made) == "DCDHDMDRDTDLDNDBDE"


def test_a_step_that_cannot_be_encoded_leaves_no_trace() -> None:
    made = session()
    up_to(made, Step.HELO)
    with pytest.raises(InvalidMessage):
        made.helo("a\0b")
    assert (made.queued, made.awaiting) == (0, None)
    answer(made, made.helo("ok"))
    up = session()
    up_to(up, Step.RCPT)
    with pytest.raises(InvalidMessage):
        up.helo("a\0b")
    assert up.in_message


# -- what verdicts do --------------------------------------------------------------------------------------------------

MESSAGE_STEPS = (Step.MAIL, Step.DATA, Step.HEADER, Step.END_OF_HEADERS, Step.BODY)
REFUSALS = (REJECT, TEMPFAIL, reply(451, "4.7.1", "later"), reply(550, None, "no"))


@pytest.mark.parametrize("mta", ["postfix", "sendmail"])
@pytest.mark.parametrize("step", [Step.MAIL, Step.RCPT, Step.DATA, Step.HEADER, Step.END_OF_HEADERS, Step.BODY])
@pytest.mark.parametrize("verdict", [ACCEPT, DISCARD, *REFUSALS])
def test_verdicts_before_the_end(mta: str, step: Step, verdict: Verdict) -> None:
    made = session(mta)
    up_to(made, step)
    assert answer(made, ask(made, step), verdict) == verdict
    goes_on = verdict in REFUSALS and step in (Step.RCPT, Step.DATA)
    assert made.in_message is goes_on
    made.take_output()
    if goes_on:
        assert ask(made, Step.RCPT)
        answer(made, True)
        assert ask(made, Step.DATA)
    else:
        with pytest.raises(LocalProtocolError, match=f"the filter answered .* to {step}"):
            made.end_of_message()
        assert ask(made, Step.MAIL)


@pytest.mark.parametrize("verdict", [CONTINUE, ACCEPT, DISCARD, *REFUSALS])
@pytest.mark.parametrize("mta", ["postfix", "sendmail"])
def test_case_108_verdicts_at_the_end(mta: str, verdict: Verdict) -> None:
    made = session(mta)
    up_to(made, Step.END_OF_MESSAGE)
    made.end_of_message()
    made.take_output()
    made.feed(encode(codec.AddHeader(b"A", b"1")) + encode(codec.Progress()))
    assert made.take_answer() is None
    made.feed(encode(codec.DeleteRecipient(b"<b@rcpt.test>")) + verdict.packet)
    assert made.take_answer() == verdict
    assert made.modifications == [codec.AddHeader(b"A", b"1"), codec.DeleteRecipient(b"<b@rcpt.test>")]
    assert made.progress == 1
    # Postfix says ABORT after every message, Sendmail after none that had its verdict.
    assert letters(made) == ("A" if mta == "postfix" else "")
    up_to_next = made.mail(b"<c@d>")
    answer(made, up_to_next)
    answer(made, made.rcpt(b"<e@f>"))
    answer(made, made.end_of_message())
    assert made.modifications == []


@pytest.mark.parametrize("step", [Step.CONNECT, Step.HELO])
@pytest.mark.parametrize("verdict", [ACCEPT, *REFUSALS])
def test_a_verdict_on_the_session(step: Step, verdict: Verdict) -> None:
    for mta, goodbye in (("postfix", None), ("sendmail", "Q")):
        made = session(mta)
        up_to(made, step)
        answer(made, ask(made, step), verdict)
        made.take_output()
        with pytest.raises(LocalProtocolError, match=f"to {step}, which ended the session"):
            made.mail(b"<a@b>")
        assert made.quit() is (goodbye is not None)
        assert letters(made) == (goodbye or "")


def test_discard_on_the_session() -> None:
    for mta, step, over in (
        ("postfix", Step.CONNECT, False),
        ("postfix", Step.HELO, False),
        ("sendmail", Step.CONNECT, True),
        ("sendmail", Step.HELO, False),
    ):
        made = session(mta)
        up_to(made, step)
        answer(made, ask(made, step), DISCARD)
        assert (made.phase is Phase.OVER) is over


@pytest.mark.parametrize("step", [*MESSAGE_STEPS, Step.RCPT, Step.END_OF_MESSAGE])
def test_421_ends_the_session(step: Step) -> None:
    for mta, goodbye in (("postfix", "AAQ"), ("sendmail", "Q")):
        made = session(mta)
        up_to(made, step)
        answer(made, ask(made, step), reply(421, "4.7.0", "bye"))
        assert made.phase is Phase.OVER
        commands = letters(made)
        assert made.quit()
        assert (commands + letters(made)).endswith(goodbye)


def test_verdicts_on_unknown_commands_change_nothing() -> None:
    for verdict in (CONTINUE, REJECT, TEMPFAIL, reply(550, "5.5.9", "no"), DISCARD, ACCEPT):
        made = session()
        up_to(made, Step.RCPT)
        answer(made, made.unknown("FOO"), verdict)
        answer(made, made.rcpt(b"<a@b>"))


SKIPPED = {
    "postfix": {Step.RCPT: Step.RCPT, Step.HEADER: Step.HEADER, Step.BODY: Step.BODY},
    "sendmail": {Step.HEADER: Step.BODY, Step.END_OF_HEADERS: Step.BODY, Step.BODY: Step.BODY},
}


@pytest.mark.parametrize("mta", ["postfix", "sendmail"])
@pytest.mark.parametrize("step", [step for step in Step if step not in (Step.UNKNOWN, Step.END_OF_MESSAGE)])
def test_skip(mta: str, step: Step) -> None:
    made = session(mta)
    up_to(made, step)
    answer(made, ask(made, step), SKIP)
    made.take_output()
    if mta == "sendmail" and step in (Step.CONNECT, Step.HELO, Step.MAIL, Step.RCPT, Step.DATA):
        assert made.phase is Phase.OVER
        return
    skipped = SKIPPED[mta].get(step)
    later: list[Step] = [at for at in Step if at is not Step.UNKNOWN]
    shown = []
    for at in later[later.index(step) + (0 if step in (Step.RCPT, Step.HEADER, Step.BODY) else 1) :]:
        due = ask(made, at)
        assert due is (at is not skipped)
        if due:
            answer(made, True)
            shown.append(at)
    assert skipped not in shown
    # The next message is whole again.
    up_to_next = made.mail(b"<a@b>")
    answer(made, up_to_next)
    made.take_output()
    for at in later[later.index(Step.RCPT) :]:
        answer(made, ask(made, at))


def test_skip_at_the_end() -> None:
    made = session("postfix")
    up_to(made, Step.END_OF_MESSAGE)
    assert answer(made, made.end_of_message(), SKIP) == SKIP
    made = session("sendmail")
    up_to(made, Step.END_OF_MESSAGE)
    made.end_of_message()
    made.feed(SKIP.packet)
    with pytest.raises(RemoteProtocolError, match="sendmail does not take it"):
        made.take_answer()


def test_case_109_a_reply_text_is_read_as_postfix_reads_it() -> None:
    for text, expected in (
        (b"550 5.7.1 50%% off", (550, "5.7.1", "50% off")),
        (b"550 5.7.1 100% of %s", (550, "5.7.1", "100 of s")),
        (b"550-5.7.1 a\r\n550 5.7.1 b", (550, "5.7.1", "a\nb")),
        (b"451 later", (451, None, "later")),
    ):
        made = session()
        verdict = answer(made, made.connect(LOCALHOST), codec.ReplyCode(text))
        assert (verdict.code, verdict.enhanced, verdict.text) == expected
    for payload in (b"y550 4.7.1 no\0", b"y250 ok\0", b"y\0", b"y550 no", b"y550 a\0b\0"):
        made = session()
        made.connect(LOCALHOST)
        made.feed(len(payload).to_bytes(4, "big") + payload)
        with pytest.raises(RemoteProtocolError):
            made.take_answer()


def test_progress_where_each_mta_takes_it() -> None:
    made = session("postfix")
    made.connect(LOCALHOST)
    made.feed(encode(codec.Progress()) * 2)
    assert made.take_answer() is None
    assert made.progress == 2
    made = session("sendmail")
    made.connect(LOCALHOST)
    made.feed(encode(codec.Progress()))
    with pytest.raises(RemoteProtocolError, match="Progress in answer to connect; sendmail does not take it"):
        made.take_answer()


def test_out_of_turn() -> None:
    made = session()
    with pytest.raises(LocalProtocolError, match="no answer is due"):
        made.take_answer()
    made.connect(LOCALHOST)
    for call in (made.data, made.abort, made.quit, made.quit_new_connection):
        with pytest.raises(LocalProtocolError, match="the answer to connect is still due"):
            call()
    made.feed(encode(codec.Continue()) + encode(codec.Accept()))
    assert made.take_answer() == CONTINUE
    made.helo("x")
    with pytest.raises(RemoteProtocolError, match="sent Accept before it was asked about helo"):
        made.take_answer()
    broken = session()
    broken.connect(LOCALHOST)
    broken.feed(encode(codec.Continue()) + b"\0\0\0\0\0")
    assert broken.take_answer() == CONTINUE
    broken.helo("x")
    with pytest.raises(RemoteProtocolError, match="length 0"):
        broken.take_answer()


def test_progress_that_waits_since_steps_without_reply_is_no_answer() -> None:
    made = session("sendmail", ProtocolFlag.NR_HELO)
    made.connect(LOCALHOST)
    made.feed(encode(codec.Continue()) + encode(codec.Progress()))
    assert made.take_answer() == CONTINUE
    assert not made.helo("x")
    answer(made, made.mail(b"<a@b>"))


def test_an_answer_without_end_is_bounded() -> None:
    made = session()
    up_to(made, Step.END_OF_MESSAGE)
    made.end_of_message()
    piece = encode(codec.ReplaceBody(bytes(65535)))
    block = piece * 64

    def flood() -> None:
        for _ in range(MAX_ANSWER_BYTES // len(block) + 1):
            made.feed(block)
            made.take_answer()
            made.modifications.clear()

    with pytest.raises(RemoteProtocolError, match="the answer has more than 268435456 bytes"):
        flood()


# -- order, ABORT, QUIT ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "step", "why"),
    [
        (Step.CONNECT, Step.HELO, "CONNECT comes first"),
        (Step.CONNECT, Step.MAIL, "CONNECT comes first"),
        (Step.HELO, Step.CONNECT, "no message is open"),
        (Step.MAIL, Step.RCPT, "no message is open"),
        (Step.MAIL, Step.BODY, "no message is open"),
        (Step.RCPT, Step.MAIL, "a message is open"),
        (Step.END_OF_HEADERS, Step.RCPT, "the headers of a message have begun"),
        (Step.END_OF_HEADERS, Step.UNKNOWN, "the headers of a message have begun"),
        (Step.BODY, Step.HEADER, "the headers of the message are over"),
        (Step.END_OF_MESSAGE, Step.END_OF_HEADERS, "the body of a message has begun"),
    ],
)
def test_a_step_that_no_mta_would_send(before: Step, step: Step, why: str) -> None:
    made = session()
    up_to(made, before)
    with pytest.raises(LocalProtocolError, match=f"no MTA sends {step} now: {why}"):
        ask(made, step)
    assert made.queued == 0


@pytest.mark.parametrize(
    ("mta", "before", "aborts", "goodbye"),
    [
        ("postfix", Step.CONNECT, "", "Q"),
        ("postfix", Step.HELO, "", "Q"),
        ("postfix", Step.MAIL, "", "AQ"),
        ("postfix", Step.RCPT, "A", "AAQ"),
        ("postfix", Step.BODY, "A", "AAQ"),
        ("sendmail", Step.MAIL, "", "Q"),
        ("sendmail", Step.RCPT, "A", "Q"),
        ("sendmail", Step.BODY, "A", "Q"),
    ],
)
def test_rset_and_quit(mta: str, before: Step, aborts: str, goodbye: str) -> None:
    made = session(mta)
    up_to(made, before)
    made.abort()
    made.abort()
    assert letters(made) == aborts
    assert not made.in_message
    made = session(mta)
    up_to(made, before)
    assert made.quit()
    assert letters(made) == goodbye


def test_mail_without_helo_has_one_reset_at_quit() -> None:
    made = session("postfix")
    answer(made, made.connect(LOCALHOST))
    answer(made, made.mail(b"<a@b>"))
    made.take_output()
    made.quit()
    assert letters(made) == "AQ"


def test_a_delivered_message_and_quit_on_postfix() -> None:
    made = session("postfix")
    up_to(made, Step.END_OF_MESSAGE)
    answer(made, made.end_of_message(), ACCEPT)
    made.quit()
    assert letters(made) == "DEAAQ"


def test_helo_again() -> None:
    made = session("postfix")
    up_to(made, Step.MAIL)
    due = made.helo("again")
    assert letters(made) == "DH"
    answer(made, due)
    answer(made, made.mail(b"<a@b>"))
    assert letters(made) == "ADM"
    due = made.helo("and again")
    assert letters(made) == "DH"
    answer(made, due)
    assert not made.in_message
    assert letters(made) == "AA"

    made = session("sendmail")
    up_to(made, Step.RCPT)
    answer(made, made.helo("again"))
    assert letters(made) == "ADH"
    answer(made, made.helo("again"))
    assert letters(made) == "DH"

    made = session("postfix", ProtocolFlag.NR_HELO)
    up_to(made, Step.MAIL)
    assert not made.helo("again")
    assert letters(made) == "DHA"


@pytest.mark.parametrize("protocol", [ProtocolFlag.NO_MAIL, ProtocolFlag.NR_MAIL])
def test_sendmail_says_no_abort_for_a_mail_that_was_not_answered(protocol: int) -> None:
    made = session("sendmail", protocol)
    up_to(made, Step.MAIL)
    made.mail(b"<a@b>")
    answer(made, made.rcpt(b"<a@b>"))
    made.take_output()
    made.abort()
    assert letters(made) == ""


def test_quit_nc_begins_anew() -> None:
    made = session("postfix")
    with pytest.raises(LocalProtocolError):
        ClientSession().quit_new_connection()
    up_to(made, Step.END_OF_MESSAGE)
    answer(made, made.end_of_message())
    made.take_output()
    made.quit_new_connection()
    assert letters(made) == "K"
    answer(made, made.connect(codec.Connect(b"other", b"6", 1, b"::1")))
    macros = sent(made)[0]
    assert isinstance(macros, codec.Macros)
    assert dict(macros.values)[b"_"] == b"other [::1]"
    made.quit()
    assert letters(made) == "Q"


def test_recipients_that_the_mta_refuses() -> None:
    made = session("postfix")
    up_to(made, Step.RCPT)
    assert not made.rejected_rcpt(b"<x@y>", [], "5.1.1", "no such user")
    assert made.queued == 0
    made = session("postfix", ProtocolFlag.REJECTED_RCPT)
    up_to(made, Step.RCPT)
    answer(made, made.rejected_rcpt(b"<x@y>", [b"NOTIFY=NEVER"], "5.1.1", "no such user"), REJECT)
    assert sent(made) == [
        codec.Macros(
            b"R", ((b"{rcpt_addr}", b"no such user"), (b"{rcpt_host}", b"5.1.1"), (b"{rcpt_mailer}", b"error"))
        ),
        codec.RcptTo(b"<x@y>", (b"NOTIFY=NEVER",)),
    ]


def test_a_queue_id_is_not_given_for_refused_recipients() -> None:
    made = session("postfix")
    up_to(made, Step.RCPT)
    for verdict in (REJECT, CONTINUE):
        answer(made, made.rcpt(b"<a@b>"), verdict)
        macros = sent(made)[0]
        assert isinstance(macros, codec.Macros)
        assert b"i" not in dict(macros.values)
    answer(made, made.data())
    assert sent(made)[0] == codec.Macros(b"T", ((b"i", b"FA570000001"),))


def test_level_2_needs_no_order() -> None:
    made = ClientSession()
    made.queue(codec.EndOfMessage())
    made.queue(codec.Quit())
    assert letters(made) == "EQ"
    made.feed(encode(codec.Progress()) + encode(codec.Skip())[:-1])
    assert made.next_message() == codec.Progress()
    assert made.next_message() is None
    made.feed(b"s")
    assert made.next_message() == codec.Skip()


def test_any_split_of_the_answers_is_the_same() -> None:
    responses: list[codec.Response] = [
        codec.Progress(),
        codec.AddHeader(b"A", b"b"),
        codec.Quarantine(b"odd"),
        codec.ReplyCode(b"550 5.7.1 no"),
    ]
    stream = b"".join(map(encode, responses))
    for cut in range(1, len(stream)):
        made = session()
        up_to(made, Step.END_OF_MESSAGE)
        made.end_of_message()
        made.feed(stream[:cut])
        assert made.take_answer() is None
        made.feed(stream[cut:])
        verdict = made.take_answer()
        assert verdict == reply(550, "5.7.1", "no")
        assert made.modifications == [codec.AddHeader(b"A", b"b"), codec.Quarantine(b"odd")]
