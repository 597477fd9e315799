"""Messages to bytes. One function writes every packet, so nothing gets on the wire past its checks.

What cannot be sent is the caller's fault: ``InvalidMessage``. See ``fastmilter.codec``.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memchr, memcpy

from fastmilter._messages cimport Body, Connect, Header, Macros, MailFrom, RcptTo
from fastmilter._packets cimport DATA_BYTES, HEAD, LENGTH, WITHOUT_DATA, fits, is_command, write_u32

from fastmilter import _bounds
from fastmilter._messages import (
    AddHeader, AddRecipient, ChangeHeader, ChangeSender, DeleteRecipient, EndOfMessage, Helo, InsertHeader, Negotiate,
    Quarantine, ReplaceBody, ReplyCode, Unknown,
)
from fastmilter.errors import InvalidMessage


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
    if not fits(letter, is_command(letter), size, limit):
        raise InvalidMessage(_bounds.wrong_size(letter, is_command(letter), size, limit))
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
