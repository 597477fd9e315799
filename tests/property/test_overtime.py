"""Callbacks that come back in time, late or never begin, in any order: one answer each, every notice once."""

from contextlib import suppress
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fastmilter import ACCEPT, CONTINUE, DISCARD, REJECT, TEMPFAIL, MessageEnded, codec, reply
from fastmilter.negotiation import STEP_NUMBERS
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
    NO_BITS,
    QUIT,
    RCPT,
    UNKNOWN,
    V6,
    everything,
)
from tests.support.waiting import Waited

STEP_OF = dict(
    zip((CONNECT, HELO, MAIL, RCPT, DATA, HEADER, EOH, BODY, EOM, UNKNOWN), STEP_NUMBERS.values(), strict=True)
)
VERDICTS = [None, CONTINUE, ACCEPT, REJECT, TEMPFAIL, DISCARD, reply(550, "5.7.1", "no")]
PROGRESS_AND_EDITS = set(codec.encode(codec.Progress())[4:5] + b"h")

sessions = st.lists(
    st.sampled_from([MAIL, RCPT, DATA, HEADER, EOH, BODY, EOM, ABORT, HELO, UNKNOWN, MAIL, EOM]), max_size=25
)
choices = st.lists(st.integers(0, 9), min_size=120, max_size=120)


def come_back_late(waited: Waited) -> None:
    with suppress(MessageEnded):  # on_mail adds a field, and its message may have ended
        waited.come_back_late()


class Counting:
    """What a filter is told of, counted."""

    def __init__(self) -> None:
        self.begun = self.aborted = self.ended = self.closed = 0


def counting(count: Counting, marks: str) -> Any:
    def on_mail(self: Any, sender: Any, params: Any) -> None:
        self.message.add_header("X", "y")

    def on_message_end(self: Any, verdict: Any) -> None:
        assert self.message.sender
        count.ended += 1

    def on_abort(self: Any) -> None:
        count.aborted += 1

    def on_close(self: Any) -> None:
        count.closed += 1

    return everything(marks, on_mail=on_mail, on_message_end=on_message_end, on_abort=on_abort, on_close=on_close)


@given(sessions, choices, st.sampled_from([V6, NO_BITS]), st.sampled_from(["", "no_reply", "early_verdict"]))
def test_whatever_comes_late(
    session: list[codec.Command], choice: list[int], offer: codec.Negotiate, marks: str
) -> None:
    count = Counting()
    waited = Waited(counting(count, marks), offer)
    waited.take_answers()
    replies = waited.session.agreement.replies
    dice = iter(choice)

    def settle(is_end: bool = False) -> None:
        """Bring the calls that wait to an end of some kind."""
        while waited.is_pending:
            roll = next(dice, 0)
            if waited._call is None and roll < 8:
                waited.begin()
            elif roll == 9 and not is_end:
                waited.out_of_time(VERDICTS[next(dice, 0) % 6 + 1] or TEMPFAIL)
            else:
                if waited._call is None:
                    waited.begin()
                if waited.link.callback == "__init__" or waited.link.is_noticing:
                    waited.come_back()
                elif roll == 7:
                    waited.come_back(error=ValueError("no"))
                else:
                    waited.come_back(VERDICTS[roll % len(VERDICTS)])
            if waited.link.is_stuck and next(dice, 0) % 2:
                come_back_late(waited)

    due = 0
    for command in (CONNECT, HELO, *session, QUIT):
        waited.send(command)
        step = STEP_OF.get(command)
        due += step is not None and replies[step]
        settle()
    answered = [answer for answer in waited.answers if codec.encode(answer)[4] not in PROGRESS_AND_EDITS]
    assert len(answered) == due
    while waited.link.is_stuck or waited.is_pending:
        if waited.link.is_stuck:
            come_back_late(waited)
        settle(is_end=True)
    assert count.closed == 1
    assert count.ended == len(waited.ended)
    assert count.aborted == waited.ended.count(None)
    assert not waited.session.in_message
