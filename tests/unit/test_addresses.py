"""What the envelope and CONNECT carry, as Python values; and the addresses that authors give."""

import copy
import pickle
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from fastmilter._text import to_bytes, to_text
from fastmilter.addresses import (
    Address,
    Params,
    Recipient,
    SocketAddress,
    params_argument,
    path_argument,
)


def test_every_byte_survives_text() -> None:
    for data in (bytes(range(256)), b"\xc3\xa4", b"\xff\xfe", b"\xed\xa0\x80"):
        assert to_bytes(to_text(data)) == data
    assert to_text(b"\xc3\xa4") == "ä"


@pytest.mark.parametrize(
    ("raw", "path", "local_part", "domain"),
    [
        (b"<ann@example.org>", "ann@example.org", "ann", "example.org"),
        (b"ann@example.org", "ann@example.org", "ann", "example.org"),
        (b"<>", "", "", ""),
        (b"", "", "", ""),
        (b"<Ann@EXAMPLE.Org.>", "Ann@EXAMPLE.Org.", "Ann", "example.org"),
        (b"<postmaster>", "postmaster", "postmaster", ""),
        (b'<"a b"@c.example>', '"a b"@c.example', '"a b"', "c.example"),
        (b'<"a>b"@c>', '"a>b"@c', '"a>b"', "c"),
        (b'<"a@b">', '"a@b"', '"a@b"', ""),
        (b'<"a@b"@c>', '"a@b"@c', '"a@b"', "c"),
        (b"<@relay.example:ann@example.org>", "ann@example.org", "ann", "example.org"),
        (b"<@a.example,@b.example:ann@example.org>", "ann@example.org", "ann", "example.org"),
        (b"<@nonsense>", "@nonsense", "", "nonsense"),
        (b"<ann@[192.0.2.1]>", "ann@[192.0.2.1]", "ann", "[192.0.2.1]"),
        (b"<a@b@c>", "a@b@c", "a@b", "c"),
        (b"<ann@example.org", "<ann@example.org", "<ann", "example.org"),
        (b"<", "<", "<", ""),
        (b">", ">", ">", ""),
        (b"<\xe4@\xc3\xbc.example>", "\udce4@ü.example", "\udce4", "ü.example"),
    ],
)
def test_address(raw: bytes, path: str, local_part: str, domain: str) -> None:
    address = Address(raw)
    assert address == path
    assert (address.local_part, address.domain, address.raw) == (local_part, domain, raw)


def test_an_address_is_a_str_that_can_be_copied_and_sent_elsewhere() -> None:
    address = Address(b"<@a:ann@example.org>")
    recipient = Recipient(b"<bob@example.org>", Params(["NOTIFY=NEVER"]))
    assert isinstance(address, str)
    by_path: dict[str, int] = {address: 1}
    assert by_path["ann@example.org"] == 1
    for twin in (copy.deepcopy(address), pickle.loads(pickle.dumps(address))):
        assert (twin, twin.raw) == (address, address.raw)
    for other in (copy.deepcopy(recipient), pickle.loads(pickle.dumps(recipient))):
        assert (other, other.raw, other.params) == (recipient, recipient.raw, recipient.params)
    assert Recipient(b"<bob@example.org>").params == ()


