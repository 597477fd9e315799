"""Messages and bytes: framing, decoding, encoding, every check of a length or a NUL. See ``fastmilter.codec``.

A packet is a length (4 bytes, big-endian, counts what follows), a letter and the data behind it. Nothing here knows a
session: whether a packet may come now, or was negotiated, is decided above. Nothing here decodes text.

Strict where libmilter, Sendmail and Postfix are strict, lenient where one of them is: commands are read as libmilter
reads them, responses as Postfix does. The peer's faults are ``RemoteProtocolError``, the caller's ``InvalidMessage``.
Anything else that a decoder raises because of what it was fed is a bug.

Sources: Sendmail's ``libmilter/comm.c``, ``engine.c``, ``smfi.c``; Postfix's ``src/milter/milter8.c``.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_Check, PyMemoryView_GET_BUFFER
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memchr, memcpy, memmove

from fastmilter._messages cimport Body, Connect, Header, Macros, MailFrom, RcptTo

from fastmilter import _bounds, constants
from fastmilter._messages import (
    Abort, Accept, AddHeader, AddRecipient, ChangeHeader, ChangeSender, ConnectionFail, Continue, Data, DeleteRecipient,
    Discard, EndOfHeaders, EndOfMessage, Helo, InsertHeader, Negotiate, Progress, Quarantine, Quit, QuitNewConnection,
    Reject, ReplaceBody, ReplyCode, Shutdown, Skip, TempFail, Unknown,
)
from fastmilter.errors import InvalidMessage, RemoteProtocolError


# --- Letters and bounds -----------------------------------------------------------------------------------------------
# Letters stand as characters below: 'C' is CONNECT and so on, as in constants.py and in every dump of the protocol.

cdef enum:
    LENGTH = 4
    HEAD = 5  # length and letter: enough to know whether the packet can be right
    NEGOTIATION = 12  # version, actions, protocol
    ALL_LETTERS = (1 << 26) - 1
    DATA_BYTES = 65535  # constants.MAX_DATA_BYTES, as a number of C
    UNBOUNDED = 0x7FFFFFF0  # the largest max_data; sums of two sizes stay far from overflow


cdef struct Bounds:
    bint known
    Py_ssize_t lowest
    Py_ssize_t highest


cdef Bounds[256] COMMANDS, RESPONSES


cdef int fill(Bounds *table, dict bounds) except -1:
    for letter, (lowest, highest) in bounds.items():
        table[<uint8_t> ord(letter)] = Bounds(known=True, lowest=lowest, highest=highest)
    return 0


fill(COMMANDS, _bounds.COMMAND_BOUNDS)
fill(RESPONSES, _bounds.RESPONSE_BOUNDS)


cdef inline bint fits(uint8_t letter, bint command, Py_ssize_t size, Py_ssize_t limit) noexcept:
    """Whether a packet may have this letter with ``size`` bytes of data."""
    cdef Bounds *bounds = &COMMANDS[letter] if command else &RESPONSES[letter]
    return bounds.known and bounds.lowest <= size <= min(bounds.highest, limit)


# --- Reading: one packet, a cursor in it, every check in the helpers --------------------------------------------------

cdef struct Packet:
    const uint8_t *data  # behind the letter
    Py_ssize_t size
    Py_ssize_t at  # how far it is read
    uint8_t letter


cdef object wrong(Packet *packet, str what):
    data = PyBytes_FromStringAndSize(<const char *> packet.data, packet.size)
    return RemoteProtocolError(_bounds.wrong_content(packet.letter, data, what))


cdef inline uint32_t read_u32(const uint8_t *at) noexcept:
    return (<uint32_t> at[0] << 24) | (<uint32_t> at[1] << 16) | (<uint32_t> at[2] << 8) | at[3]


cdef inline Py_ssize_t left(Packet *packet) noexcept:
    return packet.size - packet.at


cdef inline bytes take_rest(Packet *packet):
    cdef bytes rest = PyBytes_FromStringAndSize(<const char *> packet.data + packet.at, left(packet))
    packet.at = packet.size
    return rest


cdef inline bytes take_string(Packet *packet, str what):
    """The bytes up to the next NUL; the cursor goes behind it."""
    cdef const uint8_t *begin = packet.data + packet.at
    cdef const uint8_t *nul = <const uint8_t *> memchr(begin, 0, <size_t> left(packet))
    if nul is NULL:
        raise wrong(packet, f"no NUL ends the {what}")
    packet.at += nul - begin + 1
    return PyBytes_FromStringAndSize(<const char *> begin, nul - begin)


cdef inline bytes take_name(Packet *packet):
    cdef bytes name = take_string(packet, "field name")
    if not name:
        raise wrong(packet, "the field name is empty")
    return name


cdef inline object ended(Packet *packet, object message):
    """The message, unless bytes follow its last string: Postfix takes such a response for broken."""
    if left(packet):
        raise wrong(packet, f"{_bounds.counted(left(packet))} too many at the end")
    return message


# --- Decoding: one function per layout --------------------------------------------------------------------------------

cdef object decode_negotiate(Packet *packet, bint command):
    cdef list macros = []
    cdef uint32_t stage
    packet.at = NEGOTIATION
    while left(packet) > 4 and memchr(packet.data + packet.at + 4, 0, <size_t> left(packet) - 4) is not NULL:
        stage = read_u32(packet.data + packet.at)
        packet.at += 4
        macros.append((stage, take_string(packet, "list of macros")))
    if command and left(packet):
        macros = []  # libmilter reads 12 bytes of an offer; a tail that is no list was not meant as one
    return Negotiate(
        read_u32(packet.data), read_u32(packet.data + 4), read_u32(packet.data + 8), tuple(macros)
    )


cdef Macros decode_macros(Packet *packet):
    cdef Macros message = Macros.__new__(Macros)
    message.command = PyBytes_FromStringAndSize(<const char *> packet.data, 1)
    packet.at = 1
    message.raw = take_rest(packet)
    return message


cdef object decode_connect(Packet *packet):
    cdef bytes hostname = take_string(packet, "host name")
    cdef uint8_t family
    cdef uint32_t port
    if not left(packet):
        raise wrong(packet, "the family of the address is missing")
    family = packet.data[packet.at]
    packet.at += 1
    if family == c"U":
        return Connect(hostname, b"U")
    if family != c"4" and family != c"6" and family != c"L":
        raise wrong(packet, f"family {bytes([family])!r}, expected '4', '6', 'L' or 'U'")
    if left(packet) < 3:
        raise wrong(packet, "port and address are missing")
    port = (packet.data[packet.at] << 8) | packet.data[packet.at + 1]
    packet.at += 2
    return Connect(hostname, bytes([family]), port, take_string(packet, "address"))


cdef MailFrom decode_mail(Packet *packet):
    cdef MailFrom message = MailFrom.__new__(MailFrom)
    message.sender = take_string(packet, "address")
    message.params = take_params(packet)
    return message


cdef RcptTo decode_rcpt(Packet *packet):
    cdef RcptTo message = RcptTo.__new__(RcptTo)
    message.recipient = take_string(packet, "address")
    message.params = take_params(packet)
    return message


cdef inline tuple take_params(Packet *packet):
    """What stands behind a path; a last one that no NUL ends is dropped, as libmilter does."""
    return tuple(take_rest(packet).split(b"\0")[:-1]) if left(packet) else ()


cdef tuple decode_joined_path(Packet *packet):
    """A path, and the parameters in one string if there is a second one."""
    cdef bytes path = take_string(packet, "address")
    return path, tuple(take_string(packet, "parameters").split(b" ")) if left(packet) else ()


cdef Header decode_header(Packet *packet):
    cdef Header message = Header.__new__(Header)
    message.name = take_name(packet)
    message.value = take_string(packet, "field value")
    return message


cdef tuple decode_indexed_header(Packet *packet):
    packet.at = 4
    name = take_name(packet)
    return read_u32(packet.data), name, take_string(packet, "field value")


cdef Body decode_body(Packet *packet):
    cdef Body message = Body.__new__(Body)
    message.chunk = take_rest(packet)
    return message


cdef object command_of(Packet *packet):
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
        return decode_negotiate(packet, True)
    elif letter == c"E" and packet.size:
        return EndOfMessage(take_rest(packet))
    return WITHOUT_DATA[letter]


cdef object response_of(Packet *packet):
    cdef uint8_t letter = packet.letter
    if letter == c"h":
        name = take_name(packet)
        return ended(packet, AddHeader(name, take_string(packet, "field value")))
    elif letter == c"i":
        return ended(packet, InsertHeader(*decode_indexed_header(packet)))
    elif letter == c"m":
        return ended(packet, ChangeHeader(*decode_indexed_header(packet)))
    elif letter == c"b":
        return ReplaceBody(take_rest(packet))
    elif letter == c"y":
        return ended(packet, ReplyCode(take_string(packet, "reply")))
    elif letter == c"+":
        return ended(packet, AddRecipient(take_string(packet, "address")))
    elif letter == c"2":
        return ended(packet, AddRecipient(*decode_joined_path(packet)))
    elif letter == c"-":
        return ended(packet, DeleteRecipient(take_string(packet, "address")))
    elif letter == c"e":
        return ended(packet, ChangeSender(*decode_joined_path(packet)))
    elif letter == c"q":
        return ended(packet, Quarantine(take_string(packet, "reason")))
    elif letter == c"O":
        return decode_negotiate(packet, False)  # Sendmail shrugs at a tail that is no list; so do we
    return WITHOUT_DATA[letter]


cdef object decode(const uint8_t *payload, Py_ssize_t size, bint command, Py_ssize_t limit):
    cdef Packet packet = Packet(data=payload + 1, size=size - 1, at=0, letter=payload[0])
    if not fits(packet.letter, command, packet.size, limit):
        raise RemoteProtocolError(_bounds.wrong_size(packet.letter, command, packet.size, limit))
    return command_of(&packet) if command else response_of(&packet)


cdef object decode_payload(object payload, bint command, Py_ssize_t limit):
    cdef Py_buffer view
    PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
    try:
        if view.len == 0:
            raise RemoteProtocolError(_bounds.wrong_length(bytes(LENGTH), limit))
        return decode(<const uint8_t *> view.buf, view.len, command, limit)
    finally:
        PyBuffer_Release(&view)


def decode_command(payload):
    """The command in one packet without its length, that is the letter and the data; at most 1048576 bytes."""
    return decode_payload(payload, True, constants.MAX_DATA_BYTES_1M)


def decode_response(payload):
    """The response in one packet without its length, that is the letter and the data; at most 1052672 bytes."""
    return decode_payload(payload, False, constants.MAX_RESPONSE_BYTES)


# --- The decoders -----------------------------------------------------------------------------------------------------

@cython.no_gc  # the only object it holds is a view of memory, which leads nowhere
cdef class _Decoder:
    """Cuts a stream into messages. Not to be used by two threads at once.

    What is not yet a message lies in ``window[start:end]``, which is memory of its own or, up to ``settle``, what was lent.
    There is no memory of its own when nothing lies there: thousands of idle connections cost nothing here.
    """

    def __dealloc__(self):
        free(self.buffer)

    @property
    def max_data(self):
        """Most bytes of data behind a letter; to be raised when SMFIP_MDS_256K or SMFIP_MDS_1M was agreed."""
        return self.limit

    @max_data.setter
    def max_data(self, Py_ssize_t limit):
        if not NEGOTIATION <= limit <= UNBOUNDED:
            raise ValueError(f"max_data is {limit}, expected {NEGOTIATION} to {UNBOUNDED}")
        self.limit = limit

    @property
    def buffered(self):
        """Bytes held that are not yet a message; 0 between two packets."""
        return self.end - self.start

    def feed(self, data):
        """Take in a piece of the stream, any bytes-like object, of any size; it is copied."""
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            self.keep(<const uint8_t *> view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    cdef int keep(self, const uint8_t *data, Py_ssize_t size) except -1:
        if self.error is not None:
            raise RemoteProtocolError(self.error)
        self.settle()
        if size:
            self.make_room(size)
            memcpy(self.buffer + self.end, data, <size_t> size)
            self.end += size
        return 0

    cpdef object lend(self, object view, Py_ssize_t size):
        """Take in the first ``size`` bytes of a ``memoryview`` without a copy; ``settle`` before they change."""
        cdef Py_buffer *buffer
        if not PyMemoryView_Check(view):
            raise TypeError(f"expected a memoryview, got {type(view).__name__}")
        buffer = PyMemoryView_GET_BUFFER(view)
        if not 0 <= size <= buffer.len:
            raise ValueError(f"size is {size}, expected 0 to {buffer.len}")
        if self.end > self.start or self.error is not None:
            self.keep(<const uint8_t *> buffer.buf, size)
            return
        self.lender = view  # as long as the view lives, its memory stays where it is
        self.window = <const uint8_t *> buffer.buf
        self.start = 0
        self.end = size

    cpdef object settle(self):
        """Keep what is left of what was lent, so that the lender may use the memory again."""
        cdef const uint8_t *left
        cdef Py_ssize_t held
        if self.lender is None:
            return
        left = self.window + self.start
        held = self.end - self.start
        self.window = self.buffer
        self.start = self.end = 0
        if held:
            self.make_room(held)
            memcpy(self.buffer, left, <size_t> held)
            self.end = held
            self.lender = None
        else:
            self.release()

    def __iter__(self):
        return self

    def __next__(self):
        """The next complete message; stops when there is none, and goes on after more was fed."""
        message = self.next_message()
        if message is None:
            raise StopIteration
        return message

    cpdef object next_message(self):
        """The next complete message, or ``None`` if there is none until more was fed."""
        if self.error is not None:
            raise RemoteProtocolError(self.error)
        try:
            message = self.cut()
        except RemoteProtocolError as error:
            self.error = str(error)
            self.release()
            raise
        if message is None and self.lender is None:
            self.tidy()
        return message

    cdef object cut(self):
        """The next message, or None. Length and letter are judged as soon as they are there."""
        cdef const uint8_t *at
        cdef Py_ssize_t held, length
        while True:
            at = self.window + self.start
            held = self.end - self.start
            if held < LENGTH:
                return None
            length = read_u32(at)
            if not 1 <= length <= self.limit + 1:
                raise RemoteProtocolError(_bounds.wrong_length(at[:LENGTH], self.limit + 1))
            if held < LENGTH + length:
                break
            self.start += LENGTH + length
            if not self.spared(at + LENGTH, length):
                return decode(at + LENGTH, length, self.command, self.limit)
        if held >= HEAD and not fits(at[LENGTH], self.command, length - 1, self.limit):
            raise RemoteProtocolError(_bounds.wrong_size(at[LENGTH], self.command, length - 1, self.limit))
        return None

    cdef bint spared(self, const uint8_t *payload, Py_ssize_t size) noexcept:
        """Whether the packet holds macros that nobody will ask for."""
        if payload[0] != c"D" or not self.command or not fits(c"D", True, size - 1, self.limit):
            return False
        return c"A" <= payload[1] <= c"Z" and not self.macros_of >> (payload[1] - c"A") & 1

    cdef int make_room(self, Py_ssize_t size) except -1:
        """Room for ``size`` bytes at ``end``: moves what is held, or doubles, so that each byte is copied a few times at most.

        Nothing is reserved because a length says so: only what was really received takes room.
        """
        cdef Py_ssize_t held = self.end - self.start
        cdef Py_ssize_t capacity
        cdef uint8_t *larger
        if size <= self.capacity - self.end:
            return 0
        if held <= self.start and size <= self.capacity - held:
            memmove(self.buffer, self.buffer + self.start, <size_t> held)
        else:
            if size > UNBOUNDED - held:
                raise MemoryError
            capacity = max(held + size, 2 * held)
            larger = <uint8_t *> malloc(<size_t> capacity)
            if larger is NULL:
                raise MemoryError
            if held:
                memcpy(larger, self.buffer + self.start, <size_t> held)
            free(self.buffer)
            self.buffer = larger
            self.capacity = capacity
        self.window = self.buffer
        self.start = 0
        self.end = held
        return 0

    cdef void tidy(self) noexcept:
        """No complete message is left: give back what the beginning of a packet does not need."""
        cdef Py_ssize_t held = self.end - self.start
        cdef uint8_t *smaller
        if not held:
            self.release()
        elif held < self.start:
            memmove(self.buffer, self.buffer + self.start, <size_t> held)
            self.start = 0
            self.end = held
            smaller = <uint8_t *> realloc(self.buffer, <size_t> held)
            if smaller is not NULL:
                self.buffer = smaller
                self.window = smaller
                self.capacity = held

    cdef void release(self) noexcept:
        free(self.buffer)
        self.buffer = NULL
        self.window = NULL
        self.lender = None
        self.start = self.end = self.capacity = 0


@cython.final
@cython.no_gc
cdef class CommandDecoder(_Decoder):
    """Commands, out of what an MTA sends.

    ``macros_of``: the commands whose macros are wanted, bit n for the n-th letter; those of others are passed over (Postfix
    sends a set before each header field).
    """

    def __init__(self, max_data=DATA_BYTES, uint32_t macros_of=ALL_LETTERS):
        self.command = True
        self.max_data = max_data
        self.macros_of = macros_of


@cython.final
@cython.no_gc
cdef class ResponseDecoder(_Decoder):
    """Responses, out of what a filter sends."""

    def __init__(self, max_data=constants.MAX_RESPONSE_BYTES):
        self.max_data = max_data


# --- Encoding: one function writes every packet, so nothing gets on the wire past its checks --------------------------

cdef bytes frame(uint8_t letter, bytes prefix, tuple strings, Py_ssize_t limit):
    """A packet: length, letter, ``prefix`` as it stands, each of ``strings`` with its NUL."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(plain(letter, prefix))
    cdef Py_ssize_t length
    cdef uint8_t *at
    cdef bytes packet
    for string in strings:
        length = PyBytes_GET_SIZE(plain(letter, string))
        if memchr(PyBytes_AS_STRING(<bytes> string), 0, <size_t> length) is not NULL:
            raise InvalidMessage(_bounds.wrong_content(letter, string, "a NUL inside"))
        size += length + 1
    if not fits(letter, COMMANDS[letter].known, size, limit):
        raise InvalidMessage(_bounds.wrong_size(letter, bool(COMMANDS[letter].known), size, limit))
    packet = PyBytes_FromStringAndSize(NULL, HEAD + size)
    at = <uint8_t *> PyBytes_AS_STRING(packet)
    write_u32(at, <uint32_t> size + 1)  # the length counts the letter
    at[LENGTH] = letter
    at += HEAD
    length = PyBytes_GET_SIZE(prefix)
    memcpy(at, PyBytes_AS_STRING(prefix), <size_t> length)
    for string in strings:
        at += length
        length = PyBytes_GET_SIZE(<bytes> string) + 1  # CPython ends every bytes object with a NUL
        memcpy(at, PyBytes_AS_STRING(<bytes> string), <size_t> length)
    return packet


