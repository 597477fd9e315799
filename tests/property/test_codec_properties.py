"""What holds of the codec for any message and any bytes."""

from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastmilter import codec
from fastmilter.constants import (
    MAX_DATA_BYTES,
    MAX_DATA_BYTES_256K,
    MAX_RESPONSE_BYTES,
    CommandLetter,
    ResponseLetter,
)
from fastmilter.errors import InvalidMessage, RemoteProtocolError
from tests.support import oracle
from tests.support.strategies import commands, cuts, framed, letters, responses, streams

Decoder = codec.CommandDecoder | codec.ResponseDecoder


def decoder_for(side: oracle.Side, max_data: int) -> Decoder:
    return codec.CommandDecoder(max_data) if side == "command" else codec.ResponseDecoder(max_data)


def drain(decoder: Decoder, pieces: Iterable[bytes]) -> tuple[list[Any], str | None]:
    """The messages, and what was wrong with the stream if something was."""
    messages: list[Any] = []
    try:
        for piece in pieces:
            decoder.feed(piece)
            for message in decoder:
                messages.append(message)
    except RemoteProtocolError as error:
        return messages, str(error)
    return messages, None


def plain(message: Any) -> oracle.Message:
    return type(message).__name__, *(getattr(message, name) for name in message.__match_args__)


@given(commands)
def test_a_command_comes_back_as_it_was_sent(message: codec.Command) -> None:
    packet = codec.encode(message)
    assert codec.decode_command(packet[4:]) == message
    assert drain(codec.CommandDecoder(), [packet]) == ([message], None)


@given(responses)
def test_a_response_comes_back_as_it_was_sent(message: codec.Response) -> None:
    packet = codec.encode(message)
    assert codec.decode_response(packet[4:]) == message
    assert drain(codec.ResponseDecoder(), [packet]) == ([message], None)


@given(st.one_of(commands, responses))
def test_equal_messages_have_equal_hashes_and_reprs(message: Any) -> None:
    again = type(message)(*(getattr(message, name) for name in message.__match_args__))
    assert again == message
    assert hash(again) == hash(message)
    assert repr(again) == repr(message)
    assert eval(repr(message), vars(codec)) == message


@given(st.data(), st.sampled_from(["command", "response"]))
def test_any_cut_gives_the_same_messages_and_the_same_fault(data: st.DataObject, side: oracle.Side) -> None:
    stream = data.draw(streams(commands if side == "command" else responses))
    whole = drain(decoder_for(side, MAX_DATA_BYTES), [stream])
    assert drain(decoder_for(side, MAX_DATA_BYTES), data.draw(cuts(stream))) == whole
    assert drain(decoder_for(side, MAX_DATA_BYTES), (stream[at : at + 1] for at in range(len(stream)))) == whole


@settings(max_examples=1000)
@given(st.data(), st.sampled_from(["command", "response"]), st.sampled_from([MAX_DATA_BYTES, MAX_DATA_BYTES_256K]))
def test_codec_and_oracle_agree(data: st.DataObject, side: oracle.Side, max_data: int) -> None:
    stream = data.draw(streams(commands if side == "command" else responses))
    messages, fault = drain(decoder_for(side, max_data), [stream])
    assert ([plain(message) for message in messages], fault is not None) == oracle.decode(side, stream, max_data)


@given(st.binary(max_size=200), st.sampled_from(["command", "response"]))
def test_codec_and_oracle_agree_on_any_bytes(stream: bytes, side: oracle.Side) -> None:
    messages, fault = drain(decoder_for(side, MAX_DATA_BYTES), [stream])
    assert ([plain(message) for message in messages], fault is not None) == oracle.decode(side, stream, MAX_DATA_BYTES)


def short_contents(letter: str) -> Iterable[bytes]:
    """Every short content of what matters behind a letter, also behind the numbers that some packets start with."""
    for size in range(6):
        for parts in product(b"\x004Ua ", repeat=size):
            yield bytes(parts)
            if letter in "im":
                yield b"\0\0\0\1" + bytes(parts)
    for size in range(11 if letter == "O" else 0):
        for parts in product(b"\x00a", repeat=size):
            yield bytes(12) + bytes(parts)


@pytest.mark.parametrize("side", ["command", "response"])
@pytest.mark.parametrize(
    "letter", sorted({letter.value.decode() for letter in [*CommandLetter, *ResponseLetter]} | {"?"})
)
def test_codec_and_oracle_agree_on_every_short_packet(side: oracle.Side, letter: str) -> None:
    for content in short_contents(letter):
        packet = framed(letter.encode() + content)
        messages, fault = drain(decoder_for(side, MAX_DATA_BYTES), [packet])
        agreed = [plain(message) for message in messages], fault is not None
        assert agreed == oracle.decode(side, packet, MAX_DATA_BYTES), packet


@given(letters, st.binary(max_size=30))
@example(b"D", b"")
def test_what_decodes_encodes_to_a_packet_that_decodes_to_the_same(letter: bytes, content: bytes) -> None:
    for decode in (codec.decode_command, codec.decode_response):
        try:
            message = decode(letter + content)
        except RemoteProtocolError:
            continue
        assert decode(codec.encode(message, MAX_RESPONSE_BYTES)[4:]) == message


@given(letters, st.binary(max_size=30))
def test_payload_and_stream_are_judged_alike(letter: bytes, content: bytes) -> None:
    sides: list[tuple[Any, oracle.Side]] = [(codec.decode_command, "command"), (codec.decode_response, "response")]
    for decode, side in sides:
        messages, fault = drain(decoder_for(side, MAX_DATA_BYTES), [framed(letter + content)])
        if fault is None:
            assert messages == [decode(letter + content)]
        else:
            with pytest.raises(RemoteProtocolError) as caught:
                decode(letter + content)
            assert str(caught.value) == fault


@given(st.one_of(commands, responses), st.data())
def test_one_field_of_nonsense_is_refused_by_name(message: Any, data: st.DataObject) -> None:
    """What a constructor lets through, ``encode`` sends so that it comes back, or refuses with its own error."""
    fields = {name: getattr(message, name) for name in message.__match_args__}
    if not fields:
        return
    changed = data.draw(st.sampled_from(sorted(fields)))
    nonsense = data.draw(st.sampled_from([None, "text", b"a\0b", b"", -1, 1 << 32, (1,), ("a",), ((1, 2),), (b"a b",)]))
    try:
        odd = type(message)(**{**fields, changed: nonsense})
    except TypeError:
        return
    try:
        packet = codec.encode(odd)
    except InvalidMessage:
        return
    decoded = [decode for decode in (codec.decode_command, codec.decode_response) if _decodes(decode, packet[4:])]
    assert decoded
    assert any(decode(packet[4:]) == odd for decode in decoded) or nonsense is None


def _decodes(decode: Any, payload: bytes) -> bool:
    try:
        decode(payload)
    except RemoteProtocolError:
        return False
    return True
