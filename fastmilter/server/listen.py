"""Where a server listens: opening and closing listeners.

How addresses are spelled is the business of ``fastmilter.endpoints``. Listeners are made once, by the master, and
inherited by workers through fork; no program that they start gets them.

Errors: ``ConfigError``, which names the address; ``AddressUnavailable`` if it may be had in a moment, and
``AddressInUse`` if somebody listens there already.
"""

import contextlib
import errno
import logging
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, Self, TypeVar

from fastmilter.endpoints import MAX_UNIX_PATH_BYTES, Endpoint, EndpointKind, parse_endpoint
from fastmilter.errors import ConfigError
from fastmilter.server.path_lock import AddressInUse, AddressUnavailable, PathLock, identity_of
from fastmilter.server.privileges import group_number, user_number
from fastmilter.server.systemd import take_sockets

log = logging.getLogger(__name__)

BACKLOG: Final = 4096
"""Connections that may wait to be accepted; the kernel cuts it to its own limit (``kernels_backlog``)."""

UNIX_MODE: Final = 0o660
"""Permissions of a unix socket unless the address says otherwise: its user and its group may connect."""

_KERNELS_BACKLOG: Final = "/proc/sys/net/core/somaxconn"
_PROBE_TIMEOUT_S: Final = 2.0
_TCP: Final = (EndpointKind.INET, EndpointKind.INET6)
_LISTENED_TO: Final = "another program listens there already"

_T = TypeVar("_T")


def spelling_for_postfix(address: Endpoint) -> str:
    """Return what an MTA on this machine connects to, as ``smtpd_milters`` takes it.

    >>> from fastmilter.endpoints import parse_endpoint
    >>> spelling_for_postfix(parse_endpoint("inet:8894")), spelling_for_postfix(parse_endpoint("inet6:8894@[::1]"))
    ('inet:127.0.0.1:8894', 'inet:[::1]:8894')
    """
    host = address.host
    match address.kind:
        case EndpointKind.INET:
            return f"inet:{host if host not in (None, '0.0.0.0') else '127.0.0.1'}:{address.port}"
        case EndpointKind.INET6:
            return f"inet:[{host if host not in (None, '::') else '::1'}]:{address.port}"
        case EndpointKind.UNIX if not address.is_abstract:
            return f"unix:{os.path.abspath(address.path or '')}"
    return str(address)


