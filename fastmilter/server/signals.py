"""Signals as something to read, not as something that interrupts.

A handler does nothing at all: Python's own C handler has already written the number of the signal into a pipe
(``signal.set_wakeup_fd``), which the loop reads like any other descriptor. The numbers are treated as a set: the kernel
merges signals too, so nobody may count them.

A child inherits the pipe, and a signal sent to the child would be reported to its parent. So signals are blocked around
the fork (``blocked``), and the child unblocks them when it has let go of the pipe (``forget_in_child``).
"""

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, Self

MASTER_SIGNALS: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
"""What a master understands: drain and stop (twice: now), the same, stop now, reload, one worker more, one less,
open the log file anew, upgrade in place."""

_READ_BYTES: Final = 4096


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """Handle a signal by doing nothing; with no handler of ours the interpreter would not write to the pipe."""


class SignalPipe:
    """Collects signals of this process from its making to ``close``; in the main thread only."""

    def __init__(self, signals: Iterable[signal.Signals]) -> None:
        """Take over ``signals``; their former handlers come back on ``close``."""
        self._signals: Final = frozenset(signals)
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        os.set_blocking(self._write_end, False)
        self._former_fd = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._former = {number: signal.signal(number, _nothing) for number in self._signals}

    def fileno(self) -> int:
        """Return the descriptor to wait for; readable when a signal has come."""
        return self._read_end

    def take(self) -> set[signal.Signals]:
        """Return the signals that came since the last call, each once; empty if none."""
        numbers: set[int] = set()
        while True:
            try:
                data = os.read(self._read_end, _READ_BYTES)
            except BlockingIOError:
                break
            numbers.update(data)
            if len(data) < _READ_BYTES:
                break
        return {number for number in self._signals if number in numbers}

    @contextmanager
    def blocked(self) -> Iterator[None]:
        """Hold the signals back while the block runs: they arrive after it, in parent and child alike."""
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def leave_to_next_program(self) -> None:
        """Send what came again, while the signals are blocked: they wait for the program that is executed next."""
        for number in self.take():
            os.kill(os.getpid(), number)

    def unblock(self) -> None:
        """Let the signals in that a former program of this process has blocked."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)

    def forget_in_child(self) -> None:
        """Let go of the parent's pipe, in a child and while the signals are blocked.

        The signals do nothing in the child from then on: the master speaks to its workers through their channels, and
        a Ctrl-C at the terminal, which every process of the group gets, must not cut their connections. They are
        handled, not ignored, so that a program started by the filter gets the defaults.
        """
        signal.set_wakeup_fd(-1)
        os.close(self._read_end)
        os.close(self._write_end)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)

    def close(self) -> None:
        """Give the signals back to their former handlers."""
        for number, handler in self._former.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        signal.set_wakeup_fd(self._former_fd)
        os.close(self._read_end)
        os.close(self._write_end)

    def __enter__(self) -> Self:
        """Return itself; the signals are already taken over."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Give the signals back."""
        self.close()
