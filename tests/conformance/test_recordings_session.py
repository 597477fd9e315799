"""What real MTAs sent, shown to a filter: the same calls however it is cut, each command answered, no complaint."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from fastmilter import codec
from fastmilter.constants import Step
from fastmilter.negotiation import STEP_NUMBERS
from tests.support import recordings
from tests.support.playing import STEP_CALLBACKS, Mta, letters, made

ALL_STREAMS = {
    conversation.name: conversation.stream("mta>filter")
    for name in recordings.names()
    for conversation in recordings.load(name)
    if conversation.stream("mta>filter")
}
WITHOUT_MAIL = {"postfix/neg-no-events#1", "sendmail/neg-no-events#1"}
"""The recorded filter had asked not to be sent MAIL; ours never does, so what follows is out of order to it."""
STREAMS = {name: stream for name, stream in ALL_STREAMS.items() if name not in WITHOUT_MAIL}

CUT_EVERYWHERE_BYTES = 4000
"""Up to this size a stream is cut at every byte; a longer one at every packet and around it."""


def noting(name: str) -> Callable[..., None]:
    def note(self: Any, *arguments: Any) -> None:
        if name not in ("on_close", "on_negotiate"):
            self.macros.get("i")

    return note


NAMES = [*STEP_CALLBACKS, "on_abort", "on_message_end", "on_close", "on_rejected_rcpt"]
WATCHING = made(**{name: noting(name) for name in NAMES})


def played(pieces: list[bytes]) -> tuple[list[tuple[Any, ...]], list[codec.Response], Mta]:
    mta = Mta(WATCHING, None)
    responses = [response for piece in pieces for response in mta.feed(piece)]
    return mta.calls, responses + mta.eof(), mta


def cuts(stream: bytes) -> list[int]:
    """Where to cut: everywhere, or within and around the head of each packet."""
    if len(stream) <= CUT_EVERYWHERE_BYTES:
        return list(range(1, len(stream)))
    places = set()
    at = 0
    while at < len(stream):
        places |= {at + offset for offset in (-1, 0, 1, 3, 4, 5, 6)}
        at += 4 + int.from_bytes(stream[at : at + 4], "big")
    return sorted(place for place in places if 0 < place < len(stream))


@pytest.mark.parametrize("name", STREAMS)
def test_cut_anywhere_the_calls_are_the_same(name: str) -> None:
    stream = STREAMS[name]
    calls, responses, mta = played([stream])
    assert mta.session.error is None
    assert mta.complaints == []
    assert mta.failures == []
    places = cuts(stream)
    # At each place once, in a few runs: each run is cut at every n-th place, in another offset.
    runs = 8 if len(stream) <= CUT_EVERYWHERE_BYTES else 3
    for run in range(runs):
        edges = [0, *places[run::runs], len(stream)]
        pieces = [stream[start:end] for start, end in pairwise(edges)]
        assert b"".join(pieces) == stream
        again, answers, _ = played(pieces)
        assert again == calls
        assert answers == responses


@pytest.mark.parametrize("name", STREAMS)
def test_the_filter_is_shown_what_was_sent(name: str) -> None:
    """Counted from the packets themselves: each step is one call, and one answer where one was agreed."""
    _, responses, mta = played([STREAMS[name]])
    replies = mta.session.agreement.replies if responses else ()
    sent: dict[bytes, int] = {}
    for packet in packets(STREAMS[name]):
        sent[packet[:1]] = sent.get(packet[:1], 0) + 1
    called = {step: mta.names.count(f"on_{step}") for step in STEP_NUMBERS}
    called[Step.RCPT] += mta.names.count("on_rejected_rcpt")
    expected = {
        Step.CONNECT: b"C",
        Step.HELO: b"H",
        Step.MAIL: b"M",
        Step.RCPT: b"R",
        Step.DATA: b"T",
        Step.HEADER: b"L",
        Step.END_OF_HEADERS: b"N",
        Step.BODY: b"B",
        Step.END_OF_MESSAGE: b"E",
        Step.UNKNOWN: b"U",
    }
    assert called == {step: sent.get(letter, 0) for step, letter in expected.items()}
    due = sum(count for step, count in called.items() if replies and replies[STEP_NUMBERS[step]])
    assert letters(responses) == ("O" if sent.get(b"O") else "") + "c" * due
    assert mta.names.count("on_close") == 1
    assert mta.names.count("on_message_end") == mta.names.count("on_mail")


@pytest.mark.parametrize("name", sorted(WITHOUT_MAIL))
def test_content_without_mail_is_refused(name: str) -> None:
    _, responses, mta = played([ALL_STREAMS[name]])
    assert mta.session.error is None
    assert "on_header" not in mta.names
    assert letters(responses)[-1] == "t"
    assert len(mta.complaints) == sum(packet[:1] in b"RTLNBE" for packet in packets(ALL_STREAMS[name]))


def packets(stream: bytes) -> list[bytes]:
    found = []
    at = 0
    while at + 4 < len(stream):
        end = at + 4 + int.from_bytes(stream[at : at + 4], "big")
        if end <= len(stream):
            found.append(stream[at + 4 : end])
        at = end
    return found


def test_there_are_recordings_of_both_mtas() -> None:
    assert len([name for name in STREAMS if name.startswith("postfix/")]) > 50
    assert len([name for name in STREAMS if name.startswith("sendmail/")]) > 50


def messages_of(name: str) -> list[tuple[str, ...]]:
    """The messages of a recording as a filter may keep them: sender, recipients, subject, how it ended."""
    found: list[tuple[str, ...]] = []

    def on_header(self: Any, header: str, value: str) -> None:
        if header.lower() == "subject":
            self.message.state.subject = value

    def on_message_end(self: Any, verdict: Any) -> None:
        message = self.message
        subject = getattr(message.state, "subject", "")
        found.append((str(message.sender), *map(str, message.recipients), subject, str(verdict)))

    for conversation in recordings.load(name):
        mta = Mta(made(on_header=on_header, on_rcpt=None, on_message_end=on_message_end), None)
        mta.feed(conversation.stream("mta>filter"))
        mta.eof()
        assert mta.failures == []
    return found


@pytest.mark.parametrize("mta", ["postfix", "sendmail"])
def test_messages_of_a_session_are_kept_apart(mta: str) -> None:
    found = messages_of(f"{mta}/multi-message")
    assert len(found) > 1
    assert all(message[-1] == "continue" for message in found if len(message) > 3)


@pytest.mark.parametrize("mta", ["postfix", "sendmail"])
def test_a_reset_drops_the_message(mta: str) -> None:
    verdicts = [message[-1] for message in messages_of(f"{mta}/rset")]
    assert verdicts[-1] == "continue"
    assert set(verdicts[:-1]) == {"None"}
