"""The message classes: what stands in one packet, as a small frozen object. ``fastmilter.codec`` is their public name.

What a class looks like on the wire stands in its docstring, libmilter's name and the letter first; "NUL" closes each
string. Fields are ``bytes``, as the wire has them, and positional in the order of the wire. A field that the packet does not
fill has its default, so that decoding gives back what was encoded. A constructor checks types (``TypeError``); what cannot
be sent for another reason is refused by ``encode``.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cython.dataclasses cimport dataclass
from libc.stdint cimport uint8_t
from libc.string cimport memchr, memcmp


cdef bytes plain(object letter):
    """A letter as plain bytes, also where it comes as a member of CommandLetter or Family."""
    if type(letter) is bytes:
        return letter
    if not isinstance(letter, bytes):
        raise TypeError(f"Expected bytes, got {type(letter).__name__}")
    return bytes(letter)


cdef bytes bare(bytes name):
    """The name of a macro without its braces."""
    return name[1:-1] if name[:1] == b"{" and name[-1:] == b"}" else name


cdef bint is_named(const uint8_t *at, Py_ssize_t length, bytes name) noexcept:
    """Whether ``length`` bytes from ``at`` are ``name``, with braces or without."""
    if length >= 2 and at[0] == c"{" and at[length - 1] == c"}":
        at += 1
        length -= 2
    return length == PyBytes_GET_SIZE(name) and memcmp(at, PyBytes_AS_STRING(name), <size_t> length) == 0


@cython.final
@dataclass(frozen=True)
cdef class Negotiate:
    """Negotiation, both ways (SMFIC_OPTNEG ``O``): u32 version, actions, protocol, then {u32 stage, names NUL}."""

    version: int
    actions: int
    protocol: int
    macros: tuple = ()


@cython.final
@cython.freelist(64)
@cython.no_gc  # what it holds leads nowhere
cdef class Macros:
    """Macros for the command whose letter is ``command`` (SMFIC_MACRO ``D``): letter, then {name NUL value NUL}.

    Most macros are never looked at, and thousands of idle connections hold some: a decoded packet stays as it came.
    """

    __match_args__ = ("command", "values")

    def __init__(self, command, values: tuple = ()):
        self.command = plain(command)
        self.pairs = values

    @property
    def values(self):
        """The pairs (name, value) in the order of the packet, names spelled as sent."""
        if self.raw is None:
            return self.pairs
        # The last piece is unterminated (or empty); it and a name without a value are dropped: libmilter reads past its
        # buffer there.
        pieces = self.raw.split(b"\0")[:-1]
        return tuple(zip(pieces[::2], pieces[1::2]))

    def names(self):
        """The names without braces, in the order of the packet."""
        return [bare(name) for name, _ in self.values]

    cpdef bytes get(self, bytes name):
        """The value of the macro ``name``, given without braces, or ``None``.

        ``i`` and ``{i}`` are one name; the first of two wins, as in libmilter.
        """
        cdef const uint8_t *at
        cdef const uint8_t *end
        cdef const uint8_t *value
        cdef const uint8_t *stop
        if name is None:
            raise TypeError("the name of a macro must be bytes, not None")
        if self.raw is None:
            for known, found in self.pairs:
                if bare(known) == name:
                    return found
            return None
        at = <const uint8_t *> PyBytes_AS_STRING(self.raw)
        end = at + PyBytes_GET_SIZE(self.raw)
        while True:
            value = <const uint8_t *> memchr(at, 0, <size_t> (end - at))
            if value is NULL:
                return None
            value += 1
            stop = <const uint8_t *> memchr(value, 0, <size_t> (end - value))
            if stop is NULL:
                return None
            if is_named(at, value - 1 - at, name):
                return PyBytes_FromStringAndSize(<const char *> value, stop - value)
            at = stop + 1

    def __bool__(self):
        """Whether there is any pair; does not take the packet apart."""
        return not self.is_empty()

    cdef bint is_empty(self) except -1:
        cdef const uint8_t *end
        cdef const uint8_t *nul
        if self.raw is None:
            return not self.pairs
        end = <const uint8_t *> PyBytes_AS_STRING(self.raw) + PyBytes_GET_SIZE(self.raw)
        nul = <const uint8_t *> memchr(PyBytes_AS_STRING(self.raw), 0, <size_t> PyBytes_GET_SIZE(self.raw))
        return nul is NULL or memchr(nul + 1, 0, <size_t> (end - nul - 1)) is NULL

    def __eq__(self, other):
        if not isinstance(other, Macros):
            return NotImplemented
        return self.command == (<Macros> other).command and self.values == other.values

    def __hash__(self):
        return hash((self.command, self.values))

    def __repr__(self):
        return f"Macros(command={self.command!r}, values={self.values!r})"


@cython.final
@cython.freelist(16)
@dataclass(frozen=True, init=False)
cdef class Connect:
    """An SMTP client connected (SMFIC_CONNECT ``C``): hostname NUL, family; unless ``U``: u16 port, address NUL."""

    hostname: bytes
    family: bytes
    port: int = 0
    address: bytes = b""

    def __init__(self, hostname: bytes, family, port: int = 0, address: bytes = b""):
        self.hostname = hostname
        self.family = plain(family)
        self.port = port
        self.address = address


@cython.final
@cython.freelist(16)
@dataclass(frozen=True)
cdef class Helo:
    """HELO or EHLO (SMFIC_HELO ``H``): name NUL."""

    name: bytes


@cython.final
@cython.freelist(16)
@cython.no_gc  # as above
@dataclass(frozen=True)
cdef class MailFrom:
    """MAIL (SMFIC_MAIL ``M``): reverse-path as typed NUL, then each ESMTP parameter NUL."""

    sender: bytes
    params: tuple = ()


@cython.final
@cython.freelist(16)
@cython.no_gc  # as above
@dataclass(frozen=True)
cdef class RcptTo:
    """RCPT (SMFIC_RCPT ``R``): forward-path as typed NUL, then each ESMTP parameter NUL."""

    recipient: bytes
    params: tuple = ()


@cython.final
@dataclass(frozen=True)
cdef class Data:
    """DATA, before the 354 (SMFIC_DATA ``T``)."""


@cython.final
@cython.freelist(8)
@dataclass(frozen=True)
cdef class Header:
    """One header field (SMFIC_HEADER ``L``): name NUL, value NUL; a fold in the value is LF and white space."""

    name: bytes
    value: bytes


@cython.final
@dataclass(frozen=True)
cdef class EndOfHeaders:
    """The header section is complete (SMFIC_EOH ``N``)."""


@cython.final
@cython.freelist(16)
@dataclass(frozen=True)
cdef class Body:
    """A piece of the body, cut anywhere (SMFIC_BODY ``B``): at least one byte, as it stands."""

    chunk: bytes


@cython.final
@dataclass(frozen=True)
cdef class EndOfMessage:
    """The message is complete (SMFIC_BODYEOB ``E``); the protocol allows a last piece of the body, no MTA sends it."""

    chunk: bytes = b""


@cython.final
@dataclass(frozen=True)
cdef class Abort:
    """The message is dropped; the connection and its HELO stay (SMFIC_ABORT ``A``)."""


@cython.final
@dataclass(frozen=True)
cdef class Quit:
    """The SMTP session ended; the filter closes (SMFIC_QUIT ``Q``)."""


@cython.final
@dataclass(frozen=True)
cdef class QuitNewConnection:
    """The SMTP session ended; another one follows on this milter connection (SMFIC_QUIT_NC ``K``)."""


@cython.final
@dataclass(frozen=True)
cdef class Unknown:
    """An SMTP command that the MTA does not know (SMFIC_UNKNOWN ``U``): Sendmail the line, Postfix the verb, NUL."""

    command: bytes


@cython.final
@dataclass(frozen=True)
cdef class Continue:
    """Go on; at the end of the message: deliver (SMFIR_CONTINUE ``c``)."""


@cython.final
@dataclass(frozen=True)
cdef class Accept:
    """Accept without asking further (SMFIR_ACCEPT ``a``)."""


@cython.final
@dataclass(frozen=True)
cdef class Reject:
    """Refuse with the MTA's 5xx text (SMFIR_REJECT ``r``)."""


