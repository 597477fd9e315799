"""The codec: refusals and their words, bounds, what messages are, the decoder's buffer.

Cases named test_case_NN are the conformance cases of that number; bytes of examples are in test_codec_bytes.py.
"""

from typing import Any

import pytest

from fastmilter import _bounds
from fastmilter.codec import (
    Abort,
    AddRecipient,
    Body,
    CommandDecoder,
    Connect,
    Data,
    EndOfHeaders,
    EndOfMessage,
    Header,
    Helo,
    Macros,
    MailFrom,
    Negotiate,
    Quit,
    QuitNewConnection,
    RcptTo,
    ReplaceBody,
    ReplyCode,
    ResponseDecoder,
    decode_command,
    decode_response,
    encode,
)
from fastmilter.constants import (
    MAX_DATA_BYTES,
    MAX_DATA_BYTES_1M,
    MAX_DATA_BYTES_256K,
    MAX_RESPONSE_BYTES,
)
from fastmilter.errors import RemoteProtocolError


def commands_of(*pieces: bytes, max_data: int = MAX_DATA_BYTES) -> list[Any]:
    decoder = CommandDecoder(max_data)
    messages: list[Any] = []
    for piece in pieces:
        decoder.feed(piece)
        messages.extend(decoder)
    return messages


def framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


# --- What is refused, and in which words ------------------------------------------------------------------------------

REFUSED_COMMANDS: list[tuple[bytes, str]] = [
    # empty
    (b"", "length 0: a packet has at least its letter"),
    (b"O", "NEGOTIATE ('O'): 0 bytes of data, expected at least 12"),
    (b"D", "MACRO ('D'): 0 bytes of data, expected at least 1"),
    (b"C", "CONNECT ('C'): 0 bytes of data, expected at least 2"),
    (b"H", "HELO ('H'): 0 bytes of data, expected at least 1"),
    (b"M", "MAIL ('M'): 0 bytes of data, expected at least 1"),
    (b"R", "RCPT ('R'): 0 bytes of data, expected at least 1"),
    (b"L", "HEADER ('L'): 0 bytes of data, expected at least 3"),
    (b"B", "BODY ('B'): 0 bytes of data, expected at least 1"),
    (b"U", "UNKNOWN ('U'): 0 bytes of data, expected at least 1"),
    # without the NUL, or cut off
    (b"O" + bytes(11), "NEGOTIATE ('O'): 11 bytes of data, expected at least 12"),
    (b"Hmx", "HELO ('H'): no NUL ends the name: b'mx'"),
    (b"M<a@b>", "MAIL ('M'): no NUL ends the address: b'<a@b>'"),
    (b"R<a@b>", "RCPT ('R'): no NUL ends the address: b'<a@b>'"),
    (b"UFOO", "UNKNOWN ('U'): no NUL ends the command: b'FOO'"),
    (b"LSubject", "HEADER ('L'): no NUL ends the field name: 7 bytes"),
    (b"LSubject\0hi", "HEADER ('L'): no NUL ends the field value: 10 bytes"),
    (b"LSubject\0", "HEADER ('L'): no NUL ends the field value: 8 bytes"),
    (b"L\0value\0", "HEADER ('L'): the field name is empty: 7 bytes"),
    (b"Clocalhost", "CONNECT ('C'): no NUL ends the host name: b'localhost'"),
    (b"Ch\0", "CONNECT ('C'): the family of the address is missing: b'h\\x00'"),
    (b"Ch\x004", "CONNECT ('C'): port and address are missing: b'h\\x004'"),
    (b"Ch\x006\0\x19", "CONNECT ('C'): port and address are missing: b'h\\x006\\x00\\x19'"),
    (b"Ch\x00L\0\0/s", "CONNECT ('C'): no NUL ends the address: b'h\\x00L\\x00\\x00/s'"),
    (b"Ch\0X\0\0a\0", "CONNECT ('C'): family b'X', expected '4', '6', 'L' or 'U': b'h\\x00X\\x00\\x00a\\x00'"),
    # no such letter, also not that of a response
    (b"Z", "unknown command letter b'Z' (0 bytes of data)"),
    (b"\xff\n", "unknown command letter b'\\xff' (1 byte of data)"),
    (b"c", "unknown command letter b'c' (0 bytes of data)"),
    # too large
    (b"H" + b"x" * 70000, "HELO ('H'): 70000 bytes of data, expected at most 65535"),
    (b"C" + b"x" * 70000, "CONNECT ('C'): 70000 bytes of data, expected at most 65535"),
    (b"M" + b"x" * 70000, "MAIL ('M'): 70000 bytes of data, expected at most 65535"),
    (b"R" + b"x" * 70000, "RCPT ('R'): 70000 bytes of data, expected at most 65535"),
    (b"U" + b"x" * 70000, "UNKNOWN ('U'): 70000 bytes of data, expected at most 65535"),
    (b"O" + bytes(70000), "NEGOTIATE ('O'): 70000 bytes of data, expected at most 65535"),
    (b"T" + bytes(70000), "DATA ('T'): 70000 bytes of data, expected at most 65535"),
    (b"B" + bytes(1048576), "BODY ('B'): 1048576 bytes of data, expected at most 1048575"),
    (b"D" + bytes(1048576), "MACRO ('D'): 1048576 bytes of data, expected at most 1048575"),
    (b"L" + bytes(1048576), "HEADER ('L'): 1048576 bytes of data, expected at most 1048575"),
    (b"E" + bytes(1048576), "END_OF_MESSAGE ('E'): 1048576 bytes of data, expected at most 1048575"),
    # what is quoted is cut
    (b"H" + b"x" * 100, f"HELO ('H'): no NUL ends the name: {b'x' * 60!r} and 40 bytes more"),
]

