# The messages that come by the dozen per mail: the codec fills their fields without a call.

cdef class Macros:
    cdef readonly bytes command
    cdef bytes raw
    cdef tuple pairs


cdef class Header:
    cdef readonly bytes name
    cdef readonly bytes value


cdef class Body:
    cdef readonly bytes chunk