def kernels_backlog() -> int | None:
    """Return how many connections the kernel lets wait at most; ``None`` if it does not tell."""
    try:
        with open(_KERNELS_BACKLOG, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


class Listener:
    """An open listening socket and what is needed to close it properly."""

    def __init__(
        self,
        address: Endpoint,
        bound: Endpoint,
        sock: socket.socket,
        inode: tuple[int, int] | None = None,
        lock: PathLock | None = None,
    ) -> None:
        """Take over a socket; ``open_listener`` is what others call."""
        self.address: Final = address
        """The address as it was asked for."""
        self.bound: Final = bound
        """The address as it is: the port that the kernel chose for 0, the name of an inherited socket."""
        self.socket: Final = sock
        self._inode = inode
        self._lock = lock

    @property
    def holds_port(self) -> bool:
        """Whether this is a TCP port that we have opened: nobody else gets it while it listens in any process."""
        return self.address.kind in _TCP

    @property
    def is_cut_off(self) -> bool:
        """Whether nobody can connect any more, since the path of the unix socket is gone or another one's."""
        if self._inode is None or self.address.path is None:
            return False
        with contextlib.suppress(OSError):
            status = os.lstat(self.address.path)
            return (status.st_dev, status.st_ino) != self._inode
        return True

    def hand_over_lock(self) -> PathLock | None:
        """Let go of the lock in favour of the listener that takes the place of one that is cut off."""
        lock, self._lock = self._lock, None
        if lock is None or lock.is_in_place():
            return lock
        lock.forget()  # its file went with the socket
        return None

    def set_backlog(self, backlog: int) -> None:
        """Let so many connections wait to be accepted; does nothing if the socket is closed."""
        if self.socket.fileno() >= 0:
            self.socket.listen(backlog)

    def is_at(self, address: Endpoint) -> bool:
        """Tell whether this is the listener of ``address``; ``ConfigError`` if only its options would differ."""
        if _without_query(address) != _without_query(self.address):
            return False
        if address != self.address:
            raise ConfigError(
                f"{address}: mode, owner, group and proxy of a socket that is open cannot be changed: restart"
            )
        return True

    def to_state(self) -> dict[str, Any]:
        """Return everything as JSON can hold it, for the master that follows by an upgrade in place."""
        return {
            "address": str(self.address),
            "bound": str(self.bound),
            "socket": self.socket.fileno(),
            "inode": self._inode,
            "lock": -1 if self._lock is None else self._lock.fd,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Make the listener that a former master of this process had open."""
        address, inode = parse_endpoint(state["address"]), state["inode"]
        lock = None if state["lock"] < 0 else PathLock.of_former_master(address.path or "", state["lock"])
        sock = socket.socket(fileno=state["socket"])
        sock.setblocking(False)
        return cls(address, parse_endpoint(state["bound"]), sock, inode and (inode[0], inode[1]), lock)

    def forget(self) -> None:
        """Let go, in a child that does not listen here; the socket, its path and the lock stay the parent's."""
        self.socket.close()
        self.forget_lock()

    def forget_lock(self) -> None:
        """Let go of the lock in a child: as long as a copy is open, it outlives the master."""
        if self._lock is not None:
            self._lock.forget()

    def close(self) -> None:
        """Close the socket, and remove the path of a unix socket if it is still ours and not a successor's.

        A port that we have opened is shut down first, which holds for the copies of all processes: a worker that stands
        still in a callback would keep it from the next server.
        """
        if self.holds_port:
            with contextlib.suppress(OSError):  # closed already
                self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        inode, self._inode = self._inode, None  # once only: a successor may be given the same inode after that
        if inode is not None and self.address.path is not None:
            # Gone already, or no longer ours to remove: then it is not in anybody's way either.
            with contextlib.suppress(OSError):
                status = os.lstat(self.address.path)
                if (status.st_dev, status.st_ino) == inode:
                    os.unlink(self.address.path)
        if self._lock is not None:
            self._lock.release()


def _without_query(address: Endpoint) -> Endpoint:
    return replace(address, mode=None, owner=None, group=None, proxy=False)


def open_all(addresses: Iterable[Endpoint], *, backlog: int, known: Iterable[Listener]) -> tuple[Listener, ...]:
    """Return listeners for all addresses: of those that are ``known`` the same ones, the others fresh.

    One whose path is gone is made anew. The backlog of those that are known stays (``Listener.set_backlog``).

    Raises ``ConfigError`` if one of them cannot be had; then nothing is left open that was not before.
    """
    old = list(dict.fromkeys(known))
    listeners: list[Listener] = []
    opened: list[Listener] = []
    try:
        for address in addresses:
            there = [listener for listener in old if listener.is_at(address)]
            lost = [listener for listener in there if listener.is_cut_off]
            if lost:
                there, fresh = [], [open_anew(lost[0], backlog=backlog)]
            else:
                fresh = [] if there else _open_beside(address, old, backlog)
            opened += fresh
            listeners += there + fresh
    except BaseException:
        for listener in opened:
            listener.close()
        raise
    for listener in opened:
        log.info(
            "listening on %s (in smtpd_milters of Postfix: %s)", listener.bound, spelling_for_postfix(listener.bound)
        )
    return tuple(listeners)


def open_anew(lost: Listener, *, backlog: int) -> Listener:
    """Open the address of a listener that is cut off, and take over its lock."""
    log.warning("%s: the path is gone, or another's: listening there anew", lost.address)
    return open_listener(lost.address, backlog=backlog, lock=lost.hand_over_lock())


def _open_beside(address: Endpoint, old: Iterable[Listener], backlog: int) -> list[Listener]:
    """Open an address that is new, and say so if one of our own is what is in its way."""
    try:
        return open_listeners(address, backlog=backlog)
    except AddressInUse:
        for listener in old:
            if address.kind in _TCP and listener.holds_port and listener.bound.port == address.port:
                raise ConfigError(
                    f"{address}: this server listens on {listener.address} itself, and the system does not let both be"
                    " open at a time: restart, or take another port"
                ) from None
        raise


def open_listeners(address: Endpoint, *, backlog: int = BACKLOG) -> list[Listener]:
    """Open what an address stands for: one listener, or all those that systemd has handed over."""
    if address.kind is not EndpointKind.FD or address.fd is not None:
        return [open_listener(address, backlog=backlog)]
    try:
        numbers = take_sockets(os.environ)
    except ConfigError as error:
        raise ConfigError(f"{address}: {error}") from None
    return [_open_inherited(address, number, backlog) for number in numbers]


def open_listener(address: Endpoint, *, backlog: int = BACKLOG, lock: PathLock | None = None) -> Listener:
    """Open a non-blocking listening socket; ``ConfigError`` if that cannot be done.

    ``lock`` is that of a unix path if this process holds it already; it goes over to the listener, or is released.
    """
    try:
        match address.kind:
            case EndpointKind.UNIX if address.is_abstract:
                return _open_abstract(address, backlog)
            case EndpointKind.UNIX:
                return _open_unix(address, address.path or "", backlog, lock)
            case EndpointKind.FD:
                return _open_inherited(address, -1 if address.fd is None else address.fd, backlog)
        return _open_inet(address, backlog)
    except OSError as error:  # out of descriptors, or a machine without IPv6
        raise ConfigError(f"{address}: {error.strerror or error}") from error


# TCP


def _open_inet(address: Endpoint, backlog: int) -> Listener:
    ipv6 = address.kind is EndpointKind.INET6
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    try:
        found = socket.getaddrinfo(address.host, address.port, family, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        is_passing = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
        kind = AddressUnavailable if is_passing else ConfigError
        raise kind(f"{address}: {_why_not_found(address, error)}") from error
    last: OSError | None = None
    for *_, place in found:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if ipv6:
                # So that inet:8894 and inet6:8894 can both be asked for, whatever the default of the machine is.
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # Accepted connections inherit both on Linux: neither costs a system call per connection there.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setblocking(False)
            sock.bind(place)
            sock.listen(backlog)
        except OSError as error:
            sock.close()
            last = error
            continue
        return Listener(address, replace(address, port=sock.getsockname()[1]), sock)
    raise _not_bound(address, last) from last


def _why_not_found(address: Endpoint, error: Exception) -> str:
    if isinstance(address.port, str):
        try:
            socket.getservbyname(address.port, "tcp")
        except OSError:
            return f"there is no service {address.port!r} on this machine: write the number of a port"
    family = "IPv6" if address.kind is EndpointKind.INET6 else "IPv4"
    return f"no {family} address of {address.host!r}: {error.strerror if isinstance(error, OSError) else error}"


def _not_bound(address: Endpoint, error: OSError | None) -> ConfigError:
    match error.errno if error else None:
        case errno.EADDRINUSE:
            return AddressInUse(f"{address}: {_LISTENED_TO}")
        case errno.EADDRNOTAVAIL:
            return AddressUnavailable(f"{address}: this machine does not have that address")  # not yet, while it boots
        case errno.EACCES:
            return ConfigError(f"{address}: not permitted (ports below 1024 are for root)")
    return ConfigError(f"{address}: {error.strerror if error else 'the name has no address'}")


# Unix sockets


def _open_abstract(address: Endpoint, backlog: int) -> Listener:
    if not sys.platform.startswith("linux"):
        raise ConfigError(f"{address}: only Linux has abstract sockets: write unix:/path")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.bind(address.sun_path)  # the name goes with the last copy of the socket: nothing is ever left behind
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise _not_bound(address, error) from error
    return Listener(address, address, sock)


def _open_unix(address: Endpoint, path: str, backlog: int, held: PathLock | None) -> Listener:
    """Lock the path unless the lock is held; make the socket there, or replace what a server that is gone has left."""
    lock = held or _lock_of(address, path)
    try:
        owner, group = number_of(address, user_number, address.owner), number_of(address, group_number, address.group)
        _refuse_unless_stale(address, path, lock)
        _checked(address, lambda: lock.write(None))
        sock, status = _make_unix(
            address, path, backlog, -1 if owner is None else owner, -1 if group is None else group
        )
        _checked(address, lambda: lock.write(identity_of(status)))
    except BaseException:
        lock.release()
        raise
    return Listener(address, address, sock, (status.st_dev, status.st_ino), lock)


def _lock_of(address: Endpoint, path: str) -> PathLock:
    refuse_unless_socket(address, path)
    try:
        return _checked(address, lambda: PathLock(path))
    except AddressInUse as error:
        raise AddressInUse(f"{address}: {error}") from None


def _make_unix(
    address: Endpoint, path: str, backlog: int, owner: int, group: int
) -> tuple[socket.socket, os.stat_result]:
    """Make the socket under a private name, give it its permissions, listen, and only then give it its name.

    So nobody can connect before its permissions are right, and a stale socket is replaced in one step.
    """
    private = _private_name(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        mask = os.umask(0o177)  # of the whole process: a master has no other threads
        try:
            _checked(address, lambda: sock.bind(private))
        finally:
            os.umask(mask)
        try:
            if owner >= 0 or group >= 0:
                _checked(address, lambda: os.chown(private, owner, group))
            _checked(address, lambda: os.chmod(private, UNIX_MODE if address.mode is None else address.mode))
            sock.listen(backlog)
            _checked(address, lambda: os.rename(private, path))
        except BaseException:
            os.unlink(private)
            raise
        return sock, os.lstat(path)
    except BaseException:
        sock.close()
        raise


def _private_name(path: str) -> str:
    """Return a name in the same directory that nobody knows; beside the real one if it fits, since ``ss`` shows it."""
    token = os.urandom(3).hex()
    name = f"{path}.{token}"
    if len(os.fsencode(name)) <= MAX_UNIX_PATH_BYTES:
        return name
    directory, real = os.path.split(path)
    return os.path.join(directory, f".{token}" if len(real) > len(token) else token[: len(real)])


def _checked(address: Endpoint, call: Callable[[], _T]) -> _T:
    """Run a call on the file system; its failure becomes a ``ConfigError`` that an administrator can act on."""
    try:
        return call()
    except PermissionError as error:
        if error.errno == errno.EPERM and (address.owner or address.group):
            why = f"this user may not give files to {address.owner or address.group!r}"
            raise ConfigError(f"{address}: {why}: it must be root, or a member of the group") from error
        raise ConfigError(f"{address}: this user may not write in the directory") from error
    except FileNotFoundError as error:
        directory = os.path.dirname(address.path or "")
        raise ConfigError(f"{address}: the directory {directory!r} does not exist") from error
    except OSError as error:  # "AF_UNIX path too long" has no strerror
        raise ConfigError(f"{address}: {error.strerror or error}") from error


def number_of(address: Endpoint, look_up: Callable[[str], int], name: str | None) -> int | None:
    """Return the number of a user or a group that the address names."""
    try:
        return None if name is None else look_up(name)
    except ConfigError as error:
        raise ConfigError(f"{address}: {error}") from None


def refuse_unless_socket(address: Endpoint, path: str) -> os.stat_result | None:
    """Return the status of the socket at ``path``, ``None`` if the path is free; else ``ConfigError``."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{address}: {error.strerror}") from error
    if not stat.S_ISSOCK(status.st_mode):
        raise ConfigError(f"{address}: the path exists and is not a socket: remove it, or choose another path")
    return status


def _refuse_unless_stale(address: Endpoint, path: str, lock: PathLock) -> None:
    """Return if the path is free or holds a socket that nobody needs any more; else ``ConfigError``."""
    status = refuse_unless_socket(address, path)
    if status is None or identity_of(status) == lock.left_behind:
        return  # the master that made it is dead; a worker of it that hangs in a callback would still answer
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return  # nobody has it open any more: left over by a program that was killed
        except OSError as error:
            if error.errno == errno.EAGAIN or isinstance(error, TimeoutError):
                raise AddressInUse(f"{address}: {_LISTENED_TO}, and its queue is full") from error
            raise ConfigError(f"{address}: cannot tell whether the socket is in use: {error.strerror}") from error
    raise AddressInUse(f"{address}: {_LISTENED_TO}")


# Sockets that we were started with


def _open_inherited(address: Endpoint, number: int, backlog: int) -> Listener:
    try:
        sock = socket.socket(fileno=number)
    except OSError as error:
        why = "is not open" if error.errno == errno.EBADF else "is not a socket"
        raise ConfigError(f"{address}: descriptor {number} {why}") from error
    try:
        if sock.type != socket.SOCK_STREAM or sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
            raise ConfigError(f"{address}: descriptor {number} is not a TCP or unix stream socket")
        if address.proxy and sock.family == socket.AF_UNIX:
            raise ConfigError(f"{address}: the PROXY protocol is for TCP: leave out ?proxy=yes")
        if not _is_listening(sock):
            raise ConfigError(f"{address}: descriptor {number} is a socket that does not listen")
        sock.listen(backlog)  # again, for the length of its queue
        sock.setblocking(False)
        sock.set_inheritable(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    except (OSError, ConfigError) as error:
        sock.detach()  # not ours to close
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{address}: descriptor {number} cannot be listened on: {error.strerror}") from error
    return Listener(address, _name_of(sock, address), sock)


def _is_listening(sock: socket.socket) -> bool:
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return True  # a system that cannot tell


def _name_of(sock: socket.socket, address: Endpoint) -> Endpoint:
    """Return where an inherited socket listens, or its number if it has no name that can be written."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return Endpoint(EndpointKind.UNIX, path=name) if isinstance(name, str) and name else address
    kind = EndpointKind.INET6 if sock.family == socket.AF_INET6 else EndpointKind.INET
    return Endpoint(kind, host=name[0], port=name[1], proxy=address.proxy)
