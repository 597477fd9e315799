# The types that make the compiled writer fast; what the code means stands in line_writer.py alone.

cimport cython

from fastmilter.server._sockets cimport send_now


cdef class LineWriter:
    cdef readonly Py_ssize_t waiting
    cdef readonly bint is_blocked
    cdef readonly int descriptor
    cdef object _lines
    cdef bytes _piece
    cdef Py_ssize_t _limit
    cdef Py_ssize_t _lost
    cdef bint _overflows
    cdef bint _is_file
    cdef bint _is_socket
    cdef Py_ssize_t _most
    cdef tuple _own_pipe
    cdef object _own_terminal
    cdef bint _staged
    cdef object _room

    @cython.locals(size=Py_ssize_t)
    cpdef object put(self, bytes line)
    @cython.locals(count=Py_ssize_t)
    cpdef Py_ssize_t flush(self) except -1
    @cython.locals(size=Py_ssize_t, first=bytes, piece=list)
    cdef bytes _next_piece(self)
    cdef Py_ssize_t _write(self, bytes piece) except -1
    cdef Py_ssize_t _send(self, bytes piece) except -1
    @cython.locals(count=Py_ssize_t)
    cdef Py_ssize_t _splice(self, bytes piece) except -1


cdef object _opened_again(int descriptor)
