"""The message classes: what stands in one packet, as a small frozen object. Public as ``fastmilter.codec``."""

from dataclasses import dataclass
from typing import TypeAlias, final

@final
@dataclass(frozen=True)
class Negotiate:
    """Negotiation, both ways (SMFIC_OPTNEG ``O``): u32 version, actions, protocol, then {u32 stage, names NUL}."""

    version: int
    actions: int
    protocol: int
    macros: tuple[tuple[int, bytes], ...] = ()

@final
class Macros:
    """Macros for the command whose letter is ``command`` (SMFIC_MACRO ``D``): letter, then {name NUL value NUL}.

    Most macros are never looked at, and thousands of idle connections hold some: a decoded packet stays as it came.
    """

    __match_args__ = ("command", "values")

    def __init__(self, command: bytes, values: tuple[tuple[bytes, bytes], ...] = ()) -> None: ...
    @property
    def command(self) -> bytes:
        """Letter of the command that the macros belong to; an MTA may send one that is no command."""

    @property
    def values(self) -> tuple[tuple[bytes, bytes], ...]:
        """The pairs (name, value) in the order of the packet, names spelled as sent."""

    def names(self) -> list[bytes]:
        """The names without braces, in the order of the packet."""

    def get(self, name: bytes) -> bytes | None:
        """The value of the macro ``name``, given without braces, or ``None``.

        ``i`` and ``{i}`` are one name; the first of two wins, as in libmilter.
        """

    def __bool__(self) -> bool:
        """Whether there is any pair; does not take the packet apart."""

    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
@dataclass(frozen=True)
class Connect:
    """An SMTP client connected (SMFIC_CONNECT ``C``): hostname NUL, family; unless ``U``: u16 port, address NUL."""

    hostname: bytes
    family: bytes
    port: int = 0
    address: bytes = b""

@final
@dataclass(frozen=True)
class Helo:
    """HELO or EHLO (SMFIC_HELO ``H``): name NUL."""

    name: bytes

@final
@dataclass(frozen=True)
class MailFrom:
    """MAIL (SMFIC_MAIL ``M``): reverse-path as typed NUL, then each ESMTP parameter NUL."""

    sender: bytes
    params: tuple[bytes, ...] = ()

@final
@dataclass(frozen=True)
class RcptTo:
    """RCPT (SMFIC_RCPT ``R``): forward-path as typed NUL, then each ESMTP parameter NUL."""

    recipient: bytes
    params: tuple[bytes, ...] = ()

@final
@dataclass(frozen=True)
class Data:
    """DATA, before the 354 (SMFIC_DATA ``T``)."""

@final
@dataclass(frozen=True)
class Header:
    """One header field (SMFIC_HEADER ``L``): name NUL, value NUL; a fold in the value is LF and white space."""

    name: bytes
    value: bytes

@final
@dataclass(frozen=True)
class EndOfHeaders:
    """The header section is complete (SMFIC_EOH ``N``)."""

@final
@dataclass(frozen=True)
class Body:
    """A piece of the body, cut anywhere (SMFIC_BODY ``B``): at least one byte, as it stands."""

    chunk: bytes

@final
@dataclass(frozen=True)
class EndOfMessage:
    """The message is complete (SMFIC_BODYEOB ``E``); the protocol allows a last piece of the body, no MTA sends it."""

    chunk: bytes = b""

@final
@dataclass(frozen=True)
class Abort:
    """The message is dropped; the connection and its HELO stay (SMFIC_ABORT ``A``)."""

@final
@dataclass(frozen=True)
class Quit:
    """The SMTP session ended; the filter closes (SMFIC_QUIT ``Q``)."""

@final
@dataclass(frozen=True)
class QuitNewConnection:
    """The SMTP session ended; another one follows on this milter connection (SMFIC_QUIT_NC ``K``)."""

@final
@dataclass(frozen=True)
class Unknown:
    """An SMTP command that the MTA does not know (SMFIC_UNKNOWN ``U``): Sendmail the line, Postfix the verb, NUL."""

    command: bytes

@final
@dataclass(frozen=True)
class Continue:
    """Go on; at the end of the message: deliver (SMFIR_CONTINUE ``c``)."""

@final
@dataclass(frozen=True)
class Accept:
    """Accept without asking further (SMFIR_ACCEPT ``a``)."""

@final
@dataclass(frozen=True)
class Reject:
    """Refuse with the MTA's 5xx text (SMFIR_REJECT ``r``)."""

@final
@dataclass(frozen=True)
class TempFail:
    """Refuse with the MTA's 4xx text (SMFIR_TEMPFAIL ``t``)."""

@final
@dataclass(frozen=True)
class Discard:
    """Accept and throw away (SMFIR_DISCARD ``d``)."""

@final
@dataclass(frozen=True)
class Skip:
    """No more of this step in this message (SMFIR_SKIP ``s``)."""

@final
@dataclass(frozen=True)
class Progress:
    """Still working; the answer follows (SMFIR_PROGRESS ``p``)."""

@final
@dataclass(frozen=True)
class Shutdown:
    """421 and close (SMFIR_SHUTDOWN ``4``). Never sent by fastmilter: Postfix accepts and drops the mail."""

@final
@dataclass(frozen=True)
class ConnectionFail:
    """The connection failed (SMFIR_CONN_FAIL ``f``). Never sent by fastmilter: no MTA understands it."""

@final
@dataclass(frozen=True)
class ReplyCode:
    """Refuse with this SMTP reply (SMFIR_REPLYCODE ``y``): text NUL, lines joined by CRLF, each ``%`` doubled."""

    text: bytes

@final
@dataclass(frozen=True)
class AddHeader:
    """Add a header field (SMFIR_ADDHEADER ``h``): name NUL, value NUL."""

    name: bytes
    value: bytes

@final
@dataclass(frozen=True)
class InsertHeader:
    """Insert a header field, 0 is the top (SMFIR_INSHEADER ``i``): u32 index, name NUL, value NUL."""

    index: int
    name: bytes
    value: bytes

@final
@dataclass(frozen=True)
class ChangeHeader:
    """Change the index-th field of that name, from 1; empty value: delete (SMFIR_CHGHEADER ``m``): as InsertHeader."""

    index: int
    name: bytes
    value: bytes

@final
@dataclass(frozen=True)
class AddRecipient:
    """Add a recipient: address NUL (SMFIR_ADDRCPT ``+``); with params: also these, joined by spaces, NUL (``2``).

    A ``2`` without params, which Postfix takes too, decodes to the same message as ``+``.
    """

    recipient: bytes
    params: tuple[bytes, ...] = ()

@final
@dataclass(frozen=True)
class DeleteRecipient:
    """Drop a recipient (SMFIR_DELRCPT ``-``): address NUL."""

    recipient: bytes

@final
@dataclass(frozen=True)
class ChangeSender:
    """Replace the sender (SMFIR_CHGFROM ``e``): address NUL; with params: also these, joined by spaces, NUL."""

    sender: bytes
    params: tuple[bytes, ...] = ()

@final
@dataclass(frozen=True)
class ReplaceBody:
    """A piece of the new body (SMFIR_REPLBODY ``b``): as it stands; one empty piece empties the body."""

    chunk: bytes

@final
@dataclass(frozen=True)
class Quarantine:
    """Hold the message (SMFIR_QUARANTINE ``q``): reason NUL."""

    reason: bytes

_Command: TypeAlias = (
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
_Response: TypeAlias = (
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
    | AddHeader
    | InsertHeader
    | ChangeHeader
    | AddRecipient
    | DeleteRecipient
    | ChangeSender
    | ReplaceBody
    | Quarantine
)
