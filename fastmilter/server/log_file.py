"""The log file: it takes the place of standard error, so that whatever is written there comes into it.

So tracebacks of the interpreter, what a filter prints there and the lines of all loggers need nothing of their own, and
all processes of a server append to the same open file. To open it anew, when ``logrotate`` has moved it, is the
business of every process for itself.
"""

import logging
import os
import sys
from typing import Final

from fastmilter.errors import ConfigError

log = logging.getLogger(__name__)

STDERR: Final = 2
NO_FILE: Final = "-"
"""What stands for no file."""

_MODE: Final = 0o640


def open_log_file(path: str | None) -> None:
    """Let standard error be the end of a file from now on; ``ConfigError`` if it cannot be opened, nothing for none."""
    if path is None or path == NO_FILE:
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY, _MODE)
    except OSError as error:
        raise ConfigError(f"--log-file {path}: {error.strerror}") from error
    sys.stderr.flush()
    os.dup2(descriptor, STDERR)  # inheritable, as standard error is for the programs that a filter starts
    os.close(descriptor)


def reopen_log_file(path: str | None) -> None:
    """Open the log file anew, in a process that runs; where that fails the log goes on as it was, and says so."""
    try:
        open_log_file(path)
    except ConfigError as error:
        log.error("the log file was not opened anew: %s", error)
