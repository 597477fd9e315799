"""The system calls of a worker's loop, straight to the kernel.

A ``Stream`` is one accepted connection. Python's socket objects do the same with an allocation, a time-out and an address
at every turn, which nobody needs here. Nothing of this waits but ``Poller.wait``.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_Check, PyMemoryView_GET_BUFFER
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EINTR, errno
from libc.math cimport ceil
from libc.stdint cimport uint32_t
from libc.stdlib cimport free, malloc

import os

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <sys/socket.h>
    #include <time.h>
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

    #ifdef __linux__
    #include <sys/epoll.h>
    #else  /* never called there: best_poller() looks */
    struct epoll_event { unsigned events; union { int fd; } data; };
    enum { EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL, EPOLLIN, EPOLLOUT };
    #define EPOLLET 0u
    static int epoll_create1(int flags) { (void) flags; errno = ENOSYS; return -1; }
    static int epoll_ctl(int fd, int what, int of, struct epoll_event *event)
    { (void) fd; (void) what; (void) of; (void) event; errno = ENOSYS; return -1; }
    static int epoll_wait(int fd, struct epoll_event *events, int most, int timeout)
    { (void) fd; (void) events; (void) most; (void) timeout; errno = ENOSYS; return -1; }
    #endif
    #ifndef EPOLLEXCLUSIVE
    #define EPOLLEXCLUSIVE 0u
    #endif

    static double monotonic_s(void)
    {
    #ifdef __APPLE__  /* CLOCK_MONOTONIC is another clock than time.monotonic() there */
        return clock_gettime_nsec_np(CLOCK_UPTIME_RAW) * 1e-9;
    #else
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (double) now.tv_sec + now.tv_nsec * 1e-9;
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
    enum: MSG_DONTWAIT, MSG_NOSIGNAL
    int accept_quietly(int listener)
    double monotonic_s() noexcept
    void acknowledge_now(int fd)
    ssize_t recv(int fd, void *buffer, size_t size, int flags)
    ssize_t send(int fd, const void *data, size_t size, int flags)
    int close(int fd)
    ctypedef union epoll_data:
        int fd
    struct epoll_event:
        uint32_t events
        epoll_data data
    enum: EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL, EPOLLIN, EPOLLOUT
    uint32_t EPOLLET, EPOLLEXCLUSIVE
    int epoll_create1(int flags)
    int epoll_ctl(int fd, int what, int of, epoll_event *event)
    int epoll_wait(int fd, epoll_event *events, int most, int timeout_ms) nogil


cdef enum:
    MOST_EVENTS = 256  # of one wait


cdef object failed():
    """The OSError for errno."""
    return OSError(errno, os.strerror(errno))


cdef inline bint is_not_now() noexcept:
    return errno == EAGAIN or errno == EINTR


@cython.final
cdef class Stream:
    """One accepted connection; made by ``accept``. Errors of the kernel are ``OSError``, and nothing waits."""

    def __cinit__(self):
        self.fd = -1

    def fileno(self):
        """The descriptor ``fd``, for whoever takes sockets of any kind."""
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


cpdef double monotonic() noexcept:
    """``time.monotonic()``, in seconds: without a look-up and an object where compiled code asks."""
    return monotonic_s()


cpdef Py_ssize_t send_now(int fd, bytes data) except -1:
    """Send once on a socket of others too, whose mode must stay: how many bytes left; ``OSError`` if none did."""
    cdef Py_ssize_t count = send(fd, PyBytes_AS_STRING(data), <size_t> PyBytes_GET_SIZE(data), MSG_DONTWAIT | MSG_NOSIGNAL)
    if count < 0:
        raise failed()
    return count


cdef class Poller:
    """A set of descriptors to wait for. Closing a descriptor without ``remove`` is a mistake."""

    cpdef object add(self, int fd):
        """Wait until ``fd`` can be read."""
        raise NotImplementedError

    cpdef object add_listener(self, int fd):
        """Wait until a connection can be accepted from ``fd``, which other processes wait for too."""
        raise NotImplementedError

    cpdef object add_bell(self, int fd):
        """Be woken once for each write to ``fd``, an eventfd that nobody reads."""
        raise NotImplementedError

    cpdef object await_room(self, int fd, bint full):
        """Wait until ``fd`` can be written to and no longer for reading, or the other way round."""
        raise NotImplementedError

    cpdef object remove(self, int fd):
        """Forget ``fd``."""
        raise NotImplementedError

    cpdef list wait(self, double timeout_s):
        """Return the descriptors that are ready; none after ``timeout_s``, or when a signal came."""
        raise NotImplementedError

    def fileno(self):
        """A descriptor that is readable while something is ready, for a loop around this one."""
        raise NotImplementedError

    def close(self):
        """Give the poller itself back."""
        raise NotImplementedError


@cython.final
cdef class Epoll(Poller):
    """The poller of Linux.

    A listener is shared by all workers: with EPOLLEXCLUSIVE the kernel wakes one of them for a connection instead of all. A
    worker that was woken must accept at least one, or the connection waits while the others sleep on.
    """

    def __cinit__(self):
        self.fd = -1
        self.events = malloc(MOST_EVENTS * sizeof(epoll_event))
        if self.events is NULL:
            raise MemoryError
        self.fd = epoll_create1(EPOLL_CLOEXEC)
        if self.fd < 0:
            raise failed()

    def __dealloc__(self):
        if self.fd >= 0:
            close(self.fd)
        free(self.events)

    cdef int control(self, int what, int fd, uint32_t events) except -1:
        cdef epoll_event event
        event.events = events
        event.data.fd = fd
        if epoll_ctl(self.fd, what, fd, &event) < 0:
            raise failed()
        return 0

    cpdef object add(self, int fd):
        # A connection that ends is readable (it reads as end of file), so hang-ups need no event of their own.
        self.control(EPOLL_CTL_ADD, fd, EPOLLIN)

    cpdef object add_listener(self, int fd):
        self.control(EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLEXCLUSIVE)

    cpdef object add_bell(self, int fd):
        self.control(EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLET)

    cpdef object await_room(self, int fd, bint full):
        self.control(EPOLL_CTL_MOD, fd, EPOLLOUT if full else EPOLLIN)

    cpdef object remove(self, int fd):
        self.control(EPOLL_CTL_DEL, fd, 0)

    cpdef list wait(self, double timeout_s):
        cdef int timeout_ms = <int> ceil(timeout_s * 1000)
        cdef int count, place
        cdef list ready = []
        cdef epoll_event *events = <epoll_event *> self.events
        with nogil:
            count = epoll_wait(self.fd, events, MOST_EVENTS, timeout_ms)
        if count < 0:
            if errno != EINTR:
                raise failed()
            PyErr_CheckSignals()
        for place in range(count):
            ready.append(events[place].data.fd)
        return ready

    def fileno(self):
        return self.fd

    def close(self):
        if self.fd >= 0:
            close(self.fd)
            self.fd = -1
