# C names of addresses.py for the compiled modules above it.

cimport cython

from fastmilter._text cimport path_text, subtype_of_str, to_bytes, to_text

cdef dict _NAMES_OF_FAMILIES
cdef bytes _UNIX
cpdef object params_of(tuple params)
cpdef object address_of(bytes raw)


@cython.freelist(16)
@cython.no_gc  # what it holds leads nowhere
cdef class SocketAddress:
    cdef readonly str family
    cdef readonly str host
    cdef readonly object port
    cdef readonly str path

    cpdef tuple _parts(self)


@cython.locals(made=SocketAddress, text=str)
cpdef SocketAddress socket_address(bytes family, object port, bytes address)
