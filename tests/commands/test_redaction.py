"""Redaction: the shape of every recorded conversation stays, none of its content does."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmilter import codec
from fastmilter.commands.recordings import TO_FILTER, TO_MTA, Direction
from fastmilter.commands.redaction import Redactor
from fastmilter.constants import MAX_DATA_BYTES_1M
from tests.support import recordings
from tests.support.strategies import commands, cuts, responses, streams


def redacted(stream: bytes, *, command: bool) -> bytes:
    return Redactor(command=command).redact(stream)


def messages(stream: bytes, *, command: bool) -> list[Any]:
    decoder = codec.CommandDecoder(MAX_DATA_BYTES_1M) if command else codec.ResponseDecoder()
    decoder.feed(stream)
    return list(decoder)


def shape(value: object) -> object:
    """What may stay of a field: its length, if it is text."""
    if isinstance(value, bytes):
        return len(value)
    return tuple(map(shape, value)) if isinstance(value, tuple) else value


def expected(message: Any) -> Any:
    """The shape of a message, written down a second time, message by message."""
    match message:
        case codec.Negotiate():
            return message
        case codec.Macros(command, values):
            return ("Macros", command, [(name, len(value)) for name, value in values])
        case codec.Connect(hostname, family, _, address):
            return ("Connect", len(hostname), family, 0, len(address))
        case codec.ReplyCode(text):
            code = re.sub(rb"[^0-9 -]", b"x", text[:4]) + re.sub(rb"[^\r\n]", b"x", text[4:])
            return ("ReplyCode", code)
    return (type(message).__name__, *(shape(getattr(message, name)) for name in message.__match_args__))


def found(message: Any) -> Any:
    """The same of a message that is redacted already; nothing in it may be anything but x."""
    match message:
        case codec.Negotiate():
            return message
        case codec.Macros(command, values):
            assert all(set(value) <= {ord("x")} for _, value in values)
            return ("Macros", command, [(name, len(value)) for name, value in values])
        case codec.Connect(hostname, family, port, address):
            assert set(hostname + address) <= {ord("x")}
            return ("Connect", len(hostname), family, port, len(address))
        case codec.ReplyCode(text):
            return ("ReplyCode", text)
    for name in message.__match_args__:
        value = getattr(message, name)
        texts = [value] if isinstance(value, bytes) else list(value) if isinstance(value, tuple) else []
        assert all(set(text) <= {ord("x")} for text in texts)
    return (type(message).__name__, *(shape(getattr(message, name)) for name in message.__match_args__))


@pytest.mark.parametrize("name", recordings.names())
def test_every_recording_keeps_its_shape_and_nothing_else(name: str) -> None:
    for conversation in recordings.load(name):
        directions: tuple[Direction, Direction] = (TO_FILTER, TO_MTA)
        for direction in directions:
            command = direction == TO_FILTER
            stream = conversation.stream(direction)
            redactor = Redactor(command=command)
            pieces = [data for way, data in conversation.exchanges() if way == direction]
            out = [redactor.redact(piece) for piece in pieces]
            assert [len(piece) for piece in out] == [len(piece) for piece in pieces]
            whole = b"".join(out)
            before, after = messages(stream, command=command), messages(whole, command=command)
            assert [found(message) for message in after] == [expected(message) for message in before]


def test_no_text_of_a_message_is_left() -> None:
    secrets = (b"secret", b"Secret-Name", b"ann", b"203.0.113.9", b"4711")
    stream = b"".join(
        codec.encode(message)
        for message in (
            codec.Macros(b"M", ((b"{auth_authen}", b"ann"), (b"i", b"4711"))),
            codec.Connect(b"secret.example", b"4", 4711, b"203.0.113.9"),
            codec.Helo(b"secret.example"),
            codec.MailFrom(b"<ann@secret.example>", (b"SIZE=4711",)),
            codec.RcptTo(b"<ann@secret.example>"),
            codec.Header(b"Secret-Name", b"secret"),
            codec.Body(b"secret\r\n"),
            codec.EndOfMessage(b"secret"),
            codec.Unknown(b"secret"),
        )
    )
    out = redacted(stream, command=True)
    assert len(out) == len(stream)
    assert not any(secret.lower() in out.lower() for secret in secrets)
    assert b"{auth_authen}\0xxx\0" in out


def test_what_a_reply_keeps() -> None:
    text = b"550-5.7.1 secret 100%%\r\n550 5.7.1 more"
    (message,) = messages(redacted(codec.encode(codec.ReplyCode(text)), command=False), command=False)
    assert message == codec.ReplyCode(b"550-" + b"x" * 18 + b"\r\n" + b"x" * 14)
    (odd,) = messages(redacted(codec.encode(codec.ReplyCode(b"ab")), command=False), command=False)
    assert odd == codec.ReplyCode(b"xx")


@pytest.mark.parametrize("command", [True, False])
@pytest.mark.parametrize(
    "stream", [b"GET /secret HTTP/1.0\r\n", b"\0\0\0\0secret", b"\0\x7fsecret", b"\x16\x03\x01secret"]
)
def test_what_is_no_milter_protocol_leaves_nothing(stream: bytes, command: bool) -> None:
    out = redacted(stream, command=command)
    assert len(out) == len(stream)
    assert b"secret" not in out
    assert out.endswith(b"xxxxxx")


def test_an_unknown_letter_and_a_packet_with_too_much() -> None:
    assert redacted(b"\0\0\0\x05!abc\0", command=True) == b"\0\0\0\x05!xxxx"
    assert redacted(b"\0\0\0\x03cab\0\0\0\x01a", command=False) == b"\0\0\0\x03cxx\0\0\0\x01a"


@given(st.data())
def test_any_cut_of_any_stream_gives_the_same(data: st.DataObject) -> None:
    command = data.draw(st.booleans())
    stream = data.draw(streams(commands if command else responses))
    redactor = Redactor(command=command)
    pieces = data.draw(cuts(stream))
    out = [redactor.redact(piece) for piece in pieces]
    assert list(map(len, out)) == list(map(len, pieces))
    assert b"".join(out) == redacted(stream, command=command)


@given(st.data())
def test_any_message_keeps_its_shape(data: st.DataObject) -> None:
    command = data.draw(st.booleans())
    message = data.draw(commands if command else responses)
    out = redacted(codec.encode(message), command=command)
    (after,) = messages(out, command=command)
    assert found(after) == expected(messages(codec.encode(message), command=command)[0])
