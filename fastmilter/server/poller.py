"""Waiting for many descriptors: epoll on Linux, the best that ``selectors`` has elsewhere."""

import select
import selectors
from collections.abc import Iterable

from fastmilter.server._sockets import Epoll, Poller


class _SelectorPoller(Poller):
    """Everything but Linux: kqueue, poll or select."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def add(self, fd: int) -> None:
        self._selector.register(fd, selectors.EVENT_READ)

    def add_listener(self, fd: int) -> None:
        self._selector.register(fd, selectors.EVENT_READ)

    def add_bell(self, fd: int) -> None:
        raise NotImplementedError("there is no eventfd without epoll")

    def await_room(self, fd: int, full: bool) -> None:
        self._selector.modify(fd, selectors.EVENT_WRITE if full else selectors.EVENT_READ)

    def remove(self, fd: int) -> None:
        self._selector.unregister(fd)

    def wait(self, timeout_s: float) -> list[int]:
        return [key.fd for key, _ in self._selector.select(timeout_s)]

    def fileno(self) -> int:
        descriptor: int = self._selector.fileno()  # of kqueue; poll has none
        return descriptor

    def close(self) -> None:
        self._selector.close()


def best_poller() -> Poller:
    """Return the best poller of this platform."""
    return Epoll() if hasattr(select, "EPOLLEXCLUSIVE") else _SelectorPoller()


def can_accept(listeners: Iterable[int]) -> bool:
    """Tell whether a connection waits at one of the listeners."""
    poll = select.poll()
    for fd in listeners:
        poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
