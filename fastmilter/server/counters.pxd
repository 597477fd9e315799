# The types that make the compiled counters fast; what the code means stands in counters.py alone.

cimport cython
from libc.stdint cimport uint64_t

cdef object _CONTINUE
cdef Py_ssize_t _REPLY, _DROPPED, _OTHER, _IN_MESSAGE, _EDITS
cdef Py_ssize_t _KINDS, _CLASSES, _TIMES, _OUTCOMES_AT, _VERDICTS_AT, _EXCEPTIONS_AT, _TIMES_AT
cdef Py_ssize_t _GAUGES_AT, _SHOWN_AT, _SHOWN_VERSION_AT, _ROWS_AT, _SHOWN_WORDS


cdef Py_ssize_t _outcome(verdict) except -1


cdef class Tally:
    cdef readonly bint timed
    cdef readonly bint watched
    cdef readonly dict guards
    cdef public bint is_short_of_places
    cdef object _block
    cdef uint64_t[::1] _words
    cdef double[::1] _clocks

    cpdef object add(self, Py_ssize_t count, uint64_t number=*)
    cpdef object set(self, Py_ssize_t gauge, uint64_t number)
    cpdef object message(self, verdict, Py_ssize_t edits)
    cpdef object verdict(self, Py_ssize_t step, verdict)
    cpdef object exception(self, str callback)
    @cython.locals(place=Py_ssize_t, bound=double, start=Py_ssize_t)
    cpdef object observe(self, str callback, double seconds)
    @cython.locals(at=Py_ssize_t)
    cpdef object show(self, Py_ssize_t place, str queue_id, str callback, double began)
    cpdef object set_shown(self, Py_ssize_t number, Py_ssize_t in_message)