cdef inline void write_u32(uint8_t *at, uint32_t value) noexcept:
    at[0], at[1], at[2], at[3] = value >> 24, (value >> 16) & 255, (value >> 8) & 255, value & 255


cdef bytes plain(uint8_t letter, object value):
    if not isinstance(value, bytes):
        raise InvalidMessage(f"{_bounds.titled(letter)}: expected bytes, got {type(value).__name__}")
    return <bytes> value


cdef bytes number(object value, int size, str what):
    cdef uint8_t[LENGTH] written
    highest = 0xFFFF if size == 2 else 0xFFFFFFFF
    if not isinstance(value, int) or not 0 <= value <= highest:
        raise InvalidMessage(f"{what} is {value!r}, expected 0 to {highest}")
    write_u32(written, value)
    return written[LENGTH - size:LENGTH]


cdef object pairs(uint8_t letter, object values):
    for pair in values:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise InvalidMessage(f"{_bounds.titled(letter)}: expected pairs, got {pair!r:.60}")
    return values


cdef bytes encode_negotiate(object message, Py_ssize_t limit):
    parts = [
        number(message.version, 4, "version"),
        number(message.actions, 4, "actions"),
        number(message.protocol, 4, "protocol"),
    ]
    for stage, names in pairs(c"O", message.macros or ()):
        if b"\0" in plain(c"O", names):
            raise InvalidMessage(_bounds.wrong_content(c"O", names, "a NUL inside"))
        parts += number(stage, 4, "stage"), names, b"\0"
    return frame(c"O", b"".join(parts), (), limit)


