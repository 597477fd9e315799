"""The system calls of a worker's loop, straight to the kernel."""

from typing import final

@final
class Stream:
    """One accepted connection; made by ``accept``. Errors of the kernel are ``OSError``, and nothing waits."""

    @property
    def is_tcp(self) -> bool:
        """Whether this is a TCP connection."""

    def fileno(self) -> int:
        """The descriptor; -1 after ``close``."""

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
