# C names of addresses.py for the compiled modules above it.

from fastmilter._text cimport path_text, subtype_of_str, to_bytes, to_text

cpdef object params_of(tuple params)
cpdef object address_of(bytes raw)