cdef bytes encode_macros(Macros message, Py_ssize_t limit):
    if len(message.command) != 1:
        raise InvalidMessage(f"the command of macros is {_bounds.quoted(message.command)}, expected one letter")
    return frame(c"D", message.command, tuple([part for pair in pairs(c"D", message.values) for part in pair]), limit)


cdef bytes encode_connect(object message, Py_ssize_t limit):
    cdef bytes family = message.family
    cdef bytes hostname = plain(c"C", message.hostname)
    if b"\0" in hostname:
        raise InvalidMessage(_bounds.wrong_content(c"C", hostname, "a NUL inside"))
    if family == b"U":
        if message.port or message.address:
            raise InvalidMessage("CONNECT ('C'): family 'U' has neither port nor address")
        return frame(c"C", hostname + b"\0U", (), limit)
    if family not in (b"4", b"6", b"L"):
        raise InvalidMessage(f"CONNECT ('C'): family {_bounds.quoted(family)}, expected '4', '6', 'L' or 'U'")
    port = number(message.port, 2, "port")
    return frame(c"C", hostname + b"\0" + family + port, (message.address,), limit)


cdef bytes encode_joined_path(uint8_t letter, object path, tuple params, Py_ssize_t limit):
    """A path; parameters become one string, where a space inside one would make it two."""
    if not params:
        return frame(letter, b"", (path,), limit)
    for param in params:
        if b" " in plain(letter, param):
            raise InvalidMessage(_bounds.wrong_content(letter, param, "a space inside a parameter"))
    return frame(letter, b"", (path, b" ".join(params)), limit)


