"""Messages and their bytes: the packets that the protocol's description gives as examples, both directions."""

from typing import Any

import pytest

from fastmilter import codec
from fastmilter.codec import (
    Abort,
    Accept,
    AddHeader,
    AddRecipient,
    Body,
    ChangeHeader,
    ChangeSender,
    Connect,
    ConnectionFail,
    Continue,
    Data,
    DeleteRecipient,
    Discard,
    EndOfHeaders,
    EndOfMessage,
    Header,
    Helo,
    InsertHeader,
    Macros,
    MailFrom,
    Negotiate,
    Progress,
    Quarantine,
    Quit,
    QuitNewConnection,
    RcptTo,
    Reject,
    ReplaceBody,
    ReplyCode,
    Shutdown,
    Skip,
    TempFail,
    Unknown,
    decode_command,
    decode_response,
    encode,
)
from fastmilter.constants import CommandLetter, ResponseLetter

OFFER = "00 00 00 0d 4f 00 00 00 06 00 00 01 ff 00 1f ff ff"
POSTFIX_MACROS = (
    b"\0\0\0\x6bDCj\0mx.lab.test\0{daemon_name}\0mx.lab.test\0{daemon_addr}\0" + b"127.0.0.1\0v\0Postfix 3.7.11\0"
    b"_\0localhost [127.0.0.1]\0"
)
SENDMAIL_MACROS = b"\0\0\0\x4eDCj\0mx.lab.test\0_\0localhost [127.0.0.1]\0{daemon_name}\0MTA\0{if_name}\0localhost\0"

# Bytes of real packets, as hexadecimal dump or as bytes, and what they say.
COMMANDS: list[tuple[str | bytes, codec.Command]] = [
    (OFFER, Negotiate(6, 0x1FF, 0x1FFFFF)),
    (
        POSTFIX_MACROS,
        Macros(
            b"C",
            (
                (b"j", b"mx.lab.test"),
                (b"{daemon_name}", b"mx.lab.test"),
                (b"{daemon_addr}", b"127.0.0.1"),
                (b"v", b"Postfix 3.7.11"),
                (b"_", b"localhost [127.0.0.1]"),
            ),
        ),
    ),
    (
        SENDMAIL_MACROS,
        Macros(
            b"C",
            (
                (b"j", b"mx.lab.test"),
                (b"_", b"localhost [127.0.0.1]"),
                (b"{daemon_name}", b"MTA"),
                (b"{if_name}", b"localhost"),
            ),
        ),
    ),
    (b"\0\0\0\x18Clocalhost\x004\xe5\xe2127.0.0.1\0", Connect(b"localhost", b"4", 0xE5E2, b"127.0.0.1")),
    ("00 00 00 0c 43 6c 6f 63 61 6c 68 6f 73 74 00 55", Connect(b"localhost", b"U")),
    ("00 00 00 0e 43 68 00 34 00 19 31 2e 32 2e 33 2e 34 00", Connect(b"h", b"4", 25, b"1.2.3.4")),
    ("00 00 00 0e 43 5b 3a 3a 31 5d 00 36 00 00 3a 3a 31 00", Connect(b"[::1]", b"6", 0, b"::1")),
    ("00 00 00 0f 43 68 00 36 00 00 49 50 76 36 3a 3a 3a 31 00", Connect(b"h", b"6", 0, b"IPv6:::1")),
    ("00 00 00 09 43 68 00 4c 00 00 2f 73 00", Connect(b"h", b"L", 0, b"/s")),
    ("00 00 00 02 44 48", Macros(b"H")),
    (b"\0\0\0\x0dHclient.test\0", Helo(b"client.test")),
    (
        "00 00 00 1c 4d 3c 61 40 62 3e 00 53 49 5a 45 3d 39 00 42 4f 44 59 3d 38 42 49 54 4d 49 4d 45 00",
        MailFrom(b"<a@b>", (b"SIZE=9", b"BODY=8BITMIME")),
    ),
    ("00 00 00 02 4d 00", MailFrom(b"")),
    (
        "00 00 00 17 44 4d 69 00 34 46 00 7b 6d 61 69 6c 5f 61 64 64 72 7d 00 61 40 62 00",
        Macros(b"M", ((b"i", b"4F"), (b"{mail_addr}", b"a@b"))),
    ),
    (b"\0\0\0\x07R<c@d>\0", RcptTo(b"<c@d>")),
    ("00 00 00 01 54", Data()),
    ("00 00 00 04 4c 58 00 00", Header(b"X", b"")),
    ("00 00 00 01 4e", EndOfHeaders()),
    (b"\0\0\0\x04B\0\r\n", Body(b"\0\r\n")),
    ("00 00 00 01 45", EndOfMessage()),
    (b"\0\0\0\x05Etail", EndOfMessage(b"tail")),
    ("00 00 00 01 41", Abort()),
    ("00 00 00 01 51", Quit()),
    ("00 00 00 01 4b", QuitNewConnection()),
    (b"\0\0\0\x08UFOOBAR\0", Unknown(b"FOOBAR")),
]
RESPONSES: list[tuple[str | bytes, codec.Response]] = [
    ("00 00 00 0d 4f 00 00 00 06 00 00 00 00 00 00 00 00", Negotiate(6, 0, 0)),
    ("00 00 00 0d 4f 00 00 00 06 00 00 00 3f 00 00 03 7f", Negotiate(6, 0x3F, 0x37F)),
    ("00 00 00 0d 4f 00 00 00 06 00 00 01 ff 00 00 04 00", Negotiate(6, 0x1FF, 0x400)),
    ("00 00 00 0d 4f 00 00 00 06 00 00 01 ff 00 00 07 7f", Negotiate(6, 0x1FF, 0x77F)),
    ("00 00 00 0d 4f 00 00 00 02 00 00 00 3f 00 00 00 7f", Negotiate(2, 0x3F, 0x7F)),
    (
        "00 00 00 30 4f 00 00 00 06 00 00 01 00 00 00 00 00"
        "00 00 00 00 6a 20 7b 63 6c 69 65 6e 74 5f 70 6f 72 74 7d 00"
        "00 00 00 05 00"
        "00 00 00 06 7b 65 6f 68 7d 00",
        Negotiate(6, 0x100, 0, ((0, b"j {client_port}"), (5, b""), (6, b"{eoh}"))),
    ),
    ("00 00 00 0f 79 34 32 31 20 34 2e 37 2e 30 20 62 79 65 00", ReplyCode(b"421 4.7.0 bye")),
    (
        "00 00 00 1d 79 35 35 30 2d 35 2e 37 2e 31 20 61 0d 0a 35 35 30 20 35 2e 37 2e 31 20 35 30 25 25 00",
        ReplyCode(b"550-5.7.1 a\r\n550 5.7.1 50%%"),
    ),
    ("00 00 00 07 68 58 2d 41 00 31 00", AddHeader(b"X-A", b"1")),
    ("00 00 00 0b 69 00 00 00 01 58 2d 41 00 31 00", InsertHeader(1, b"X-A", b"1")),
    ("00 00 00 0a 6d 00 00 00 02 58 2d 41 00 00", ChangeHeader(2, b"X-A", b"")),
    (
        "00 00 00 16 6d 00 00 00 01 53 75 62 6a 65 63 74 00 5b 78 5d 20 61 0a 20 62 00",
        ChangeHeader(1, b"Subject", b"[x] a\n b"),
    ),
    ("00 00 00 07 2b 3c 61 40 62 3e 00", AddRecipient(b"<a@b>")),
    (
        "00 00 00 14 32 3c 61 40 62 3e 00 4e 4f 54 49 46 59 3d 4e 45 56 45 52 00",
        AddRecipient(b"<a@b>", (b"NOTIFY=NEVER",)),
    ),
    ("00 00 00 08 32 3c 61 40 62 3e 00 00", AddRecipient(b"<a@b>", (b"",))),
    ("00 00 00 07 2d 3c 61 40 62 3e 00", DeleteRecipient(b"<a@b>")),
    ("00 00 00 04 65 3c 3e 00", ChangeSender(b"<>")),
    (b"\0\0\0\x0ee<>\0RET=HDRS \0", ChangeSender(b"<>", (b"RET=HDRS", b""))),
    ("00 00 00 06 71 73 70 61 6d 00", Quarantine(b"spam")),
    ("00 00 00 01 62", ReplaceBody(b"")),
    ("00 00 00 05 62 68 69 0d 0a", ReplaceBody(b"hi\r\n")),
    ("00 00 00 01 63", Continue()),
    ("00 00 00 01 61", Accept()),
    ("00 00 00 01 72", Reject()),
    ("00 00 00 01 74", TempFail()),
    ("00 00 00 01 64", Discard()),
    ("00 00 00 01 73", Skip()),
    ("00 00 00 01 70", Progress()),
    ("00 00 00 01 34", Shutdown()),
    ("00 00 00 01 66", ConnectionFail()),
]


