# The types that make the waiting link fast, and let it replace steps of the conversation; the meaning stands in overtime.py.

from libc.stdint cimport uint32_t

from fastmilter._messages cimport Connect
from fastmilter._scan cimport Scanner
from fastmilter.message cimport EditableMessage
from fastmilter.server.worker cimport Link

cdef int _STEP, _ERROR, _LAST_CHUNK, _MAKE, _NEGOTIATE, _NOTICE, _MESSAGE_END, _CLOSE
cdef uint32_t _END, _ENDING, _DROPPING


cdef class WaitingLink(Link):
    cdef public object job
    cdef public object context
    cdef public object thread
    cdef public bint is_connected
    cdef public bint has_ended
    cdef public bint is_dropped
    cdef public bint is_paused
    cdef public bint is_queued
    cdef bint _is_turned_away
    cdef bint _is_helo_unseen
    cdef readonly bint is_stuck
    cdef readonly object ahead
    cdef readonly double ahead_since
    cdef public double since
    cdef public int due_step
    cdef public double due_since
    cdef public double progress_at
    cdef readonly int answered
    cdef Scanner _scanner
    cdef list _postponed
    cdef Py_ssize_t _place

    cpdef bint scan(self, data, Py_ssize_t start, Py_ssize_t size, double now) except -1
    cdef object _note_due(self, uint32_t letters, double now)
    cpdef bint is_dropped_ahead(self) except -1
    cpdef object keep(self, bytes data, double now, room)
    cpdef bytes take_ahead(self, Py_ssize_t most)
    cpdef bint next_call(self) except -1
    cpdef object take_call(self)
    cpdef bint is_wanted(self) except -1
    cpdef bint take_outcome(self, result, error) except -1
    cdef bint _is_for_step(self) noexcept
    cpdef object drop(self)
    cpdef object out_of_time(self, verdict, bint is_running)
    cdef int _give_up_call(self, bint is_running) except -1
    cpdef object come_back(self)
    cdef object _resume(self)

    cdef bint _connect(self, Connect event) except -1
    cdef bint _helo(self, event) except -1
    cdef object _see_helo(self, bint is_unseen)
    cdef object _closed(self)
    cdef bint _take(self, event) except -1
    cdef object _later(self, int purpose, str name, tuple arguments)
    cdef bint _call(self, int purpose, str name, tuple arguments) except -1
    cdef object _ended(self, verdict, Py_ssize_t edits=*)