REFUSED_RESPONSES: list[tuple[bytes, str]] = [
    (b"", "length 0: a packet has at least its letter"),
    (b"O" + bytes(11), "NEGOTIATE ('O'): 11 bytes of data, expected at least 12"),
    (b"y", "REPLY_CODE ('y'): 0 bytes of data, expected at least 1"),
    (b"y550 no", "REPLY_CODE ('y'): no NUL ends the reply: b'550 no'"),
    (b"y550 no\0x\0", "REPLY_CODE ('y'): 2 bytes too many at the end: b'550 no\\x00x\\x00'"),
    (b"h", "ADD_HEADER ('h'): 0 bytes of data, expected at least 3"),
    (b"hX\0v", "ADD_HEADER ('h'): no NUL ends the field value: b'X\\x00v'"),
    (b"hX\0v\0w\0", "ADD_HEADER ('h'): 2 bytes too many at the end: b'X\\x00v\\x00w\\x00'"),
    (b"h\0v\0", "ADD_HEADER ('h'): the field name is empty: b'\\x00v\\x00'"),
    (b"i\0\0\0\1X\0", "INSERT_HEADER ('i'): 6 bytes of data, expected at least 7"),
    (b"i\0\0\0\1XY\0", "INSERT_HEADER ('i'): no NUL ends the field value: b'\\x00\\x00\\x00\\x01XY\\x00'"),
    (b"i\0\0\0\1\0v\0", "INSERT_HEADER ('i'): the field name is empty: b'\\x00\\x00\\x00\\x01\\x00v\\x00'"),
    (b"m\0\0\0\1X\0", "CHANGE_HEADER ('m'): 6 bytes of data, expected at least 7"),
    (b"m\0\0\0\1XYZ", "CHANGE_HEADER ('m'): no NUL ends the field name: b'\\x00\\x00\\x00\\x01XYZ'"),
    (b"m\0\0\0\1X\0v\0z", "CHANGE_HEADER ('m'): 1 byte too many at the end: b'\\x00\\x00\\x00\\x01X\\x00v\\x00z'"),
    (b"+", "ADD_RECIPIENT ('+'): 0 bytes of data, expected at least 1"),
    (b"+<a@b>", "ADD_RECIPIENT ('+'): no NUL ends the address: b'<a@b>'"),
    (b"+a\0b\0", "ADD_RECIPIENT ('+'): 2 bytes too many at the end: b'a\\x00b\\x00'"),
    (b"2", "ADD_RECIPIENT_PARAMS ('2'): 0 bytes of data, expected at least 1"),
    (b"2a\0b", "ADD_RECIPIENT_PARAMS ('2'): no NUL ends the parameters: b'a\\x00b'"),
    (b"2a\0b\0c\0", "ADD_RECIPIENT_PARAMS ('2'): 2 bytes too many at the end: b'a\\x00b\\x00c\\x00'"),
    (b"-", "DELETE_RECIPIENT ('-'): 0 bytes of data, expected at least 1"),
    (b"-a", "DELETE_RECIPIENT ('-'): no NUL ends the address: b'a'"),
    (b"e", "CHANGE_SENDER ('e'): 0 bytes of data, expected at least 1"),
    (b"ea", "CHANGE_SENDER ('e'): no NUL ends the address: b'a'"),
    (b"q", "QUARANTINE ('q'): 0 bytes of data, expected at least 1"),
    (b"qspam", "QUARANTINE ('q'): no NUL ends the reason: b'spam'"),
    # Postfix takes a verdict with anything behind it for broken
    *[
        (letter + b"\0", f"{name} ({letter.decode()!r}): 1 byte of data, expected at most 0")
        for letter, name in {
            b"c": "CONTINUE",
            b"a": "ACCEPT",
            b"r": "REJECT",
            b"t": "TEMPFAIL",
            b"d": "DISCARD",
            b"s": "SKIP",
            b"p": "PROGRESS",
            b"4": "SHUTDOWN",
            b"f": "CONNECTION_FAIL",
        }.items()
    ],
    (b"M<a@b>\0", "unknown response letter b'M' (6 bytes of data)"),
    (b"l", "unknown response letter b'l' (0 bytes of data)"),
    (b"b" + bytes(MAX_RESPONSE_BYTES + 1), "REPLACE_BODY ('b'): 1052672 bytes of data, expected at most 1052671"),
    (b"y" + bytes(MAX_RESPONSE_BYTES + 1), "REPLY_CODE ('y'): 1052672 bytes of data, expected at most 1052671"),
    (b"O" + bytes(70000), "NEGOTIATE ('O'): 70000 bytes of data, expected at most 65535"),
]