cdef bytes encode_field(uint8_t letter, bytes prefix, object name, object value, Py_ssize_t limit):
    if not plain(letter, name):
        raise InvalidMessage(f"{_bounds.titled(letter)}: the field name is empty")
    return frame(letter, prefix, (name, value), limit)


# One object and one packet are enough for each message without data.
cdef dict WITHOUT_DATA = {
    ord(letter): message
    for letter, message in {
        b"T": Data(), b"N": EndOfHeaders(), b"E": EndOfMessage(), b"A": Abort(), b"Q": Quit(), b"K": QuitNewConnection(),
        b"c": Continue(), b"a": Accept(), b"r": Reject(), b"t": TempFail(), b"d": Discard(), b"s": Skip(), b"p": Progress(),
        b"4": Shutdown(), b"f": ConnectionFail(),
    }.items()
}
cdef dict PACKETS = {type(WITHOUT_DATA[letter]): b"\0\0\0\1" + bytes([letter]) for letter in WITHOUT_DATA}
del PACKETS[EndOfMessage]  # may carry data


cpdef bytes header_packet(uint8_t letter, object index, bytes name, bytes value):
    """The packet that adds (``h``, without an index), inserts (``i``) or changes (``m``) a header field."""
    return encode_field(letter, b"" if index is None else number(index, 4, "index"), name, value, DATA_BYTES)


