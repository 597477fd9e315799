"""Headers of the PROXY protocol: what is read of them, and what is refused, in any pieces."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmilter.errors import RemoteProtocolError
from fastmilter.server.proxy_header import (
    MAX_BYTES,
    MAX_V1_BYTES,
    MAX_V2_BYTES,
    V2_BEGINNING,
    ProxyHeader,
    may_begin_header,
    parse_proxy_header,
)

PACKET = b"\0\0\0\x0dO\0\0\0\x06\0\0\x01\xff\0\0\0\0"
LONGEST_V1 = b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535"


def v2(command: int, kind: int, rest: bytes, size: int | None = None) -> bytes:
    length = len(rest) if size is None else size
    return V2_BEGINNING + bytes([0x20 | command, kind]) + length.to_bytes(2) + rest


def addresses(source: str, destination: str = "192.0.2.1") -> bytes:
    packed = ipaddress.ip_address(source).packed
    return packed + ipaddress.ip_address(destination).packed + b"\x9e\x4a\x22\xbe"


IPV6 = addresses("2001:db8::25", "2001:db8::1")
TLV = b"\x03\0\x04\xde\xad\xbe\xef" + b"\x20\0\0"


@pytest.mark.parametrize(
    ("header", "source", "is_local"),
    [
        (b"PROXY TCP4 192.0.2.25 192.0.2.1 40522 8894\r\n", "192.0.2.25", False),
        (b"PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n", "0.0.0.0", False),
        (b"PROXY TCP6 2001:DB8:0::25 2001:db8::1 40522 8894\r\n", "2001:db8::25", False),
        (b"PROXY UNKNOWN\r\n", None, False),
        (LONGEST_V1 + b"\r\n", None, False),
        (b"PROXY UNKNOWN \xff whatever\r\n", None, False),
        (v2(1, 0x11, addresses("192.0.2.25")), "192.0.2.25", False),
        (v2(1, 0x11, addresses("192.0.2.25") + TLV), "192.0.2.25", False),
        (v2(1, 0x21, IPV6), "2001:db8::25", False),
        (v2(1, 0x21, IPV6 + bytes(MAX_V2_BYTES - 16 - 36)), "2001:db8::25", False),
        (v2(1, 0x31, bytes(216)), None, False),
        (v2(1, 0x00, b""), None, False),
        (v2(1, 0x00, TLV), None, False),
        (v2(0, 0x00, b""), None, True),
        (v2(0, 0x11, addresses("192.0.2.25")), None, True),
        (v2(0, 0xFF, TLV), None, True),
    ],
)
def test_headers_in_any_pieces_and_with_packets_behind_them(header: bytes, source: str | None, is_local: bool) -> None:
    expected = ProxyHeader(len(header), source, is_local)
    assert parse_proxy_header(header) == expected
    assert parse_proxy_header(header + PACKET) == expected
    assert all(parse_proxy_header(header[:size]) is None for size in range(len(header)))
    assert all(may_begin_header(header[:size]) for size in range(len(header)))


@pytest.mark.parametrize(
    ("data", "saying"),
    [
        (PACKET, "no header of the PROXY protocol"),
        (b"GET / HTTP/1.0\r\n", "no header of the PROXY protocol, but b'GET / HTTP/1.0"),
        (b"PROXY\r\n", "no header of the PROXY protocol"),
        (b"proxy TCP4 ", "no header of the PROXY protocol"),
        (b"PROXY \r\n", "cannot be read"),
        (b"PROXY TCP4\r\n", "cannot be read"),
        (b"PROXY TCP4 192.0.2.25 192.0.2.1 40522\r\n", "cannot be read"),
        (b"PROXY TCP4 192.0.2.25 192.0.2.1 40522 8894 1\r\n", "cannot be read"),
        (b"PROXY TCP4  192.0.2.25 192.0.2.1 40522 8894\r\n", "cannot be read"),
        (b"PROXY TCP4 192.0.2.25 192.0.2.1 40522 65536\r\n", "cannot be read"),
        (b"PROXY TCP4 192.0.2.25 192.0.2.1 040522 8894\r\n", "cannot be read"),
        (b"PROXY TCP4 192.0.2.25 192.0.2.1 -1 8894\r\n", "cannot be read"),
        (b"PROXY TCP4 192.0.2.256 192.0.2.1 40522 8894\r\n", "cannot be read"),
        (b"PROXY TCP4 192.0.2.025 192.0.2.1 40522 8894\r\n", "cannot be read"),
        (b"PROXY TCP4 2001:db8::25 2001:db8::1 40522 8894\r\n", "cannot be read"),
        (b"PROXY TCP6 192.0.2.25 192.0.2.1 40522 8894\r\n", "cannot be read"),
        (b"PROXY TCP6 fe80::1%eth0 fe80::2 40522 8894\r\n", "cannot be read"),
        (b"PROXY TCP5 192.0.2.25 192.0.2.1 40522 8894\r\n", "cannot be read"),
        (b"PROXY TCP4 mx.example 192.0.2.1 40522 8894\r\n", "cannot be read"),
        (b"PROXY TCP4 192.0.2.25\xb2 192.0.2.1 40522 8894\r\n", "cannot be read"),
        (b"PROXY TCP4 192.0.2.25 192.0.2.1 40522 8894\n" + bytes(80), "longer than 107 bytes"),
        (b"PROXY UNKNOWN" + b" " * (MAX_V1_BYTES - 14) + b"\r\n", "longer than 107 bytes"),
        (b"\r\n\r\n\0\r\nQUIT\r", "no header of the PROXY protocol"),
        (V2_BEGINNING + b"\x11\x11\0\x0c", "of version 1 with command 1"),
        (V2_BEGINNING + b"\x22\x11\0\x0c", "of version 2 with command 2"),
        (v2(1, 0x11, b"", MAX_V2_BYTES - 15), "of 4097 bytes, expected at most 4096"),
        (v2(0, 0x00, b"", 65535), "of 65551 bytes, expected at most 4096"),
        (v2(1, 0x11, b"", 11), "with 11 bytes of addresses, expected 12"),
        (v2(1, 0x21, b"", 35), "with 35 bytes of addresses, expected 36"),
        (v2(1, 0x31, b"", 215), "with 215 bytes of addresses, expected 216"),
        (v2(1, 0x12, b"", 12), "of kind 0x12, expected TCP"),
        (v2(1, 0x41, b"", 12), "of kind 0x41, expected TCP"),
        (v2(1, 0xF1, b"", 12), "of kind 0xf1, expected TCP"),
    ],
)
def test_what_is_no_header(data: bytes, saying: str) -> None:
    with pytest.raises(RemoteProtocolError, match=saying):
        parse_proxy_header(data)


def test_the_longest_line() -> None:
    line = b"PROXY UNKNOWN" + b" " * (MAX_V1_BYTES - 15) + b"\r\n"
    assert len(line) == MAX_V1_BYTES
    assert parse_proxy_header(line + PACKET) == ProxyHeader(MAX_V1_BYTES, None)


def test_a_packet_never_looks_like_a_header() -> None:
    assert not may_begin_header(PACKET[:1])
    assert not may_begin_header(b"\x0c")


hostile = st.one_of(
    st.binary(max_size=300),
    st.builds(bytes.__add__, st.sampled_from([b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ", V2_BEGINNING]), st.binary()),
    st.builds(
        lambda words, end: b"PROXY " + b" ".join(words) + end,
        st.lists(st.sampled_from([b"TCP4", b"TCP6", b"UNKNOWN", b"1.2.3.4", b"::1", b"0", b"99999", b"", b"\xff"])),
        st.sampled_from([b"\r\n", b"\n", b"", b"\r\n\r\n"]),
    ),
    st.builds(v2, st.integers(0, 15), st.integers(0, 255), st.binary(max_size=300), st.integers(0, 65535)),
    st.builds(v2, st.integers(0, 1), st.sampled_from([0, 0x11, 0x21, 0x31]), st.binary(max_size=300)),
)


def outcome(data: bytes) -> ProxyHeader | str | None:
    try:
        return parse_proxy_header(data)
    except RemoteProtocolError:
        return "refused"


@given(hostile, st.data())
def test_any_bytes_are_a_header_or_refused_and_pieces_make_no_difference(data: bytes, choose: st.DataObject) -> None:
    whole = outcome(data)
    if isinstance(whole, ProxyHeader):
        assert 0 < whole.size <= min(len(data), MAX_BYTES)
        assert whole.source is None or ipaddress.ip_address(whole.source)
    size = choose.draw(st.integers(0, len(data)))
    piece = outcome(data[:size])
    assert piece in (whole, None) or (piece == "refused" and whole == "refused")
    if isinstance(whole, ProxyHeader):
        assert (piece is None) == (size < whole.size), "neither early nor late"


@given(hostile)
def test_nobody_waits_for_more_than_the_longest_header(data: bytes) -> None:
    assert outcome(data + bytes(MAX_BYTES)) is not None
