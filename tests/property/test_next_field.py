"""Header fields in a row come by ``next_field`` as they come one message at a time, whatever the stream."""

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fastmilter import CONTINUE, REJECT, SKIP, Step, Verdict, codec
from fastmilter._text import to_text
from fastmilter.constants import STEPS
from fastmilter.errors import RemoteProtocolError
from fastmilter.events import Closed, Dropped, Event, OutOfOrder
from fastmilter.negotiation import Offer, Wish, negotiate
from fastmilter.session import Session
from tests.support import strategies
from tests.support.playing import (
    ABORT,
    BODY,
    CONNECT,
    EOH,
    EOM,
    HELO,
    MAIL,
    QUIT_NC,
    RCPT,
    UNKNOWN,
    V6,
    Mta,
    made,
)
from tests.support.strategies import cuts, framed

# Names that are known, look-alikes of them, and what is no name at all; values likewise.
names = st.one_of(
    st.sampled_from(
        [b"Subject", b"subject", b"Subjec7", b"From", b"Frox", b"X", b"\xc3\xa9", b"\xff\xfe", b"a b", b":"]
    ),
    strategies.name,
)
values = st.one_of(st.sampled_from([b"", b" hi", b"a\n\tb", b"\xe9", b"\xf0\x9f\x93\xa7", b"x" * 70]), strategies.text)
tails = st.sampled_from([b"", b"", b"", b"x", b"\0", b"x\0y\0", b"\0\0"])
good = st.builds(lambda name, value, tail: framed(b"L" + name + b"\0" + value + b"\0" + tail), names, values, tails)
broken = st.builds(
    lambda content: framed(b"L" + content),
    st.sampled_from([b"", b"\0", b"a", b"a\0", b"a\0b", b"\0b\0", b"\0\0", b"ab"]),
)
macros = st.builds(
    lambda letter, value: codec.encode(codec.Macros(letter, ((b"x", value),))),
    st.sampled_from([b"L", b"L", b"M", b"B", b"z"]),
    strategies.text,
)
other = st.sampled_from(
    [codec.encode(command) for command in (EOH, BODY, EOM, ABORT, MAIL, RCPT, HELO, UNKNOWN, QUIT_NC)]
)
odd = st.one_of(strategies.nearly_packets, strategies.wrong_lengths, st.binary(max_size=9))
streams = st.lists(st.one_of(good, good, good, good, macros, other, broken, odd), max_size=14).map(b"".join)
BEGINNING = b"".join([codec.encode(command) for command in (CONNECT, HELO, MAIL, RCPT)])
CONTENT = frozenset({Step.HEADER, Step.END_OF_HEADERS, Step.BODY})
rooms = st.sampled_from([None, 0, 1, 5, 20, 70000])
LARGE = framed(b"L" + b"n" * 300 + b"\0" + b"v" * 65000 + b"\0")
TOO_LARGE = framed(b"L" + b"n\0" + b"v" * 65600 + b"\0")


# -- the decoder ------------------------------------------------------------------------------------------------------


def decoded(
    pieces: Iterable[bytes], *, by_field: bool, room: int | None, macros_of: int
) -> tuple[list[Any], str | None, int]:
    """What came out, what was wrong, and how many bytes are left over.

    ``room``: the pieces are lent, with so much room in front of them for what is held; ``None``: they are copied.
    """
    decoder = codec.CommandDecoder(65535, macros_of)
    found: list[Any] = []
    try:
        for piece in pieces:
            memory = bytearray(room or 0) + piece
            if room is not None:
                decoder.lend(memoryview(memory), room, len(piece))
            else:
                decoder.feed(memory)
            while True:
                field = decoder.next_field() if by_field else None
                message = decoder.next_message() if field is None else None
                if field is not None:
                    found.append(field)
                elif isinstance(message, codec.Header):
                    found.append((to_text(message.name), to_text(message.value)))
                elif message is not None:
                    found.append(message)
                else:
                    break
            decoder.settle()
            memory[:] = b"\xaa" * len(memory)  # whoever kept a pointer into it, and no copy, shows it
    except RemoteProtocolError as error:
        return found, str(error), decoder.buffered
    return found, None, decoder.buffered


@settings(max_examples=600)
@given(streams, rooms, st.sampled_from([(1 << 26) - 1, 0, 0b1000]), st.data())
def test_the_decoder_gives_the_same_by_both_ways(
    stream: bytes, room: int | None, wanted: int, data: st.DataObject
) -> None:
    one_by_one = decoded([stream], by_field=False, room=None, macros_of=wanted)
    for pieces in ([stream], data.draw(cuts(stream)), [stream[at : at + 1] for at in range(len(stream))]):
        assert decoded(pieces, by_field=True, room=room, macros_of=wanted) == one_by_one


@given(st.lists(good, min_size=1, max_size=3), st.booleans(), rooms, st.lists(st.integers(0, 66000), max_size=5))
def test_large_fields_too(fields: list[bytes], fits: bool, room: int | None, places: list[int]) -> None:
    stream = b"".join(fields) + (LARGE if fits else TOO_LARGE) + b"".join(fields)
    expected = decoded([stream], by_field=False, room=None, macros_of=0)
    assert (expected[1] is None) == fits
    bounds = [0, *sorted(min(place, len(stream)) for place in places), len(stream)]
    pieces = [stream[start:end] for start, end in pairwise(bounds)]
    assert decoded(pieces, by_field=True, room=room, macros_of=0) == expected


