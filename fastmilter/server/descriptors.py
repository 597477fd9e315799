"""How many connections the limit on open files allows (RLIMIT_NOFILE), and raising it.

Each connection needs a descriptor. The master raises its soft limit to what its workers need, which inherit it; the
hard limit is the administrator's, and not touched even by root.

Errors: ``ConfigError``.
"""

import errno
import logging
import resource
from typing import Final

from fastmilter.errors import ConfigError
from fastmilter.server.settings import Settings

log = logging.getLogger(__name__)

CONNECTIONS: Final = 10_000
"""The most connections of a worker unless told: SMTP sessions of a large gateway."""

RESERVED: Final = 32
"""What a worker keeps for itself and its filter: standard streams, the loop, log files, data bases."""

_SHORTAGE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_MASTER_OWN: Final = 64
_MASTER_PER_WORKER: Final = 6  # the channel, the process and the pipe for its stack, of two generations


def connections_of_a_worker(settings: Settings, limit: int | None = None) -> int:
    """Return the most connections that a worker may have; with "auto", as many as it has descriptors for.

    ``limit``: descriptors of a process; default: the soft limit of this one.
    """
    if settings.max_connections_per_worker:
        return settings.max_connections_per_worker
    limit = _finite(resource.getrlimit(resource.RLIMIT_NOFILE)[0]) if limit is None else limit
    return max(1, min(CONNECTIONS, limit - RESERVED - len(settings.listen)))


def shortage(settings: Settings, hard: int | None = None) -> str | None:
    """Return what the hard limit on open files does not allow, and what to do about it; ``None``: it is enough.

    ``hard``: descriptors of a process; default: the hard limit of this one.
    """
    hard = _limits()[1] if hard is None else hard
    connections = connections_of_a_worker(settings, hard)
    needed = _needed(settings, connections)
    if settings.max_connections_per_worker:
        if needed <= hard:
            return None
        return (
            f"{connections} connections per worker need {needed} open files, and the hard limit is {hard}:"
            f" raise it (LimitNOFILE= of systemd, ulimit -Hn) or lower --max-connections-per-worker"
        )
    if connections >= CONNECTIONS:
        return None
    return (
        f"the hard limit of {hard} open files leaves each worker {connections} connections: raise it to"
        f" {_needed(settings, CONNECTIONS)} (LimitNOFILE= of systemd, ulimit -Hn)"
    )


def hint_on(error: OSError) -> str:
    """Return what to do about an error, as the end of a line of the log, "" if more descriptors would not help."""
    return "; raise the limits of this process" if error.errno in _SHORTAGE else ""


def provide(settings: Settings) -> None:
    """Raise the soft limit to what is needed; ``ConfigError`` if the hard limit is too low for what was asked for."""
    soft, hard = _limits()
    why = shortage(settings, hard)
    if why is not None and settings.max_connections_per_worker:
        raise ConfigError(why)
    _raise_to(_needed(settings, connections_of_a_worker(settings, hard)), soft, hard)


def make_room_for(workers: int) -> None:
    """Raise the soft limit to what a master of so many workers needs, as far as it may."""
    _raise_to(_of_master(workers), *_limits())


def _raise_to(needed: int, soft: int, hard: int) -> None:
    wanted = min(needed, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        log.debug("open files of each process: %d instead of %d", wanted, soft)


def _needed(settings: Settings, connections: int) -> int:
    """Return how many descriptors the busiest process needs: a worker, or the master of many."""
    return max(connections + RESERVED + len(settings.listen), _of_master(settings.workers))


def _of_master(workers: int) -> int:
    return _MASTER_OWN + _MASTER_PER_WORKER * workers


def _limits() -> tuple[int, int]:
    """Return the soft and the hard limit of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _finite(soft), _finite(hard)


def _finite(limit: int) -> int:
    """Return a limit as a number that can be reckoned with."""
    return 1 << 30 if limit == resource.RLIM_INFINITY else limit
