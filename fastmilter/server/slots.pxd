# The types that make the compiled slots fast; what the code means stands in slots.py alone.

cimport cython
from libc.stdint cimport uint64_t

cdef Py_ssize_t _WORDS_PER_SLOT, _WORD_BYTES
cdef Py_ssize_t _PID, _GENERATION, _LISTENING, _CONNECTIONS, _HEARTBEAT, _POLLING, _NUMBER
cdef Py_ssize_t _CALLS, _CALLBACK, _STACKS, _LISTENED, _QUEUE_ID


cdef class Slots:
    cdef readonly Py_ssize_t count
    cdef readonly Py_ssize_t memory
    cdef readonly object bell
    cdef readonly object counters
    cdef readonly object peers
    cdef object _map
    cdef uint64_t[::1] _words
    cdef double[::1] _clocks

    cdef Py_ssize_t _at(self, Py_ssize_t slot, Py_ssize_t word) except -1
    cpdef object set_polling(self, Py_ssize_t slot, bint polling)
    cpdef object set_connections(self, Py_ssize_t slot, uint64_t number)
    cpdef uint64_t pid(self, Py_ssize_t slot) except? 0
    cpdef bint listening(self, Py_ssize_t slot) except -1
    cpdef bint polling(self, Py_ssize_t slot) except -1
    cpdef uint64_t connections(self, Py_ssize_t slot) except? 0
    @cython.locals(slot=Py_ssize_t, connections=uint64_t, workers=uint64_t)
    cpdef double mean_connections(self) except -1
    @cython.locals(slot=Py_ssize_t, least=Py_ssize_t, fewest=uint64_t)
    cpdef object least_loaded(self)
    cdef bint _takes_new_ones(self, Py_ssize_t slot) except -1
