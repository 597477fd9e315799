# What the other compiled modules call without a detour through Python.

cpdef str to_text(bytes data)
cpdef bytes to_bytes(object text)
cpdef bint is_field_name(bytes name) except -1
cpdef bint is_one_line(bytes value) except -1
cpdef bint is_same_name(bytes one, bytes other) except -1
