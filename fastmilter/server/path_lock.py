"""The lock on the path of a unix socket: who holds it is the master that serves there, alive.

A connection that is answered proves little: a worker of a killed master answers until it notices. A lock (``flock``
on a file beside the socket) ends with the process that holds it, however that ends. The file says which socket its
holder made there, so that the next master knows a leftover without asking anybody.

Errors: ``AddressInUse`` if another process holds the lock, ``ConfigError`` if the file belongs to somebody else, and
``OSError`` of the directory.
"""

import contextlib
import fcntl
import os
from typing import Final, Self

from fastmilter.errors import ConfigError

SUFFIX: Final = ".lock"
"""What the name of the lock file has behind that of the socket."""

_ATTEMPTS: Final = 10
_READ_BYTES: Final = 200

Identity = tuple[int, int, int]
"""A file as no other one will ever be: device, inode, and when it was changed, as inodes are used again."""


class AddressUnavailable(ConfigError):
    """An address cannot be had now; that may be over in a moment."""


class AddressInUse(AddressUnavailable):
    """Somebody listens at an address."""


def identity_of(status: os.stat_result) -> Identity:
    """Return which file a status is of."""
    return status.st_dev, status.st_ino, status.st_ctime_ns


class PathLock:
    """The lock, held from its making to ``release``; made by a master, and let go of by its children (``forget``)."""

    def __init__(self, path: str) -> None:
        """Take the lock of the socket at ``path``, at once or not at all."""
        self._name: Final = path + SUFFIX
        try:
            self.fd = self._acquire()
        except BlockingIOError:
            raise AddressInUse(f"another program listens there already: fastmilter, {self._holder()}") from None
        except PermissionError as error:
            if os.path.lexists(self._name):
                raise ConfigError(f"the lock file {self._name!r} belongs to another user") from error
            raise
        self.left_behind = self._read()
        """Which socket the last holder made, if it could not remove it any more."""

    @classmethod
    def of_former_master(cls, path: str, fd: int) -> Self:
        """Return the lock that this process has held since before it was replaced in place."""
        lock = cls.__new__(cls)
        lock._name, lock.fd, lock.left_behind = path + SUFFIX, fd, None  # type: ignore[misc]
        return lock

    def _acquire(self) -> int:
        for _ in range(_ATTEMPTS):
            # A link there could make us write anywhere.
            fd = os.open(self._name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(fd), os.lstat(self._name)):
                        return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # its holder removed it between our two calls
        raise BlockingIOError

    def _holder(self) -> str:
        """Return who holds the lock, as far as the file tells."""
        try:
            with open(self._name, encoding="ascii") as file:
                return f"pid={int(file.read(_READ_BYTES).split()[0])}"
        except (OSError, ValueError, IndexError):
            return "pid unknown"

    def _read(self) -> Identity | None:
        if os.fstat(self.fd).st_uid != os.geteuid():
            return None  # of a directory that others write in too: they may say what they like
        try:
            _, device, inode, changed = map(int, os.pread(self.fd, _READ_BYTES, 0).split())
        except ValueError:
            return None
        return device, inode, changed

    def write(self, made: Identity | None) -> None:
        """Say who we are and, from then on, which socket we made."""
        words = [os.getpid(), *(made or ())]
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, " ".join(map(str, words)).encode() + b"\n", 0)

    def is_in_place(self) -> bool:
        """Tell whether the file that is locked is still the one of that name."""
        with contextlib.suppress(OSError):
            return self.fd >= 0 and os.path.samestat(os.fstat(self.fd), os.lstat(self._name))
        return False

    def release(self) -> None:
        """Give the lock back and remove its file; does nothing the second time."""
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self._name)  # while it is ours: nobody else may hold a lock on a file that is gone
            self.forget()

    def forget(self) -> None:
        """Close this process's copy, in a child: the lock is its parent's."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