def octets(dump: str | bytes) -> bytes:
    return bytes.fromhex(dump) if isinstance(dump, str) else dump


@pytest.mark.parametrize(("dump", "message"), COMMANDS, ids=lambda value: type(value).__name__)
def test_a_command_and_its_bytes(dump: str | bytes, message: codec.Command) -> None:
    packet = octets(dump)
    assert encode(message) == packet
    decoded = decode_command(packet[4:])
    assert decoded == message
    assert type(decoded) is type(message)


@pytest.mark.parametrize(("dump", "message"), RESPONSES, ids=lambda value: type(value).__name__)
def test_a_response_and_its_bytes(dump: str | bytes, message: codec.Response) -> None:
    packet = octets(dump)
    assert encode(message) == packet
    decoded = decode_response(packet[4:])
    assert decoded == message
    assert type(decoded) is type(message)


def test_every_letter_has_an_example() -> None:
    """So the letters in the codec are those of ``constants``."""
    assert {octets(dump)[4:5] for dump, _ in COMMANDS} == {letter.value for letter in CommandLetter}
    assert {octets(dump)[4:5] for dump, _ in RESPONSES} == {letter.value for letter in ResponseLetter}


def test_the_unions_hold_every_message() -> None:
    commands: set[Any] = {type(message) for _, message in COMMANDS}
    responses: set[Any] = {type(message) for _, message in RESPONSES}
    assert commands == set(codec.Command.__args__)
    assert responses == set(codec.Response.__args__)
    assert set(codec.Modification.__args__) < responses
    assert {cls.__name__ for cls in commands | responses} <= set(codec.__all__)
