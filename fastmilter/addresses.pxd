# C names of addresses.py for the compiled modules above it.

from fastmilter._text cimport subtype_of_str, to_bytes, to_text

cdef int _LESS, _GREATER, _AT
cpdef bytes path_of(bytes raw)
cpdef object params_of(tuple params)
cpdef object address_of(bytes raw)
