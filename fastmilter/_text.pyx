"""Text and bytes, and what makes a header field valid: the loops over single bytes that every mail runs through.

Public in ``addresses`` (``to_text``, ``to_bytes``); the rest is for ``edits`` and ``_codec``.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memchr, memcpy

cdef extern from "Python.h":
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
    cdef const uint8_t *at
    cdef Py_ssize_t size
    cdef str text
    if data is None:
        raise TypeError("expected bytes, got None")
    at = <const uint8_t *> PyBytes_AS_STRING(data)
    size = PyBytes_GET_SIZE(data)
    if size == 0 or not is_ascii(at, size):
        return PyUnicode_DecodeUTF8(<const char *> at, size, "surrogateescape")
    text = PyUnicode_New(size, 127)
    memcpy(PyUnicode_DATA(text), at, <size_t> size)
    return text


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
    cdef const uint8_t *at = <const uint8_t *> PyBytes_AS_STRING(name)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(name)
    cdef Py_ssize_t place
    for place in range(size):
        if not 0x21 <= at[place] <= 0x7E or at[place] == c":":
            return False
    return size > 0


cpdef bint is_one_line(bytes value) except -1:
    """Whether there is neither NUL nor CR nor LF."""
    cdef const char *at = PyBytes_AS_STRING(value)
    cdef size_t size = <size_t> PyBytes_GET_SIZE(value)
    return memchr(at, 0, size) is NULL and memchr(at, c"\n", size) is NULL and memchr(at, c"\r", size) is NULL


cdef inline uint8_t lower(uint8_t byte) noexcept:
    return byte | 0x20 if c"A" <= byte <= c"Z" else byte


cpdef bint is_same_name(bytes one, bytes other) except -1:
    """Whether two names of header fields are the same: upper and lower case do not count."""
    cdef const uint8_t *left = <const uint8_t *> PyBytes_AS_STRING(one)
    cdef const uint8_t *right = <const uint8_t *> PyBytes_AS_STRING(other)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(one)
    cdef Py_ssize_t place
    if size != PyBytes_GET_SIZE(other):
        return False
    for place in range(size):
        if left[place] != right[place] and lower(left[place]) != lower(right[place]):
            return False
    return True
