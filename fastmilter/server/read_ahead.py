"""What an MTA sends while a callback of its connection runs: in memory, what does not fit there in a temporary file.

If reading stopped, both MTAs would fail to write in the middle of a message, and telling them that work goes on would
not help.
"""

import os
import tempfile
from collections import deque
from typing import IO, NamedTuple


class Room(NamedTuple):
    """How much of a connection is held, in bytes; beyond that its MTA has to wait, and may give up."""

    memory: int
    disk: int


class ReadAhead:
    """Bytes in the order in which they came."""

    def __init__(self, room: Room) -> None:
        """Begin with nothing; no file is made before it is needed."""
        self._room = room
        self.size = 0
        """How many bytes there are."""
        self._memory: deque[bytes] = deque()
        self._in_memory = 0
        self._file: IO[bytes] | None = None
        self._in_file = 0
        self._last = b""  # what could not be written, behind all else
        self.trouble: OSError | None = None
        """Why no more can be written: no room on the disk, no descriptor left."""

    @property
    def is_full(self) -> bool:
        """Whether no more should be put in; what is put in all the same is not lost."""
        return self.trouble is not None or self.size >= sum(self._room)

    def put(self, data: bytes) -> None:
        """Put ``data`` behind what is there."""
        self.size += len(data)
        if self.trouble is not None:
            self._last += data
        elif self._file is None and self._in_memory + len(data) <= self._room.memory:
            self._memory.append(data)
            self._in_memory += len(data)
        else:
            self._write(data)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed when it was read
            while rest:
                self._file.seek(0, os.SEEK_END)
                count = self._file.write(rest)
                self._in_file += count
                rest = rest[count:]
        except OSError as error:
            self.trouble = error
            self._last = bytes(rest)

    def take(self, most: int) -> bytes:
        """Take away the next bytes, ``most`` or a little more; nothing if there are none."""
        taken: list[bytes] = []
        count = 0
        while self._memory and count < most:
            piece = self._memory.popleft()
            taken.append(piece)
            count += len(piece)
        self._in_memory -= count
        if not self._memory and self._in_file and self._file is not None and count < most:
            self._file.seek(-self._in_file, os.SEEK_END)
            piece = self._file.read(min(most - count, self._in_file))
            taken.append(piece)
            count += len(piece)
            self._in_file -= len(piece)
            if not self._in_file:
                self.close()
        if not self._memory and not self._in_file and count < most:
            taken.append(self._last)
            count += len(self._last)
            self._last, self.trouble = b"", None
            self.close()  # a file that nothing could be written to
        self.size -= count
        return b"".join(taken)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
