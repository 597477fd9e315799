# The types that make the counted conversation fast; what the code means stands in counted.py alone.

cimport cython

from fastmilter.conversation cimport Conversation
from fastmilter.server.counters cimport Tally

cdef object _CONTINUE


cdef class Counted(Conversation):
    cdef Tally _tally
    cdef double _call_began

    cdef object count_in(self, Tally tally)
    cpdef object invoke(self)
    @cython.locals(began=double)
    cdef object _timed(self)
    cpdef object begin_timing(self)
    cpdef object end_timing(self)
    cdef object _conclude(self, verdict)


@cython.locals(each=Counted)
cpdef object show_in_flight(Tally tally, conversations)
cdef double _began(Counted conversation) except? -1