@cython.final
@dataclass(frozen=True)
cdef class TempFail:
    """Refuse with the MTA's 4xx text (SMFIR_TEMPFAIL ``t``)."""


@cython.final
@dataclass(frozen=True)
cdef class Discard:
    """Accept and throw away (SMFIR_DISCARD ``d``)."""


@cython.final
@dataclass(frozen=True)
cdef class Skip:
    """No more of this step in this message (SMFIR_SKIP ``s``)."""


@cython.final
@dataclass(frozen=True)
cdef class Progress:
    """Still working; the answer follows (SMFIR_PROGRESS ``p``)."""


@cython.final
@dataclass(frozen=True)
cdef class Shutdown:
    """421 and close (SMFIR_SHUTDOWN ``4``). Never sent by fastmilter: Postfix accepts and drops the mail."""


@cython.final
@dataclass(frozen=True)
cdef class ConnectionFail:
    """The connection failed (SMFIR_CONN_FAIL ``f``). Never sent by fastmilter: no MTA understands it."""


@cython.final
@dataclass(frozen=True)
cdef class ReplyCode:
    """Refuse with this SMTP reply (SMFIR_REPLYCODE ``y``): text NUL, lines joined by CRLF, each ``%`` doubled."""

    text: bytes


@cython.final
@dataclass(frozen=True)
cdef class AddHeader:
    """Add a header field (SMFIR_ADDHEADER ``h``): name NUL, value NUL."""

    name: bytes
    value: bytes


@cython.final
@dataclass(frozen=True)
cdef class InsertHeader:
    """Insert a header field, 0 is the top (SMFIR_INSHEADER ``i``): u32 index, name NUL, value NUL."""

    index: int
    name: bytes
    value: bytes


@cython.final
@dataclass(frozen=True)
cdef class ChangeHeader:
    """Change the index-th field of that name, from 1; empty value: delete (SMFIR_CHGHEADER ``m``): as InsertHeader."""

    index: int
    name: bytes
    value: bytes


@cython.final
@dataclass(frozen=True)
cdef class AddRecipient:
    """Add a recipient: address NUL (SMFIR_ADDRCPT ``+``); with params: also these, joined by spaces, NUL (``2``).

    A ``2`` without params, which Postfix takes too, decodes to the same message as ``+``.
    """

    recipient: bytes
    params: tuple = ()


@cython.final
@dataclass(frozen=True)
cdef class DeleteRecipient:
    """Drop a recipient (SMFIR_DELRCPT ``-``): address NUL."""

    recipient: bytes


@cython.final
@dataclass(frozen=True)
cdef class ChangeSender:
    """Replace the sender (SMFIR_CHGFROM ``e``): address NUL; with params: also these, joined by spaces, NUL."""

    sender: bytes
    params: tuple = ()


@cython.final
@dataclass(frozen=True)
cdef class ReplaceBody:
    """A piece of the new body (SMFIR_REPLBODY ``b``): as it stands; one empty piece empties the body."""

    chunk: bytes


@cython.final
@dataclass(frozen=True)
cdef class Quarantine:
    """Hold the message (SMFIR_QUARANTINE ``q``): reason NUL."""

    reason: bytes
