# C names of edits.py for the compiled modules above it.

cimport cython

from fastmilter._encode cimport encode, header_packet
from fastmilter._text cimport is_field_name, is_one_line, is_same_name, to_bytes, to_text


@cython.freelist(16)
@cython.no_gc  # what it holds leads nowhere
cdef class SetHeader:
    cdef readonly bytes name
    cdef readonly Py_ssize_t index
    cdef readonly bytes value


cdef class DeleteHeaders:
    cdef readonly bytes name


@cython.freelist(16)
@cython.no_gc  # as above
cdef class AppendHeader:
    cdef readonly bytes name
    cdef readonly bytes value


cdef class NewBody:
    cdef readonly object source


@cython.freelist(16)
@cython.no_gc  # as above
cdef class Composed:
    cdef readonly list head
    cdef readonly object body
    cdef readonly list foot


@cython.locals(made=AppendHeader)
cpdef AppendHeader append_header(bytes name, bytes value)
@cython.locals(made=SetHeader)
cpdef SetHeader set_header(bytes name, Py_ssize_t index, bytes value)
cpdef bytes field_name(object name)
cpdef bytes field_value(bytes name, object value)
cpdef Py_ssize_t count(list names, bytes name)
cdef bytes _change(SetHeader edit)
cdef dict _counted(list shown)
cdef Py_ssize_t _number_of(bytes name, list shown, dict counted) except -1
cdef bint _names(object made, DeleteHeaders edit) except -1
@cython.locals(change=SetHeader, lower=bytes, changes=dict, additions=dict)
cdef tuple _settle(list edits, list shown)
@cython.locals(made=Composed)
cdef Composed _composed(list head, object body, list foot)
cpdef Composed compose(list edits, list shown, bint appends_in_place, bint may_add=*, object recipients=*)
cdef bytes _append(bytes name, bytes value, bint in_the_way)
cdef bint _may_be_there(bytes name, list shown, list added) except -1
cdef int _ADD, _INSERT, _CHANGE
cdef bytes _folded(bytes name, bytes value)
