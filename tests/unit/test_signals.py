"""Signals as something to read. (What they mean to a server: tests/process.)

They are raised in this very thread: a signal for the process might go to a thread of some other test's server.
"""

import os
import select
import signal

import pytest

from fastmilter.server.signals import SignalPipe

ONE, TWO = signal.SIGUSR1, signal.SIGUSR2


def readable(pipe: SignalPipe) -> bool:
    return bool(select.select([pipe], [], [], 0)[0])


def test_signals_are_a_set_and_are_taken_once() -> None:
    with SignalPipe([ONE, TWO]) as pipe:
        assert not readable(pipe)
        assert pipe.take() == set()
        for number in (ONE, TWO, ONE, ONE):
            signal.raise_signal(number)
        assert readable(pipe)
        assert pipe.take() == {ONE, TWO}
        assert pipe.take() == set()
        assert not readable(pipe)


def test_more_signals_than_the_pipe_holds_do_not_block() -> None:
    with SignalPipe([ONE]) as pipe:
        for _ in range(70_000):
            signal.raise_signal(ONE)
        assert pipe.take() == {ONE}
        while pipe.take():
            pass
        signal.raise_signal(ONE)
        assert pipe.take() == {ONE}


def test_everything_is_as_before_afterwards() -> None:
    former_one = signal.signal(ONE, signal.SIG_IGN)
    former_fd = signal.set_wakeup_fd(-1)
    before = os.listdir("/proc/self/fd")
    try:
        with SignalPipe([ONE, TWO]):
            assert signal.getsignal(ONE) is not signal.SIG_IGN
        assert signal.getsignal(ONE) is signal.SIG_IGN
        assert signal.getsignal(TWO) is signal.SIG_DFL
        assert signal.set_wakeup_fd(-1) == -1
        assert os.listdir("/proc/self/fd") == before
    finally:
        signal.signal(ONE, former_one)
        signal.set_wakeup_fd(former_fd)


def test_what_comes_while_blocked_comes_afterwards() -> None:
    with SignalPipe([ONE]) as pipe:
        with pipe.blocked():
            signal.raise_signal(ONE)
            assert pipe.take() == set()
        assert pipe.take() == {ONE}


# Other tests' servers may still have threads; the child here needs none of their locks.
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_child_that_let_go_tells_its_parent_nothing() -> None:
    with SignalPipe([ONE]) as pipe:
        with pipe.blocked():
            pid = os.fork()
            if pid == 0:
                signal.raise_signal(ONE)  # early: it is pending until the child has let go of the pipe
                pipe.forget_in_child()
                signal.raise_signal(ONE)
                os._exit(0 if not signal.sigpending() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert pipe.take() == set()
