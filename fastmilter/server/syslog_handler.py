"""Log records for the syslog daemon: sent at once or, where it takes none now, when the loop looks again."""

import logging
import os
from typing import Final

from fastmilter.errors import ConfigError
from fastmilter.server.syslog import TOOK_NO_MORE, Syslog, SyslogWriter, tell_on_stderr

CLOSE_S: Final = 1.0
"""How long a process that ends waits for a daemon that is slow."""
TELL_S: Final = 0.2
"""How long it waits then, to tell how many records were lost."""


def send_what_waits() -> None:
    """Send the records that a daemon did not take before, as far as it does now; to be called every second or so."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, SyslogHandler):
            handler.flush()


class SyslogHandler(logging.Handler):
    """Sends records to a daemon, and waits for none; records that are too many to wait are lost, and counted."""

    def __init__(self, syslog: Syslog) -> None:
        """Connect to the daemon; ``ConfigError`` if there is none: later it may come and go."""
        super().__init__()
        self._syslog = syslog
        self._writer = SyslogWriter(syslog)
        self._pid = os.getpid()
        error = self._writer.connect()
        if error is not None:
            self._writer.close()
            raise ConfigError(f"--syslog: nobody takes lines at {syslog.path}: {error.strerror}")

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record, or have it wait."""
        try:
            self._begin_in_child()
            self._put(record.levelname.lower(), self.format(record))
            self._send()
        except Exception:  # noqa: BLE001 - as every handler of logging
            self.handleError(record)

    def flush(self) -> None:
        """Send what waits, as far as the daemon takes it now."""
        self.acquire()
        try:
            self._begin_in_child()
            self._send()
        finally:
            self.release()

    def _send(self) -> None:
        lost = self._writer.flush()
        if lost:
            self._tell(lost)
            self._writer.flush()

    def _tell(self, lost: int) -> None:
        text = f"{TOOK_NO_MORE}: records are missing lost=%d"
        record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (lost,), None)
        self._put("warning", self.format(record))

    def _begin_in_child(self) -> None:
        """Begin anew after a fork: what waited then is sent by the parent, and would come twice."""
        if self._pid != os.getpid():
            self._writer.close()
            self._writer = SyslogWriter(self._syslog)
            self._pid = os.getpid()

    def _put(self, level: str, text: str) -> None:
        self._writer.put((self._syslog.head(level) + text).encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        """Send what waits, and tell what was lost; wait for a slow daemon, but not for long."""
        self._begin_in_child()
        lost = self._writer.drain(CLOSE_S)
        if lost:
            self._tell(lost)
            if self._writer.drain(TELL_S):
                tell_on_stderr(f"{TOOK_NO_MORE}: records are missing lost={lost} pid={self._pid}")
        self._writer.close()
        super().close()