def short(value: object) -> str:
    return repr(value)[:40]


@pytest.mark.parametrize(("payload", "words"), REFUSED_COMMANDS, ids=short)
def test_a_bad_command_is_refused_with_what_is_wrong(payload: bytes, words: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_command(payload)
    assert str(caught.value) == words


@pytest.mark.parametrize(("payload", "words"), REFUSED_RESPONSES, ids=short)
def test_a_bad_response_is_refused_with_what_is_wrong(payload: bytes, words: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_response(payload)
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("stream", "guess"),
    [
        (b"GET / HTTP/1.1\r\n", "this looks like HTTP, not like the milter protocol"),
        (b"POST", "this looks like HTTP, not like the milter protocol"),
        (b"HELO mx.example\r\n", "this looks like SMTP, not like the milter protocol"),
        (b"EHLO", "this looks like SMTP, not like the milter protocol"),
        (b"220 mx.example ESMTP\r\n", "this looks like SMTP, not like the milter protocol"),
        (b"\x16\x03\x01\x02\x00\x01", "this looks like TLS, not like the milter protocol"),
        (b"PROXY TCP4 ", "this looks like the PROXY protocol, not like the milter protocol"),
        (b"SSH-2.0-OpenSSH_9.2", "this looks like SSH, not like the milter protocol"),
        (b"help\r\n", "this looks like text, not like the milter protocol"),
    ],
)
def test_a_stranger_is_called_by_name(stream: bytes, guess: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        commands_of(stream)
    number = int.from_bytes(stream[:4], "big")
    assert str(caught.value) == f"length {number} (bytes {stream[:4]!r}) is above the limit of 65536: {guess}"


# --- Framing (conformance cases) --------------------------------------------------------------------------------------


def test_case_03_length_zero_is_refused_at_its_fourth_byte() -> None:
    decoder = CommandDecoder()
    decoder.feed(b"\0\0\0")
    assert list(decoder) == []
    decoder.feed(b"\0")
    with pytest.raises(RemoteProtocolError, match=r"^length 0: a packet has at least its letter$"):
        next(decoder)


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x80000000, 0x80000001, 65537])
def test_case_04_a_length_above_the_limit_is_refused_at_its_fourth_byte(length: int) -> None:
    decoder = CommandDecoder()
    decoder.feed(length.to_bytes(4, "big"))
    assert decoder.buffered == 4
    with pytest.raises(RemoteProtocolError, match=f"^length {length} "):
        next(decoder)
    assert decoder.buffered == 0


