# C names of edits.py for the compiled modules above it.

from fastmilter.addresses cimport to_bytes


cdef class SetHeader:
    cdef readonly bytes name
    cdef readonly Py_ssize_t index
    cdef readonly bytes value


cdef class DeleteHeaders:
    cdef readonly bytes name


cdef class AppendHeader:
    cdef readonly bytes name
    cdef readonly bytes value


cdef class NewBody:
    cdef readonly object source


cdef class Composed:
    cdef readonly list head
    cdef readonly object body
    cdef readonly list foot


cpdef bytes field_name(object name)
cpdef bytes field_value(bytes name, object value)
cpdef Py_ssize_t count(list names, bytes name)
cdef bytes _change(SetHeader edit)
cdef tuple _settle(list edits, list shown)
