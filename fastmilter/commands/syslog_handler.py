"""Log records for the syslog daemon."""

import logging
import os

from fastmilter.commands.log_handler import PATIENCE_S
from fastmilter.errors import ConfigError
from fastmilter.server.syslog import Syslog, SyslogWriter


class SyslogHandler(logging.Handler):
    """Sends records to a daemon, and loses some rather than wait for ever."""

    def __init__(self, syslog: Syslog) -> None:
        """Connect to the daemon; ``ConfigError`` if there is none: later it may come and go."""
        super().__init__()
        self._syslog = syslog
        self._writer = SyslogWriter(syslog)
        self._pid = os.getpid()
        self._stands_still = False
        error = self._writer.connect()
        if error is not None:
            self._writer.close()
            raise ConfigError(f"--syslog: nobody takes lines at {syslog.path}: {error.strerror}")

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record; wait for a daemon that is slow, once: not again before it has taken something."""
        try:
            self._begin_in_child()
            self._put(record.levelname.lower(), self.format(record))
            lost = self._writer.flush()
            if self._writer.is_blocked and not self._stands_still:
                lost += self._writer.drain(PATIENCE_S)
            self._stands_still = self._writer.is_blocked
            if lost:
                text = "the syslog daemon took no more: records are missing"
                self._put("warning", f"warning {__name__}: {text} lost={lost}")
                self._writer.flush()
        except Exception:  # noqa: BLE001 - as every handler of logging
            self.handleError(record)

    def _begin_in_child(self) -> None:
        """Begin anew after a fork: what waited then is sent by the parent, and would come twice."""
        if self._pid != os.getpid():
            self._writer.close()
            self._writer = SyslogWriter(self._syslog)
            self._pid = os.getpid()
            self._stands_still = False

    def _put(self, level: str, text: str) -> None:
        self._writer.put((self._syslog.head(level) + text).encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        """Send what waits, as far as that goes."""
        self._begin_in_child()
        self._writer.drain(PATIENCE_S)
        self._writer.close()
        super().close()
