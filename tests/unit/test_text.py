"""Text and bytes: the compiled helpers give what plain Python gives, whatever the bytes."""

import random
import re
import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastmilter import codec
from fastmilter._text import is_field_name, is_one_line, is_same_name, path_text, subtype_of_str, to_bytes, to_text
from fastmilter.addresses import Address
from fastmilter.constants import FIELD_NAMES
from tests.support.strategies import framed

# Around the eight bytes that are looked at in one go.
SIZES = [0, 1, 2, 6, 7, 8, 9, 15, 16, 17, 23, 24, 25, 1000]
any_bytes = st.one_of(st.binary(max_size=40), st.text(max_size=20).map(str.encode))
line_bytes = st.lists(st.sampled_from([*b"ab:\0\r\n \t!~\x7f\x80\xff"]), max_size=20).map(bytes)


# -- bytes to text and back -------------------------------------------------------------------------------------------


@given(any_bytes)
@example(b"\xed\xa0\x80")  # a surrogate, which is no UTF-8
@example(b"\xf4\x90\x80\x80")  # beyond Unicode
@example(b"\xc0\xaf")  # longer than it need be
@example(b"\xe2\x82")  # cut
def test_every_byte_comes_back(data: bytes) -> None:
    text = to_text(data)
    assert text == data.decode("utf-8", "surrogateescape")
    assert to_bytes(text) == data


@pytest.mark.parametrize("size", SIZES)
def test_one_byte_that_is_not_ascii_is_seen_anywhere(size: int) -> None:
    plain = bytes(random.Random(size).choices(range(128), k=size))
    assert to_text(plain) == plain.decode("ascii")
    assert to_text(plain).isascii()
    for place in range(size):
        data = plain[:place] + b"\xff" + plain[place + 1 :]
        assert to_text(data) == data.decode("utf-8", "surrogateescape")
        assert to_bytes(to_text(data)) == data


@given(st.text(max_size=20))
def test_any_text_has_bytes(text: str) -> None:
    assert to_bytes(text) == text.encode("utf-8", "surrogateescape")


def test_subclasses_of_str_are_text() -> None:
    class Name(str): ...

    for text in ("", "plain", "größer", "\udce9"):
        assert to_bytes(Name(text)) == text.encode("utf-8", "surrogateescape")
    assert to_bytes(Address(b"<ann@from.example>")) == b"ann@from.example"


@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "x" * 20 + "\udbff"])
def test_a_lone_surrogate_stands_for_no_byte(text: str) -> None:
    with pytest.raises(ValueError, match="surrogates not allowed"):
        to_bytes(text)


@pytest.mark.parametrize("wrong", [None, b"bytes", 5, bytearray(b"x")])
def test_what_is_no_text(wrong: Any) -> None:
    with pytest.raises(TypeError):
        to_bytes(wrong)


@pytest.mark.parametrize("wrong", [None, "text", 5, bytearray(b"x"), memoryview(b"x")])
def test_what_is_no_bytes(wrong: Any) -> None:
    with pytest.raises(TypeError):
        to_text(wrong)
    with pytest.raises(TypeError):
        subtype_of_str(Address, b"bytes")  # type: ignore[arg-type]


# -- paths -------------------------------------------------------------------------------------------------------------


def plain_path(raw: bytes) -> bytes:
    """RFC 5321 section 4.1.1.3, in Python."""
    path = raw[1:-1] if len(raw) > 1 and raw[:1] == b"<" and raw[-1:] == b">" else raw
    if path[:1] == b"@":
        path = path.partition(b":")[2] or path
    return path


@given(st.lists(st.sampled_from([*b"<>@:a.\xff"]), max_size=8).map(bytes))
@example(b"<>")
@example(b"<@a,@b:c@d>")
@example(b"<@a:>")
def test_a_path_without_brackets_and_route(raw: bytes) -> None:
    assert to_bytes(path_text(raw)) == plain_path(raw)
    assert path_text(raw) == to_text(plain_path(raw))
    assert Address(raw) == path_text(raw)


# -- names of header fields -------------------------------------------------------------------------------------------


