# What the compiled worker calls without a detour through Python.

from libc.stdint cimport uint32_t

cdef class Stream:
    cdef readonly int fd
    cdef readonly bint is_tcp

    cpdef Py_ssize_t receive(self, object view) except -2
    cpdef Py_ssize_t send(self, bytes data, Py_ssize_t start) except -1
    cpdef object acknowledge(self)
    cpdef object close(self)


cpdef object accept(int listener, bint is_tcp)
cpdef double monotonic() noexcept
cpdef Py_ssize_t send_now(int fd, bytes data) except -1


cdef class Poller:
    cpdef object add(self, int fd)
    cpdef object add_listener(self, int fd)
    cpdef object add_bell(self, int fd)
    cpdef object await_room(self, int fd, bint full)
    cpdef object remove(self, int fd)
    cpdef list wait(self, double timeout_s)


cdef class Epoll(Poller):
    cdef int fd
    cdef void *events

    cdef int control(self, int what, int fd, uint32_t events) except -1
