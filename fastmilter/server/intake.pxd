# The types that make taking connections fast; what the code means stands in intake.py alone.

cimport cython

from fastmilter.server._sockets cimport Poller, Stream, accept
from fastmilter.server.counters cimport Tally
from fastmilter.server.crowd cimport Crowd
from fastmilter.server.slots cimport Slots


cdef Py_ssize_t _ACCEPTED, ACCEPTS_TOGETHER
cdef double LEAVE_ABOVE


cdef class Intake:
    cdef readonly object _settings
    cdef Slots _slots
    cdef Py_ssize_t _slot
    cdef readonly Tally _tally
    cdef readonly Poller _poller
    cdef dict _listeners
    cdef set _tcp
    cdef object _door
    cdef object _lobby
    cdef Crowd _crowd
    cdef bint _listening
    cdef bint _is_shut
    cdef Py_ssize_t _turn_number
    cdef Py_ssize_t _last_taken
    cdef Py_ssize_t _at_once
    cdef Py_ssize_t _may_have
    cdef object _accept_again_at
    cdef double _next_tick
    cdef readonly object _tiers

    cdef Py_ssize_t _count(self) except -1
    cdef object _add_link(self, Stream stream, double now)
    cdef object _listen(self)
    cdef object _leave_listeners(self)
    @cython.locals(was_listening=bint)
    cdef object _take_last(self, double now)
    cdef object _close_listeners(self)
    @cython.locals(follows=bint)
    cdef object _take_new(self, int listener, double now)
    cdef bint _accept(self, int listener, double now) except -1
    cdef object _share(self, double now)
    cdef object _count_again(self)
    cdef bint _has_enough(self) except -1
    cdef object _hand_over(self, double now)
    cdef object _come_back(self)
    cdef object _take_what_waits(self)
