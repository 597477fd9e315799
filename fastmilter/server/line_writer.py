"""Lines for a descriptor that many processes write to, such as standard error: whole, without waiting for its reader.

What is not taken now waits here, up to a limit; lines beyond it are lost, and counted. The descriptor cannot simply be
made non-blocking: that is a property of what is open, not of the process, so it would hold for the master, the other
workers and the shell as well. How else one does not wait depends on what it is:

- a socket (of systemd's journal) is asked not to wait with each send;
- a pipe is handed what stands ready in a pipe of our own (``splice``): all of it or nothing, however many processes do
  the same in that moment. To look first whether there is room would not do: another worker may take it;
- a terminal is opened once more, for us alone;
- a file is written to: it is full at once or never;
- for all else (a pipe where there is no ``splice``, a terminal of another user) it is looked first if there is room.

A write of at most PIPE_BUF bytes to a pipe is one piece for whoever reads it, and so is a write to a file that all have
inherited. Only whole lines are written together.
"""

import errno
import os
import select
import stat
import time
from collections import deque
from typing import Final

from fastmilter.server._sockets import send_now

WAITING_BYTES: Final = 1 << 20
"""How much may wait by default: some 5,000 lines."""

_PIECE_BYTES: Final = select.PIPE_BUF
_FILE_PIECE_BYTES: Final = 1 << 16


class LineWriter:
    """Lines that wait for a descriptor. A line is at most PIPE_BUF bytes with its newline, or it may be torn."""

    def __init__(self, descriptor: int, *, limit: int = WAITING_BYTES, together: bool = True) -> None:
        """Write to ``descriptor``, which stays the caller's; let at most ``limit`` bytes wait.

        ``together``: several lines may leave in one write; not where each is a datagram.
        """
        self.waiting = 0
        """How many bytes wait."""
        self.is_blocked = False
        """Whether the last ``flush`` left some because there was no room; then wait for ``descriptor`` to have some."""
        self._lines: deque[bytes] = deque()
        self._piece = b""  # whole lines that are being written, or what is left of them
        self._limit = limit
        self._lost = 0
        self._overflows = False  # until half of what may wait is free again
        kind = os.fstat(descriptor).st_mode
        self._own_terminal = _opened_again(descriptor) if stat.S_ISCHR(kind) else None
        self.descriptor = descriptor if self._own_terminal is None else self._own_terminal
        self._is_file = stat.S_ISREG(kind)
        self._is_socket = stat.S_ISSOCK(kind)
        self._most = 0 if not together else _FILE_PIECE_BYTES if self._is_file else _PIECE_BYTES
        self._own_pipe = os.pipe() if stat.S_ISFIFO(kind) and hasattr(os, "splice") else None
        self._staged = False  # the piece is in the pipe of our own
        self._room = select.poll()
        self._room.register(self.descriptor, select.POLLOUT)

    def put(self, line: bytes) -> None:
        """Have a line written by the next ``flush``."""
        size = len(line)
        if self._overflows or self.waiting + size > self._limit:
            self._overflows = True
            self._lost += 1
        else:
            self._lines.append(line)
            self.waiting += size

    def flush(self) -> int:
        """Write what is taken now; return how many lines were lost, once: when it is certain that no more are.

        What fails for whatever reason (a full disk, a reader that has gone) waits for the next call.
        """
        try:
            while self.waiting:
                if not self._piece:
                    self._piece = self._next_piece()
                count = self._write(self._piece)
                self._piece = self._piece[count:]
                self.waiting -= count
            self.is_blocked = False
        except OSError as error:
            self.is_blocked = isinstance(error, BlockingIOError)
        if not self._lost or (self._overflows and self.waiting > self._limit // 2):
            return 0
        self._overflows = False
        lost, self._lost = self._lost, 0
        return lost

    def drain(self, seconds: float) -> int:
        """Write what waits, for so many seconds at most if the reader is slow; return how many lines were lost.

        Those that wait still are: it is the end. What may have been written in part stays.
        """
        deadline = time.monotonic() + seconds
        lost = 0
        while self.waiting:
            lost += self.flush()
            left = deadline - time.monotonic()
            if not self.is_blocked or left <= 0:
                break
            self._room.poll(left * 1000)
        if not self._most and self._piece:  # a datagram, of which nothing has left
            self._lost += 1
            self._piece = b""
        lost += self._lost + len(self._lines)
        self._lines.clear()
        self.waiting = len(self._piece)
        self._lost, self._overflows = 0, False
        return lost

    def close(self) -> None:
        """Give back what was opened here; what waits is lost."""
        if self._own_pipe is not None:
            for end in self._own_pipe:
                os.close(end)
            self._own_pipe = None
        if self._own_terminal is not None:
            os.close(self._own_terminal)
            self._own_terminal = None

    def _next_piece(self) -> bytes:
        """Take whole lines that are written together."""
        lines = self._lines
        first = lines.popleft()
        size = len(first)
        if not lines or size + len(lines[0]) > self._most:
            return first
        piece = [first]
        while lines and size + len(lines[0]) <= self._most:
            size += len(lines[0])
            piece.append(lines.popleft())
        return b"".join(piece)

    def _write(self, piece: bytes) -> int:
        """Write once, without waiting; return how many bytes left. ``OSError`` if none did."""
        if self._is_file:
            return os.write(self.descriptor, piece)
        if self._is_socket:
            return self._send(piece)
        if self._own_pipe is not None:
            return self._splice(piece)
        if not self._room.poll(0):
            raise BlockingIOError
        return os.write(self.descriptor, piece)

    def _send(self, piece: bytes) -> int:
        try:
            return send_now(self.descriptor, piece)
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
        # No datagram of this socket can be as long. What never leaves must not hold up what is behind it.
        self._lost += piece.count(b"\n") if self._most else 1
        return len(piece)

    def _splice(self, piece: bytes) -> int:
        assert self._own_pipe is not None
        source, sink = self._own_pipe
        if not self._staged:
            os.write(sink, piece)  # which is empty, so there is room
            self._staged = True
        count = os.splice(source, self.descriptor, len(piece), flags=os.SPLICE_F_NONBLOCK)
        self._staged = count < len(piece)
        return count


def _opened_again(descriptor: int) -> int | None:
    """Return a descriptor of our own for a terminal, non-blocking; ``None`` if it is none, or cannot be opened."""
    try:
        return os.open(os.ttyname(descriptor), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
