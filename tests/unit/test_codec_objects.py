"""The codec: what messages are as objects, what ``encode`` refuses, what a decoder holds."""

import dataclasses
import gc
import pickle
import sys
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from fastmilter import _bounds, codec
from fastmilter.codec import (
    Abort,
    Accept,
    AddHeader,
    AddRecipient,
    Body,
    ChangeHeader,
    ChangeSender,
    CommandDecoder,
    Connect,
    Continue,
    EndOfMessage,
    Header,
    Helo,
    InsertHeader,
    Macros,
    MailFrom,
    Negotiate,
    Quarantine,
    Quit,
    RcptTo,
    ReplaceBody,
    ReplyCode,
    ResponseDecoder,
    Unknown,
    decode_command,
    decode_response,
    encode,
)
from fastmilter.constants import (
    MAX_DATA_BYTES,
    MAX_DATA_BYTES_1M,
    MAX_RESPONSE_BYTES,
    Action,
    CommandLetter,
    Family,
    ProtocolFlag,
    ResponseLetter,
)
from fastmilter.errors import InvalidMessage, LocalProtocolError, RemoteProtocolError

# --- Messages ---------------------------------------------------------------------------------------------------------


def test_messages_are_frozen_dataclasses() -> None:
    header = Header(b"Subject", value=b"hi")
    assert (header.name, header.value) == (b"Subject", b"hi")
    assert header == Header(b"Subject", b"hi") != Header(b"Subject", b"ho")
    assert hash(header) == hash(Header(b"Subject", b"hi"))
    assert repr(header) == "Header(name=b'Subject', value=b'hi')"
    assert [each.name for each in dataclasses.fields(header)] == ["name", "value"]
    assert dataclasses.replace(header, value=b"ho") == Header(b"Subject", b"ho")
    with pytest.raises(AttributeError):
        header.name = b"X"  # type: ignore[misc]
    match header:
        case Header(name, value):
            assert (name, value) == (b"Subject", b"hi")
        case _:
            pytest.fail("no match")


def test_messages_of_different_classes_differ() -> None:
    different: list[Any] = [Accept(), Continue(), Abort(), Helo(b"x"), Unknown(b"x"), MailFrom(b"x"), RcptTo(b"x")]
    assert len(set(different)) == len(different)
    as_response: Any = AddHeader(b"X", b"v")
    assert Header(b"X", b"v") != as_response


def test_defaults() -> None:
    assert Negotiate(6, 1, 2).macros == ()
    assert Connect(b"h", b"U") == Connect(b"h", b"U", 0, b"")
    assert (MailFrom(b"").params, RcptTo(b"").params, EndOfMessage().chunk) == ((), (), b"")
    assert (AddRecipient(b"a").params, ChangeSender(b"a").params, Macros(b"C").values) == ((), (), ())


