# The messages that every mail has: the codec fills their fields without a call.

cdef class Macros:
    cdef readonly bytes command
    cdef bytes raw
    cdef tuple pairs

    cpdef bytes get(self, bytes name)
    cdef bint is_empty(self) except -1


cdef class Header:
    cdef readonly bytes name
    cdef readonly bytes value


cdef class Body:
    cdef readonly bytes chunk


cdef class Connect:
    cdef readonly bytes hostname
    cdef readonly bytes family
    cdef readonly long long port
    cdef readonly bytes address


cdef class MailFrom:
    cdef readonly bytes sender
    cdef readonly tuple params


cdef class RcptTo:
    cdef readonly bytes recipient
    cdef readonly tuple params


cdef class Helo:
    cdef readonly bytes name
