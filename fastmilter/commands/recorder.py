"""Writing a recording beside the traffic, and never in its way.

The loop hands over what it read and goes on; a thread writes it. Between them is a queue of bounded size: what does not
fit is dropped and counted, and so is what the disk does not take. An outage is logged once when it begins and once when
it is over. A record is in the file whole or not at all.
"""

import contextlib
import json
import logging
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from fastmilter.commands.recordings import Direction
from fastmilter.errors import ConfigError

log = logging.getLogger(__name__)

QUEUE_BYTES: Final = 32 << 20
"""Most bytes of traffic that may wait for the disk."""

_OVERHEAD_BYTES: Final = 200
"""What a record costs besides its bytes, about."""

_BATCH_BYTES: Final = 1 << 20

RETRY_S: Final = 10.0
"""After a failure, how long nothing is written: on a disk that is nearly full a short record fits now and then."""

_Record = tuple[int, float, Direction, int, bytes, str]


def open_output(path: str) -> int:
    """Open the file of a recording for writing, readable by its user alone, and return the descriptor.

    A file that holds something is not touched: connections are counted from 1 in each recording. ``ConfigError`` if it
    cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"--out {path}: {error.strerror}") from None
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_size:
        os.close(descriptor)
        raise ConfigError(f"--out {path}: the file exists and is not empty: name another one")
    return descriptor


class Recorder:
    """A recording under way; ``close`` ends it."""

    def __init__(
        self, descriptor: int, *, limit: int = QUEUE_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Take over the descriptor of a file; ``limit``: most bytes that may wait."""
        self.written = 0
        """Records in the file."""
        self.dropped = 0
        """Records that are not, and will not be."""
        self._descriptor = descriptor
        self._is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._limit = limit
        self._clock = clock
        self._start = clock()
        self._waiting: deque[_Record] = deque()
        self._held = 0
        self._full = False
        self._torn = False
        self._failing = False
        self._retry_at = 0.0
        self._closing = False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._write_all, name="recorder", daemon=True)
        self._thread.start()

    def add(self, conn: int, direction: Direction, segment: int, data: bytes) -> None:
        """Record what one read returned. Does not wait."""
        self._put((conn, self._clock() - self._start, direction, segment, data, ""))

    def event(self, conn: int, direction: Direction, event: str) -> None:
        """Record what became of a connection. Does not wait."""
        self._put((conn, self._clock() - self._start, direction, 0, b"", event))

    def close(self, seconds: float) -> None:
        """Write what is waiting, for so many seconds at most, and close the file; the rest is dropped."""
        with self._change:
            self._closing = True
            self._change.notify()
        self._thread.join(seconds)
        if self._thread.is_alive():
            # The disk hangs. The thread is a daemon: the process need not wait for it, and the file is its own.
            with self._change:
                self.dropped += len(self._waiting)
                self._waiting.clear()
            log.error("the recording could not be finished within %.0f s: its disk does not answer", seconds)
            return
        os.close(self._descriptor)

    def _put(self, record: _Record) -> None:
        size = len(record[4]) + _OVERHEAD_BYTES
        with self._change:
            fits = self._held + size <= self._limit
            if fits:
                self._waiting.append(record)
                self._held += size
                self._change.notify()
            else:
                self.dropped += 1
            overflows = not fits and not self._full
            # The outage is over when there is room again, not when one record happens to fit.
            self._full = not fits or (self._full and self._held > self._limit // 2)
        if overflows:
            log.error("the disk is slower than the traffic: records are dropped")

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _write_all(self) -> None:
        while batch := self._next_batch():
            lines = [_line(record) for record in batch]
            written = self._write(lines) if not self._failing or self._clock() >= self._retry_at else 0
            with self._change:
                self._held -= sum(len(record[4]) + _OVERHEAD_BYTES for record in batch)
                self.written += written
                self.dropped += len(lines) - written

    def _next_batch(self) -> list[_Record]:
        """Wait for records; return some of them, none at the end."""
        batch: list[_Record] = []
        size = 0
        with self._change:
            while not self._waiting and not self._closing:
                self._change.wait()
            while self._waiting and size < _BATCH_BYTES:
                batch.append(self._waiting.popleft())
                size += len(batch[-1][4])
        return batch

    def _write(self, lines: list[bytes]) -> int:
        """Write lines; return how many of them are in the file whole."""
        data = (b"\n" if self._torn else b"") + b"".join(lines)
        done = 0
        failure: OSError | None = None
        while done < len(data) and failure is None:
            try:
                done += os.write(self._descriptor, memoryview(data)[done:])
            except OSError as error:
                failure = error
        if failure is None:
            if self._failing:
                log.warning("the recording goes on; %d records were dropped", self.dropped)
            self._failing = self._torn = False
            return len(lines)
        if not self._failing:
            log.error("the recording cannot be written: %s; records are dropped", failure.strerror)
        self._failing = True
        self._retry_at = self._clock() + RETRY_S
        return self._whole_lines(lines, done - self._torn)

    def _whole_lines(self, lines: list[bytes], done: int) -> int:
        """Count the lines that were written whole, and take back the beginning of the one that was not."""
        whole = 0
        while whole < len(lines) and done >= len(lines[whole]):
            done -= len(lines[whole])
            whole += 1
        if done < 0:  # not even the end of a torn line could be written
            return 0
        self._torn = done > 0
        if done and self._is_regular:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - done)
                self._torn = False
        return whole


def _line(record: _Record) -> bytes:
    conn, seconds, direction, segment, data, event = record
    entry: dict[str, object] = {"conn": conn, "t": round(seconds, 6), "dir": direction}
    entry |= {"event": event} if event else {"segment": segment, "hex": data.hex()}
    return json.dumps(entry).encode("ascii") + b"\n"
