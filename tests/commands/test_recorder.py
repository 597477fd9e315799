"""The recorder: what is in the file, what is dropped, and what it says of it."""

import json
import logging
import os
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fastmilter.commands.recorder import RETRY_S, Recorder, open_output
from fastmilter.commands.recordings import TO_FILTER, TO_MTA, open_input, read_pieces
from fastmilter.errors import ConfigError
from tests.process.harness import wait_until

WAIT_S = 30.0


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_file_is_what_was_recorded(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    ticks = iter([10.0, 10.0, 10.25, 10.5])
    recorder = Recorder(open_output(str(path)), clock=lambda: next(ticks))
    recorder.event(1, TO_FILTER, "open")
    recorder.add(1, TO_FILTER, 0, b"\x00\xff")
    recorder.add(1, TO_MTA, 0, b"")
    recorder.close(WAIT_S)
    assert path.read_text() == (
        '{"conn": 1, "t": 0.0, "dir": "mta>filter", "event": "open"}\n'
        '{"conn": 1, "t": 0.25, "dir": "mta>filter", "segment": 0, "hex": "00ff"}\n'
        '{"conn": 1, "t": 0.5, "dir": "filter>mta", "segment": 0, "hex": ""}\n'
    )
    assert (recorder.written, recorder.dropped) == (3, 0)
    with open_input(str(path)) as file:
        assert [piece.problem for piece in read_pieces(file, None)] == [""] * 3


def test_only_its_user_can_read_it(tmp_path: Path) -> None:
    os.close(open_output(str(tmp_path / "out")))
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o600


def test_a_recording_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("something")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        open_output(str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="No such file or directory"):
        open_output(str(tmp_path / "nothing" / "out"))
    assert (tmp_path / "out").read_text() == "something"


def test_a_full_disk_costs_records_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(open_output("/dev/full"))
    for segment in range(100):
        recorder.add(1, TO_FILTER, segment, b"x" * 100)
    recorder.close(WAIT_S)
    assert (recorder.written, recorder.dropped) == (0, 100)
    (told,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == "the recording cannot be written: No space left on device; records are dropped"


class Blocked:
    """A file whose disk does not answer until it is told to: a pipe that nobody reads."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def read_all(self) -> bytes:
        data = b""
        while piece := os.read(self.reader, 1 << 20):
            data += piece
        return data


def test_a_disk_that_hangs_costs_records_but_no_time_and_no_memory(caplog: pytest.LogCaptureFixture) -> None:
    blocked = Blocked()
    recorder = Recorder(blocked.writer, limit=1 << 20)
    for segment in range(1000):
        recorder.add(1, TO_FILTER, segment, b"x" * 60_000)  # returns, though nobody takes the 60 MB
    assert recorder.dropped >= 1000 - (1 << 20) // 60_000
    dropped = recorder.dropped
    content: list[bytes] = []
    reader = threading.Thread(target=lambda: content.append(blocked.read_all()))
    reader.start()
    recorder.close(WAIT_S)
    reader.join(WAIT_S)
    os.close(blocked.reader)
    written = [json.loads(line) for line in content[0].splitlines()]
    assert len(written) == recorder.written == 1000 - dropped
    assert [entry["segment"] for entry in written] == list(range(len(written)))
    told = [record.getMessage() for record in caplog.records]
    assert told == ["the disk is slower than the traffic: records are dropped"]


def test_the_end_does_not_wait_for_a_disk_that_hangs(caplog: pytest.LogCaptureFixture) -> None:
    blocked = Blocked()
    recorder = Recorder(blocked.writer)
    for segment in range(100):
        recorder.add(1, TO_FILTER, segment, b"x" * 60_000)
    recorder.close(0.05)
    assert "could not be finished" in caplog.text
    threading.Thread(target=blocked.read_all, daemon=True).start()  # lets the thread of the recorder end
    wait_until(lambda: not recorder._thread.is_alive(), "the recorder's thread ends")
    os.close(blocked.writer)


def test_it_goes_on_when_there_is_room_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    path = tmp_path / "out"
    full = os.open("/dev/full", os.O_WRONLY)
    number = open_output(str(path))
    kept = os.dup(number)
    os.dup2(full, number)  # the disk is full ...
    now = [0.0]
    recorder = Recorder(number, clock=lambda: now[0])
    recorder.add(1, TO_FILTER, 0, b"a")
    wait_until(lambda: recorder.dropped, "a record is dropped")
    os.dup2(kept, number)  # ... and has room again
    recorder.add(1, TO_FILTER, 1, b"b")
    wait_until(lambda: recorder.dropped == 2, "one more is dropped: it is not tried again at once")
    now[0] += RETRY_S
    recorder.add(1, TO_FILTER, 2, b"c")
    wait_until(lambda: recorder.written, "a record is written")
    recorder.close(WAIT_S)
    os.close(full)
    os.close(kept)
    assert [entry["segment"] for entry in lines(path)] == [2]
    told = [record.getMessage() for record in caplog.records]
    assert told[1:] == ["the recording goes on; 2 records were dropped"]


@pytest.mark.parametrize("room", [1, 70, 75, 150, 151, 200])
def test_a_record_is_in_the_file_whole_or_not_at_all(tmp_path: Path, room: int) -> None:
    """The disk takes a part of a batch: a write that comes back short, and then an error."""
    path = tmp_path / "out"
    recorder = Recorder(open_output(str(path)))
    texts = [b'{"a": "%s"}\n' % (b"x" * 60) for _ in range(4)]
    size = len(texts[0])
    real, left = os.write, [room]

    def write(descriptor: int, data: bytes) -> int:
        if not left[0]:
            raise OSError(28, "No space left on device")
        count = real(descriptor, data[: left[0]])
        left[0] -= count
        return count

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", write)
        assert recorder._write(texts) == room // size
    assert path.read_bytes() == b"".join(texts[: room // size])
    assert recorder._write(texts[:1]) == 1
    assert path.read_bytes() == b"".join(texts[: room // size + 1])
    recorder.close(WAIT_S)


def test_time_goes_forward(tmp_path: Path) -> None:
    path = tmp_path / "out"
    start = time.monotonic()
    recorder = Recorder(open_output(str(path)))
    for segment in range(5):
        recorder.add(1, TO_FILTER, segment, b"")
    recorder.close(WAIT_S)
    seconds = [entry["t"] for entry in lines(path)]
    assert seconds == sorted(seconds)
    assert 0 <= seconds[-1] <= time.monotonic() - start
