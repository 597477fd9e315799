# The types that make the counted conversation fast; what the code means stands in counted.py alone.

cimport cython

from fastmilter.conversation cimport Conversation
from fastmilter.server.counters cimport Tally

cdef object _CONTINUE


cdef class Counted(Conversation):
    cdef Tally _tally

    @cython.locals(tally=Tally, began=double)
    cpdef object invoke(self)
    cdef object _conclude(self, verdict)


@cython.locals(each=Counted)
cpdef object show_in_flight(Tally tally, conversations)
cdef double _began(Counted conversation) except? -1
