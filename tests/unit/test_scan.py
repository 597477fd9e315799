"""What the heads of packets tell while nobody decodes them."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmilter import codec
from fastmilter._scan import Scanner
from tests.support import strategies


def letters(mask: int) -> set[str]:
    return {chr(ord("A") + number) for number in range(26) if mask >> number & 1}


@given(st.lists(strategies.commands, max_size=8), st.data())
def test_every_packet_is_seen_once_however_the_stream_is_cut(
    commands: list[codec.Command], data: st.DataObject
) -> None:
    packets = [codec.encode(command, 1 << 20) for command in commands]
    stream = b"".join(packets)
    cuts = sorted({0, len(stream), *data.draw(st.lists(st.integers(0, len(stream)), max_size=10))})
    scanner = Scanner()
    position, starts = 0, []
    for packet in packets:
        starts.append((position + 4, chr(packet[4])))
        position += len(packet)
    for begin, end in pairwise(cuts):
        expected = {letter for place, letter in starts if begin <= place < end}
        assert letters(scanner.scan(stream, begin, end - begin)) == expected


@given(st.lists(strategies.commands, max_size=8), st.data())
def test_a_decoder_tells_the_packets_that_it_still_holds(commands: list[codec.Command], data: st.DataObject) -> None:
    packets = [codec.encode(command, 1 << 20) for command in commands]
    came = b"".join(packets)[: data.draw(st.integers(0, sum(map(len, packets))))]
    decoder = codec.CommandDecoder(1 << 20)
    decoder.feed(came)
    taken = data.draw(st.integers(0, len(list(decoded(came)))))
    for _ in range(taken):
        next(decoder)
    left = came[sum(map(len, packets[:taken])) :]
    assert decoder.letters_ahead == Scanner().scan(left, 0, len(left))


def decoded(stream: bytes) -> codec.CommandDecoder:
    decoder = codec.CommandDecoder(1 << 20)
    decoder.feed(stream)
    return decoder


def test_what_is_no_packet_does_no_harm() -> None:
    scanner = Scanner()
    assert letters(scanner.scan(b"\0\0\0\0" * 3 + b"\0\0\0\1Q", 0, 17)) == {"Q"}
    assert scanner.scan(b"\xff\xff\xff\xffa" + b"QA" * 50, 0, 105) == 0


@pytest.mark.parametrize(("start", "size"), [(-1, 2), (0, 6), (3, 3), (6, 0), (0, -1)])
def test_the_place_is_checked(start: int, size: int) -> None:
    with pytest.raises(ValueError, match="are not within 5"):
        Scanner().scan(bytes(5), start, size)
