"""Bytes that wait for a callback: nothing lost, nothing out of order, memory bounded."""

import os
import random
import tempfile
from pathlib import Path

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
