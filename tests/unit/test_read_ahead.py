"""Bytes that wait for a callback: nothing lost, nothing out of order, memory bounded."""

import errno
import io
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest

from fastmilter.server.read_ahead import ReadAhead, Room

MEMORY = 1 << 18
ROOM = Room(MEMORY, 1 << 28)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_order_whatever_the_sizes() -> None:
    dice = random.Random(4711)
    ahead = ReadAhead(ROOM)
    put = taken = b""
    for _ in range(300):
        if dice.random() < 0.55:
            piece = dice.randbytes(dice.choice([1, 100, 5000, 70000]))
            ahead.put(piece)
            put += piece
        else:
            taken += ahead.take(dice.choice([1, 3000, 1 << 18]))
        assert ahead.size == len(put) - len(taken)
    while piece := ahead.take(1 << 16):
        taken += piece
    assert taken == put
    assert ahead.size == 0


def test_much_of_it_is_in_a_file_that_goes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = open_files()
    ahead = ReadAhead(ROOM)
    piece = bytes(1 << 16)
    for _ in range(MEMORY // len(piece)):
        ahead.put(piece)
    assert open_files() == before
    ahead.put(piece)
    assert open_files() == before + 1
    assert ahead._in_memory == MEMORY
    while ahead.take(1 << 18):
        pass
    assert open_files() == before
    ahead.put(b"again")
    assert ahead.take(10) == b"again"
    assert list(tmp_path.iterdir()) == []


def test_a_limit() -> None:
    ahead = ReadAhead(Room(memory=600, disk=400))
    ahead.put(bytes(999))
    assert not ahead.is_full
    ahead.put(b"x")
    assert ahead.is_full
    ahead.take(1)
    assert not ahead.is_full
    ahead.close()


def test_what_cannot_be_written_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: none_left())
    before = open_files()
    ahead = ReadAhead(Room(memory=10, disk=1000))
    ahead.put(b"0123456789")
    assert (ahead.is_full, ahead.trouble) == (False, None)
    ahead.put(b"abc")
    assert ahead.is_full
    assert str(ahead.trouble) == "[Errno 24] Too many open files"
    ahead.put(b"def")
    assert (ahead.take(4), ahead.take(100), ahead.take(100)) == (b"0123456789", b"abcdef", b"")
    assert (ahead.size, ahead.is_full, open_files()) == (0, False, before)


def test_a_disk_that_is_full_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    class Small(io.BytesIO):
        def write(self, data: Any) -> int:
            room = 25 - len(self.getbuffer())
            if room <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(memoryview(data)[:room])

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Small())
    data = bytes(range(100))
    ahead = ReadAhead(Room(memory=10, disk=1000))
    for start in range(0, 40, 10):
        ahead.put(data[start : start + 10])
    assert ahead.is_full
    assert ahead.size == 40
    taken = b""
    while piece := ahead.take(7):
        taken += piece
    assert taken == data[:40]
    ahead.put(data[:50])
    assert ahead.take(100) == data[:50], "a file is tried again"
