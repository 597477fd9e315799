# The types that make the compiled crowd cheap for each connection; what the code means stands in crowd.py alone.

from libc.stdint cimport uint64_t

from fastmilter.limits cimport Limits
from fastmilter.server.slots cimport Slots
from fastmilter.session cimport Session


cdef class Crowd:
    cdef Py_ssize_t _most
    cdef uint64_t _most_of_all
    cdef Slots _slots
    cdef Limits _limits
    cdef double _said_at

    cpdef object limit(self, Session session)
    cpdef bint is_full(self, Py_ssize_t connections) except -1
    cpdef bint all_are_full(self) except -1
    cdef object _say(self, text)
