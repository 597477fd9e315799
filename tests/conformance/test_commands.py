"""Conformance cases of the commands, by their numbers (see README.md)."""

from ipaddress import IPv6Address
from typing import Any

import pytest

from fastmilter import REJECT, SocketAddress, codec
from fastmilter.errors import RemoteProtocolError
from tests.support.playing import (
    BODY,
    CONNECT,
    EOM,
    HELO,
    MAIL,
    MESSAGE,
    NO_BITS,
    RCPT,
    UNKNOWN,
    V6,
    Mta,
    everything,
    letters,
    made,
)

WATCHING = everything(on_abort=None, on_close=None, on_rejected_rcpt=None)


def raw(letter: bytes, data: bytes) -> bytes:
    return (1 + len(data)).to_bytes(4, "big") + letter + data


def connected(data: bytes) -> SocketAddress:
    """What a filter sees of a CONNECT packet; it is answered."""
    mta = Mta(WATCHING)
    assert letters(mta.feed(raw(b"C", data))) == "c"
    _, hostname, address = mta.calls[-1]
    assert hostname == data.partition(b"\0")[0].decode()
    assert isinstance(address, SocketAddress)
    return address


def played(*commands: codec.Command, **callbacks: Any) -> Mta:
    mta = Mta(everything(**callbacks), NO_BITS)
    mta.send(CONNECT, HELO, MAIL, RCPT)
    mta.calls.clear()
    mta.send(*commands)
    assert mta.failures == []
    return mta


def test_case_32_unknown_family() -> None:
    assert connected(b"localhost\0U") == SocketAddress("unknown", None, None, None)
    assert connected(b"localhost\0Uwhatever").ip is None


def test_case_33_ipv6_with_and_without_prefix() -> None:
    for text in (b"IPv6:::1", b"::1", b"ipv6:0:0:0:0:0:0:0:1"):
        address = connected(b"h\x006\0\x19" + text + b"\0")
        assert (address.family, address.ip, address.port) == ("inet6", IPv6Address("::1"), 25)


def test_case_34_an_address_that_is_none() -> None:
    address = connected(b"unknown\x004\0\0unknown\0")
    assert (address.family, address.ip, address.port) == ("inet", None, None)


def test_case_35_a_path() -> None:
    address = connected(b"h\0L\0\0/run/client\0")
    assert (address.family, address.path, address.ip) == ("unix", "/run/client", None)


def test_case_36_no_port() -> None:
    assert connected(b"localhost\x004\0\x00127.0.0.1\0").port is None


@pytest.mark.parametrize(
    "data", [b"", b"host", b"host\0", b"\0", b"host\x004\0\x19" + b"1.2.3.4", b"host\x004\0", b"h\0?x"]
)
def test_case_37_a_broken_connect(data: bytes) -> None:
    mta = Mta(WATCHING)
    assert mta.feed(raw(b"C", data)) == []
    assert isinstance(mta.session.error, RemoteProtocolError)
    assert mta.names == ["on_close"]


def test_case_38_an_empty_sender() -> None:
    mta = Mta(WATCHING)
    assert letters(mta.feed(raw(b"M", b"\0"))) == "c"
    assert mta.calls[-1] == ("on_mail", "", ())


def test_case_39_forms_of_addresses() -> None:
    mta = Mta(WATCHING)
    seen = []
    for sent in (b"<>", b"<a@b>", b"a@b"):
        mta.feed(raw(b"M", sent + b"\0"))
        sender = mta.calls[-1][1]
        seen.append((str(sender), sender.raw))
    assert seen == [("", b"<>"), ("a@b", b"<a@b>"), ("a@b", b"a@b")]


def test_case_40_a_quoted_local_part_and_parameters() -> None:
    mta = Mta(WATCHING)
    mta.feed(raw(b"M", b'<"a>b"@c>\0X=1=2\0FLAG\0'))
    _, sender, params = mta.calls[-1]
    assert (sender, sender.local_part, sender.domain) == ('"a>b"@c', '"a>b"', "c")
    assert tuple(params) == ("X=1=2", "FLAG")
    assert (params.get("x"), params.get("flag")) == ("1=2", "")


def test_case_41_eight_bit_everywhere() -> None:
    mta = Mta(WATCHING)
    odd = b"\xff\xe4\xc3\xa4"
    text = odd.decode("utf-8", "surrogateescape")
    assert text.encode("utf-8", "surrogateescape") == odd
    mta.send(
        codec.Macros(b"C", ((odd, odd),)),
        codec.Connect(odd, b"4", 1, odd),
        codec.Helo(odd),
        codec.Unknown(odd),
        codec.MailFrom(odd, (odd,)),
        codec.RcptTo(odd, (odd,)),
        codec.Header(odd, odd),
        EOM,
    )
    assert mta.failures == []
    assert [arguments[0] for _, *arguments in mta.calls if arguments] == [text] * 6
    (made_filter,) = mta.filters
    assert made_filter.macros[text] == text


