"""What an MTA sends while a callback of its connection runs: in memory, what does not fit there in a temporary file.

If reading stopped, both MTAs would fail to write in the middle of a message, and telling them that work goes on would
not help.
"""

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

    @property
    def is_full(self) -> bool:
        """Whether no more should be put in."""
        return self.size >= sum(self._room)

    def put(self, data: bytes) -> None:
        """Put ``data`` behind what is there; ``OSError`` if it cannot be written."""
        if self._file is None and self._in_memory + len(data) > self._room.memory:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed when it was read
        if self._file is None:
            self._memory.append(data)
            self._in_memory += len(data)
        else:
            self._file.seek(0, 2)
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
            self._in_file += len(data)
        self.size += len(data)

    def take(self, most: int) -> bytes:
        """Take away the next bytes, ``most`` or a little more; nothing if there are none."""
        taken: list[bytes] = []
        count = 0
        while self._memory and count < most:
            piece = self._memory.popleft()
            taken.append(piece)
            count += len(piece)
        self._in_memory -= count
        if not self._memory and self._file is not None and count < most:
            self._file.seek(-self._in_file, 2)
            piece = self._file.read(min(most - count, self._in_file))
            taken.append(piece)
            count += len(piece)
            self._in_file -= len(piece)
            if not self._in_file:
                self.close()
        self.size -= count
        return b"".join(taken)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
