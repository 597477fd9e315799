# The types that make the compiled counters small and fast; what the code means stands in limits.py alone.

cdef class Extent:
    cdef readonly Py_ssize_t recipients
    cdef readonly Py_ssize_t fields
    cdef readonly Py_ssize_t field_bytes
    cdef readonly Py_ssize_t most_recipients
    cdef readonly Py_ssize_t most_fields
    cdef readonly Py_ssize_t most_field_bytes

    cpdef object set_limits(self, Py_ssize_t recipients, Py_ssize_t fields, Py_ssize_t field_bytes)
    cpdef object begin(self)
    cpdef bint recipient_is_beyond(self) except -1
    cpdef bint field_is_beyond(self, Py_ssize_t size) except -1
