# What the other compiled modules encode without a detour through Python.

from libc.stdint cimport uint8_t

cpdef bytes header_packet(uint8_t letter, object index, bytes name, bytes value)
cpdef bytes encode(object message, Py_ssize_t max_data=*)