def test_flags_and_letters_of_the_constants_are_welcome() -> None:
    assert Connect(b"h", Family.INET, 25, b"1.2.3.4") == Connect(b"h", b"4", 25, b"1.2.3.4")
    assert repr(Connect(b"h", Family.UNKNOWN)) == "Connect(hostname=b'h', family=b'U', port=0, address=b'')"
    assert repr(Macros(CommandLetter.MAIL)) == "Macros(command=b'M', values=())"
    offer = Negotiate(6, Action.ADD_HEADERS, ProtocolFlag.SKIP)
    assert encode(offer) == encode(Negotiate(6, 1, 0x400))


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (Helo, ("text",)),
        (Header, (b"X", "text")),
        (Body, (bytearray(b"x"),)),
        (MailFrom, (b"a", [b"SIZE=1"])),
        (InsertHeader, ("1", b"X", b"v")),
        (Negotiate, ("6", 0, 0)),
        (Connect, (b"h", "4")),
        (Connect, ("h", b"4")),
        (Connect, (b"h", b"4", 0, None)),
        (Macros, ("C",)),
        (Macros, (b"C", [(b"a", b"b")])),
        (Helo, ()),
        (Accept, (1,)),
    ],
)
def test_a_constructor_refuses_a_wrong_type(kind: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        kind(*arguments)


def test_messages_cannot_be_pickled_by_accident() -> None:
    """They would lose their fields without a word otherwise; nothing sends messages between processes."""
    for message in (Header(b"X", b"v"), Macros(b"C"), CommandDecoder()):
        with pytest.raises(TypeError):
            pickle.dumps(message)


def test_messages_without_data_are_made_once() -> None:
    assert decode_command(b"T") is decode_command(b"T")
    assert decode_response(b"c") is decode_response(b"c")
    assert decode_response(b"c") == Continue()


# --- Macros -----------------------------------------------------------------------------------------------------------


def test_decoded_and_constructed_macros_are_alike() -> None:
    decoded = decode_command(b"DMi\x004F\0{mail_addr}\0a@b\0")
    constructed = Macros(b"M", ((b"i", b"4F"), (b"{mail_addr}", b"a@b")))
    assert isinstance(decoded, Macros)
    assert hash(decoded) == hash(constructed)
    assert decoded == constructed
    assert repr(decoded) == repr(constructed)
    assert decoded != Macros(b"R", decoded.values)
    assert decoded != "M"
    match decoded:
        case Macros(command, values):
            assert (command, values) == (b"M", constructed.values)
        case _:
            pytest.fail("no match")


SPELLINGS = (
    (b"{i}", b"1"),
    (b"j", b"2"),
    (b"{client_port}", b"3"),
    (b"v", b""),
    (b"{", b"4"),
    (b"{}", b"5"),
    (b"}", b"6"),
)


def decoded_macros(values: tuple[tuple[bytes, bytes], ...], tail: bytes = b"") -> Macros:
    decoded = decode_command(encode(Macros(b"C", values))[4:] + tail)
    assert isinstance(decoded, Macros)
    return decoded


@pytest.mark.parametrize("macros", [Macros(b"C", SPELLINGS), decoded_macros(SPELLINGS)], ids=["made", "decoded"])
def test_case_62_a_macro_is_found_without_braces(macros: Macros) -> None:
    names = [b"i", b"j", b"client_port", b"v", b"{", b"", b"}"]
    assert macros.names() == names
    assert [macros.get(name) for name in names] == [b"1", b"2", b"3", b"", b"4", b"5", b"6"]
    for absent in (b"k", b"client_por", b"client_ports", b"{i}", b"1", b"2"):
        assert macros.get(absent) is None
    with pytest.raises(TypeError):
        macros.get("i")  # type: ignore[arg-type]


def test_the_first_of_two_macros_wins_as_in_libmilter() -> None:
    twice = ((b"i", b"1"), (b"{i}", b"2"), (b"i", b"3"))
    assert Macros(b"C", twice).get(b"i") == decoded_macros(twice).get(b"i") == b"1"


@pytest.mark.parametrize("tail", [b"", b"x", b"x\0", b"x\0unterminated", b"\0", b"\0y"])
def test_a_tail_that_is_no_pair_is_never_found(tail: bytes) -> None:
    for values in ((), ((b"i", b"1"),)):
        macros = decoded_macros(values, tail)
        assert macros.values == values
        assert macros.names() == [name for name, _ in values]
        assert [macros.get(name) for name in (b"x", b"", b"unterminated", b"y")] == [None] * 4
        assert bool(macros) == bool(values)


# --- What encode refuses ----------------------------------------------------------------------------------------------

UNSENDABLE: list[tuple[Any, str]] = [
    (Helo(b"a\0b"), "HELO ('H'): a NUL inside: b'a\\x00b'"),
    (Unknown(b"\0"), "UNKNOWN ('U'): a NUL inside: b'\\x00'"),
    (MailFrom(b"a\0"), "MAIL ('M'): a NUL inside: b'a\\x00'"),
    (MailFrom(b"a", (b"SIZE\0",)), "MAIL ('M'): a NUL inside: b'SIZE\\x00'"),
    (RcptTo(b"a", (b"b", b"\0")), "RCPT ('R'): a NUL inside: b'\\x00'"),
    (Header(b"X\0", b""), "HEADER ('L'): a NUL inside: b'X\\x00'"),
    (Header(b"X", b"\0"), "HEADER ('L'): a NUL inside: b'\\x00'"),
    (Connect(b"h\0", b"U"), "CONNECT ('C'): a NUL inside: b'h\\x00'"),
    (Connect(b"h", b"4", 1, b"1\0"), "CONNECT ('C'): a NUL inside: b'1\\x00'"),
    (Macros(b"C", ((b"a\0", b""),)), "MACRO ('D'): a NUL inside: b'a\\x00'"),
    (Macros(b"C", ((b"a", b"\0"),)), "MACRO ('D'): a NUL inside: b'\\x00'"),
    (Negotiate(6, 0, 0, ((0, b"a\0"),)), "NEGOTIATE ('O'): a NUL inside: b'a\\x00'"),
    (ReplyCode(b"550 a\0"), "REPLY_CODE ('y'): a NUL inside: b'550 a\\x00'"),
    (AddHeader(b"X", b"\0"), "ADD_HEADER ('h'): a NUL inside: b'\\x00'"),
    (InsertHeader(1, b"X", b"\0"), "INSERT_HEADER ('i'): a NUL inside: b'\\x00'"),
    (ChangeHeader(1, b"X", b"\0"), "CHANGE_HEADER ('m'): a NUL inside: b'\\x00'"),
    (AddRecipient(b"\0"), "ADD_RECIPIENT ('+'): a NUL inside: b'\\x00'"),
    (AddRecipient(b"a", (b"\0",)), "ADD_RECIPIENT_PARAMS ('2'): a NUL inside: b'\\x00'"),
    (ChangeSender(b"\0"), "CHANGE_SENDER ('e'): a NUL inside: b'\\x00'"),
    (Quarantine(b"a\0"), "QUARANTINE ('q'): a NUL inside: b'a\\x00'"),
    (AddRecipient(b"a", (b"x y",)), "ADD_RECIPIENT_PARAMS ('2'): a space inside a parameter: b'x y'"),
    (ChangeSender(b"a", (b" ",)), "CHANGE_SENDER ('e'): a space inside a parameter: b' '"),
    (Header(b"", b"v"), "HEADER ('L'): the field name is empty"),
    (AddHeader(b"", b"v"), "ADD_HEADER ('h'): the field name is empty"),
    (InsertHeader(0, b"", b"v"), "INSERT_HEADER ('i'): the field name is empty"),
    (ChangeHeader(0, b"", b"v"), "CHANGE_HEADER ('m'): the field name is empty"),
    (Body(b""), "BODY ('B'): 0 bytes of data, expected at least 1"),
    (Body(bytes(65536)), "BODY ('B'): 65536 bytes of data, expected at most 65535"),
    (EndOfMessage(bytes(65536)), "END_OF_MESSAGE ('E'): 65536 bytes of data, expected at most 65535"),
    (ReplaceBody(bytes(65536)), "REPLACE_BODY ('b'): 65536 bytes of data, expected at most 65535"),
    (Header(b"X", b"v" * 65533), "HEADER ('L'): 65536 bytes of data, expected at most 65535"),
    (InsertHeader(-1, b"X", b""), "index is -1, expected 0 to 4294967295"),
    (ChangeHeader(1 << 32, b"X", b""), "index is 4294967296, expected 0 to 4294967295"),
    (Connect(b"h", b"4", 65536, b""), "port is 65536, expected 0 to 65535"),
    (Connect(b"h", b"4", -1, b""), "port is -1, expected 0 to 65535"),
    (Connect(b"h", b"X"), "CONNECT ('C'): family b'X', expected '4', '6', 'L' or 'U'"),
    (Connect(b"h", b""), "CONNECT ('C'): family b'', expected '4', '6', 'L' or 'U'"),
    (Connect(b"h", b"U", 25), "CONNECT ('C'): family 'U' has neither port nor address"),
    (Connect(b"h", b"U", 0, b"a"), "CONNECT ('C'): family 'U' has neither port nor address"),
    (Negotiate(1 << 32, 0, 0), "version is 4294967296, expected 0 to 4294967295"),
    (Negotiate(6, -1, 0), "actions is -1, expected 0 to 4294967295"),
    (Negotiate(6, 0, 1 << 40), "protocol is 1099511627776, expected 0 to 4294967295"),
    (Negotiate(6, 0, 0, ((-1, b""),)), "stage is -1, expected 0 to 4294967295"),
    (Negotiate(6, 0, 0, ((0, "j"),)), "NEGOTIATE ('O'): expected bytes, got str"),  # type: ignore[arg-type]
    (Negotiate(6, 0, 0, (b"ab",)), "NEGOTIATE ('O'): expected pairs, got b'ab'"),  # type: ignore[arg-type]
    (Macros(b"", ()), "the command of macros is b'', expected one letter"),
    (Macros(b"CC", ()), "the command of macros is b'CC', expected one letter"),
    (Macros(b"C", ((b"a",),)), "MACRO ('D'): expected pairs, got (b'a',)"),  # type: ignore[arg-type]
    (Macros(b"C", ((b"a", 1),)), "MACRO ('D'): expected bytes, got int"),  # type: ignore[arg-type]
    (MailFrom(b"a", ("SIZE=1",)), "MAIL ('M'): expected bytes, got str"),  # type: ignore[arg-type]
    (AddRecipient(b"a", (1,)), "ADD_RECIPIENT_PARAMS ('2'): expected bytes, got int"),  # type: ignore[arg-type]
    (Helo(None), "HELO ('H'): expected bytes, got NoneType"),  # type: ignore[arg-type]
    (Body(None), "BODY ('B'): expected bytes, got NoneType"),  # type: ignore[arg-type]
    (Header(None, b""), "HEADER ('L'): expected bytes, got NoneType"),  # type: ignore[arg-type]
    (b"c", "not a message of the milter protocol: b'c'"),
    (None, "not a message of the milter protocol: None"),
    (Continue, "not a message of the milter protocol: <class 'fastmilter._messages.Continue'>"),
]


@pytest.mark.parametrize(("message", "words"), UNSENDABLE, ids=lambda value: repr(value)[:40])
def test_encode_refuses_what_a_decoder_would(message: Any, words: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        encode(message)
    assert str(caught.value) == words
    assert isinstance(caught.value, LocalProtocolError)
    assert isinstance(caught.value, ValueError)


def test_larger_packets_where_they_were_agreed() -> None:
    largest = Body(bytes(MAX_DATA_BYTES_1M))
    assert len(encode(largest, MAX_DATA_BYTES_1M)) == 5 + MAX_DATA_BYTES_1M
    with pytest.raises(InvalidMessage, match="at most 1048575"):
        encode(Body(bytes(MAX_DATA_BYTES_1M + 1)), MAX_DATA_BYTES_1M)
    with pytest.raises(InvalidMessage, match=r"^RCPT .* at most 65535$"):
        encode(RcptTo(bytes(b"a" * 65535)), MAX_DATA_BYTES_1M)


# --- Bounds -----------------------------------------------------------------------------------------------------------


def test_the_table_of_bounds_knows_every_letter() -> None:
    assert set(_bounds.COMMAND_BOUNDS) == set(CommandLetter)
    assert set(_bounds.RESPONSE_BOUNDS) == set(ResponseLetter)


@pytest.mark.parametrize("letter", sorted(_bounds.COMMAND_BOUNDS))
def test_bounds_of_a_command_hold_before_its_data_came(letter: bytes) -> None:
    lowest, highest = _bounds.COMMAND_BOUNDS[letter]
    bounds_hold(CommandDecoder, letter, lowest, min(highest, MAX_DATA_BYTES))


@pytest.mark.parametrize("letter", sorted(_bounds.RESPONSE_BOUNDS))
def test_bounds_of_a_response_hold_before_its_data_came(letter: bytes) -> None:
    lowest, highest = _bounds.RESPONSE_BOUNDS[letter]
    bounds_hold(ResponseDecoder, letter, lowest, min(highest, MAX_RESPONSE_BYTES))


def bounds_hold(kind: Callable[[], CommandDecoder | ResponseDecoder], letter: bytes, lowest: int, highest: int) -> None:
    for size in (lowest, highest):
        decoder = kind()
        decoder.feed((size + 1).to_bytes(4, "big") + letter)
        if size:
            assert list(decoder) == []
    for size in (lowest - 1, highest + 1):
        if size >= 0:
            decoder = kind()
            decoder.feed((size + 1).to_bytes(4, "big") + letter)
            with pytest.raises(RemoteProtocolError):
                next(decoder)


@pytest.mark.parametrize("max_data", [11, -1, 0x7FFFFFF1])
def test_max_data_is_bounded_too(max_data: int) -> None:
    with pytest.raises(ValueError, match=f"max_data is {max_data}, expected 12 to 2147483632"):
        CommandDecoder(max_data)
    decoder = ResponseDecoder()
    with pytest.raises(ValueError, match="max_data"):
        decoder.max_data = max_data
    assert decoder.max_data == MAX_RESPONSE_BYTES


# --- The decoder ------------------------------------------------------------------------------------------------------


def test_feed_takes_anything_bytes_like_and_copies_it() -> None:
    decoder = CommandDecoder()
    piece = bytearray(encode(Helo(b"first")))
    decoder.feed(memoryview(piece)[:6])
    decoder.feed(memoryview(piece)[6:])
    piece[:] = bytes(len(piece))
    decoder.feed(encode(Quit()))
    decoder.feed(b"")
    assert list(decoder) == [Helo(b"first"), Quit()]
    with pytest.raises(TypeError):
        decoder.feed("text")  # type: ignore[arg-type]
    with pytest.raises(BufferError):
        decoder.feed(memoryview(b"abcd")[::2])
    assert list(decoder) == []


def test_iteration_goes_on_after_more_was_fed() -> None:
    decoder = CommandDecoder()
    assert iter(decoder) is decoder
    decoder.feed(encode(Abort()) + b"\0\0\0")
    assert [list(decoder), list(decoder), decoder.buffered] == [[Abort()], [], 3]
    decoder.feed(b"\1Q")
    assert [next(decoder, None), next(decoder, None), decoder.buffered] == [Quit(), None, 0]


def test_messages_in_front_of_a_fault_come_first_and_the_fault_stays() -> None:
    decoder = CommandDecoder()
    decoder.feed(encode(Abort()) + b"\0\0\0\0" + encode(Quit()))
    assert next(decoder) == Abort()
    for use in (lambda: next(decoder), lambda: list(decoder), lambda: decoder.feed(b""), lambda: decoder.feed(b"x")):
        with pytest.raises(RemoteProtocolError, match=r"^length 0: a packet has at least its letter$"):
            use()
    assert decoder.buffered == 0


def test_a_fault_keeps_nothing_of_its_surroundings_alive() -> None:
    class Witness:
        pass

    decoder = CommandDecoder()
    decoder.feed(bytes(4))

    def fail() -> weakref.ref[Witness]:
        witness = Witness()
        with pytest.raises(RemoteProtocolError):
            next(decoder)
        return weakref.ref(witness)

    reference = fail()
    gc.collect()
    assert reference() is None


def test_an_idle_decoder_is_small() -> None:
    decoder = CommandDecoder()
    assert sys.getsizeof(decoder) < 100
    decoder.feed(framed(b"B" + bytes(65535)))
    assert decoder.buffered == 65540
    assert len(list(decoder)) == 1
    assert decoder.buffered == 0


def framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


def rss() -> int:
    return int(psutil.Process().memory_info().rss)


def test_idle_decoders_hold_no_buffer() -> None:
    """Also those that keep the beginning of the next packet: what came before it is given back."""
    decoders = [CommandDecoder() for _ in range(2000)]
    piece = framed(b"B" + bytes(65535)) + b"\0\0\0"
    for warm_up in decoders[:50]:
        warm_up.feed(piece)
        assert len(list(warm_up)) == 1
    before = rss()
    for decoder in decoders[50:]:
        decoder.feed(piece)
        assert len(list(decoder)) == 1
        assert decoder.buffered == 3
    assert rss() - before < 20_000_000  # 1950 times 64 KB would be 128 MB


def test_a_length_reserves_nothing() -> None:
    decoders = [CommandDecoder(MAX_DATA_BYTES_1M) for _ in range(2000)]
    before = rss()
    for decoder in decoders:
        decoder.feed((MAX_DATA_BYTES_1M + 1).to_bytes(4, "big") + b"Bbeginning")
        assert list(decoder) == []
    assert rss() - before < 20_000_000  # 2000 times 1 MB would be 2 GB


def test_decoding_and_failing_leaks_nothing() -> None:
    """Python's own allocations, exactly; the C buffer is watched above and by the fuzz target."""
    macros = Macros(b"M", ((b"i", b"x" * 40),))
    messages: list[codec.Command] = [macros, Header(b"X", b"v" * 40), Body(b"b" * 40), RcptTo(b"r", (b"p",))]
    stream = b"".join([encode(message) for message in messages])

    def once() -> None:
        for ending in (b"", b"\0\0\0\0", b"\0\0\0\2Hx", b"\0\0\0\3Lx\0", b"\0\0\0\2Zx", b"GET "):
            decoder = CommandDecoder()
            decoder.feed(stream + ending)
            try:
                for message in decoder:
                    repr(message)
            except RemoteProtocolError:
                pass
        for unsendable, _ in UNSENDABLE:
            with pytest.raises(InvalidMessage):
                encode(unsendable)

    once()
    gc.collect()
    tracemalloc.start()
    try:
        once()
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(20):
            once()
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 10_000
    finally:
        tracemalloc.stop()


def test_a_packet_in_many_pieces_is_not_copied_once_per_piece() -> None:
    """Work that grows with the square would take minutes here: 1 MB in pieces of one byte."""
    decoder = CommandDecoder(MAX_DATA_BYTES_1M)
    packet = framed(b"B" + bytes(MAX_DATA_BYTES_1M))
    messages: list[codec.Command] = []
    for at in range(len(packet)):
        decoder.feed(packet[at : at + 1])
        messages.extend(decoder)
    assert messages == [Body(bytes(MAX_DATA_BYTES_1M))]


def test_many_packets_in_one_piece_are_not_moved_once_per_packet() -> None:
    decoder = CommandDecoder()
    decoder.feed(encode(Abort()) * 1_000_000)
    assert sum(1 for _ in decoder) == 1_000_000
