# What the other compiled modules call without a detour through Python.

from libc.stdint cimport uint8_t

cdef str name_of(const uint8_t *at, Py_ssize_t size)
cdef str text_of(const uint8_t *at, Py_ssize_t size)
cpdef str to_text(bytes data)
cpdef str path_text(bytes raw)
cpdef object subtype_of_str(type kind, str text)
cpdef bytes to_bytes(object text)
cpdef bint is_field_name(bytes name) except -1
cpdef bint is_one_line(bytes value) except -1
cpdef bint is_same_name(bytes one, str other) except -1
