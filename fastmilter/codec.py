"""Messages of the milter protocol and the bytes they are on the wire, for both sides, without any state.

A message is a small frozen object; its fields are ``bytes``, as the wire has them. ``encode`` makes a packet of it,
ready to send; a decoder takes a stream in pieces of any size and yields the messages that are complete:

>>> from fastmilter.codec import CommandDecoder, Continue, Header, encode
>>> encode(Continue())
b'\\x00\\x00\\x00\\x01c'
>>> decoder = CommandDecoder()
>>> decoder.feed(b"\\x00\\x00\\x00\\x0cLSubject\\x00hi")
>>> list(decoder)
[]
>>> decoder.feed(b"\\x00")
>>> for message in decoder:
...     match message:
...         case Header(name, value):
...             print(name, value)
b'Subject' b'hi'

What a peer does wrong is ``RemoteProtocolError``, nothing else; the decoder is of no use from then on. What cannot be
sent is ``InvalidMessage``. Whether a message may come at this point of a session is not decided here: see
``fastmilter.session``.
"""

from typing import TypeAlias

from fastmilter._codec import CommandDecoder, ResponseDecoder, decode_command, decode_response
from fastmilter._encode import encode
from fastmilter._messages import (
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
)

__all__ = [
    "Abort",
    "Accept",
    "AddHeader",
    "AddRecipient",
    "Body",
    "ChangeHeader",
    "ChangeSender",
    "Command",
    "CommandDecoder",
    "Connect",
    "ConnectionFail",
    "Continue",
    "Data",
    "DeleteRecipient",
    "Discard",
    "EndOfHeaders",
    "EndOfMessage",
    "Header",
    "Helo",
    "InsertHeader",
    "Macros",
    "MailFrom",
    "Modification",
    "Negotiate",
    "Progress",
    "Quarantine",
    "Quit",
    "QuitNewConnection",
    "RcptTo",
    "Reject",
    "ReplaceBody",
    "ReplyCode",
    "Response",
    "ResponseDecoder",
    "Shutdown",
    "Skip",
    "TempFail",
    "Unknown",
    "decode_command",
    "decode_response",
    "encode",
]

Command: TypeAlias = (
    Negotiate
    | Macros
    | Connect
    | Helo
    | MailFrom
    | RcptTo
    | Data
    | Header
    | EndOfHeaders
    | Body
    | EndOfMessage
    | Abort
    | Quit
    | QuitNewConnection
    | Unknown
)
"""What an MTA sends."""

Modification: TypeAlias = (
    AddHeader | InsertHeader | ChangeHeader | AddRecipient | DeleteRecipient | ChangeSender | ReplaceBody | Quarantine
)
"""What a filter may send before its answer to the end of a message."""

Response: TypeAlias = (
    Negotiate
    | Continue
    | Accept
    | Reject
    | TempFail
    | Discard
    | Skip
    | Progress
    | Shutdown
    | ConnectionFail
    | ReplyCode
    | Modification
)
"""What a filter sends."""