def test_params() -> None:
    params = Params(["SIZE=100", "Body=8BITMIME", "SMTPUTF8", "X=1=2", "EMPTY="])
    assert tuple(params) == ("SIZE=100", "Body=8BITMIME", "SMTPUTF8", "X=1=2", "EMPTY=")
    assert "size" in params
    assert "BODY=8bitmime" in params
    assert "SIZ" not in params
    assert "SIZE=10" not in params
    number: Any = 100
    assert number not in params
    assert [params.get(name) for name in ("size", "BODY", "smtputf8", "x", "Empty", "AUTH")] == [
        "100",
        "8BITMIME",
        "",
        "1=2",
        "",
        None,
    ]
    assert params.get("AUTH", "<>") == "<>"


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("a@b", b"<a@b>"),
        ("<a@b>", b"<a@b>"),
        (b"a@b", b"<a@b>"),
        ("", b"<>"),
        ("<>", b"<>"),
        ("\udce4@ü", b"<\xe4@\xc3\xbc>"),
        ('"a >b"@c', b'<"a >b"@c>'),
        ('"a\\" >b"@c', b'<"a\\" >b"@c>'),
        (Address(b"<@relay:a@b>"), b"<a@b>"),
    ],
)
def test_addresses_that_authors_give(given: str | bytes, sent: bytes) -> None:
    assert path_argument(given) == sent


@pytest.mark.parametrize(
    "given",
    [
        "a@b\r\n",
        "a\0@b",
        "<a@b",
        "a@b>",
        "<<a@b>>",
        "a@b> SIZE=1",
        "a b@c",
        '"a"@b> NOTIFY=NEVER <x',
        '"a b@c',
        "\ud800@b",
        "a\x7f@b",
        None,
        5,
        ["a@b"],
    ],
)
def test_addresses_that_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"address|surrogates"):
        path_argument(given)


def test_params_that_authors_give() -> None:
    assert params_argument(["NOTIFY=NEVER", "ORCPT=rfc822;a@b"]) == (b"NOTIFY=NEVER", b"ORCPT=rfc822;a@b")
    assert params_argument(()) == ()
    wrong: Any
    for wrong in ("NOTIFY=NEVER", b"X", ["A B"], [""], ["A\0"], ["A\r\n"]):
        with pytest.raises(ValueError, match="param"):
            params_argument(wrong)


@pytest.mark.parametrize(
    ("wire", "address", "ip", "shown"),
    [
        ((b"4", 25, b"192.0.2.1"), SocketAddress("inet", "192.0.2.1", 25), IPv4Address("192.0.2.1"), "192.0.2.1:25"),
        ((b"4", 0, b"127.0.0.1"), SocketAddress("inet", "127.0.0.1"), IPv4Address("127.0.0.1"), "127.0.0.1"),
        ((b"4", 0, b"unknown"), SocketAddress("inet", "unknown"), None, "unknown"),
        ((b"4", 0, b""), SocketAddress("inet"), None, "unknown"),
        ((b"4", 1, b"\xff"), SocketAddress("inet", "\udcff", 1), None, "\udcff:1"),
        ((b"6", 25, b"::1"), SocketAddress("inet6", "::1", 25), IPv6Address("::1"), "[::1]:25"),
        ((b"6", 25, b"IPv6:::1"), SocketAddress("inet6", "::1", 25), IPv6Address("::1"), "[::1]:25"),
        (
            (b"6", 0, b"ipv6:0:0:0:0:0:0:0:1"),
            SocketAddress("inet6", "0:0:0:0:0:0:0:1"),
            IPv6Address("::1"),
            "[0:0:0:0:0:0:0:1]",
        ),
        ((b"6", 0, b"::ffff:192.0.2.1"), SocketAddress("inet6", "::ffff:192.0.2.1"), IPv4Address("192.0.2.1"), None),
        ((b"L", 0, b"/run/x"), SocketAddress("unix", path="/run/x"), None, "unix:/run/x"),
        ((b"L", 0, b""), SocketAddress("unix"), None, "unknown"),
        ((b"U", 0, b""), SocketAddress(), None, "unknown"),
        ((b"?", 25, b"x"), SocketAddress(), None, "unknown"),
    ],
)
def test_socket_address(
    wire: tuple[bytes, int, bytes], address: SocketAddress, ip: IPv4Address | IPv6Address | None, shown: str | None
) -> None:
    read = SocketAddress.from_wire(*wire)
    assert read == address
    assert read.ip == ip
    assert shown is None or str(read) == shown
