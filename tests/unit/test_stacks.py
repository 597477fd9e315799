"""Stacks that a process writes of itself, and how they are read."""

import os
import select

import pytest

from fastmilter.server.stacks import MOST_FRAMES, STACK_SIGNAL, Frame, StackPipe, frames_of, render

WRITTEN = b"""Stack (most recent call first):
  File "/srv/slow.py", line 12 in wait
  File "/srv/slow.py", line 30 in on_header
  File "/x/supervisor.py", line 300 in _live
  File "<frozen runpy>", line 88 in _run_code
"""


def test_frames_up_to_where_the_worker_begins() -> None:
    assert frames_of(WRITTEN, below="_live") == [
        Frame("/srv/slow.py", 12, "wait"),
        Frame("/srv/slow.py", 30, "on_header"),
    ]
    assert frames_of(WRITTEN)[-1] == Frame("<frozen runpy>", 88, "_run_code")


@pytest.mark.parametrize(
    "text", [b"", b"\0\xff", b'  File "a", line x in f', b'  File "a", line 1', b"  File \xff", b"\n" * 9]
)
def test_what_is_no_stack_has_no_frames(text: bytes) -> None:
    assert frames_of(text) == []


def test_names_are_printable_and_cut() -> None:
    (frame,) = frames_of(b'  File "' + b"d/" * 400 + b'last.py", line 1 in f\x1b[31m\xff')
    assert frame.file.endswith("d/last.py")
    assert len(frame.file) == 200
    assert frame.function == "f?[31m\\xff"


def test_a_deep_stack_is_shown_by_its_ends() -> None:
    frames = [Frame("a.py", line, "f") for line in range(100)]
    lines = render(frames).split("\n")
    assert len(lines) == MOST_FRAMES + 1
    assert lines[0] == '  File "a.py", line 0, in f'
    assert "  ... 70 more" in lines
    assert lines[-1] == '  File "a.py", line 99, in f'
    assert render(frames[:2]).count("\n") == 1


def test_a_process_writes_its_stack_when_it_is_asked_to() -> None:
    pipe = StackPipe()
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            assert pipe.be_worker()
            _stand_still(go)
        finally:
            os._exit(1)
    try:
        os.close(go)
        assert os.read(ready, 1) == b"!"
        pipe.be_master()
        assert pipe.take() == b"", "nothing unasked"
        pipe.ask(pid)
        text = b""
        while b"in pytest_pyfunc_call" not in text:
            assert select.select([pipe._read_end], [], [], 30)[0], text
            text += pipe.take()
        frames = frames_of(text, below="pytest_pyfunc_call")
        assert [frame.function for frame in frames] == [
            "_stand_still",
            "test_a_process_writes_its_stack_when_it_is_asked_to",
        ]
        assert frames[0].file == __file__
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        pipe.close()
        os.close(ready)


def _stand_still(go: int) -> None:
    os.write(go, b"!")
    select.select([], [], [], 600)


def test_nobody_waits_for_a_reader() -> None:
    """A pipe that is full takes no more: the process that writes goes on, and the signal does it no harm."""
    assert STACK_SIGNAL is not None
    pipe = StackPipe()
    pid = os.fork()
    if pid == 0:
        try:
            pipe.be_worker()
            for _ in range(2000):  # a stack of this test has several hundred bytes, a pipe 64 KB
                os.kill(os.getpid(), STACK_SIGNAL)
            os._exit(0)
        finally:
            os._exit(1)
    pipe.be_master()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(pipe.take()) > 30_000
    assert pipe.take() == b""
    pipe.close()
