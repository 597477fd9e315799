"""What a worker does at the moment its master dies, whatever it is in: no TCP port may stay open for nobody.

A worker that stands still in a callback, or still imports the filter, cannot notice that its master is gone, and as long
as its copy of a listening socket is open the kernel queues connections there and lets no successor bind. So the system is
asked to send a signal then (PR_SET_PDEATHSIG, Linux), and its handler, in C, shuts these sockets down: system calls that
POSIX allows there, and nothing else. They work while a callback holds the interpreter.
"""

from libc.stdint cimport uint64_t

import os
import signal

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <signal.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/socket.h>

    #define MOST_SOCKETS 64
    static volatile sig_atomic_t watched_count = 0;
    static int watched[MOST_SOCKETS];
    static uint64_t watched_cookie[MOST_SOCKETS];

    static void watch(int fd, uint64_t cookie)
    {
        watched[watched_count] = fd;
        watched_cookie[watched_count] = cookie;
        watched_count++;
    }

    #if defined(__linux__) && defined(SO_COOKIE)
    #include <sys/prctl.h>

    static int cookie_of(int fd, uint64_t *cookie)
    {
        socklen_t size = sizeof *cookie;
        return getsockopt(fd, SOL_SOCKET, SO_COOKIE, cookie, &size);
    }

    static void shut_down(int number)
    {
        int before = errno;
        (void) number;
        for (int place = 0; place < watched_count; place++) {
            uint64_t cookie;
            /* The number may be another socket's by now; the cookie is one socket's for ever. */
            if (cookie_of(watched[place], &cookie) == 0 && cookie == watched_cookie[place])
                shutdown(watched[place], SHUT_RDWR);
        }
        errno = before;
    }

    static int ask_for_signal(int number)
    {
        struct sigaction action;
        memset(&action, 0, sizeof action);
        action.sa_handler = shut_down;
        action.sa_flags = SA_RESTART | SA_ONSTACK;
        sigfillset(&action.sa_mask);
        if (sigaction(number, &action, NULL) < 0)
            return -1;
        return prctl(PR_SET_PDEATHSIG, (unsigned long) number, 0, 0, 0);
    }
    #else
    static int cookie_of(int fd, uint64_t *cookie) { (void) fd; (void) cookie; errno = ENOSYS; return -1; }
    static int ask_for_signal(int number) { (void) number; errno = ENOSYS; return -1; }
    #endif
    """
    enum: MOST_SOCKETS
    void watch(int fd, uint64_t cookie)
    int cookie_of(int fd, uint64_t *cookie)
    int ask_for_signal(int number)

ORPHAN_SIGNAL = signal.SIGRTMIN + 8 if hasattr(signal, "SIGRTMIN") else None


def shut_down_when_orphaned(list sockets, int parent):
    """Shut ``sockets`` down once the process ``parent`` is gone; once in a process, after it took its last identity.

    Tells whether that can be done: elsewhere than on Linux, and for more than 64 sockets, it cannot.
    """
    cdef int fd
    cdef uint64_t cookie
    if ORPHAN_SIGNAL is None or len(sockets) > MOST_SOCKETS:
        return False
    for fd in sockets:
        if cookie_of(fd, &cookie) < 0:
            return False
        watch(fd, cookie)
    if ask_for_signal(ORPHAN_SIGNAL) < 0:
        return False
    if os.getppid() != parent:
        os.kill(os.getpid(), ORPHAN_SIGNAL)  # it has died before we asked
    return True
