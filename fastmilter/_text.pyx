"""Text and bytes, and what makes a header field valid: the loops over single bytes that every mail runs through.

For the modules of this package alone. Nothing here knows a packet, or decides what follows from a bad value.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy

from fastmilter.constants import FIELD_NAMES

cdef extern from "Python.h":
    ctypedef struct PyObject
    ctypedef object (*newfunc)(type kind, tuple arguments, PyObject *keywords)
    ctypedef struct PyTypeObject:
        newfunc tp_new
    str PyUnicode_New(Py_ssize_t size, Py_ssize_t highest)
    void *PyUnicode_DATA(object text)
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    bint PyUnicode_Check(object text)


cdef bint is_ascii(const uint8_t *at, Py_ssize_t size) noexcept:
    cdef uint64_t eight
    while size >= 8:
        memcpy(&eight, at, 8)
        if eight & <uint64_t> 0x8080808080808080ULL:
            return False
        at += 8
        size -= 8
    while size > 0:
        if at[0] & 0x80:
            return False
        at += 1
        size -= 1
    return True


cpdef str to_text(bytes data):
    """Return bytes from the wire as ``str``, UTF-8 with ``surrogateescape``; ``to_bytes`` gives the same bytes back."""
    if data is None:
        raise TypeError("expected bytes, got None")
    return text_of(<const uint8_t *> PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


cdef str text_of(const uint8_t *at, Py_ssize_t size):
    """``to_text`` of bytes that are no object."""
    cdef str text
    if size == 0 or not is_ascii(at, size):
        return PyUnicode_DecodeUTF8(<const char *> at, size, "surrogateescape")
    text = PyUnicode_New(size, 127)
    memcpy(PyUnicode_DATA(text), at, <size_t> size)
    return text


# The fields that most mails have: to find their names costs a quarter of making them anew. Filled once, at import; of two
# names with one place the first keeps it.
cdef PyObject *KNOWN[512]


cdef inline size_t place_of(const uint8_t *at, Py_ssize_t size) noexcept:
    return (<size_t> size * 27 + at[0] * 99 + at[size - 1] * 75 + at[size >> 1] * 127) & 511


cdef str name_of(const uint8_t *at, Py_ssize_t size):
    """The name of a header field, at least one byte, as text."""
    cdef PyObject *known = KNOWN[place_of(at, size)]
    if (
        known is not NULL
        and PyUnicode_GET_LENGTH(<object> known) == size
        and memcmp(PyUnicode_DATA(<object> known), at, <size_t> size) == 0
    ):
        return <str> known
    return text_of(at, size)


cdef int fill() except -1:
    cdef bytes encoded
    cdef size_t place
    for name in FIELD_NAMES:  # which holds the objects
        encoded = name.encode()
        place = place_of(<const uint8_t *> PyBytes_AS_STRING(encoded), len(encoded))
        if KNOWN[place] is NULL:
            KNOWN[place] = <PyObject *> name
    return 0


fill()


cpdef str path_text(bytes raw):
    """The text of a path as the MTA sent it, without angle brackets and source route."""
    cdef const uint8_t *at
    cdef const uint8_t *colon
    cdef Py_ssize_t size
    if raw is None:
        raise TypeError("expected bytes, got None")
    at = <const uint8_t *> PyBytes_AS_STRING(raw)
    size = PyBytes_GET_SIZE(raw)
    if size > 1 and at[0] == c"<" and at[size - 1] == c">":
        at += 1
        size -= 2
    if size > 0 and at[0] == c"@":
        # RFC 5321 section 4.1.1.3: a source route ("@a,@b:") must be accepted and should be ignored.
        colon = <const uint8_t *> memchr(at, c":", <size_t> size)
        if colon is not NULL and colon < at + size - 1:
            size -= colon + 1 - at
            at = colon + 1
    return text_of(at, size)


cpdef object subtype_of_str(type kind, str text):
    """``str.__new__(kind, text)`` for a subclass of ``str``."""
    if not issubclass(kind, str):
        raise TypeError(f"{kind!r} is no subclass of str")
    return (<PyTypeObject *> str).tp_new(kind, (text,), NULL)


cpdef bytes to_bytes(object text):
    """Return the bytes of ``text``, those that ``to_text`` read unchanged.

    A lone surrogate that no byte stands for raises ``ValueError`` (``UnicodeEncodeError``).
    """
    if not PyUnicode_Check(text):
        raise TypeError(f"expected str, got {type(text).__name__}")
    if PyUnicode_IS_COMPACT_ASCII(text):
        return PyBytes_FromStringAndSize(<const char *> PyUnicode_DATA(text), PyUnicode_GET_LENGTH(text))
    return (<str> text).encode("utf-8", "surrogateescape")


cpdef bint is_field_name(bytes name) except -1:
    """Whether a header field may have this name: printable ASCII without colon and space (RFC 5322 section 3.6.8)."""
    cdef const uint8_t *at
    cdef Py_ssize_t size, place
    if name is None:
        raise TypeError("expected bytes, got None")
    at = <const uint8_t *> PyBytes_AS_STRING(name)
    size = PyBytes_GET_SIZE(name)
    for place in range(size):
        if not 0x21 <= at[place] <= 0x7E or at[place] == c":":
            return False
    return size > 0


cpdef bint is_one_line(bytes value) except -1:
    """Whether there is neither NUL nor CR nor LF."""
    cdef const char *at
    cdef size_t size
    if value is None:
        raise TypeError("expected bytes, got None")
    at = PyBytes_AS_STRING(value)
    size = <size_t> PyBytes_GET_SIZE(value)
    return memchr(at, 0, size) is NULL and memchr(at, c"\n", size) is NULL and memchr(at, c"\r", size) is NULL


cdef inline uint8_t lower(uint8_t byte) noexcept:
    return byte | 0x20 if c"A" <= byte <= c"Z" else byte


cpdef bint is_same_name(bytes one, str other) except -1:
    """Whether two names of header fields are the same: upper and lower case do not count.

    ``one`` is a valid name, ``other`` is as the MTA sent it.
    """
    cdef const uint8_t *left
    cdef const uint8_t *right
    cdef Py_ssize_t size, place
    if one is None or other is None:
        raise TypeError("expected bytes and str, got None")
    left = <const uint8_t *> PyBytes_AS_STRING(one)
    size = PyBytes_GET_SIZE(one)
    if size != PyUnicode_GET_LENGTH(other) or not PyUnicode_IS_COMPACT_ASCII(other):
        return False
    right = <const uint8_t *> PyUnicode_DATA(other)
    for place in range(size):
        if left[place] != right[place] and lower(left[place]) != lower(right[place]):
            return False
    return True