def test_case_05_the_largest_payload_is_accepted() -> None:
    assert commands_of(framed(b"B" + bytes(65535))) == [Body(bytes(65535))]


def test_case_06_one_byte_more_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="length 65537 "):
        commands_of(framed(b"B" + bytes(65536)))


@pytest.mark.parametrize("size", [MAX_DATA_BYTES_256K, MAX_DATA_BYTES_1M])
def test_case_07_larger_payloads_where_they_were_agreed(size: int) -> None:
    decoder = CommandDecoder()
    decoder.max_data = size
    decoder.feed(framed(b"B" + bytes(size)) + framed(b"E" + bytes(size)))
    assert [len(message.chunk) for message in decoder if isinstance(message, Body | EndOfMessage)] == [size, size]
    decoder.feed((size + 2).to_bytes(4, "big"))
    with pytest.raises(RemoteProtocolError, match=f"limit of {size + 1}"):
        next(decoder)


@pytest.mark.parametrize("letter", [b"C", b"H", b"M", b"R", b"U", b"O", b"A", b"T"])
def test_case_07_the_envelope_stays_small(letter: bytes) -> None:
    decoder = CommandDecoder(MAX_DATA_BYTES_1M)
    decoder.feed((65537).to_bytes(4, "big") + letter)
    with pytest.raises(RemoteProtocolError, match="65536 bytes of data, expected at most 65535"):
        next(decoder)


def test_case_08_an_unknown_letter_is_refused_before_its_data_came() -> None:
    decoder = CommandDecoder()
    decoder.feed(b"\0\0\x10\0")
    assert list(decoder) == []
    decoder.feed(b"z")
    with pytest.raises(RemoteProtocolError, match=r"^unknown command letter b'z' \(4095 bytes of data\)$"):
        next(decoder)


def test_case_09_an_end_inside_a_packet_shows_as_buffered() -> None:
    decoder = CommandDecoder()
    decoder.feed(b"\0\0\0\5Hmx")
    assert list(decoder) == []
    assert decoder.buffered == 7


@pytest.mark.parametrize(
    ("letter", "message"),
    [(b"T", Data()), (b"N", EndOfHeaders()), (b"A", Abort()), (b"Q", Quit()), (b"K", QuitNewConnection())],
)
def test_case_10_bytes_behind_a_command_without_data_are_ignored(letter: bytes, message: Any) -> None:
    assert commands_of(framed(letter + b"anything"), framed(b"A")) == [message, Abort()]


def test_case_11_responses_without_data_are_five_bytes() -> None:
    for letter, (_, highest) in _bounds.RESPONSE_BOUNDS.items():
        if highest == 0:
            assert encode(decode_response(letter)) == b"\0\0\0\1" + letter


def test_case_18_only_twelve_bytes_of_an_offer_count() -> None:
    offer = b"O" + bytes([0, 0, 0, 6, 0, 0, 1, 0xFF, 0, 0x1F, 0xFF, 0xFF])
    assert decode_command(offer + b"\1\2\3\4\5\6\7\x08") == Negotiate(6, 0x1FF, 0x1FFFFF)
    assert decode_command(offer + b"\0\0\0\1j\0tail") == Negotiate(6, 0x1FF, 0x1FFFFF)
    assert decode_command(offer + b"\0\0\0\1j\0") == Negotiate(6, 0x1FF, 0x1FFFFF, ((1, b"j"),))


