"""The system calls of a worker's loop, straight to the kernel."""

from typing import final

from typing_extensions import disjoint_base

@final
class Stream:
    """One accepted connection; made by ``accept``. Errors of the kernel are ``OSError``, and nothing waits."""

    @property
    def fd(self) -> int:
        """The descriptor; -1 after ``close``."""

    @property
    def is_tcp(self) -> bool:
        """Whether this is a TCP connection."""

    def fileno(self) -> int:
        """The descriptor ``fd``, for whoever takes sockets of any kind."""

    def receive(self, view: memoryview) -> int:
        """Read once into a ``memoryview``: how many bytes came, 0 at the end, -1 if there is nothing now."""

    def send(self, data: bytes, start: int) -> int:
        """Send once what stands from ``start`` on: how many bytes left, 0 if there is no room now."""

    def acknowledge(self) -> None:
        """Let the kernel acknowledge what came now, not in up to 40 ms (TCP_QUICKACK); nothing on a unix socket."""

    def close(self) -> None:
        """Close the descriptor; does nothing the second time."""

def accept(listener: int, is_tcp: bool) -> Stream | None:
    """Take one connection from a listening descriptor, or ``None`` if there is none: another process was faster."""

def monotonic() -> float:
    """``time.monotonic()``, in seconds: without a look-up and an object where compiled code asks."""

def send_now(fd: int, data: bytes) -> int:
    """Send once on a socket of others too, whose mode must stay: how many bytes left; ``OSError`` if none did."""

@disjoint_base
class Poller:
    """A set of descriptors to wait for. Closing a descriptor without ``remove`` is a mistake."""

    def add(self, fd: int) -> None:
        """Wait until ``fd`` can be read."""

    def add_listener(self, fd: int) -> None:
        """Wait until a connection can be accepted from ``fd``, which other processes wait for too."""

    def add_bell(self, fd: int) -> None:
        """Be woken once for each write to ``fd``, an eventfd that nobody reads."""

    def await_room(self, fd: int, full: bool) -> None:
        """Wait until ``fd`` can be written to and no longer for reading, or the other way round."""

    def remove(self, fd: int) -> None:
        """Forget ``fd``."""

    def wait(self, timeout_s: float) -> list[int]:
        """Return the descriptors that are ready; none after ``timeout_s``, or when a signal came."""

    def fileno(self) -> int:
        """A descriptor that is readable while something is ready, for a loop around this one."""

    def close(self) -> None:
        """Give the poller itself back."""

@final
class Epoll(Poller):
    """The poller of Linux.

    A listener is shared by all workers: with EPOLLEXCLUSIVE the kernel wakes one of them for a connection instead of
    all. A worker that was woken must accept at least one, or the connection waits while the others sleep on.
    """

    def add(self, fd: int) -> None: ...
    def add_listener(self, fd: int) -> None: ...
    def add_bell(self, fd: int) -> None: ...
    def await_room(self, fd: int, full: bool) -> None: ...
    def remove(self, fd: int) -> None: ...
    def wait(self, timeout_s: float) -> list[int]: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...
