"""Where a server listens: opening and closing listeners.

How addresses are spelled is the business of ``fastmilter.endpoints``. Listeners are made once, by the master, and
inherited by workers through fork; no program that they start gets them.

Errors: ``ConfigError``, which names the address.
"""

import errno
import grp
import os
import socket
import stat
from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypeVar

from fastmilter.endpoints import MAX_UNIX_PATH_BYTES, Endpoint, EndpointKind
from fastmilter.errors import ConfigError

BACKLOG: Final = 4096
"""Connections that may wait to be accepted; the kernel cuts it to its own limit (``net.core.somaxconn``)."""

UNIX_MODE: Final = 0o660
"""Permissions of a unix socket unless the address says otherwise: its user and its group may connect."""

_PROBE_TIMEOUT_S: Final = 2.0

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
        case EndpointKind.UNIX:
            return f"unix:{os.path.abspath(address.path or '')}"
    return str(address)


class Listener:
    """An open listening socket and what is needed to close it properly."""

    def __init__(
        self, address: Endpoint, bound: Endpoint, sock: socket.socket, inode: tuple[int, int] | None = None
    ) -> None:
        """Take over a socket; ``open_listener`` is what others call."""
        self.address: Final = address
        """The address as it was asked for."""
        self.bound: Final = bound
        """The address as it is: the port that the kernel chose for 0, the name of an inherited socket."""
        self.socket: Final = sock
        self._inode = inode

    def is_at(self, address: Endpoint) -> bool:
        """Tell whether this is the listener of ``address``; ``ConfigError`` if only its mode or group would differ."""
        if replace(address, mode=None, group=None) != replace(self.address, mode=None, group=None):
            return False
        if address != self.address:
            raise ConfigError(f"{address}: mode and group of a socket that is open cannot be changed: restart")
        return True

    def close(self) -> None:
        """Close the socket, and remove the path of a unix socket if it is still ours and not a successor's."""
        self.socket.close()
        inode, self._inode = self._inode, None  # once only: a successor may be given the same inode after that
        if inode is None or self.address.path is None:
            return
        try:
            status = os.lstat(self.address.path)
            if (status.st_dev, status.st_ino) == inode:
                os.unlink(self.address.path)
        except OSError:
            return  # gone already, or no longer ours to remove: then it is not in anybody's way either


def open_listener(address: Endpoint, *, backlog: int = BACKLOG) -> Listener:
    """Open a non-blocking listening socket; ``ConfigError`` if that cannot be done."""
    match address.kind:
        case EndpointKind.UNIX:
            return _open_unix(address, address.path or "", backlog)
        case EndpointKind.FD:
            return _open_inherited(address, -1 if address.fd is None else address.fd, backlog)
    return _open_inet(address, backlog)


# TCP


def _open_inet(address: Endpoint, backlog: int) -> Listener:
    ipv6 = address.kind is EndpointKind.INET6
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    try:
        found = socket.getaddrinfo(address.host, address.port, family, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{address}: {_why_not_found(address, error)}") from error
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
    raise ConfigError(f"{address}: {_why_not_bound(last)}") from last


def _why_not_found(address: Endpoint, error: Exception) -> str:
    if isinstance(address.port, str):
        try:
            socket.getservbyname(address.port, "tcp")
        except OSError:
            return f"there is no service {address.port!r} on this machine: write the number of a port"
    family = "IPv6" if address.kind is EndpointKind.INET6 else "IPv4"
    return f"no {family} address of {address.host!r}: {error.strerror if isinstance(error, OSError) else error}"


def _why_not_bound(error: OSError | None) -> str:
    match error.errno if error else None:
        case errno.EADDRINUSE:
            return "another program listens there already"
        case errno.EADDRNOTAVAIL:
            return "this machine does not have that address"
        case errno.EACCES:
            return "not permitted (ports below 1024 are for root)"
    return str(error.strerror if error else "the name has no address")


# Unix sockets


def _open_unix(address: Endpoint, path: str, backlog: int) -> Listener:
    """Make the socket under a private name, give it its group and mode, listen, and only then give it its name.

    So nobody can connect before its permissions are right, and a stale socket is replaced in one step.
    """
    group = _group_number(address)
    _refuse_unless_stale(address, path)
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
            if group is not None:
                _checked(address, lambda: os.chown(private, -1, group))
            _checked(address, lambda: os.chmod(private, UNIX_MODE if address.mode is None else address.mode))
            sock.listen(backlog)
            status = os.lstat(private)
            _checked(address, lambda: os.rename(private, path))
        except BaseException:
            os.unlink(private)
            raise
    except BaseException:
        sock.close()
        raise
    return Listener(address, address, sock, (status.st_dev, status.st_ino))


def _private_name(path: str) -> str:
    """Return a name in the same directory that nobody knows; beside the real one if it fits, since ``ss`` shows it."""
    token = os.urandom(3).hex()
    name = f"{path}.{token}"
    return name if len(os.fsencode(name)) <= MAX_UNIX_PATH_BYTES else os.path.join(os.path.dirname(path), "." + token)


def _checked(address: Endpoint, call: Callable[[], _T]) -> _T:
    """Run a call on the file system; its failure becomes a ``ConfigError`` that an administrator can act on."""
    try:
        return call()
    except PermissionError as error:
        if address.group and error.errno == errno.EPERM:
            why = f"this user may not give files to the group {address.group!r}: it must be a member"
            raise ConfigError(f"{address}: {why}") from error
        raise ConfigError(f"{address}: this user may not write in the directory") from error
    except FileNotFoundError as error:
        directory = os.path.dirname(address.path or "")
        raise ConfigError(f"{address}: the directory {directory!r} does not exist") from error
    except OSError as error:  # "AF_UNIX path too long" has no strerror
        raise ConfigError(f"{address}: {error.strerror or error}") from error


def _group_number(address: Endpoint) -> int | None:
    if address.group is None:
        return None
    if address.group.isascii() and address.group.isdigit():
        return int(address.group)
    try:
        return grp.getgrnam(address.group).gr_gid
    except KeyError:
        raise ConfigError(f"{address}: there is no group {address.group!r} on this machine") from None


def _refuse_unless_stale(address: Endpoint, path: str) -> None:
    """Return if the path is free or holds a socket on which nobody answers; else ``ConfigError``."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"{address}: {error.strerror}") from error
    if not stat.S_ISSOCK(status.st_mode):
        raise ConfigError(f"{address}: the path exists and is not a socket: remove it, or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return  # nobody has it open any more: left over by a program that was killed
        except OSError as error:
            if error.errno == errno.EAGAIN or isinstance(error, TimeoutError):
                raise ConfigError(f"{address}: another program listens there already, and its queue is full") from error
            raise ConfigError(f"{address}: cannot tell whether the socket is in use: {error.strerror}") from error
    raise ConfigError(f"{address}: another program listens there already")


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
    return Endpoint(kind, host=name[0], port=name[1])
