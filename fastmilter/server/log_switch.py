"""How the master logs, over a reload: as the new settings say from its begin, and as before if it fails."""

import contextlib
import os
from collections.abc import Callable

from fastmilter.errors import ConfigError
from fastmilter.server.log_file import STDERR, let_be_stderr
from fastmilter.server.settings import Settings


class LogSwitch:
    """Which settings the log follows; the master's."""

    def __init__(self, settings: Settings, set_up: Callable[[Settings], None]) -> None:
        """Begin with the log as ``settings`` have it; ``set_up`` brings about level, format and syslog of others."""
        self._settings = settings
        self._set_up = set_up
        self._tried: Settings | None = None
        self._former_stderr = -1

    def begin(self, settings: Settings) -> None:
        """Log as ``settings`` say, until ``accept`` or ``take_back``; ``ConfigError`` if that cannot be done."""
        self._tried = settings
        if settings.log_file != self._settings.log_file:
            self._former_stderr = os.dup(STDERR)
        self._set_up(settings)

    def accept(self) -> bool:
        """Stay with what was begun; tell whether the log file is another one now."""
        is_moved = self._forget(restore=False)
        if self._tried is not None:
            self._settings, self._tried = self._tried, None
        return is_moved

    def take_back(self) -> bool:
        """Log as before what was begun, if anything was; tell whether the log file was another one meanwhile."""
        if self._tried is None:
            return False
        self._tried = None
        is_moved = self._forget(restore=True)
        with contextlib.suppress(ConfigError):  # syslog has gone meanwhile: better elsewhere than nowhere
            self._set_up(self._settings)
        return is_moved

    def forget_in_child(self) -> None:
        """Let go of what is kept for ``take_back``, in a child of the master."""
        self._forget(restore=False)

    def _forget(self, *, restore: bool) -> bool:
        former, self._former_stderr = self._former_stderr, -1
        if former < 0:
            return False
        if restore:
            let_be_stderr(former)
        else:
            os.close(former)
        return True
