# What the compiled worker calls without a detour through Python.

from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

from fastmilter.conversation cimport Conversation
from fastmilter.message cimport EditableMessage
from fastmilter.server.slots cimport Slots


cdef class InWork:
    cdef Slots _slots
    cdef uint64_t *_calls
    cdef uint64_t *_callback
    cdef char *_queue_id
    cdef PyObject *_name  # of the callback in work; NULL: none
    cdef Py_ssize_t _number  # of the last callback
    cdef EditableMessage _message
    cdef readonly Conversation conversation

    cpdef void enter(self, Conversation conversation) noexcept
    cpdef void leave(self) noexcept
    cdef void _change(self, Conversation conversation) noexcept
    cdef void _look_for_queue_id(self) noexcept


cdef class Turns:
    cdef InWork _in_work
    cdef Conversation _conversation
    cdef readonly object awaited
    cdef object _turns
