"""The system calls of a worker's loop, straight to the kernel.

A ``Stream`` is one accepted connection. Python's socket objects do the same with an allocation, a time-out and an address
at every turn, which nobody needs here; nothing of this waits.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_Check, PyMemoryView_GET_BUFFER
from libc.errno cimport EAGAIN, EINTR, errno

import os

cdef extern from *:
    """
    #define _GNU_SOURCE
    #include <fcntl.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <sys/socket.h>
    #include <unistd.h>

    #ifndef MSG_NOSIGNAL
    #define MSG_NOSIGNAL 0  /* macOS: CPython ignores SIGPIPE */
    #endif

    static int accept_quietly(int listener)
    {
    #ifdef SOCK_CLOEXEC
        return accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    #else
        int fd = accept(listener, NULL, NULL);
        if (fd >= 0) {
            fcntl(fd, F_SETFD, FD_CLOEXEC);
            fcntl(fd, F_SETFL, O_NONBLOCK);
        }
        return fd;
    #endif
    }

    static void acknowledge_now(int fd)
    {
    #ifdef TCP_QUICKACK
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, &on, sizeof on);
    #else
        (void) fd;
    #endif
    }
    """
    enum: MSG_NOSIGNAL
    int accept_quietly(int listener)
    void acknowledge_now(int fd)
    ssize_t recv(int fd, void *buffer, size_t size, int flags)
    ssize_t send(int fd, const void *data, size_t size, int flags)
    int close(int fd)


cdef object failed():
    """The OSError for errno."""
    return OSError(errno, os.strerror(errno))


cdef inline bint is_not_now() noexcept:
    return errno == EAGAIN or errno == EINTR


@cython.final
cdef class Stream:
    """One accepted connection; made by ``accept``. Errors of the kernel are ``OSError``, and nothing waits."""

    def fileno(self):
        """The descriptor; -1 after ``close``."""
        return self.fd

    cpdef Py_ssize_t receive(self, object view) except -2:
        """Read once into a ``memoryview``: how many bytes came, 0 at the end of the stream, -1 if there is nothing now."""
        cdef Py_buffer *buffer
        cdef Py_ssize_t count
        if not PyMemoryView_Check(view):
            raise TypeError(f"expected a memoryview, got {type(view).__name__}")
        buffer = PyMemoryView_GET_BUFFER(view)
        if buffer.readonly:
            raise TypeError("expected a memoryview that can be written to")
        count = recv(self.fd, buffer.buf, <size_t> buffer.len, 0)
        if count < 0:
            if not is_not_now():
                raise failed()
            return -1
        return count

    cpdef Py_ssize_t send(self, bytes data, Py_ssize_t start) except -1:
        """Send once what stands from ``start`` on: how many bytes left, 0 if there is no room now."""
        cdef Py_ssize_t count
        if not 0 <= start <= PyBytes_GET_SIZE(data):
            raise ValueError(f"start is {start}, expected 0 to {PyBytes_GET_SIZE(data)}")
        count = send(self.fd, PyBytes_AS_STRING(data) + start, <size_t> (PyBytes_GET_SIZE(data) - start), MSG_NOSIGNAL)
        if count < 0:
            if not is_not_now():
                raise failed()
            return 0
        return count

    cpdef object acknowledge(self):
        """Let the kernel acknowledge what came now, not in up to 40 ms (TCP_QUICKACK); nothing on a unix socket."""
        if self.is_tcp:
            acknowledge_now(self.fd)

    cpdef object close(self):
        """Close the descriptor; does nothing the second time."""
        if self.fd >= 0:
            close(self.fd)
            self.fd = -1

    def __dealloc__(self):
        if self.fd >= 0:
            close(self.fd)


cpdef object accept(int listener, bint is_tcp):
    """Take one connection from a listening descriptor, or ``None`` if there is none: another process was faster."""
    cdef Stream stream
    cdef int fd = accept_quietly(listener)
    if fd < 0:
        if not is_not_now():
            raise failed()
        return None
    stream = Stream.__new__(Stream)
    stream.fd = fd
    stream.is_tcp = is_tcp
    return stream