cpdef bytes encode(object message, Py_ssize_t max_data=DATA_BYTES):
    """The packet of a message, ready to send; ``InvalidMessage`` if it cannot be one.

    ``max_data``: most bytes of data behind the letter; more than 65535 only where that was negotiated.
    """
    kind = type(message)
    packet = PACKETS.get(kind)
    if packet is not None:
        return packet
    elif kind is Macros:
        return encode_macros(message, max_data)
    elif kind is Header:
        return encode_field(c"L", b"", message.name, message.value, max_data)
    elif kind is Body:
        return frame(c"B", message.chunk, (), max_data)
    elif kind is RcptTo:
        return frame(c"R", b"", (message.recipient, *(message.params or ())), max_data)
    elif kind is MailFrom:
        return frame(c"M", b"", (message.sender, *(message.params or ())), max_data)
    elif kind is EndOfMessage:
        return frame(c"E", message.chunk, (), max_data)
    elif kind is Connect:
        return encode_connect(message, max_data)
    elif kind is Helo:
        return frame(c"H", b"", (message.name,), max_data)
    elif kind is Unknown:
        return frame(c"U", b"", (message.command,), max_data)
    elif kind is Negotiate:
        return encode_negotiate(message, max_data)
    return encode_response(message, kind, max_data)


cdef bytes encode_response(object message, object kind, Py_ssize_t limit):
    if kind is ReplyCode:
        return frame(c"y", b"", (message.text,), limit)
    elif kind is AddHeader:
        return encode_field(c"h", b"", message.name, message.value, limit)
    elif kind is InsertHeader:
        return encode_field(c"i", number(message.index, 4, "index"), message.name, message.value, limit)
    elif kind is ChangeHeader:
        return encode_field(c"m", number(message.index, 4, "index"), message.name, message.value, limit)
    elif kind is AddRecipient:
        return encode_joined_path(c"2" if message.params else c"+", message.recipient, message.params, limit)
    elif kind is DeleteRecipient:
        return frame(c"-", b"", (message.recipient,), limit)
    elif kind is ChangeSender:
        return encode_joined_path(c"e", message.sender, message.params, limit)
    elif kind is ReplaceBody:
        return frame(c"b", message.chunk, (), limit)
    elif kind is Quarantine:
        return frame(c"q", b"", (message.reason,), limit)
    raise InvalidMessage(f"not a message of the milter protocol: {message!r:.60}")
