# C names of the scanner for the compiled modules above it.

from libc.stdint cimport uint8_t, uint32_t


cdef class Scanner:
    cdef uint32_t size  # of the packet whose head is coming
    cdef uint32_t rest  # bytes of the packet in work that are still to come
    cdef int had  # bytes of the length that have come

    cpdef uint32_t scan(self, object data, Py_ssize_t start, Py_ssize_t size) except? 0xFFFFFFFF
    cdef uint32_t follow(self, const uint8_t *at, Py_ssize_t size) noexcept
