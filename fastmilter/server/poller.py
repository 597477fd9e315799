"""Waiting for many descriptors: epoll on Linux, the best that ``selectors`` has elsewhere.

A listener is shared by all workers: with EPOLLEXCLUSIVE the kernel wakes one of them for a connection instead of all.
A worker that was woken must accept at least one, or the connection waits while the others sleep on.
"""

import select
import selectors
from typing import Final, Protocol

READ: Final = 1
WRITE: Final = 2


class Poller(Protocol):
    """A set of descriptors to wait for. Closing a descriptor without ``remove`` is a mistake."""

    def add(self, fd: int) -> None:
        """Wait until ``fd`` can be read."""

    def add_listener(self, fd: int) -> None:
        """Wait until a connection can be accepted from ``fd``, which other processes wait for too."""

    def add_bell(self, fd: int) -> None:
        """Be woken once for each write to ``fd``, an eventfd that nobody reads."""

    def change(self, fd: int, events: int) -> None:
        """Wait for ``READ`` or ``WRITE`` on ``fd`` from now on."""

    def remove(self, fd: int) -> None:
        """Forget ``fd``."""

    def wait(self, timeout_s: float) -> list[tuple[int, int]]:
        """Return descriptors that are ready with an event mask (not empty); an empty list after ``timeout_s``."""
        ...

    def close(self) -> None:
        """Give the poller itself back."""


class _EpollPoller:
    """Linux."""

    _MAX_EVENTS: Final = 256

    def __init__(self) -> None:
        self._epoll = select.epoll()
        # A connection that ends is readable (it reads as end of file), so hang-ups need no event of their own.
        self._masks = {READ: select.EPOLLIN, WRITE: select.EPOLLOUT}

    def add(self, fd: int) -> None:
        self._epoll.register(fd, select.EPOLLIN)

    def add_listener(self, fd: int) -> None:
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)

    def add_bell(self, fd: int) -> None:
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)

    def change(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, self._masks[events])

    def remove(self, fd: int) -> None:
        self._epoll.unregister(fd)

    def wait(self, timeout_s: float) -> list[tuple[int, int]]:
        return self._epoll.poll(timeout_s, self._MAX_EVENTS)

    def close(self) -> None:
        self._epoll.close()


class _SelectorPoller:
    """Everything else: kqueue, poll or select."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._masks = {READ: selectors.EVENT_READ, WRITE: selectors.EVENT_WRITE}

    def add(self, fd: int) -> None:
        self._selector.register(fd, selectors.EVENT_READ)

    def add_listener(self, fd: int) -> None:
        self._selector.register(fd, selectors.EVENT_READ)

    def add_bell(self, fd: int) -> None:
        raise NotImplementedError("there is no eventfd without epoll")

    def change(self, fd: int, events: int) -> None:
        self._selector.modify(fd, self._masks[events])

    def remove(self, fd: int) -> None:
        self._selector.unregister(fd)

    def wait(self, timeout_s: float) -> list[tuple[int, int]]:
        return [(key.fd, mask) for key, mask in self._selector.select(timeout_s)]

    def close(self) -> None:
        self._selector.close()


def best_poller() -> Poller:
    """Return the best poller of this platform."""
    return _EpollPoller() if hasattr(select, "EPOLLEXCLUSIVE") else _SelectorPoller()