@pytest.mark.parametrize("tail", [b"\1\2\3", b"\0\0\0\1", b"\0\0\0\1unterminated", b"\0"])
def test_case_31_a_reply_keeps_its_lists_in_front_of_garbage(tail: bytes) -> None:
    lists = b"\0\0\0\0j v\0" + b"\0\0\0\6\0"
    assert decode_response(b"O" + bytes(12) + lists + tail) == Negotiate(0, 0, 0, ((0, b"j v"), (6, b"")))
    assert decode_response(b"O" + bytes(12) + tail) == Negotiate(0, 0, 0)


def test_case_32_whatever_follows_an_unknown_family_is_ignored() -> None:
    assert decode_command(b"Clocalhost\0U") == Connect(b"localhost", b"U")
    assert decode_command(b"Clocalhost\0U\0\x19x") == Connect(b"localhost", b"U")


def test_case_34_an_address_that_is_none_is_kept() -> None:
    assert decode_command(b"Cunknown\x004\0\0unknown\0") == Connect(b"unknown", b"4", 0, b"unknown")


def test_case_40_quotes_and_equal_signs_stay() -> None:
    assert decode_command(b'M<"a>b"@c>\0X=1=2\0FLAG\0') == MailFrom(b'<"a>b"@c>', (b"X=1=2", b"FLAG"))


def test_case_41_no_byte_but_nul_means_anything() -> None:
    every = bytes(range(1, 256))
    assert decode_command(b"H" + every + b"\0") == Helo(every)
    assert decode_command(b"R" + every + b"\0" + every + b"\0") == RcptTo(every, (every,))
    assert decode_command(b"L" + every + b"\0" + every + b"\0") == Header(every, every)
    assert decode_command(b"DM" + every + b"\0" + every + b"\0") == Macros(b"M", ((every, every),))


def test_case_42_an_unterminated_last_parameter_is_dropped() -> None:
    assert decode_command(b"M<a@b>\0SIZE=9\0BODY=8BIT") == MailFrom(b"<a@b>", (b"SIZE=9",))
    assert decode_command(b"R<a@b>\0NOTI") == RcptTo(b"<a@b>")


def test_case_49_more_strings_than_two_in_a_header_are_ignored() -> None:
    assert decode_command(b"LX\0v\0more\0") == Header(b"X", b"v")
    assert decode_command(b"LX\0v\0rest") == Header(b"X", b"v")


def test_case_59_60_68_odd_macro_packets() -> None:
    assert decode_command(b"DH") == Macros(b"H")
    assert decode_command(b"DMi\x004F\0dangling\0") == Macros(b"M", ((b"i", b"4F"),))
    assert decode_command(b"DMi\x004F\0name\0unterminated") == Macros(b"M", ((b"i", b"4F"),))
    assert decode_command(b"DMtail") == Macros(b"M")
    assert decode_command(b"DMi\0\0j\0x\0") == Macros(b"M", ((b"i", b""), (b"j", b"x")))


@pytest.mark.parametrize("stage", [b"L", b"B", b"U", b"A", b"\xff", b"\0"])
def test_case_61_any_stage_is_fine(stage: bytes) -> None:
    assert decode_command(b"D" + stage + b"i\0x\0") == Macros(stage, ((b"i", b"x"),))


def test_case_109_a_reply_must_end_in_its_only_nul() -> None:
    assert decode_response(b"y550 50% off\0") == ReplyCode(b"550 50% off")
    for payload in (b"y550 no", b"y550\0no\0", b"y550 no\0\0"):
        with pytest.raises(RemoteProtocolError):
            decode_response(payload)


def test_case_110_a_response_has_a_limit_too() -> None:
    decoder = ResponseDecoder()
    decoder.feed(framed(b"b" + bytes(200_000)))
    assert list(decoder) == [ReplaceBody(bytes(200_000))]
    decoder.feed((MAX_RESPONSE_BYTES + 2).to_bytes(4, "big"))
    with pytest.raises(RemoteProtocolError, match="limit of 1052672"):
        next(decoder)


def test_a_2_packet_with_one_string_is_an_added_recipient() -> None:
    """Postfix takes it; it says the same as ``+`` and becomes the same message."""
    assert decode_response(b"2<a@b>\0") == AddRecipient(b"<a@b>") == decode_response(b"+<a@b>\0")
