"""Conformance cases of framing, by their numbers (see README.md)."""

import tracemalloc

import pytest

from fastmilter import codec
from fastmilter.errors import RemoteProtocolError
from tests.support.playing import (
    ABORT,
    BODY,
    CONNECT,
    DATA,
    EOH,
    EOM,
    GREETING,
    HEADER,
    MAIL,
    MESSAGE,
    NO_BITS,
    QUIT,
    RCPT,
    V6,
    Mta,
    everything,
    letters,
    made,
)

MESSAGES: tuple[codec.Command, ...] = (
    codec.Macros(b"C", ((b"j", b"mx"),)),
    *GREETING,
    *MESSAGE,
    ABORT,
    codec.Macros(b"M", ((b"i", b"4F"),)),
    *MESSAGE,
    QUIT,
)
STREAM = b"".join(map(codec.encode, MESSAGES))
NOTICES = {"on_abort": None, "on_message_end": None, "on_close": None}
WATCHING = everything(**NOTICES)


def raw(letter: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A packet, well-formed or not."""
    return (1 + len(data) if length is None else length).to_bytes(4, "big") + letter + data


def refused(mta: Mta, data: bytes) -> None:
    """The connection ends: abort and close are called, nothing is sent, the reason has a name."""
    assert mta.feed(data) == []
    assert isinstance(mta.session.error, RemoteProtocolError)
    assert mta.names[-1] == "on_close"
    assert mta.feed(codec.encode(MAIL)) == []


def in_message(filter_class: type = WATCHING) -> Mta:
    mta = Mta(filter_class)
    mta.send(*GREETING, MAIL, RCPT)
    return mta


def test_case_01_single_bytes() -> None:
    whole, dribbled = Mta(WATCHING), Mta(WATCHING)
    answers = whole.feed(STREAM)
    assert [answer for byte in STREAM for answer in dribbled.feed(bytes([byte]))] == answers
    assert dribbled.calls == whole.calls
    assert whole.names.count("on_end_of_message") == 2


def test_case_02_many_packets_in_one_segment() -> None:
    at_once, one_by_one = Mta(WATCHING, NO_BITS), Mta(WATCHING, NO_BITS)
    assert letters(at_once.feed(STREAM)) == "".join(one_by_one.each(*MESSAGES))
    assert at_once.calls == one_by_one.calls


@pytest.mark.parametrize("follows", [b"", codec.encode(MAIL), b"\0" * 100])
def test_case_03_length_of_zero(follows: bytes) -> None:
    mta = in_message()
    refused(mta, b"\0\0\0\0" + follows)
    assert mta.names[-3:] == ["on_abort", "on_message_end", "on_close"]


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x80000000, 0x7FFFFFFF, 65537 + 1])
def test_case_04_huge_length(length: int) -> None:
    mta = in_message()
    tracemalloc.start()
    refused(mta, raw(b"B", b"", length))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_case_05_largest_payload() -> None:
    mta = in_message()
    chunk = b"x" * 65535
    assert mta.feed(raw(b"B", chunk)) == []
    assert mta.calls[-1] == ("on_body", chunk)


def test_case_06_one_byte_more() -> None:
    mta = in_message()
    refused(mta, raw(b"B", b"x" * 65536))
    assert mta.names[-3:] == ["on_abort", "on_message_end", "on_close"]


def test_case_07_large_payload_where_it_was_agreed() -> None:
    mta = Mta(WATCHING, codec.Negotiate(6, 0x1FF, 0x201FFFFF))
    mta.send(*GREETING, MAIL, RCPT)
    mta.feed(raw(b"B", b"x" * 1048575))
    assert len(mta.calls[-1][1]) == 1048575
    refused(mta, raw(b"B", b"x" * 1048576))


@pytest.mark.parametrize("letter", [b"Z", b"\0", b"\xff", b"c", b"a", b"d"])
def test_case_08_unknown_command(letter: bytes) -> None:
    refused(in_message(), raw(letter))


@pytest.mark.parametrize("cut", [b"\0", b"\0\0\0", b"\0\0\0\x10", b"\0\0\0\x10B", b"\0\0\0\x10Bhalf"])
def test_case_09_end_within_a_packet(cut: bytes) -> None:
    mta = in_message()
    assert mta.feed(cut) == []
    assert mta.eof() == []
    assert mta.names[-3:] == ["on_abort", "on_message_end", "on_close"]


def test_case_10_bytes_behind_what_carries_none() -> None:
    mta = Mta(WATCHING, NO_BITS)
    mta.send(*GREETING, MAIL, RCPT)
    assert letters(mta.feed(raw(b"T", b"junk"))) == "c"
    assert letters(mta.feed(raw(b"N", b"\0"))) == "c"
    assert letters(mta.feed(raw(b"A", b"junk"))) == ""
    assert mta.names[-2:] == ["on_abort", "on_message_end"]
    mta.feed(raw(b"Q", b"junk"))
    assert mta.names[-1] == "on_close"
    assert mta.session.error is None


def test_case_11_replies_without_payload() -> None:
    mta = Mta(made(), NO_BITS)
    for command in (CONNECT, MAIL, RCPT, DATA, HEADER, EOH, BODY, EOM):
        mta.session.receive(codec.encode(command))
        assert not mta.conversation.next_call()
        assert b"".join(mta.session.out) == b"\0\0\0\x01c"
        mta.session.out.clear()


def test_the_offer_itself_is_a_packet_like_any_other() -> None:
    mta = Mta(WATCHING, None)
    assert [answer for byte in codec.encode(V6) for answer in mta.feed(bytes([byte]))] == Mta(WATCHING).agreed
