"""As whom filters run: the user and the group that workers become, and what is not allowed otherwise.

Names are looked up by the master, before anything is bound. A worker drops its privileges right after its birth, before
any code of the user is imported, and makes sure that they are gone. The master keeps its own: it binds what a reload
asks for, removes the paths of its sockets, and starts workers, which need privileges to drop; it runs no code of the
user and reads no byte of a peer.

Errors: ``ConfigError``.
"""

import grp
import logging
import os
import pwd
import sys
from dataclasses import dataclass
from typing import Final

from fastmilter.errors import ConfigError

log = logging.getLogger(__name__)

_PR_SET_NO_NEW_PRIVS: Final = 38  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom a worker becomes."""

    name: str
    """The user, as it was given."""
    uid: int
    gid: int
    groups: tuple[int, ...]
    """All groups, ``gid`` and the supplementary ones."""
    home: str | None
    """The home directory, if the user has an entry in the user database."""


def identity_for(user: str | None, group: str | None, *, allow_root: bool) -> Identity | None:
    """Return whom the workers of this process are to become; ``None``: who it is itself.

    ``user`` and ``group`` are names or numbers. ``ConfigError`` if there is no such user or group, if this process may
    not become it, or if filters would run as root and ``allow_root`` does not say that this is meant.
    """
    if user is None:
        if group is not None:
            raise ConfigError("--group goes with --user: name the user too")
        if os.geteuid() == 0 and not allow_root:
            raise ConfigError(
                "the filter would run as root: name the user that it shall run as (--user), start the server as that"
                " user (User= of systemd, USER of a Dockerfile), or say that root is meant (--allow-root)"
            )
        return None
    identity = _look_up(user, group)
    if identity.uid == 0 and not allow_root:
        raise ConfigError(f"--user {user} would run the filter as root: if that is meant, say --allow-root")
    if os.geteuid() != 0:
        if (identity.uid, identity.gid) != (os.geteuid(), os.getegid()):
            raise ConfigError(
                f"only root can run the filter as user {user!r}, not the user {os.geteuid()} that this is"
            )
        return None
    return identity


def _look_up(user: str, group: str | None) -> Identity:
    gid = None if group is None else group_number(group)
    try:
        entry = pwd.getpwuid(int(user)) if is_number(user) else pwd.getpwnam(user)
    except (KeyError, ValueError):
        if not is_number(user):
            raise ConfigError(f"there is no user {user!r} on this machine") from None
        if gid is None:
            raise ConfigError(f"user {user} is not in the user database: name its group too (--group)") from None
        return Identity(user, int(user), gid, (gid,), None)
    gid = entry.pw_gid if gid is None else gid
    return Identity(user, entry.pw_uid, gid, tuple(os.getgrouplist(entry.pw_name, gid)), entry.pw_dir)


def is_number(text: str) -> bool:
    """Tell whether a user or a group is given by its number, from 0 to 2**32 - 2."""
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < 2**32 - 1


def user_number(user: str) -> int:
    """Return the number of a user; ``ConfigError`` if there is none of that name."""
    try:
        return int(user) if is_number(user) else pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):  # ValueError: a NUL in it
        raise ConfigError(f"there is no user {user!r} on this machine") from None


def group_number(group: str) -> int:
    """Return the number of a group; ``ConfigError`` if there is none of that name."""
    try:
        return int(group) if is_number(group) else grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):
        raise ConfigError(f"there is no group {group!r} on this machine") from None


def drop(identity: Identity) -> None:
    """Become ``identity`` for good, with everything this process starts; ``ConfigError`` if that cannot be."""
    _forbid_new_privileges()  # first: what it imports may be readable for root alone
    try:
        os.setgroups(identity.groups)
        os.setgid(identity.gid)  # of root: the real, the effective and the saved one
        os.setuid(identity.uid)
    except OSError as error:
        why = f"cannot become user {identity.name!r}: {error.strerror}"
        raise ConfigError(f"{why} (root needs CAP_SETUID and CAP_SETGID for that)") from error
    _verify(identity)
    if identity.home is not None:
        os.environ["HOME"] = identity.home
        os.environ["USER"] = os.environ["LOGNAME"] = pwd.getpwuid(identity.uid).pw_name
    # Where modules come from: what is not readable would only be "not found" later.
    for place in (os.getcwd(), os.path.dirname(os.__file__), os.path.dirname(__file__)):
        if not os.access(place, os.R_OK | os.X_OK):
            log.warning("user %r may not read %r: imports from there will fail", identity.name, place)


def _forbid_new_privileges() -> None:
    """Let no program that is started from here gain privileges, be it set-user-ID (Linux)."""
    if sys.platform.startswith("linux"):
        import ctypes  # for this alone: most servers are started as the user that they shall run as

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise ConfigError(f"cannot give up new privileges: {os.strerror(ctypes.get_errno())}")


def _verify(identity: Identity) -> None:
    """Make sure that the privileges are gone and do not come back."""
    uids, gids = {os.getuid(), os.geteuid()}, {os.getgid(), os.getegid()}
    if hasattr(os, "getresuid"):  # not on macOS
        uids, gids = set(os.getresuid()), set(os.getresgid())
    if uids != {identity.uid} or gids != {identity.gid} or set(os.getgroups()) != set(identity.groups):
        raise ConfigError(f"this process did not become user {identity.name!r}: {uids}, {gids}, {os.getgroups()}")
    if identity.uid == 0:
        return
    try:
        os.setuid(0)
    except PermissionError:
        return
    raise ConfigError(f"user {identity.name!r} can become root again")