@pytest.mark.parametrize("letter", [b"M", b"R"])
def test_case_42_an_unterminated_last_argument(letter: bytes) -> None:
    """Dropped, as libmilter does."""
    mta = Mta(WATCHING)
    mta.send(MAIL)
    mta.feed(raw(letter, b"<a@b>\0A=1\0B=2"))
    assert mta.calls[-1][1:] == ("a@b", ("A=1",))
    assert mta.session.error is None


def test_case_43_helo_twice() -> None:
    mta = Mta(WATCHING)
    assert letters(mta.send(CONNECT, HELO, codec.Helo(b"second"))) == "ccc"
    assert mta.calls[-2:] == [("on_helo", "client.example"), ("on_helo", "second")]


def test_case_44_no_helo() -> None:
    mta = Mta(WATCHING)
    assert mta.each(CONNECT, *MESSAGE)[-1] == "c"
    assert mta.filters[0].connection.helo is None


@pytest.mark.parametrize("verdict", [None, REJECT, KeyError("lost"), "nonsense"])
def test_case_45_a_recipient_that_the_mta_refuses(verdict: Any) -> None:
    mta = Mta(everything(on_rejected_rcpt=verdict))
    assert mta.session.agreement.protocol & 0x800
    macros = codec.Macros(
        b"R", ((b"{rcpt_mailer}", b"error"), (b"{rcpt_host}", b"5.1.1"), (b"{rcpt_addr}", b"No user"))
    )
    mta.send(CONNECT, MAIL)
    assert letters(mta.send(macros, RCPT)) == "c"
    assert mta.calls[-1] == ("on_rejected_rcpt", "bob@rcpt.example", (), "No user")
    assert mta.filters[0].message.recipients == ()
    assert letters(mta.send(codec.Macros(b"R", ((b"{rcpt_mailer}", b"local"),)), RCPT, EOM)) == "cc"


def test_case_46_an_empty_header() -> None:
    mta = Mta(WATCHING)
    mta.send(MAIL, RCPT)
    mta.feed(raw(b"L", b"X\0\0"))
    assert mta.calls[-1] == ("on_header", "X", "")


@pytest.mark.parametrize("value", ["a\n b", "a\n\tb", "\ttab", "  two", "trailing ", "a\n b\n  c"])
def test_case_47_a_value_is_not_touched(value: str) -> None:
    mta = played(codec.Header(b"X", value.encode()))
    assert mta.calls == [("on_header", "X", value)]


def test_case_48_leading_space() -> None:
    def copy(self: Any, name: str, value: str) -> None:
        self.message.add_header("X-Copy", value)

    mta = Mta(made(leading_space=True, on_header=copy))
    assert mta.session.agreement.protocol & 0x100000
    mta.send(MAIL, RCPT, codec.Header(b"A", b" spaced"), codec.Header(b"B", b"bare"))
    assert mta.send(EOM)[:2] == [codec.AddHeader(b"X-Copy", b" spaced"), codec.AddHeader(b"X-Copy", b"bare")]


@pytest.mark.parametrize("data", [b"", b"X", b"X\0", b"X\0value", b"\0value\0", b"\0\0"])
def test_case_49_a_broken_header(data: bytes) -> None:
    mta = Mta(WATCHING, NO_BITS)
    mta.send(MAIL, RCPT)
    assert mta.feed(raw(b"L", data)) == []
    assert isinstance(mta.session.error, RemoteProtocolError)
    assert mta.names[-2:] == ["on_abort", "on_close"], "the connection ends: the MTA need not wait"


def test_case_50_a_line_end_across_two_packets() -> None:
    mta = played(codec.Body(b"line\r"), codec.Body(b"\nnext\r\n"))
    assert mta.calls == [("on_body", b"line\r"), ("on_body", b"\nnext\r\n")]


def test_case_51_a_message_without_a_body() -> None:
    assert played(EOM).names == ["on_end_of_message"]


def test_case_52_data_with_the_end() -> None:
    mta = Mta(everything(), V6)
    mta.send(MAIL, RCPT, BODY)
    assert letters(mta.send(codec.EndOfMessage(b"last"))) == "c"
    assert mta.calls[-2:] == [("on_body", b"last"), ("on_end_of_message",)]
    refusing = Mta(made(on_body=REJECT, on_end_of_message=None))
    refusing.send(MAIL, RCPT)
    assert letters(refusing.send(codec.EndOfMessage(b"last"))) == "r"
    assert refusing.names == ["on_body"], "as libmilter: that is the verdict"


@pytest.mark.parametrize("text", [b"FOO", b"FOO arg1 arg2", b""])
@pytest.mark.parametrize("inside", [False, True])
def test_case_53_unknown_commands(text: bytes, inside: bool) -> None:
    mta = Mta(WATCHING)
    mta.send(CONNECT, *((MAIL, RCPT) if inside else ()))
    assert letters(mta.send(codec.Unknown(text))) == "c"
    assert mta.calls[-1] == ("on_unknown", text.decode())
    assert mta.session.in_message is inside
    assert "on_abort" not in mta.names


def test_case_54_the_end_after_an_unknown_command() -> None:
    mta = Mta(WATCHING)
    mta.send(CONNECT, MAIL, UNKNOWN)
    mta.eof()
    assert mta.names[-2:] == ["on_abort", "on_close"]
