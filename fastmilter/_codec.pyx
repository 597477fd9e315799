"""Messages and bytes: framing, decoding, encoding, and every check of a length or a NUL. ``fastmilter.codec`` is its public name.

A packet is a length (4 bytes, big-endian, counts what follows), a letter and the data behind it. What a message class looks
like on the wire stands in its docstring; "NUL" closes each string. Nothing here knows a session: whether a packet may come
now, or was negotiated, is decided above. Nothing here decodes text: every string is ``bytes``.

Strict where libmilter, Sendmail and Postfix are strict, lenient where one of them is: commands are read as libmilter reads
them, responses as Postfix does. The peer's faults are ``RemoteProtocolError``, the caller's ``InvalidMessage`` (or a plain
``TypeError`` from a constructor). Anything else that comes out of a decoder is a bug.

Sources: Sendmail's ``libmilter/comm.c``, ``engine.c``, ``smfi.c``; Postfix's ``src/milter/milter8.c``.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cython.dataclasses cimport dataclass
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memchr, memcpy, memmove

from fastmilter.constants import (
    CHUNK_BYTES,
    MAX_DATA_BYTES,
    MAX_DATA_BYTES_1M,
    MAX_RESPONSE_BYTES,
    OPTNEG_BYTES,
    CommandLetter,
    ResponseLetter,
)
from fastmilter.errors import InvalidMessage, RemoteProtocolError


# --- The letters (SMFIC_*, SMFIR_*), their names and bounds -----------------------------------------------------------

cdef enum:
    HEAD = 5  # length and letter
    QUOTED = 60  # how much of the peer's bytes an error repeats
    SMALLEST_LIMIT = 12  # an option negotiation must fit
    LARGEST_LIMIT = 0x7FFFFFF0  # sizes stay far from overflow


cdef struct Bounds:
    bint known
    Py_ssize_t lowest
    Py_ssize_t highest


NEGOTIATED = LARGEST_LIMIT  # as much as max_data says

# Data behind the letter: (lowest, highest). Larger data sizes (SMFIP_MDS_*) were made for bodies, headers and macros.
COMMAND_BOUNDS = {
    CommandLetter.NEGOTIATE: (OPTNEG_BYTES, CHUNK_BYTES),
    CommandLetter.MACRO: (1, NEGOTIATED),
    CommandLetter.CONNECT: (2, CHUNK_BYTES),
    CommandLetter.HELO: (1, CHUNK_BYTES),
    CommandLetter.MAIL: (1, CHUNK_BYTES),
    CommandLetter.RCPT: (1, CHUNK_BYTES),
    CommandLetter.UNKNOWN: (1, CHUNK_BYTES),
    CommandLetter.HEADER: (3, NEGOTIATED),
    CommandLetter.BODY: (1, NEGOTIATED),  # libmilter closes on an empty one
    CommandLetter.END_OF_MESSAGE: (0, NEGOTIATED),
    # These carry nothing, but libmilter ignores what stands behind them.
    CommandLetter.ABORT: (0, CHUNK_BYTES),
    CommandLetter.DATA: (0, CHUNK_BYTES),
    CommandLetter.END_OF_HEADERS: (0, CHUNK_BYTES),
    CommandLetter.QUIT: (0, CHUNK_BYTES),
    CommandLetter.QUIT_NEW_CONNECTION: (0, CHUNK_BYTES),
}
RESPONSE_BOUNDS = {
    ResponseLetter.NEGOTIATE: (OPTNEG_BYTES, CHUNK_BYTES),
    ResponseLetter.REPLY_CODE: (1, NEGOTIATED),
    ResponseLetter.ADD_HEADER: (3, NEGOTIATED),
    ResponseLetter.INSERT_HEADER: (7, NEGOTIATED),
    ResponseLetter.CHANGE_HEADER: (7, NEGOTIATED),
    ResponseLetter.ADD_RECIPIENT: (1, NEGOTIATED),
    ResponseLetter.ADD_RECIPIENT_PARAMS: (1, NEGOTIATED),
    ResponseLetter.DELETE_RECIPIENT: (1, NEGOTIATED),
    ResponseLetter.CHANGE_SENDER: (1, NEGOTIATED),
    ResponseLetter.REPLACE_BODY: (0, NEGOTIATED),  # an empty one empties the body
    ResponseLetter.QUARANTINE: (1, NEGOTIATED),
    # Postfix refuses anything behind these.
    ResponseLetter.CONTINUE: (0, 0),
    ResponseLetter.ACCEPT: (0, 0),
    ResponseLetter.REJECT: (0, 0),
    ResponseLetter.TEMPFAIL: (0, 0),
    ResponseLetter.DISCARD: (0, 0),
    ResponseLetter.SKIP: (0, 0),
    ResponseLetter.PROGRESS: (0, 0),
    ResponseLetter.SHUTDOWN: (0, 0),
    ResponseLetter.CONNECTION_FAIL: (0, 0),
}

cdef Bounds[256] COMMANDS, RESPONSES  # the same two tables, for the machine


cdef int fill(Bounds *table, dict bounds) except -1:
    for letter, (lowest, highest) in bounds.items():
        table[ord(letter)] = Bounds(known=True, lowest=lowest, highest=highest)
    return 0


fill(COMMANDS, COMMAND_BOUNDS)
fill(RESPONSES, RESPONSE_BOUNDS)

# What four bytes that should be a length turn out to be when another protocol talks to the port.
STRANGERS = {
    "HTTP": (b"GET ", b"POST", b"PUT ", b"HEAD", b"OPTI", b"DELE", b"TRAC", b"PATC", b"PRI ", b"HTTP"),
    "SMTP": (b"HELO", b"EHLO", b"LHLO", b"MAIL", b"RCPT", b"NOOP", b"RSET", b"QUIT", b"STAR", b"AUTH", b"220 ", b"220-"),
    "the PROXY protocol": (b"PROX", b"\r\n\r\n"),
    "SSH": (b"SSH-",),
}


# --- The messages -----------------------------------------------------------------------------------------------------
# A field that the wire does not fill keeps its default, so that decode(encode(message)) == message.

@cython.final
@dataclass(frozen=True)
cdef class Negotiate:
    """Negotiation, both ways (SMFIC_OPTNEG ``O``): u32 version, actions, protocol, then {u32 stage, names NUL}."""

    version: int
    actions: int
    protocol: int
    macros: tuple = ()


@cython.final
cdef class Macros:
    """Macros for the command whose letter is ``command`` (SMFIC_MACRO ``D``): letter, then {name NUL value NUL}.

    Most macros are never looked at, so a decoded packet is taken apart when ``values`` or ``lookup`` is first used.
    """

    cdef readonly bytes command
    cdef bytes raw
    cdef tuple pairs
    cdef dict by_name

    __match_args__ = ("command", "values")

    def __init__(self, command not None, tuple values not None=()):
        if not isinstance(command, bytes):
            raise TypeError(f"Expected bytes, got {type(command).__name__}")
        self.command = bytes(command)  # a CommandLetter becomes plain bytes
        self.pairs = values

    @property
    def values(self):
        """The pairs (name, value) in the order of the packet, names spelled as sent."""
        if self.pairs is None:
            # The last piece is unterminated (or empty); it and a name without a value are dropped: libmilter reads past
            # its buffer there.
            pieces = self.raw.split(b"\0")[:-1]
            self.pairs = tuple(zip(pieces[::2], pieces[1::2]))
            self.raw = None
        return self.pairs

    cpdef dict lookup(self):
        """The values by name without braces (``i`` and ``{i}`` are one name); the first of two wins, as in libmilter.

        The dictionary is made once and is not a copy: do not change it.
        """
        if self.by_name is None:
            found = {}
            for name, value in self.values:
                if name[:1] == b"{" and name[-1:] == b"}":
                    name = name[1:-1]
                found.setdefault(name, value)
            self.by_name = found
        return self.by_name

    def __eq__(self, other):
        if not isinstance(other, Macros):
            return NotImplemented
        return self.command == (<Macros> other).command and self.values == other.values

    def __hash__(self):
        return hash((self.command, self.values))

    def __repr__(self):
        return f"Macros(command={self.command!r}, values={self.values!r})"


@cython.final
@dataclass(frozen=True)
cdef class Connect:
    """An SMTP client connected (SMFIC_CONNECT ``C``): hostname NUL, family; unless ``U``: u16 port, address NUL."""

    hostname: bytes
    family: object
    port: int = 0
    address: bytes = b""

    def __post_init__(self):
        if not isinstance(self.family, bytes):
            raise TypeError(f"Expected bytes, got {type(self.family).__name__}")
        self.family = bytes(self.family)  # a Family becomes plain bytes


@cython.final
@dataclass(frozen=True)
cdef class Helo:
    """HELO or EHLO (SMFIC_HELO ``H``): name NUL."""

    name: bytes


@cython.final
@dataclass(frozen=True)
cdef class MailFrom:
    """MAIL (SMFIC_MAIL ``M``): reverse-path as typed NUL, then each ESMTP parameter NUL."""

    sender: bytes
    params: tuple = ()


@cython.final
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


# One of each message without data is enough; this is also what encode looks up.
cdef object CONTINUE_ = Continue(), ACCEPT_ = Accept(), REJECT_ = Reject(), TEMPFAIL_ = TempFail(), DISCARD_ = Discard()
cdef object SKIP_ = Skip(), PROGRESS_ = Progress(), SHUTDOWN_ = Shutdown(), CONNECTION_FAIL_ = ConnectionFail()
cdef object DATA_ = Data(), END_OF_HEADERS_ = EndOfHeaders(), END_OF_MESSAGE_ = EndOfMessage(), ABORT_ = Abort()
cdef object QUIT_ = Quit(), QUIT_NEW_CONNECTION_ = QuitNewConnection()


# --- Reading: one packet, a cursor in it, every check in the helpers --------------------------------------------------

cdef struct Packet:
    const uint8_t *data  # behind the letter
    Py_ssize_t size
    Py_ssize_t at  # how far it is read
    uint8_t letter
    bint command


cdef str title(uint8_t letter, bint command):
    kind = CommandLetter if command else ResponseLetter
    return f"{kind(bytes([letter])).name} ({chr(letter)!r})"


cdef object fault(Packet *packet, str what):
    """The error for a packet whose content is wrong; quotes its beginning."""
    cdef Py_ssize_t shown = min(packet.size, <Py_ssize_t> QUOTED)
    quoted = repr(PyBytes_FromStringAndSize(<const char *> packet.data, shown))
    rest = f" and {packet.size - shown} bytes more" if packet.size > shown else ""
    return RemoteProtocolError(f"{title(packet.letter, packet.command)}: {what}: {quoted}{rest}")


cdef inline uint32_t read_u32(const uint8_t *at) noexcept:
    return (<uint32_t> at[0] << 24) | (<uint32_t> at[1] << 16) | (<uint32_t> at[2] << 8) | at[3]


cdef inline Py_ssize_t left(Packet *packet) noexcept:
    return packet.size - packet.at


cdef inline bytes take_string(Packet *packet, str what):
    """The bytes up to the next NUL; the cursor goes behind it."""
    cdef const uint8_t *begin = packet.data + packet.at
    cdef const uint8_t *nul = <const uint8_t *> memchr(begin, 0, <size_t> left(packet))
    if nul is NULL:
        raise fault(packet, f"no NUL ends the {what}")
    packet.at += nul - begin + 1
    return PyBytes_FromStringAndSize(<const char *> begin, nul - begin)


cdef inline bytes take_name(Packet *packet):
    cdef bytes name = take_string(packet, "field name")
    if not name:
        raise fault(packet, "the field name is empty")
    return name


cdef inline bytes take_rest(Packet *packet):
    cdef bytes rest = PyBytes_FromStringAndSize(<const char *> packet.data + packet.at, left(packet))
    packet.at = packet.size
    return rest


cdef inline int nothing_left(Packet *packet) except -1:
    """Postfix takes a response for broken when bytes follow its last string."""
    if left(packet):
        raise fault(packet, f"{left(packet)} bytes too many at the end")
    return 0


# --- Decoding: one function per layout --------------------------------------------------------------------------------

cdef Negotiate decode_negotiate(Packet *packet):
    cdef Negotiate message = Negotiate.__new__(Negotiate)
    cdef uint32_t stage
    cdef list macros = []
    message.version = read_u32(packet.data)
    message.actions = read_u32(packet.data + 4)
    message.protocol = read_u32(packet.data + 8)
    packet.at = 12
    while left(packet) > 4 and memchr(packet.data + packet.at + 4, 0, <size_t> left(packet) - 4) is not NULL:
        stage = read_u32(packet.data + packet.at)
        packet.at += 4
        macros.append((stage, take_string(packet, "list of macros")))
    # Bytes that are no list end the lists. In an offer they mean that none of it was meant as one: no MTA sends lists, and
    # libmilter looks at 12 bytes only.
    message.macros = () if packet.command and left(packet) else tuple(macros)
    return message


cdef Macros decode_macros(Packet *packet):
    cdef Macros message = Macros.__new__(Macros)
    message.command = PyBytes_FromStringAndSize(<const char *> packet.data, 1)
    packet.at = 1
    message.raw = take_rest(packet)
    return message


cdef Connect decode_connect(Packet *packet):
    cdef Connect message = Connect.__new__(Connect)
    cdef uint8_t family
    message.hostname = take_string(packet, "host name")
    message.port = 0
    message.address = b""
    if not left(packet):
        raise fault(packet, "the family of the address is missing")
    family = packet.data[packet.at]
    packet.at += 1
    message.family = PyBytes_FromStringAndSize(<const char *> &family, 1)
    if family == c"U":
        return message
    if family != c"4" and family != c"6" and family != c"L":
        raise fault(packet, f"family {message.family!r} is none of '4', '6', 'L', 'U'")
    if left(packet) < 3:
        raise fault(packet, "port and address are missing")
    message.port = (packet.data[packet.at] << 8) | packet.data[packet.at + 1]
    packet.at += 2
    message.address = take_string(packet, "address")
    return message


cdef tuple decode_path(Packet *packet):
    """A path and its parameters; like libmilter, drop a last parameter that no NUL ends."""
    cdef bytes path = take_string(packet, "address")
    cdef list params
    if not left(packet):
        return path, ()
    params = take_rest(packet).split(b"\0")
    params.pop()
    return path, tuple(params)


cdef MailFrom decode_mail(Packet *packet):
    cdef MailFrom message = MailFrom.__new__(MailFrom)
    message.sender, message.params = decode_path(packet)
    return message


cdef RcptTo decode_rcpt(Packet *packet):
    cdef RcptTo message = RcptTo.__new__(RcptTo)
    message.recipient, message.params = decode_path(packet)
    return message


cdef Body decode_body(Packet *packet):
    cdef Body message = Body.__new__(Body)
    message.chunk = take_rest(packet)
    return message


cdef Header decode_header(Packet *packet):
    cdef Header message = Header.__new__(Header)
    message.name = take_name(packet)
    message.value = take_string(packet, "field value")
    return message


cdef InsertHeader decode_insert_header(Packet *packet):
    cdef InsertHeader message = InsertHeader.__new__(InsertHeader)
    message.index = read_u32(packet.data)
    packet.at = 4
    message.name = take_name(packet)
    message.value = take_string(packet, "field value")
    return message


cdef ChangeHeader decode_change_header(Packet *packet):
    cdef ChangeHeader message = ChangeHeader.__new__(ChangeHeader)
    message.index = read_u32(packet.data)
    packet.at = 4
    message.name = take_name(packet)
    message.value = take_string(packet, "field value")
    return message


cdef tuple decode_joined_path(Packet *packet):
    """A path and, when a second string follows, the parameters in it."""
    cdef bytes path = take_string(packet, "address")
    return path, tuple(take_string(packet, "parameters").split(b" ")) if left(packet) else ()


cdef object command_message(Packet *packet):
    cdef uint8_t letter = packet.letter
    if letter == c"D":
        return decode_macros(packet)
    elif letter == c"L":
        return decode_header(packet)
    elif letter == c"B":
        return decode_body(packet)
    elif letter == c"R":
        return decode_rcpt(packet)
    elif letter == c"M":
        return decode_mail(packet)
    elif letter == c"C":
        return decode_connect(packet)
    elif letter == c"H":
        return Helo(take_string(packet, "name"))
    elif letter == c"U":
        return Unknown(take_string(packet, "command"))
    elif letter == c"O":
        return decode_negotiate(packet)
    elif letter == c"E":
        return EndOfMessage(take_rest(packet)) if packet.size else END_OF_MESSAGE_
    elif letter == c"T":
        return DATA_
    elif letter == c"N":
        return END_OF_HEADERS_
    elif letter == c"A":
        return ABORT_
    elif letter == c"Q":
        return QUIT_
    else:  # the bounds let no unknown letter come here
        return QUIT_NEW_CONNECTION_


cdef object response_message(Packet *packet):
    cdef uint8_t letter = packet.letter
    cdef object message
    if letter == c"c":
        return CONTINUE_
    elif letter == c"h":
        message = AddHeader(take_name(packet), take_string(packet, "field value"))
    elif letter == c"i":
        message = decode_insert_header(packet)
    elif letter == c"m":
        message = decode_change_header(packet)
    elif letter == c"b":
        message = ReplaceBody(take_rest(packet))
    elif letter == c"y":
        message = ReplyCode(take_string(packet, "reply"))
    elif letter == c"+":
        message = AddRecipient(take_string(packet, "address"))
    elif letter == c"2":
        message = AddRecipient(*decode_joined_path(packet))
    elif letter == c"-":
        message = DeleteRecipient(take_string(packet, "address"))
    elif letter == c"e":
        message = ChangeSender(*decode_joined_path(packet))
    elif letter == c"q":
        message = Quarantine(take_string(packet, "reason"))
    elif letter == c"O":
        return decode_negotiate(packet)  # a tail that is no list of macros is nobody's harm
    elif letter == c"a":
        return ACCEPT_
    elif letter == c"r":
        return REJECT_
    elif letter == c"t":
        return TEMPFAIL_
    elif letter == c"d":
        return DISCARD_
    elif letter == c"s":
        return SKIP_
    elif letter == c"p":
        return PROGRESS_
    elif letter == c"4":
        return SHUTDOWN_
    else:
        return CONNECTION_FAIL_
    nothing_left(packet)
    return message


cdef int check_length(const uint8_t *at, uint32_t length, Py_ssize_t limit) except -1:
    """The four bytes of the length alone: enough to know a stranger."""
    if 1 <= length <= <uint32_t> limit + 1:
        return 0
    if length == 0:
        raise RemoteProtocolError("length 0: a packet has at least its command letter")
    quoted = at[:4]
    text = f"length {length} (bytes {quoted!r}) is above the limit of {limit + 1}"
    if quoted[:2] == b"\x16\x03":
        raise RemoteProtocolError(f"{text}; this looks like TLS, not like a milter connection")
    for protocol, beginnings in STRANGERS.items():
        if quoted in beginnings:
            raise RemoteProtocolError(f"{text}; this looks like {protocol}, not like a milter connection")
    if quoted.isascii() and quoted.decode("ascii").isprintable():
        text += "; this looks like text, not like a milter connection"
    raise RemoteProtocolError(text)


cdef str wrong_size(uint8_t letter, bint command, Py_ssize_t size, Py_ssize_t limit):
    """What is wrong with so much data behind this letter, or None."""
    cdef Bounds bounds = COMMANDS[letter] if command else RESPONSES[letter]
    cdef Py_ssize_t highest = min(bounds.highest, limit)
    if bounds.known and bounds.lowest <= size <= highest:
        return None
    if not bounds.known:
        kind = "command" if command else "response"
        return f"unknown {kind} letter {bytes([letter])!r} of a packet with {size} bytes of data"
    if size < bounds.lowest:
        return f"{title(letter, command)}: {size} bytes of data, at least {bounds.lowest} expected"
    return f"{title(letter, command)}: {size} bytes of data, at most {highest} expected"


cdef object decode(const uint8_t *payload, Py_ssize_t size, bint command, Py_ssize_t limit):
    cdef Packet packet
    cdef str wrong = wrong_size(payload[0], command, size - 1, limit)
    if wrong is not None:
        raise RemoteProtocolError(wrong)
    packet = Packet(data=payload + 1, size=size - 1, at=0, letter=payload[0], command=command)
    return command_message(&packet) if command else response_message(&packet)


cdef object decode_payload(object payload, bint command, Py_ssize_t limit):
    cdef Py_buffer view
    PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
    try:
        if view.len == 0:
            raise RemoteProtocolError("length 0: a packet has at least its command letter")
        return decode(<const uint8_t *> view.buf, view.len, command, limit)
    finally:
        PyBuffer_Release(&view)


def decode_command(payload):
    """The command in one packet without its length: the letter and the data behind it."""
    return decode_payload(payload, True, MAX_DATA_BYTES_1M)


def decode_response(payload):
    """The response in one packet without its length: the letter and the data behind it."""
    return decode_payload(payload, False, MAX_RESPONSE_BYTES)


# --- The decoders -----------------------------------------------------------------------------------------------------

cdef class _Decoder:
    """Cuts a stream into messages; not shared between threads.

    The bytes that are not yet a message lie in ``buffer[start:end]``, and there is no buffer when there are none: thousands
    of idle connections cost nothing here.
    """

    cdef uint8_t *buffer
    cdef Py_ssize_t start, end, capacity, limit
    cdef str error
    cdef bint command

    def __dealloc__(self):
        free(self.buffer)

    @property
    def max_data(self):
        """Most bytes of data behind a letter; set it when SMFIP_MDS_256K or SMFIP_MDS_1M was agreed."""
        return self.limit

    @max_data.setter
    def max_data(self, Py_ssize_t limit):
        if not SMALLEST_LIMIT <= limit <= LARGEST_LIMIT:
            raise ValueError(f"max_data is {limit}; from {SMALLEST_LIMIT} to {LARGEST_LIMIT} expected")
        self.limit = limit

    @property
    def buffered(self):
        """Bytes held that are not yet a message; 0 between two packets."""
        return self.end - self.start

    def feed(self, data):
        """Take over what was received: any bytes-like object, copied."""
        cdef Py_buffer view
        if self.error is not None:
            raise RemoteProtocolError(self.error)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if view.len:
                self.make_room(view.len)
                memcpy(self.buffer + self.end, view.buf, <size_t> view.len)
                self.end += view.len
        finally:
            PyBuffer_Release(&view)

    def __iter__(self):
        return self

    def __next__(self):
        """The next message that is complete; stops when there is none, and can go on after more was fed."""
        if self.error is not None:
            raise RemoteProtocolError(self.error)
        try:
            message = self.next_message()
        except RemoteProtocolError as error:
            self.error = str(error)
            self.release()
            raise
        if message is None:
            self.tidy()
            raise StopIteration
        return message

    cdef object next_message(self):
        cdef Py_ssize_t held = self.end - self.start
        cdef const uint8_t *at = self.buffer + self.start
        cdef uint32_t length
        cdef str wrong
        if held < 4:
            return None
        length = read_u32(at)
        check_length(at, length, self.limit)
        if held < HEAD:
            return None
        if held < 4 + <Py_ssize_t> length:
            # Before more of it is taken in; a complete packet is checked where it is decoded.
            wrong = wrong_size(at[4], self.command, length - 1, self.limit)
            if wrong is not None:
                raise RemoteProtocolError(wrong)
            return None
        message = decode(at + 4, length, self.command, self.limit)
        self.start += 4 + length
        return message

    cdef int make_room(self, Py_ssize_t size) except -1:
        """Room for ``size`` bytes at ``end``. Moves and copies are paid for by bytes that came or went: linear in all."""
        cdef Py_ssize_t held = self.end - self.start
        cdef Py_ssize_t capacity
        cdef uint8_t *bigger
        if self.capacity - self.end >= size:
            return 0
        if self.start >= held and self.capacity - held >= size:
            memmove(self.buffer, self.buffer + self.start, <size_t> held)
        else:
            if size > LARGEST_LIMIT - held:
                raise MemoryError
            capacity = max(held + size, min(2 * held, <Py_ssize_t> LARGEST_LIMIT))
            bigger = <uint8_t *> malloc(<size_t> capacity)
            if bigger is NULL:
                raise MemoryError
            if held:
                memcpy(bigger, self.buffer + self.start, <size_t> held)
            free(self.buffer)
            self.buffer = bigger
            self.capacity = capacity
        self.start = 0
        self.end = held
        return 0

    cdef void tidy(self) noexcept:
        """Nothing complete is left: give back what the beginning of a packet does not need."""
        cdef Py_ssize_t held = self.end - self.start
        cdef uint8_t *smaller
        if held == 0:
            self.release()
        elif self.start > held:
            memmove(self.buffer, self.buffer + self.start, <size_t> held)
            self.start = 0
            self.end = held
            smaller = <uint8_t *> realloc(self.buffer, <size_t> held)
            if smaller is not NULL:
                self.buffer = smaller
                self.capacity = held

    cdef void release(self) noexcept:
        free(self.buffer)
        self.buffer = NULL
        self.start = self.end = self.capacity = 0


@cython.final
cdef class CommandDecoder(_Decoder):
    """Commands out of what an MTA sends."""

    def __init__(self, max_data=MAX_DATA_BYTES):
        self.command = True
        self.max_data = max_data


@cython.final
cdef class ResponseDecoder(_Decoder):
    """Responses out of what a filter sends."""

    def __init__(self, max_data=MAX_RESPONSE_BYTES):
        self.command = False
        self.max_data = max_data


# --- Encoding: one function writes every packet, so nothing can be put on the wire past its checks --------------------

cdef object quoted(bytes value):
    return f"{value[:QUOTED]!r}{' …' if len(value) > QUOTED else ''}"


cdef bytes frame(uint8_t letter, bytes prefix, object strings, Py_ssize_t limit):
    """A packet: length, letter, ``prefix`` as it stands, each of ``strings`` with its NUL."""
    cdef bint command = COMMANDS[letter].known
    cdef Py_ssize_t size, length
    cdef bytes packet
    cdef str wrong
    cdef uint8_t *at
    if prefix is None:
        raise InvalidMessage(f"{title(letter, command)}: expected bytes, got None")
    size = PyBytes_GET_SIZE(prefix)
    for string in strings:
        if not isinstance(string, bytes):
            raise InvalidMessage(f"{title(letter, command)}: expected bytes, got {string!r:.{QUOTED}}")
        length = PyBytes_GET_SIZE(<bytes> string)
        if memchr(PyBytes_AS_STRING(<bytes> string), 0, <size_t> length) is not NULL:
            raise InvalidMessage(f"{title(letter, command)}: NUL inside {quoted(string)}")
        size += length + 1
    wrong = wrong_size(letter, command, size, limit)
    if wrong is not None:
        raise InvalidMessage(wrong)
    packet = PyBytes_FromStringAndSize(NULL, HEAD + size)
    at = <uint8_t *> PyBytes_AS_STRING(packet)
    size += 1  # the length counts the letter
    at[0], at[1], at[2], at[3], at[4] = size >> 24, (size >> 16) & 255, (size >> 8) & 255, size & 255, letter
    at += HEAD
    memcpy(at, PyBytes_AS_STRING(prefix), <size_t> PyBytes_GET_SIZE(prefix))
    at += PyBytes_GET_SIZE(prefix)
    for string in strings:
        length = PyBytes_GET_SIZE(<bytes> string) + 1
        memcpy(at, PyBytes_AS_STRING(<bytes> string), <size_t> length)  # CPython ends every bytes object with a NUL
        at += length
    return packet


cdef bytes number(object value, int size, str what):
    highest = 0xFFFF if size == 2 else 0xFFFFFFFF
    if not isinstance(value, int) or not 0 <= value <= highest:
        raise InvalidMessage(f"{what} is {value!r}; from 0 to {highest} expected")
    return value.to_bytes(size, "big")


cdef tuple pairs_of(object values, str what):
    """``values``, which must be a tuple of pairs."""
    if not isinstance(values, tuple) or not all([isinstance(pair, tuple) and len(pair) == 2 for pair in values]):
        raise InvalidMessage(f"{what} must be a tuple of pairs")
    return values


cdef bytes encode_negotiate(Negotiate message, Py_ssize_t limit):
    parts = [
        number(message.version, 4, "version"),
        number(message.actions, 4, "actions"),
        number(message.protocol, 4, "protocol"),
    ]
    for stage, names in pairs_of(message.macros, "macros"):
        if not isinstance(names, bytes) or b"\0" in names:
            raise InvalidMessage(f"a list of macros is bytes without NUL, not {names!r:.{QUOTED}}")
        parts += number(stage, 4, "stage"), names, b"\0"
    return frame(c"O", b"".join(parts), (), limit)


cdef bytes encode_macros(Macros message, Py_ssize_t limit):
    if PyBytes_GET_SIZE(message.command) != 1:
        raise InvalidMessage(f"the command of macros is one letter, not {quoted(message.command)}")
    strings = [string for pair in pairs_of(message.values, "values") for string in pair]
    return frame(c"D", message.command, strings, limit)


cdef bytes encode_connect(Connect message, Py_ssize_t limit):
    hostname, family = message.hostname, message.family
    if not isinstance(hostname, bytes) or b"\0" in hostname:
        raise InvalidMessage(f"a host name is bytes without NUL, not {hostname!r:.{QUOTED}}")
    if family == b"U":
        if message.port or message.address:
            raise InvalidMessage("family b'U' has neither port nor address")
        return frame(c"C", hostname + b"\0U", (), limit)
    if family not in (b"4", b"6", b"L"):
        raise InvalidMessage(f"family {quoted(family)} is none of b'4', b'6', b'L', b'U'")
    return frame(c"C", hostname + b"\0" + family + number(message.port, 2, "port"), (message.address,), limit)


cdef bytes encode_path(uint8_t letter, bytes path, tuple params, Py_ssize_t limit):
    return frame(letter, b"", (path, *(params or ())), limit)


cdef bytes encode_joined_path(uint8_t letter, bytes path, tuple params, Py_ssize_t limit):
    """A path; parameters become one string, so a space inside one of them would make two."""
    if not params:
        return frame(letter, b"", (path,), limit)
    for param in params:
        if not isinstance(param, bytes) or b" " in param:
            raise InvalidMessage(f"a parameter is bytes without a space, not {param!r:.{QUOTED}}")
    return frame(letter, b"", (path, b" ".join(params)), limit)


cdef bytes encode_field(uint8_t letter, bytes prefix, bytes name, bytes value, Py_ssize_t limit):
    if not name:
        raise InvalidMessage("the field name is empty")
    return frame(letter, prefix, (name, value), limit)


# Messages without data are always the same five bytes.
CONSTANT = {
    type(message): b"\0\0\0\1" + letter
    for message, letter in (
        (CONTINUE_, ResponseLetter.CONTINUE),
        (ACCEPT_, ResponseLetter.ACCEPT),
        (REJECT_, ResponseLetter.REJECT),
        (TEMPFAIL_, ResponseLetter.TEMPFAIL),
        (DISCARD_, ResponseLetter.DISCARD),
        (SKIP_, ResponseLetter.SKIP),
        (PROGRESS_, ResponseLetter.PROGRESS),
        (SHUTDOWN_, ResponseLetter.SHUTDOWN),
        (CONNECTION_FAIL_, ResponseLetter.CONNECTION_FAIL),
        (DATA_, CommandLetter.DATA),
        (END_OF_HEADERS_, CommandLetter.END_OF_HEADERS),
        (ABORT_, CommandLetter.ABORT),
        (QUIT_, CommandLetter.QUIT),
        (QUIT_NEW_CONNECTION_, CommandLetter.QUIT_NEW_CONNECTION),
    )
}


def encode(message, max_data=MAX_DATA_BYTES):
    """The packet of a message, ready to send; ``InvalidMessage`` if it cannot be one.

    ``max_data``: the most bytes of data behind the letter, which is more than 65535 only where that was negotiated.
    """
    cdef Py_ssize_t limit = max_data
    cdef object kind = type(message)
    cdef object constant = CONSTANT.get(kind)
    if constant is not None:
        return constant
    if kind is ReplyCode:
        return frame(c"y", b"", ((<ReplyCode> message).text,), limit)
    elif kind is Macros:
        return encode_macros(message, limit)
    elif kind is Header:
        return encode_field(c"L", b"", (<Header> message).name, (<Header> message).value, limit)
    elif kind is Body:
        return frame(c"B", (<Body> message).chunk, (), limit)
    elif kind is RcptTo:
        return encode_path(c"R", (<RcptTo> message).recipient, (<RcptTo> message).params, limit)
    elif kind is MailFrom:
        return encode_path(c"M", (<MailFrom> message).sender, (<MailFrom> message).params, limit)
    elif kind is EndOfMessage:
        return frame(c"E", (<EndOfMessage> message).chunk, (), limit)
    elif kind is Connect:
        return encode_connect(message, limit)
    elif kind is Helo:
        return frame(c"H", b"", ((<Helo> message).name,), limit)
    elif kind is Unknown:
        return frame(c"U", b"", ((<Unknown> message).command,), limit)
    elif kind is Negotiate:
        return encode_negotiate(message, limit)
    return encode_modification(message, kind, limit)


cdef bytes encode_modification(object message, object kind, Py_ssize_t limit):
    if kind is AddHeader:
        return encode_field(c"h", b"", (<AddHeader> message).name, (<AddHeader> message).value, limit)
    elif kind is InsertHeader:
        index = number((<InsertHeader> message).index, 4, "index")
        return encode_field(c"i", index, (<InsertHeader> message).name, (<InsertHeader> message).value, limit)
    elif kind is ChangeHeader:
        index = number((<ChangeHeader> message).index, 4, "index")
        return encode_field(c"m", index, (<ChangeHeader> message).name, (<ChangeHeader> message).value, limit)
    elif kind is ReplaceBody:
        return frame(c"b", (<ReplaceBody> message).chunk, (), limit)
    elif kind is AddRecipient:
        params = (<AddRecipient> message).params
        letter = c"2" if params else c"+"
        return encode_joined_path(letter, (<AddRecipient> message).recipient, params, limit)
    elif kind is DeleteRecipient:
        return frame(c"-", b"", ((<DeleteRecipient> message).recipient,), limit)
    elif kind is ChangeSender:
        return encode_joined_path(c"e", (<ChangeSender> message).sender, (<ChangeSender> message).params, limit)
    elif kind is Quarantine:
        return frame(c"q", b"", ((<Quarantine> message).reason,), limit)
    raise InvalidMessage(f"not a message of the milter protocol: {message!r:.{QUOTED}}")
