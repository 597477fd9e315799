# The types that make the compiled loop fast; what the code means stands in worker.py alone.

cimport cython

from fastmilter.conversation cimport Conversation
from fastmilter.server._in_work cimport InWork
from fastmilter.server._sockets cimport Stream, monotonic
from fastmilter.server.counted cimport Counted, show_in_flight
from fastmilter.server.counters cimport Tally
from fastmilter.server.intake cimport Intake
from fastmilter.server.message_log cimport MessageLog


cdef object _NEW, _CLOSED
cdef Py_ssize_t _HEADROOM, _BYTES_READ, ANSWERS_TOGETHER
cdef double ANSWERS_WAIT_S


cdef class Link(Counted):
    cdef readonly Stream stream
    cdef readonly int fd
    cdef readonly int sent
    cdef readonly bytes unsent
    cdef public object peer
    cdef Link next_ready


cdef class Worker(Intake):
    cdef readonly object plan
    cdef MessageLog _message_log
    cdef readonly object _filter_class
    cdef object _recycler
    cdef readonly object _channel
    cdef object _reader
    cdef readonly InWork _in_work
    cdef readonly object _log
    cdef dict _links
    cdef object _buffer
    cdef object _room
    cdef double _next_sweep
    cdef double _sweep_s
    cdef readonly bint _stop_now
    cdef list _ready
    cdef list _due
    cdef Py_ssize_t _due_count
    cdef public int _alarm

    cpdef object _start_filter(self)
    cpdef object _begin(self)
    cpdef bint _finished(self) except -1
    cpdef double _wake_at(self) except -1
    @cython.locals(link=Link, fd=int, now=double, ready=list, place=Py_ssize_t, step=Py_ssize_t)
    cpdef object _turn(self, bint may_wait)
    @cython.locals(step=Py_ssize_t, link=Link)
    cdef object _handle_all(self, double now)
    cdef object _look_at(self, int fd, double now)
    cdef Link _make_link(self, Stream stream, double now)
    cpdef object _on_alarm(self)
    cpdef object _flush_log(self)
    cdef object _tick(self, double now)
    cpdef object _publish(self)
    @cython.locals(link=Link)
    cdef object _add_link(self, Stream stream, double now)
    cdef object _meet(self, int fd, double now)
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
