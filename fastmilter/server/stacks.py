"""The Python stack of a worker that stands still, written by the worker itself when the master asks for it.

A signal makes the worker write where it is into a pipe (``faulthandler``). That is done by a handler in C, at once: it
works while a callback spins, waits in a system call, or holds the interpreter in compiled code. Nobody ever waits: the
pipe is full if nobody reads it, and the rest of a stack is lost then.

A stack has names of files and functions and numbers of lines, and nothing of what the program works on.
"""

import contextlib
import faulthandler
import os
import re
import signal
from dataclasses import dataclass
from typing import Final, Self

STACK_SIGNAL: Final = signal.SIGRTMIN + 7 if hasattr(signal, "SIGRTMIN") else None
"""Asks a worker for its stack, and ends a process that is not prepared for it; ``None``: there is none here."""

MOST_FRAMES: Final = 30
"""How many frames of a stack are shown, those of the callback itself among them."""

_MOST_OF_A_NAME: Final = 200
_READ_BYTES: Final = 1 << 16
_FRAME: Final = re.compile(rb'  File "(.*)", line ([0-9]{1,9}) in (.*)')


@dataclass(frozen=True, slots=True)
class Frame:
    """One call under way."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        """Return it as it stands in a traceback."""
        return f'File "{self.file}", line {self.line}, in {self.function}'


class StackPipe:
    """The pipe of one worker; made before the fork, and then one end is used on each side."""

    def __init__(self) -> None:
        """Open the pipe, for neither side to wait; ``OSError`` if that cannot be."""
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        os.set_blocking(self._write_end, False)

    @classmethod
    def of_master(cls, read_end: int) -> Self:
        """Return the master's side of a pipe whose worker was started by a former master."""
        pipe = cls.__new__(cls)
        pipe._read_end, pipe._write_end = read_end, -1
        return pipe

    def fileno(self) -> int:
        """Return the master's descriptor."""
        return self._read_end

    def be_worker(self) -> bool:
        """Write the stack of this thread whenever the signal comes, from now on; tell whether that is possible."""
        os.close(self._read_end)
        self._read_end = -1
        if STACK_SIGNAL is None:
            return False
        faulthandler.register(STACK_SIGNAL, file=self._write_end, all_threads=False)
        return True

    def be_master(self) -> None:
        """Keep the end to read from."""
        os.close(self._write_end)
        self._write_end = -1

    def ask(self, pid: int) -> None:
        """Ask the worker, which must be prepared and not reaped yet, for its stack; ``take`` it a moment later."""
        assert STACK_SIGNAL is not None
        self.take()  # what came too late for the last question
        os.kill(pid, STACK_SIGNAL)

    def take(self) -> bytes:
        """Return what the worker has written, without waiting; empty if nothing."""
        with contextlib.suppress(BlockingIOError):
            return os.read(self._read_end, _READ_BYTES)  # a pipe holds no more
        return b""

    def close(self) -> None:
        """Close what is open of it."""
        for end in (self._read_end, self._write_end):
            if end >= 0:
                os.close(end)
        self._read_end = self._write_end = -1


def frames_of(text: bytes, *, below: str = "") -> list[Frame]:
    r"""Return the calls in what ``faulthandler`` wrote, innermost first, up to the function ``below``.

    >>> frames_of(b'Stack (most recent call first):\n  File "a.py", line 3 in f\n  File "a.py", line 9 in main\n')
    [Frame(file='a.py', line=3, function='f'), Frame(file='a.py', line=9, function='main')]
    """
    frames: list[Frame] = []
    for line in text.split(b"\n"):
        match = _FRAME.fullmatch(line)
        if match is None:
            continue
        file, number, function = match.groups()
        if below and function == below.encode():
            break
        frames.append(Frame(_shown(file), int(number), _shown(function)))
    return frames


def _shown(name: bytes) -> str:
    """Return a name as the log may show it: printable, and if it is too long the end of it."""
    text = name.decode("ascii", "backslashreplace")
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= _MOST_OF_A_NAME else "..." + text[3 - _MOST_OF_A_NAME :]


def render(frames: list[Frame]) -> str:
    """Return the lines of a stack for the log; of a very deep one the innermost and outermost calls."""
    lines = [f"  {frame}" for frame in frames]
    if len(lines) > MOST_FRAMES:
        outermost = MOST_FRAMES // 3
        innermost = MOST_FRAMES - outermost
        lines[innermost:-outermost] = [f"  ... {len(lines) - MOST_FRAMES} more"]
    return "\n".join(lines)
