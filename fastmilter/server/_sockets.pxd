# What the compiled worker calls without a detour through Python.

cdef class Stream:
    cdef int fd
    cdef readonly bint is_tcp

    cpdef Py_ssize_t receive(self, object view) except -2
    cpdef Py_ssize_t send(self, bytes data, Py_ssize_t start) except -1
    cpdef object acknowledge(self)
    cpdef object close(self)


cpdef object accept(int listener, bint is_tcp)
