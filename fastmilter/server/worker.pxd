# The types that make the compiled loop fast; what the code means stands in worker.py alone.

cimport cython

from fastmilter.conversation cimport Conversation
from fastmilter.server._in_work cimport InWork
from fastmilter.server._sockets cimport Poller, Stream, accept, monotonic
from fastmilter.server.counted cimport Counted, show_in_flight
from fastmilter.server.counters cimport Tally
from fastmilter.server.crowd cimport Crowd
from fastmilter.server.message_log cimport MessageLog
from fastmilter.server.slots cimport Slots


cdef object _CLOSED
cdef Py_ssize_t _HEADROOM, _ACCEPTED, _BYTES_READ


cdef class Link(Counted):
    cdef readonly Stream stream
    cdef readonly int fd
    cdef readonly int sent
    cdef readonly bytes unsent
    cdef public object peer


cdef class Worker:
    cdef readonly object plan
    cdef MessageLog _message_log
    cdef readonly object _filter_class
    cdef readonly object _settings
    cdef dict _listeners
    cdef set _tcp
    cdef object _door
    cdef object _lobby
    cdef Crowd _crowd
    cdef object _recycler
    cdef readonly object _channel
    cdef object _reader
    cdef Slots _slots
    cdef Py_ssize_t _slot
    cdef readonly Tally _tally
    cdef readonly InWork _in_work
    cdef readonly object _log
    cdef dict _links
    cdef readonly Poller _poller
    cdef object _buffer
    cdef object _room
    cdef bint _listening
    cdef bint _is_shut
    cdef Py_ssize_t _may_have
    cdef object _accept_again_at
    cdef double _next_tick
    cdef double _next_sweep
    cdef double _sweep_s
    cdef readonly object _tiers
    cdef readonly bint _stop_now
    cdef list _due
    cdef Py_ssize_t _due_count
    cdef public int _alarm

    cpdef object _start_filter(self)
    cpdef object _begin(self)
    cpdef bint _finished(self) except -1
    cpdef double _wake_at(self) except -1
    @cython.locals(link=Link, fd=int, now=double)
    cpdef object _turn(self, bint may_wait)
    cdef Link _make_link(self, Stream stream, double now)
    cpdef object _on_alarm(self)
    cpdef object _flush_log(self)
    cdef object _tick(self, double now)
    cpdef object _publish(self)
    cdef object _listen(self)
    cdef object _leave_listeners(self)
    cdef object _accept(self, int listener, double now)
    cdef Link _add_link(self, Stream stream, double now)
    cdef object _meet(self, int fd, double now)
    cdef Py_ssize_t _count(self) except -1
    cdef object _count_again(self)
    cdef bint _has_enough(self) except -1
    cdef object _hand_over(self, double now)
    cdef object _come_back(self)
    cdef object _take_what_waits(self)
    @cython.locals(count=Py_ssize_t)
    cdef object _handle(self, Link link, double now)
    @cython.locals(link=Link, place=Py_ssize_t)
    cdef object _answer_due(self)
    cdef object _answer(self, Link link)
    cdef object _lose_by_fault(self, Link link, error)
    cdef object _run_calls(self, Link link)
    cdef bint _flush(self, Link link) except -1
    cdef bint _send(self, Link link, bytes data, Py_ssize_t start) except -1
    cdef object _end(self, Link link)
    cdef object _lose(self, Link link)
    cdef object _close(self, Link link)
    cpdef object message_ended(self, Conversation conversation, verdict, Py_ssize_t edits)
    cpdef object transmit(self, Conversation conversation)
    @cython.locals(link=Link)
    cdef object _refuse_more(self, tiers, double now)
    cpdef bint _is_at_rest(self, Link link, double now) except -1
    cpdef object _close_all(self)
    cpdef object _close_logs(self)
