# C names of addresses.py for the compiled modules above it.

cpdef str to_text(bytes data)
cpdef bytes to_bytes(object text)
cdef int _LESS, _GREATER, _AT
cpdef bytes path_of(bytes raw)
cpdef object params_of(tuple params)
