"""Log records on standard error, whose reader may be slow or stand still.

A pipe that is full and is not read would stop whoever writes a record, for ever: a worker with all its connections, or
the master that was told to stop. So the reader has some time; a record that it does not make room for in that time is
lost, and counted.
"""

import logging
import select
from typing import TextIO

PATIENCE_S = 1.0
"""How long a reader that stands still is waited for, once: not again before it has read something."""


class PatientHandler(logging.StreamHandler[TextIO]):
    """Writes to a stream that may be a pipe, and loses records rather than wait for ever."""

    def __init__(self, stream: TextIO, *, patience_s: float = PATIENCE_S) -> None:
        """Write to ``stream``; if it has no descriptor there is nothing to wait for."""
        super().__init__(stream)
        self._patience_s = patience_s
        self._lost = 0
        self._room: select.poll | None = select.poll()
        try:
            self._room.register(stream.fileno(), select.POLLOUT)
        except (OSError, ValueError):
            self._room = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, and before it how many are missing."""
        if self._room is not None and not self._room.poll(0 if self._lost else self._patience_s * 1000):
            self._lost += 1
            return
        if self._lost:
            lost, self._lost = self._lost, 0
            text = "standard error was full for more than %.0f s: records are missing lost=%d"
            missing = logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (self._patience_s, lost), None)
            super().emit(missing)
        super().emit(record)
