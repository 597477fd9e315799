"""The log file: it takes the place of standard error, so that whatever is written there comes into it.

So tracebacks of the interpreter, what a filter prints there and the lines of all loggers need nothing of their own, and
all processes of a server append to the same open file. When ``logrotate`` has moved it, the master opens it anew, and
hands it to its children: they may not be allowed to open it themselves (``--user``).
"""

import os
import sys
from collections.abc import Iterable
from typing import Final

from fastmilter.errors import ConfigError

STDERR: Final = 2

_MODE: Final = 0o640


def open_log_file(path: str | None) -> None:
    """Let standard error be the end of a file from now on; ``ConfigError`` if it cannot be opened, nothing for none."""
    if path is None:
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY, _MODE)
    except OSError as error:
        raise ConfigError(f"--log-file {path}: {error.strerror}") from error
    let_be_stderr(descriptor)


def take_log_files(descriptors: Iterable[int]) -> None:
    """Let standard error be the last of the files that the master has handed over, if there is one."""
    for descriptor in descriptors:
        let_be_stderr(descriptor)


def let_be_stderr(descriptor: int) -> None:
    """Let standard error be an open file, whose descriptor is closed."""
    sys.stderr.flush()
    os.dup2(descriptor, STDERR)  # inheritable, as standard error is for the programs that a filter starts
    os.close(descriptor)
