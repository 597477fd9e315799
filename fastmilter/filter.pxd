# C names of filter.py for the compiled modules above it.

from fastmilter.message cimport Connection, EditableMessage


cdef class Binding:
    cdef readonly Connection connection
    cdef readonly EditableMessage message


cdef Binding _binding_of(object served)
cdef object _message_of(Binding binding)
cdef object _macros_of(Binding binding)
