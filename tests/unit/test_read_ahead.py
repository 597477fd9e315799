"""Bytes that wait for a callback: nothing lost, nothing out of order, memory bounded."""

import os
import random
import tempfile
from pathlib import Path

import pytest

from fastmilter.server import read_ahead
from fastmilter.server.read_ahead import ReadAhead


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_order_whatever_the_sizes() -> None:
    dice = random.Random(4711)
    ahead = ReadAhead()
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
    ahead = ReadAhead()
    piece = bytes(1 << 16)
    for _ in range(read_ahead.MEMORY_BYTES // len(piece)):
        ahead.put(piece)
    assert open_files() == before
    ahead.put(piece)
    assert open_files() == before + 1
    assert ahead._in_memory == read_ahead.MEMORY_BYTES
    while ahead.take(1 << 18):
        pass
    assert open_files() == before
    ahead.put(b"again")
    assert ahead.take(10) == b"again"
    assert list(tmp_path.iterdir()) == []


def test_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "MOST_BYTES", 1000)
    ahead = ReadAhead()
    ahead.put(bytes(999))
    assert not ahead.is_full
    ahead.put(b"x")
    assert ahead.is_full
    ahead.take(1)
    assert not ahead.is_full
