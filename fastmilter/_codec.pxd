# What the compiled session reaches into: the decoder of commands, without a call through Python.

from libc.stdint cimport uint8_t, uint32_t


cdef struct Packet:
    const uint8_t *data  # behind the letter
    Py_ssize_t size
    Py_ssize_t at  # how far it is read
    uint8_t letter


cdef class _Decoder:
    cdef uint8_t *buffer
    cdef const uint8_t *window  # what start and end count from: buffer, or what was lent
    cdef object lender
    cdef Py_ssize_t start, end, capacity, limit
    cdef str error
    cdef uint32_t macros_of
    cdef bint command

    cpdef object lend(self, object view, Py_ssize_t start, Py_ssize_t size)
    cpdef object settle(self)
    cpdef object next_message(self)
    cpdef bint is_worked_off(self) noexcept
    cpdef tuple next_field(self)
    cdef bint cut(self, Packet *packet) except -1
    cdef bint spared(self, const uint8_t *payload, Py_ssize_t size) noexcept
    cdef int keep(self, const uint8_t *data, Py_ssize_t size) except -1
    cdef int make_room(self, Py_ssize_t size) except -1
    cdef void tidy(self) noexcept
    cdef void release(self) noexcept


cdef class CommandDecoder(_Decoder):
    pass