@given(good, st.data())
def test_half_a_field_is_no_field(packet: bytes, data: st.DataObject) -> None:
    decoder = codec.CommandDecoder()
    decoder.feed(packet[: data.draw(st.integers(0, len(packet) - 1))])
    held = decoder.buffered
    assert decoder.next_field() is None
    assert decoder.buffered == held, "nothing is taken that was not given"


@given(st.lists(strategies.responses, max_size=3).map(lambda messages: b"".join(map(codec.encode, messages))), good)
def test_responses_have_no_fields(stream: bytes, field: bytes) -> None:
    decoder = codec.ResponseDecoder()
    decoder.feed(stream)
    assert decoder.next_field() is None
    list(decoder)
    decoder.feed(field)
    assert decoder.next_field() is None


# -- the session ------------------------------------------------------------------------------------------------------


class Player:
    """A session whose events are answered: header fields by the verdicts of a list in turn, all else by CONTINUE."""

    def __init__(self, by_field: bool, no_reply: frozenset[Step], verdicts: list[Verdict], room: int = 0) -> None:
        self.by_field = by_field
        self.room = room
        self.verdicts = verdicts
        self.fields = 0
        self.seen: list[Any] = []
        self.session = Session()
        self.session.receive(codec.encode(V6))
        self.session.next_event()
        self.session.agree(negotiate(Offer.of(V6), Wish(no_reply=no_reply)))

    def field(self, name: str, value: str) -> None:
        self.seen.append((name, value))
        verdict = self.verdicts[self.fields % len(self.verdicts)]
        self.fields += 1
        if self.session.kept is not None:
            self.session.spare()
        else:
            self.session.answer(verdict)

    def take(self, event: Event) -> None:
        session = self.session
        if isinstance(event, codec.Header):
            self.field(to_text(event.name), to_text(event.value))
            return
        self.seen.append((event.step,) if isinstance(event, OutOfOrder) else event)
        if isinstance(event, codec.EndOfMessage):
            session.finish(session.kept or CONTINUE)
        elif not isinstance(event, OutOfOrder | Dropped | Closed):
            session.answer(CONTINUE)

    def work(self) -> None:
        while True:
            field = self.session.next_field() if self.by_field else None
            if field is not None:
                self.field(*field)
                continue
            event = self.session.next_event()
            if event is None:
                return
            self.take(event)

    def play(self, pieces: Iterable[bytes]) -> tuple[list[Any], bytes, str, Verdict | None]:
        for piece in pieces:
            memory = bytearray(self.room) + piece
            self.session.receive_lent(memoryview(memory), self.room, len(piece))
            self.work()
            self.session.settle()
            memory[:] = b"\xaa" * len(memory)
        self.session.receive_eof()
        self.work()
        return self.seen, b"".join(self.session.out), str(self.session.error), self.session.kept


@settings(max_examples=600)
@given(
    streams,
    st.sampled_from([frozenset(STEPS), CONTENT, frozenset()]),
    st.lists(st.sampled_from([CONTINUE, CONTINUE, CONTINUE, SKIP, REJECT]), min_size=1, max_size=5),
    st.sampled_from([0, 3, 70000]),
    st.data(),
)
def test_the_session_gives_the_same_by_both_ways(
    stream: bytes, no_reply: frozenset[Step], verdicts: list[Verdict], room: int, data: st.DataObject
) -> None:
    stream = BEGINNING + stream
    one_by_one = Player(False, no_reply, verdicts).play([stream])
    for pieces in ([stream], data.draw(cuts(stream)), [stream[at : at + 1] for at in range(len(stream))]):
        assert Player(True, no_reply, verdicts, room).play(pieces) == one_by_one


# -- a filter ---------------------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(st.lists(st.one_of(good, good, good, macros, other), max_size=12).map(b"".join), st.booleans(), st.data())
def test_a_filter_is_shown_the_same_fields(stream: bytes, early: bool, data: st.DataObject) -> None:
    """And they count the same for its edits."""
    names: list[str] = []
    edits: list[codec.Response] = []

    def on_mail(self: Any, sender: Any, params: Any) -> None:
        names.clear()

    def on_header(self: Any, name: str, value: str) -> None:
        names.append(name)

    def on_end_of_message(self: Any) -> None:
        assert self.message._shown == names
        if names and re.fullmatch("[!-9;-~]+", names[-1]):
            index = [name.lower() for name in names].count(names[-1].lower())
            self.message.change_header(names[-1], "changed", index=index)
            edits.append(codec.ChangeHeader(index, names[-1].encode(), b"changed"))

    stream = BEGINNING + stream
    callbacks = {"on_mail": on_mail, "on_header": on_header, "on_end_of_message": on_end_of_message}
    mta = Mta(made("early_verdict" if early else "", **callbacks))
    answers = [answer for piece in data.draw(cuts(stream)) for answer in mta.feed(piece)]
    seen = Player(False, CONTENT, [CONTINUE]).play([stream])[0]
    assert [call[1:] for call in mta.calls if call[0] == "on_header"] == [one for one in seen if is_field(one)]
    assert [answer for answer in answers if isinstance(answer, codec.Modification)] == edits
    assert mta.failures == []


def is_field(seen: Any) -> bool:
    return isinstance(seen, tuple) and len(seen) == 2
