# C names of macros.py for the compiled modules above it.

from fastmilter._messages cimport Macros as MacroSet
from fastmilter.addresses cimport to_bytes, to_text

cdef int _MAIL

cpdef object stored(object stages, MacroSet macros)
cpdef object cleared(object stages, int first)
cpdef object clear(object stages, int first)
cpdef object look_up(object stages, bytes name)
