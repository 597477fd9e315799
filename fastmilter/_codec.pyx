"""Bytes to messages: framing, decoding, every check of a length or a NUL. See ``fastmilter.codec``.

A packet is a length (4 bytes, big-endian, counts what follows), a letter and the data behind it. Nothing here knows a
session: whether a packet may come now, or was negotiated, is decided above.

Strict where libmilter, Sendmail and Postfix are strict, lenient where one of them is: commands are read as libmilter
reads them, responses as Postfix does. The peer's faults are ``RemoteProtocolError``; anything else that a decoder raises
because of what it was fed is a bug.

Sources: Sendmail's ``libmilter/comm.c``, ``engine.c``, ``smfi.c``; Postfix's ``src/milter/milter8.c``.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_Check, PyMemoryView_GET_BUFFER
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memchr, memcpy, memmove

from fastmilter._messages cimport Body, Connect, Header, Helo, Macros, MailFrom, RcptTo
from fastmilter._packets cimport DATA_BYTES, HEAD, LENGTH, WITHOUT_DATA, fits, read_u32
from fastmilter._scan cimport Scanner
from fastmilter._text cimport name_of, text_of

from fastmilter import _bounds, constants
from fastmilter._messages import (
    AddHeader, AddRecipient, ChangeHeader, ChangeSender, DeleteRecipient, EndOfMessage, InsertHeader, Negotiate,
    Quarantine, ReplaceBody, ReplyCode, Unknown,
)
from fastmilter.errors import RemoteProtocolError


cdef enum:
    NEGOTIATION = 12  # version, actions, protocol
    ALL_LETTERS = (1 << 26) - 1
    UNBOUNDED = 0x7FFFFFF0  # the largest max_data; sums of two sizes stay far from overflow


# --- Reading: one packet, a cursor in it, every check in the helpers --------------------------------------------------
# Letters stand as characters below: 'C' is CONNECT and so on, as in constants.py and in every dump of the protocol.

cdef object wrong(Packet *packet, str what):
    data = PyBytes_FromStringAndSize(<const char *> packet.data, packet.size)
    # A server logs what is said here, and the content of messages never.
    return RemoteProtocolError(_bounds.wrong_content(packet.letter, data, what, secret=packet.letter == c"L"))


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


cdef Connect decode_connect(Packet *packet):
    cdef Connect message = Connect.__new__(Connect)
    cdef uint8_t family
    message.hostname = take_string(packet, "host name")
    if not left(packet):
        raise wrong(packet, "the family of the address is missing")
    family = packet.data[packet.at]
    message.family = PyBytes_FromStringAndSize(<const char *> packet.data + packet.at, 1)
    message.address = b""
    packet.at += 1
    if family == c"U":
        return message
    if family != c"4" and family != c"6" and family != c"L":
        raise wrong(packet, f"family {message.family!r}, expected '4', '6', 'L' or 'U'")
    if left(packet) < 3:
        raise wrong(packet, "port and address are missing")
    message.port = (packet.data[packet.at] << 8) | packet.data[packet.at + 1]
    packet.at += 2
    message.address = take_string(packet, "address")
    return message


cdef Helo decode_helo(Packet *packet):
    cdef Helo message = Helo.__new__(Helo)
    message.name = take_string(packet, "name")
    return message


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
    cdef list params
    cdef const uint8_t *begin
    cdef const uint8_t *nul
    if not left(packet):
        return ()
    params = []
    while True:
        begin = packet.data + packet.at
        nul = <const uint8_t *> memchr(begin, 0, <size_t> left(packet))
        if nul is NULL:
            return tuple(params)
        params.append(PyBytes_FromStringAndSize(<const char *> begin, nul - begin))
        packet.at += nul - begin + 1


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
        return decode_helo(packet)
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

    @property
    def letters_ahead(self):
        """The letters of the packets that begin in what is held, as ``Scanner`` counts them."""
        return Scanner().follow(self.window + self.start, self.end - self.start)

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

    cpdef object lend(self, object view, Py_ssize_t start, Py_ssize_t size):
        """Take in ``size`` bytes of a ``memoryview`` from ``start`` on without a copy; ``settle`` before they change.

        What is held of a packet is put in front of them, where there is room: the bytes before ``start`` are overwritten.
        """
        cdef Py_buffer *buffer
        cdef Py_ssize_t held
        if not PyMemoryView_Check(view):
            raise TypeError(f"expected a memoryview, got {type(view).__name__}")
        buffer = PyMemoryView_GET_BUFFER(view)
        if not 0 <= start <= buffer.len or not 0 <= size <= buffer.len - start or buffer.readonly:
            raise ValueError(f"cannot take {size} bytes from {start} on out of {buffer.len}, which must be writable")
        self.settle()
        held = self.end - self.start
        if held > start or self.error is not None:
            self.keep(<const uint8_t *> buffer.buf + start, size)
            return
        if held:
            memcpy(<uint8_t *> buffer.buf + start - held, self.buffer + self.start, <size_t> held)
            self.release()
        self.lender = view  # as long as the view lives, its memory stays where it is
        self.window = <const uint8_t *> buffer.buf + start - held
        self.start = 0
        self.end = held + size

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
        cdef Packet packet
        if self.error is not None:
            raise RemoteProtocolError(self.error)
        try:
            if self.cut(&packet):
                self.start += packet.size + HEAD
                return command_of(&packet) if self.command else response_of(&packet)
        except RemoteProtocolError as error:
            self.error = str(error)
            self.release()
            raise
        if self.lender is None:
            self.tidy()
        return None

    cpdef bint is_worked_off(self) noexcept:
        """Whether bytes are lent and none of them is left."""
        return self.lender is not None and self.start == self.end

    cpdef tuple next_field(self):
        """Name and value of the next packet as text if it is a whole and valid header field, else ``None``.

        For dozens of them in a row, without a message object each; everything else is left to ``next_message``.
        """
        cdef Packet packet
        cdef const uint8_t *value
        cdef const uint8_t *end
        cdef Py_ssize_t length
        try:
            if self.error is not None or not self.cut(&packet) or packet.letter != c"L" or not self.command:
                return None
        except RemoteProtocolError:
            return None
        value = <const uint8_t *> memchr(packet.data, 0, <size_t> packet.size)
        if value is NULL or value == packet.data:
            return None
        value += 1
        length = packet.size - (value - packet.data)
        end = <const uint8_t *> memchr(value, 0, <size_t> length)
        if end is NULL:
            return None
        self.start += packet.size + HEAD
        return name_of(packet.data, value - packet.data - 1), text_of(value, end - value)

    cdef bint cut(self, Packet *packet) except -1:
        """Whether there is a whole packet. Length and letter are judged as soon as they are there."""
        cdef const uint8_t *at
        cdef Py_ssize_t held, length
        while True:
            at = self.window + self.start
            held = self.end - self.start
            if held < LENGTH:
                return False
            length = read_u32(at)
            if not 1 <= length <= self.limit + 1:
                raise RemoteProtocolError(_bounds.wrong_length(at[:LENGTH], self.limit + 1))
            if held >= HEAD and not fits(at[LENGTH], self.command, length - 1, self.limit):
                raise RemoteProtocolError(_bounds.wrong_size(at[LENGTH], self.command, length - 1, self.limit))
            if held < LENGTH + length:
                return False
            if not self.spared(at + LENGTH, length):
                break
            self.start += LENGTH + length
        packet.letter = at[LENGTH]
        packet.data = at + HEAD
        packet.size = length - 1
        packet.at = 0
        return True

    cdef bint spared(self, const uint8_t *payload, Py_ssize_t size) noexcept:
        """Whether the packet holds macros that nobody will ask for."""
        if payload[0] != c"D" or not self.command:
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
