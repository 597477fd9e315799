"""Which packets a stream holds, told from their heads alone: for what is read while nobody may decode it yet."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t


cdef class Scanner:
    """Follows the packets of one connection from its first byte on.

    >>> scanner = Scanner()
    >>> scanner.scan(b"\\0\\0\\0\\x01A\\0\\0\\0", 0, 8) == 1 << ord("A") - ord("A")
    True
    >>> scanner.scan(b"\\x01Q", 0, 2) == 1 << ord("Q") - ord("A")
    True
    """

    def __cinit__(self):
        self.size = 0
        self.had = 0
        self.rest = 0

    cpdef uint32_t scan(self, object data, Py_ssize_t start, Py_ssize_t size) except? 0xFFFFFFFF:
        """Look at ``size`` bytes of ``data`` from ``start`` on; return the letters of the packets that begin in them.

        Bit n stands for the n-th letter of the alphabet, from 0. A letter that is none counts as nothing: the decoder will
        say what is wrong with it.
        """
        cdef Py_buffer buffer
        cdef uint32_t letters
        PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
        try:
            if start < 0 or size < 0 or start > buffer.len or size > buffer.len - start:
                raise ValueError(f"{size} bytes from {start} on are not within {buffer.len}")
            letters = self.follow(<const uint8_t *> buffer.buf + start, size)
        finally:
            PyBuffer_Release(&buffer)
        return letters

    cdef uint32_t follow(self, const uint8_t *at, Py_ssize_t size) noexcept:
        cdef uint32_t letters = 0
        cdef const uint8_t *end = at + size
        while at < end:
            if self.rest:
                if self.rest >= <uint32_t> (end - at):
                    self.rest -= <uint32_t> (end - at)
                    break
                at += self.rest
                self.rest = 0
            elif self.had < 4:
                self.size = (self.size << 8) | at[0]
                self.had += 1
                at += 1
                if self.had == 4 and self.size == 0:
                    self.had = 0  # a fault of the peer, which ends the connection
            else:
                if c"A" <= at[0] <= c"Z":
                    letters |= <uint32_t> 1 << (at[0] - c"A")
                self.rest = self.size - 1
                self.size = 0
                self.had = 0
                at += 1
        return letters