def name_decoded(name: bytes) -> str:
    decoder = codec.CommandDecoder()
    decoder.feed(framed(b"L" + name + b"\0value\0"))
    field = decoder.next_field()
    assert field is not None
    assert field[1] == "value"
    return field[0]


@pytest.mark.parametrize("name", FIELD_NAMES)
def test_a_known_name_and_its_look_alikes(name: str) -> None:
    """Every name of the same length that differs in one byte, or in the case of all, is read as what it is."""
    data = name.encode()
    assert name_decoded(data) == name
    others = {data.lower(), data.upper(), data[::-1], data[1:] + data[:1]}
    others |= {data[:at] + bytes([byte]) + data[at + 1 :] for at in range(len(data)) for byte in b"aZ-\x01\x80\xff"}
    others |= {data[:-1], data + b"x", data * 2} - {b""}
    for other in others:
        assert name_decoded(other) == other.decode("utf-8", "surrogateescape")


def test_known_names_are_not_made_anew() -> None:
    """That is what the table is for; of two names with one place in it one is."""
    known = [name for name in FIELD_NAMES if name_decoded(name.encode()) is name]
    assert len(known) > 0.8 * len(FIELD_NAMES)
    assert {"Received", "From", "To", "Message-ID"} <= set(known)


def test_known_names_are_not_used_up() -> None:
    name = FIELD_NAMES[0]
    before = sys.getrefcount(name)
    for _ in range(1000):
        name_decoded(name.encode())
    assert sys.getrefcount(name) == before


@given(st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name))
@example(b"x" * 1000)
def test_any_name(name: bytes) -> None:
    assert name_decoded(name) == name.decode("utf-8", "surrogateescape")


@given(line_bytes)
@example(b"")
def test_what_may_be_a_name(name: bytes) -> None:
    assert is_field_name(name) == (re.fullmatch(rb"[!-9;-~]+", name) is not None)


def test_every_byte_in_a_name() -> None:
    allowed = {*range(0x21, 0x7F)} - {ord(":")}
    assert {byte for byte in range(256) if is_field_name(bytes([byte]))} == allowed
    assert {byte for byte in range(256) if is_field_name(b"X-" + bytes([byte]) + b"y")} == allowed


@given(line_bytes)
def test_what_is_one_line(value: bytes) -> None:
    assert is_one_line(value) == (not set(value) & set(b"\0\r\n"))


def test_every_byte_in_a_line() -> None:
    broken = {0, *b"\r\n"}
    assert {byte for byte in range(256) if not is_one_line(bytes([byte]))} == broken
    assert {byte for byte in range(256) if not is_one_line(b"a" * 20 + bytes([byte]))} == broken
    assert is_one_line(b"")


names = st.lists(st.sampled_from([*b"aAzZ@[`{-_!~"]), min_size=1, max_size=4).map(bytes)


@given(names, names)
def test_upper_and_lower_case_are_the_same_name(one: bytes, other: bytes) -> None:
    assert is_same_name(one, other.decode()) == (one.lower() == other.lower())


def test_every_byte_beside_every_other() -> None:
    """Only letters have a case: ``@`` and the grave accent differ by the same bit."""
    for one in range(0x21, 0x7F):
        same = {other for other in range(128) if is_same_name(bytes([one]), chr(other))}
        assert same == {other for other in range(128) if chr(one).lower() == chr(other).lower()}


@pytest.mark.parametrize("other", ["\xe9", "\u212a", "\udce9", "\u0131", "", "kk", "k\0"])
def test_no_other_text_is_the_same_name(other: str) -> None:
    """``K`` for Kelvin is a k in lower case, but no field's name."""
    assert not is_same_name(b"k", other)
    assert is_same_name(b"k", "K")


# -- subclasses of str ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "a", "ann@from.example", "größer", "\udce9", "\U0001f4e7"])
def test_a_subclass_of_str_is_made(text: str) -> None:
    class Path(str):
        pass

    for kind in (Path, Address):
        made = subtype_of_str(kind, text)
        assert type(made) is kind
        assert made == str.__new__(kind, text)
        assert (str(made), len(made), hash(made), repr(made)) == (text, len(text), hash(text), repr(text))
        assert made.upper() == text.upper()
