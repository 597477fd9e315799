# The types that let the waiting worker replace parts of the loop; what the code means stands in waiting.py alone.

cimport cython

from fastmilter.conversation cimport Conversation
from fastmilter.message cimport EditableMessage
from fastmilter.server._in_work cimport InWork
from fastmilter.server._sockets cimport Stream, monotonic
from fastmilter.server.overtime cimport WaitingLink
from fastmilter.server.worker cimport Link, Worker

cdef object _CLOSED
cdef Py_ssize_t _HEADROOM


cdef class Job:
    cdef readonly WaitingLink link
    cdef readonly object lock
    cdef public object state
    cdef public object runner
    cdef public double ends_by
    cdef public object fault

    cpdef bint begin(self) except -1
    cpdef object run_call(self)
    cpdef object next_call(self, result, error)
    cpdef bint run(self) except -1
    @cython.locals(link=WaitingLink, message=EditableMessage, is_next=bint)
    cpdef object run_in_loop(self, InWork in_work)


cdef class WaitingWorker(Worker):
    cdef object _deadlines
    cdef object _ahead_room
    cdef double _soonest
    cdef readonly set _jobs
    cdef readonly set _late
    cdef readonly set _leaving
    cdef public double _next_look
    cdef bint _asked_to_retire

    cdef Link _make_link(self, Stream stream, double now)
    cdef object _handle(self, Link link, double now)
    cdef bint _flush(self, Link link) except -1
    cdef object _lose(self, Link link)
    cdef object _close(self, Link link)
    cpdef bint _begin_job(self, WaitingLink link) except -1
    cpdef object _interrupt(self, job)
    cpdef object _retire_with(self, Py_ssize_t stuck)
    cpdef object _stack(self, job)
    cpdef object _enlist(self, WaitingLink link, job)
    cpdef object _end_job(self, job)
    cdef object _send_on(self, WaitingLink link)
    cdef object _take_in(self, WaitingLink link, Py_ssize_t count, double now)
    cdef object _see_end_ahead(self, WaitingLink link)
    cdef object _proceed(self, WaitingLink link)
    cpdef object _go_on_with(self, WaitingLink link)
    cdef object _disconnect(self, WaitingLink link)
    cdef object _look(self, double now)
    @cython.locals(link=WaitingLink)
    cpdef object _close_silent(self, double now)
    cdef object _pause_accepting(self, double now)
    cdef double _expires_at(self, WaitingLink link) except -1
    cpdef object _expire(self, job, double now)
    cpdef object _give_up(self, job, verdict, bint is_running)
    cpdef object _timeout_verdict(self, WaitingLink link)
    cpdef object _verdict_or(self, result, own, WaitingLink link)
    cdef object _tell_late(self, job, verdict, bint is_running)
    cpdef object _tell_left(self)
    cpdef double _wake_at(self) except -1
    cpdef object _turn(self, bint may_wait)
    cpdef bint _finished(self) except -1
    cpdef object _close_all(self)
    cpdef object _publish(self)
    cpdef object _publish_runners(self, Py_ssize_t running)
    cpdef object transmit(self, Conversation conversation)
