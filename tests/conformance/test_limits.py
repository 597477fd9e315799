"""Messages with more recipients or a larger header than a filter takes: what the MTA is told, and the filter shown."""

from typing import Any

import pytest

from fastmilter import ACCEPT, REJECT, codec, reply
from fastmilter.constants import MAX_HEADER_FIELDS, MAX_RECIPIENTS
from fastmilter.limits import Limits
from tests.support.playing import (
    BODY,
    CONNECT,
    CONTENT,
    DATA,
    EOH,
    EOM,
    GREETING,
    HEADER,
    MAIL,
    MESSAGE,
    NO_BITS,
    RCPT,
    V2,
    V6,
    Mta,
    everything,
    made,
)

TOO_MANY = codec.ReplyCode(b"452 4.5.3 Too many recipients")
TOO_LARGE = codec.ReplyCode(b"552 5.3.4 Message header too large")
GO_ON = codec.Continue()


def limited(
    filter_class: Any, offer: codec.Negotiate = V6, *, recipients: int = 3, fields: int = 4, field_bytes: int = 1000
) -> Mta:
    mta = Mta(filter_class, offer)
    mta.session.limits = Limits(recipients, fields, field_bytes)
    mta.send(*GREETING)
    return mta


def field(size: int) -> codec.Header:
    """A header field of ``size`` bytes, as they are counted: name and value."""
    return codec.Header(b"X-Size", b"v" * (size - len("X-Size")))


@pytest.mark.parametrize("offer", [V6, V2, NO_BITS])
def test_a_recipient_too_many_is_refused_and_those_before_stay(offer: codec.Negotiate) -> None:
    mta = limited(everything(), offer)
    mta.send(MAIL)
    assert [mta.send(RCPT) for _ in range(5)] == [[GO_ON]] * 3 + [[TOO_MANY]] * 2
    message = mta.conversation.message
    assert message is not None
    assert len(message.recipients) == 3
    assert mta.names.count("on_rcpt") == 3
    assert mta.send(*MESSAGE[2:])[-1] == GO_ON
    assert mta.complaints == ["the message has more than 3 recipients (--max-recipients): 452 4.5.3"]  # told once


def test_the_count_begins_anew_with_each_message() -> None:
    mta = limited(everything())
    for _ in range(2):
        assert mta.send(MAIL, RCPT, RCPT, RCPT, *MESSAGE[2:]).count(TOO_MANY) == 0
    mta.send(MAIL, RCPT, RCPT, codec.Abort())
    assert TOO_MANY not in mta.send(MAIL, RCPT, RCPT, RCPT)
    assert mta.send(RCPT) == [TOO_MANY]


def test_without_an_answer_to_recipients_the_message_is_refused_at_the_next_answer() -> None:
    mta = limited(made(on_data=None, on_end_of_message=None))
    assert mta.send(MAIL) == [GO_ON]
    assert [mta.send(RCPT) for _ in range(5)] == [[]] * 5
    assert mta.send(DATA, *CONTENT)[-1] == TOO_MANY
    assert "on_end_of_message" not in mta.names
    assert mta.complaints == ["the message has more than 3 recipients (--max-recipients): 452 4.5.3"]
    assert mta.send(MAIL, RCPT, DATA, *CONTENT)[-1] == GO_ON


@pytest.mark.parametrize("offer", [V6, V2, NO_BITS])
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("marks", ["", "early_verdict"])
def test_a_field_too_many_refuses_the_message_at_its_end(offer: codec.Negotiate, together: bool, marks: str) -> None:
    ended: list[Any] = []
    mta = limited(everything(marks, on_message_end=lambda self, verdict: ended.append(verdict)), offer)
    mta.send(MAIL, RCPT, DATA)
    fields = [HEADER] * 7
    answers = mta.send(*fields) if together else [answer for one in fields for answer in mta.send(one)]
    assert set(answers) <= {GO_ON}
    mta.send(EOH, BODY)
    assert mta.send(EOM) == [TOO_LARGE]
    assert mta.names.count("on_header") in (4, 5)  # the one that is too many may be shown
    assert not {"on_end_of_headers", "on_body", "on_end_of_message"} & set(mta.names)
    assert ended == [reply(552, "5.3.4", "Message header too large")]
    assert mta.complaints == ["the header has more than 4 fields (--max-header-fields): the message gets 552 5.3.4"]
    assert mta.send(*MESSAGE)[-1] == GO_ON


@pytest.mark.parametrize(
    ("sizes", "refused"), [((500, 500), False), ((500, 501), True), ((1001,), True), ((999, 7), True)]
)
@pytest.mark.parametrize("together", [True, False])
def test_bytes_of_the_header_are_counted_whether_shown_or_not(
    sizes: tuple[int, ...], refused: bool, together: bool
) -> None:
    for filter_class in (everything(), made(on_header=None), everything("early_verdict")):
        mta = limited(filter_class)
        mta.send(MAIL, RCPT, DATA)
        fields = [field(size) for size in sizes]
        for part in [fields] if together else [[one] for one in fields]:
            mta.send(*part)
        assert mta.send(EOH, BODY, EOM)[-1] == (TOO_LARGE if refused else GO_ON)
        assert bool(mta.complaints) == refused


def test_a_verdict_before_stands() -> None:
    for verdict, last in ((ACCEPT, codec.Accept()), (REJECT, codec.Reject())):
        mta = limited(made("no_reply", on_mail=verdict, on_header=None))
        answers = mta.send(MAIL, RCPT, RCPT, RCPT, RCPT, DATA, *[HEADER] * 7, EOH, BODY, EOM)
        assert last in answers
        assert not {TOO_MANY, TOO_LARGE} & set(answers)


def test_a_filter_that_adds_and_refuses_is_not_confused() -> None:
    """What it did before is dropped with the message."""

    def on_mail(self: Any, sender: Any, params: Any) -> None:
        self.message.add_header("X", "1")

    mta = limited(made(on_mail=on_mail, on_header=None))
    assert mta.send(MAIL, RCPT, DATA, *[HEADER] * 5, EOH, EOM)[-1] == TOO_LARGE
    assert not [answer for answer in mta.send(*MESSAGE) if answer == TOO_LARGE]


def test_the_usual_limits_are_far_away() -> None:
    mta = Mta(everything())
    mta.send(CONNECT, MAIL)
    assert TOO_MANY not in mta.send(*[RCPT] * MAX_RECIPIENTS)
    assert mta.send(RCPT) == [TOO_MANY]
    mta.send(DATA, *[HEADER] * MAX_HEADER_FIELDS, EOH, BODY)
    assert mta.send(EOM) == [GO_ON]
