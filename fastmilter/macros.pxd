# C names of macros.py for the compiled modules above it.

from fastmilter._messages cimport Macros as MacroSet
from fastmilter._text cimport to_bytes, to_text

cimport cython

cdef int _MAIL, _RCPT
cdef tuple _STAGE_OF

@cython.locals(changed=list, stage=Py_ssize_t)
cpdef object stored(object stages, MacroSet macros)
cpdef object cleared(object stages, int first)
@cython.locals(stage=Py_ssize_t)
cdef Py_ssize_t _end_of(tuple stages) except -1
cpdef object for_message(object stages)
cdef list _without(object stages, int first)
@cython.locals(stage=Py_ssize_t)
cpdef object clear(object stages, int first)
@cython.locals(stage=Py_ssize_t, macros=MacroSet, value=bytes)
cpdef object look_up(object stages, bytes name)
cdef bytes _bare(str name)
