"""What would keep a server from starting, found without opening or changing anything: for ``--check-config``.

A server that starts finds all of this when it opens what it needs, and ends. Here the system is only asked, so that a
deploy learns of it while the old server still runs. That an address is in use is no obstacle: the server that is there
may be the one that is to be replaced. What cannot be found out (names that are looked up in the network, descriptors
that only the service manager hands over) is none either.

Errors: ``ConfigError``, with the text that the start would give.
"""

import errno
import os
import stat
from typing import Final

from fastmilter.endpoints import Endpoint, EndpointKind
from fastmilter.errors import ConfigError
from fastmilter.server.descriptors import shortage
from fastmilter.server.listen import number_of, refuse_unless_socket
from fastmilter.server.monitor_keeper import CONTROL_MODE
from fastmilter.server.path_lock import SUFFIX
from fastmilter.server.privileges import group_number, user_number
from fastmilter.server.settings import Settings

_STATUS: Final = "/proc/self/status"
_CAP_CHOWN: Final = 0  # linux/capability.h


def refuse_obstacles(settings: Settings) -> None:
    """Raise ``ConfigError`` for the first thing that a start would fail at; call it as the user that is to start."""
    short = shortage(settings)
    if short is not None and settings.max_connections_per_worker:
        raise ConfigError(short)
    if settings.control is not None and settings.control_is_asked:
        _refuse_socket(Endpoint(EndpointKind.UNIX, path=settings.control, mode=CONTROL_MODE))
    for address in settings.listen:
        if address.kind is EndpointKind.UNIX and not address.is_abstract:
            _refuse_socket(address)
    if settings.log_file is not None:
        why = _why_not_appended(settings.log_file)
        if why is not None:
            raise ConfigError(f"--log-file {settings.log_file}: {os.strerror(why)}")


# Unix sockets.


def _refuse_socket(address: Endpoint) -> None:
    path = address.path or ""
    refuse_unless_socket(address, path)
    directory = os.path.dirname(path)
    if not os.path.isdir(directory or "."):
        raise ConfigError(f"{address}: the directory {directory!r} does not exist")
    why = _why_not_written(directory or ".", os.W_OK | os.X_OK)
    if why is not None:
        told = "this user may not write in the directory" if why == errno.EACCES else os.strerror(why)
        raise ConfigError(f"{address}: {told}")
    lock = path + SUFFIX
    if os.path.lexists(lock) and _why_not_written(lock, os.R_OK | os.W_OK) == errno.EACCES:
        raise ConfigError(f"the lock file {lock!r} belongs to another user")
    _refuse_owners(address, directory or ".")


def _refuse_owners(address: Endpoint, directory: str) -> None:
    """Refuse an owner or a group that is not there, or whom this process may not give a file."""
    owner, group = number_of(address, user_number, address.owner), number_of(address, group_number, address.group)
    groups = {None, os.getegid(), *os.getgroups()}
    status = os.stat(directory)
    if status.st_mode & stat.S_ISGID:
        groups.add(status.st_gid)  # what is made there has this group already
    if (owner not in (None, os.geteuid()) or group not in groups) and not _may_give_files_away():
        why = f"this user may not give files to {address.owner or address.group!r}"
        raise ConfigError(f"{address}: {why}: it must be root, or a member of the group")


def _may_give_files_away() -> bool:
    """Tell whether this process may give its files to anybody, as root may unless it has lost that (CAP_CHOWN)."""
    try:
        with open(_STATUS, "rb") as file:
            for line in file:
                if line.startswith(b"CapEff:"):
                    return bool(int(line.split()[1], 16) >> _CAP_CHOWN & 1)
    except (OSError, ValueError, IndexError):
        pass  # a system that does not tell
    return os.geteuid() == 0


# Files.


def _why_not_appended(path: str) -> int | None:
    """Return the number of the error that opening a file at its end would give, making it if need be; or ``None``."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        directory = os.path.dirname(os.path.realpath(path))  # a link may name a file that is not there yet
        return _why_not_written(directory, os.W_OK | os.X_OK) if os.path.isdir(directory) else errno.ENOENT
    except OSError as error:
        return error.errno
    return errno.EISDIR if stat.S_ISDIR(status.st_mode) else _why_not_written(path, os.W_OK)


def _why_not_written(path: str, mode: int) -> int | None:
    """Return the number of the error that writing to what is there would give; ``None`` if this process may."""
    # With the effective user, since only that counts when something is opened, and its capabilities.
    if os.access(path, mode, effective_ids=os.access in os.supports_effective_ids):
        return None
    return errno.EROFS if os.statvfs(path).f_flag & os.ST_RDONLY else errno.EACCES
