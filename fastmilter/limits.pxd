# The types that make the compiled counters small and fast; what the code means stands in limits.py alone.

cimport cython

cdef class Limits:
    cdef readonly Py_ssize_t recipients
    cdef readonly Py_ssize_t fields
    cdef readonly Py_ssize_t field_bytes


@cython.freelist(16)
@cython.no_gc  # what it holds leads nowhere
cdef class Extent:
    cdef Limits _limits
    cdef readonly Py_ssize_t recipients
    cdef readonly Py_ssize_t fields
    cdef readonly Py_ssize_t field_bytes

    cpdef bint recipient_is_beyond(self) except -1
    cpdef bint field_is_beyond(self, Py_ssize_t size) except -1
