"""Every packet that real MTAs and filters exchanged goes through the codec and comes out as it was."""

from collections import Counter
from typing import Any

import pytest

from fastmilter.codec import CommandDecoder, Macros, Negotiate, ResponseDecoder, decode_command, decode_response, encode
from fastmilter.constants import MAX_RESPONSE_BYTES
from fastmilter.errors import RemoteProtocolError
from tests.support.recordings import Conversation, Direction, conversations, load, names

MALFORMED: dict[tuple[str, Direction, int], str] = {}
"""Packets that are not well-formed: (connection, direction, place) and the error. There are none: what the scripted
filters of the raw-* recordings send wrong is its order or its letter (SHUTDOWN, CONN_FAIL), never the packet."""

DIRECTIONS: tuple[Direction, Direction] = ("mta>filter", "filter>mta")
PACKETS = 13898
"""How many there are; if the recordings grow, so must this number: a reader that finds none must not pass for green."""


def decoder_for(direction: Direction) -> CommandDecoder | ResponseDecoder:
    return CommandDecoder() if direction == "mta>filter" else ResponseDecoder()


def decode(direction: Direction, payload: bytes) -> Any:
    return decode_command(payload) if direction == "mta>filter" else decode_response(payload)


def fed(direction: Direction, *pieces: bytes) -> list[Any]:
    decoder = decoder_for(direction)
    messages: list[Any] = []
    for piece in pieces:
        decoder.feed(piece)
        messages.extend(decoder)
    assert decoder.buffered == 0
    return messages


@pytest.fixture(scope="module")
def streams() -> list[tuple[str, Direction, bytes]]:
    """Each different stream once; many connections of an MTA begin or run alike."""
    seen: dict[tuple[Direction, bytes], str] = {}
    for conversation in conversations():
        for direction in DIRECTIONS:
            seen.setdefault((direction, conversation.stream(direction)), conversation.name)
    return [(name, direction, stream) for (direction, stream), name in seen.items() if stream]


def test_every_packet_comes_out_as_it_went_in(record_property: Any, capsys: pytest.CaptureFixture[str]) -> None:
    count: Counter[str] = Counter()
    for conversation in conversations():
        for direction in DIRECTIONS:
            for place, payload in enumerate(conversation.packets(direction)):
                wrong = MALFORMED.get((conversation.name, direction, place))
                if wrong is not None:
                    with pytest.raises(RemoteProtocolError, match=wrong):
                        decode(direction, payload)
                    continue
                message = decode(direction, payload)
                assert encode(message) == len(payload).to_bytes(4, "big") + payload, (conversation.name, message)
                count[type(message).__name__] += 1
    assert count.total() + len(MALFORMED) == PACKETS
    record_property("packets", count.total())
    with capsys.disabled():
        print(f"\n{count.total()} recorded packets decode and encode to the same bytes; {len(MALFORMED)} malformed")


def test_nothing_follows_the_last_packet_of_a_recording() -> None:
    for conversation in conversations():
        for direction in DIRECTIONS:
            size = sum(4 + len(payload) for payload in conversation.packets(direction))
            assert size == len(conversation.stream(direction)), conversation.name


@pytest.mark.parametrize("name", names())
def test_the_segments_as_they_came_give_every_packet(name: str) -> None:
    for conversation in load(name):
        for direction in DIRECTIONS:
            pieces = [data for way, data in conversation.exchanges() if way == direction]
            expected = [decode(direction, payload) for payload in conversation.packets(direction)]
            assert fed(direction, *pieces) == expected, conversation.name


def test_case_01_one_byte_at_a_time_gives_the_same_messages(streams: list[tuple[str, Direction, bytes]]) -> None:
    """The decoder passes through every boundary of every stream."""
    for name, direction, stream in streams:
        dribbled = fed(direction, *(stream[at : at + 1] for at in range(len(stream))))
        assert dribbled == fed(direction, stream), name


def test_a_cut_at_every_boundary_gives_the_same_messages(streams: list[tuple[str, Direction, bytes]]) -> None:
    """In two pieces, at every place, for the streams that are short enough to do that in a few seconds."""
    short = [stream for stream in streams if len(stream[2]) <= 1500]
    assert len(short) > 300
    for name, direction, stream in short:
        whole = fed(direction, stream)
        for cut in range(1, len(stream)):
            assert fed(direction, stream[:cut], stream[cut:]) == whole, (name, cut)


def conversation(name: str, number: int = 1) -> Conversation:
    return load(name)[number - 1]


def test_case_02_many_packets_in_one_segment_come_in_order() -> None:
    noreply = conversation("postfix/neg-noreply")
    segment = max((data for way, data in noreply.exchanges() if way == "mta>filter"), key=len)
    messages = fed("mta>filter", segment)
    assert len(messages) > 5
    assert b"".join(map(encode, messages)) == segment


def test_case_30_the_reply_of_a_real_filter_with_macro_lists() -> None:
    reply = decode_response(conversation("postfix/neg-symlist").packets("filter>mta")[0])
    assert isinstance(reply, Negotiate)
    assert [stage for stage, _ in reply.macros] == list(range(7))
    assert all(names for _, names in reply.macros)


def test_case_59_empty_macro_packets_are_common() -> None:
    macros = [decode_command(payload) for payload in conversation("postfix/plain").packets("mta>filter")]
    assert Macros(b"H") in macros


def test_nothing_larger_than_the_default_limit_was_ever_sent() -> None:
    sizes = [
        len(payload) - 1 for each in conversations() for direction in DIRECTIONS for payload in each.packets(direction)
    ]
    assert max(sizes) == 65535 < MAX_RESPONSE_BYTES
