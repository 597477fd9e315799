"""How processes end, and what that says.

A status is an exit code, or the negative number of the signal that ended the process.
"""

import signal
from typing import Final

EXIT_OK: Final = 0
EXIT_SOFTWARE: Final = 70
"""A bug (EX_SOFTWARE of sysexits.h)."""
EXIT_CONFIG: Final = 78
"""Something in the configuration or the filter cannot work (EX_CONFIG)."""

_CRASHES: Final = frozenset(
    -number for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE, signal.SIGSYS)
)
"""Deaths by a signal that a program brings upon itself; other signals were sent by somebody."""


def kind_of_end(status: int) -> str:
    """Return why a process ended, in a word.

    >>> kind_of_end(0), kind_of_end(-9), kind_of_end(-11), kind_of_end(1), kind_of_end(78)
    ('drained', 'killed', 'crashed', 'failed', 'config')
    """
    if status < 0:
        return "killed" if was_killed(status) else "crashed"
    return {EXIT_OK: "drained", EXIT_CONFIG: "config"}.get(status, "failed")


def was_killed(status: int) -> bool:
    """Tell whether somebody else ended the process: it is no fault of the program."""
    return status < 0 and status not in _CRASHES


def how(status: int) -> str:
    """Say how a process ended.

    >>> how(-9), how(78), how(1)
    ('died of SIGKILL', 'could not use the configuration', 'ended with status 1')
    """
    if status == EXIT_CONFIG:
        return "could not use the configuration"
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"died of {signal.Signals(-status).name}"
    except ValueError:
        return f"died of signal {-status}"
