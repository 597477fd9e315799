"""Guards of back-ends: the limit, the breaker, and both under threads, tasks, cancellation and fork."""

import asyncio
import contextvars
import gc
import logging
import subprocess
import sys
from typing import Any

import pytest

from fastmilter import ACCEPT, CONTINUE, REJECT, Answer, ConfigError, Filter, Verdict, reply
from fastmilter import guard as guards
from fastmilter.guard import Guard, State, Unavailable
from fastmilter.testing import run
from tests.support.guarding import Clock, fail

PATIENCE_S = 30.0
BUSY = reply(451, "4.7.1", "please try again")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def refused(guard: Guard) -> Unavailable:
    with pytest.raises(Unavailable) as caught, guard:
        pytest.fail("the block was entered")
    return caught.value


# -- the breaker ---------------------------------------------------------------------------------------------------


def test_it_opens_tries_one_call_and_closes(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    guard = Guard("scanner", failures=3, recovery=10, verdict=BUSY, clock=clock)
    for _ in range(2):
        fail(guard)
    assert guard.state == "closed"
    fail(guard, TimeoutError("no answer\r\nin time"))
    assert guard.state == "open"
    error = refused(guard)
    assert isinstance(error, Answer)
    assert (error.verdict, error.guard, error.state) == (BUSY, "scanner", State.OPEN)
    assert str(error) == "scanner: the guard is open, answered 451 4.7.1 please try again"
    clock.now += 9.9
    refused(guard)
    clock.now += 0.1
    with guard:
        assert guard.state == "half-open"
        refused(guard)
    assert guard.state == "closed"
    assert guard.statistics() == ("scanner", "closed", 0, 4, 3, 3, 1)
    assert [record.getMessage() for record in caplog.records] == [
        r"guard scanner opens for 10 s: failures in a row: 3, the last: TimeoutError 'no answer\r\nin time'; "
        "meanwhile the answer is 451 4.7.1 please try again",
        "guard scanner half-opens: one call is tried",
        "guard scanner closes: the back-end works again",
    ]


def test_a_try_that_fails_opens_it_again(clock: Clock) -> None:
    guard = Guard("scanner", failures=2, recovery=10, clock=clock)
    fail(guard)
    fail(guard)
    clock.now += 10
    fail(guard)
    refused(guard)
    assert guard.statistics().opened == 2
    clock.now += 10
    with guard:
        pass
    fail(guard)
    assert guard.state == "closed", "it counts from the start again"


def test_a_try_that_never_ends_is_not_waited_for(clock: Clock) -> None:
    guard = Guard("scanner", failures=1, recovery=10, clock=clock)
    fail(guard)
    clock.now += 10

    def hang() -> None:
        with guard:
            clock.now += 10
            with guard:
                assert guard.state == "half-open"
            assert guard.state == "closed", "the second try has worked"
            raise OSError("the first, late")

    with pytest.raises(OSError, match="late"):
        hang()
    assert guard.state == "closed", "a late result has no say"
    assert guard.statistics().failures == 2


def test_success_begins_the_count_anew() -> None:
    guard = Guard("scanner", failures=2)
    for _ in range(5):
        fail(guard)
        with guard:
            pass
    assert guard.state == "closed"


def test_what_is_an_answer_of_the_back_end_is_success(clock: Clock) -> None:
    guard = Guard("scanner", failures=2, recovery=10, ignore=(KeyError, ZeroDivisionError), clock=clock)
    for answer in (KeyError("not found"), ZeroDivisionError(), Answer(REJECT)):
        fail(guard)
        fail(guard, answer)
    assert guard.state == "closed"
    fail(guard)
    fail(guard)
    clock.now += 10
    fail(guard, KeyError("not found"))
    assert guard.state == "closed"
    assert guard.statistics().failures == 5


def test_what_says_nothing_of_the_back_end_leaves_the_state(clock: Clock) -> None:
    full = Guard("inner", limit=1)
    guard = Guard("outer", failures=2, recovery=10, clock=clock)
    fail(guard)
    with full, pytest.raises(Unavailable), guard, full:
        pytest.fail("the inner guard was full")
    with pytest.raises(SystemExit), guard:
        raise SystemExit
    fail(guard)
    assert guard.state == "open", "neither was a success"
    clock.now += 10
    with pytest.raises(SystemExit), guard:
        raise SystemExit
    with guard:
        pass
    assert guard.state == "closed", "the next was tried at once"


# -- the limit -----------------------------------------------------------------------------------------------------


def test_more_than_the_limit_is_refused() -> None:
    guard = Guard("scanner", limit=2, wait=PATIENCE_S, verdict=ACCEPT)
    with guard, guard:
        # The main thread does not wait: in a worker all connections are served by it.
        error = refused(guard)
    assert (error.verdict, error.state) == (ACCEPT, State.CLOSED)
    assert str(error) == "scanner: the limit of calls is reached, answered accept"
    for _ in range(3):
        fail(guard)
    assert guard.statistics()[2:6] == (0, 5, 3, 1)


def test_an_open_guard_at_its_limit_tries_nothing(clock: Clock) -> None:
    guard = Guard("scanner", limit=1, failures=1, recovery=10, clock=clock)
    with guard:
        other = contextvars.copy_context()
    fail(guard)
    clock.now += 10
    other.run(guard.__enter__)
    clock.now += 10
    assert refused(guard).state == "half-open"
    other.run(guard.__exit__, None, None, None)
    assert guard.state == "closed"


def test_leaving_where_it_was_not_entered_is_a_fault() -> None:
    guard = Guard("scanner")
    contextvars.Context().run(guard.__enter__)
    with pytest.raises(RuntimeError, match="do both in one callback"):
        guard.__exit__(None, None, None)


# -- processes -----------------------------------------------------------------------------------------------------

FORK = """
import os, threading
from fastmilter.guard import Guard, statistics

guard = Guard("scanner", limit=2, failures=1)
inside, leave = threading.Event(), threading.Event()
def hold():
    with guard._lock:
        inside.set()
        leave.wait(60)
thread = threading.Thread(target=hold)

def in_child():
    with guard:
        assert guard.statistics()[2:4] == (1, 1), guard.statistics()
    assert statistics() == [guard.statistics()]

with guard:
    thread.start()
    assert inside.wait(60)
    pid = os.fork()
    if pid == 0:
        in_child()
if pid == 0:
    assert guard.statistics()[2:4] == (0, 1), guard.statistics()
    os._exit(7)
"""


def test_the_child_of_a_fork_begins_anew() -> None:
    """Even where another thread of the parent had the lock, and this one was inside."""
    program = FORK.replace("    if pid == 0:\n", "    if pid: leave.set()\n    if pid == 0:\n")
    program += "thread.join()\nassert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7\nprint(*guard.statistics())"
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.stdout, done.stderr) == ("scanner closed 0 1 0 0 0\n", "")


def test_the_guards_of_the_process(caplog: pytest.LogCaptureFixture) -> None:
    def mine() -> list[guards.GuardStatistics]:
        return [numbers for numbers in guards.statistics() if numbers.name in ("first name", "second name")]

    second, first = Guard("second name"), Guard("first name")
    assert mine() == [first.statistics(), second.statistics()]
    assert not caplog.records
    latest = Guard("second name")
    assert caplog.messages == ["there are several guards named second name: the statistics show the latest"]
    with latest:
        assert mine() == [first.statistics(), latest.statistics()]
    with second:
        assert mine() == [first.statistics(), latest.statistics()]
    del latest
    gc.collect()
    assert mine() == [first.statistics(), second.statistics()]


@pytest.mark.parametrize(
    "values",
    [
        {"limit": 0},
        {"limit": True},
        {"limit": 2.5},
        {"failures": 0},
        {"failures": None},
        {"recovery": 0},
        {"recovery": -1},
        {"recovery": float("nan")},
        {"recovery": "30"},
        {"wait": -0.1},
        {"wait": float("inf")},
        {"verdict": "tempfail"},
        {"ignore": OSError("no")},
        {"ignore": (OSError, asyncio.CancelledError)},
    ],
    ids=str,
)
def test_values_that_make_no_sense(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^guard x: {next(iter(values))} must be "):
        Guard("x", **values)


@pytest.mark.parametrize("name", ["", "two\nlines", None])
def test_names_that_make_no_sense(name: Any) -> None:
    with pytest.raises(ConfigError, match="the name of a guard must be"):
        Guard(name)


# -- in filters ----------------------------------------------------------------------------------------------------


class Plain(Filter):
    def on_mail(self, sender: str, params: object) -> None:
        with closed_off:
            pytest.fail("asked")


class Blocking(Plain):
    blocking = True


class Async(Filter):
    async def on_mail(self, sender: str, params: object) -> None:
        async with closed_off:
            pytest.fail("asked")


class Otherwise(Filter):
    def on_end_of_message(self) -> Verdict:
        try:
            with closed_off:
                pytest.fail("asked")
        except Unavailable:
            self.message.add_header("X-Unchecked", "yes")
        return CONTINUE


closed_off = Guard("of the filters", failures=1, recovery=3600, verdict=BUSY)


@pytest.fixture
def _opened() -> None:
    if closed_off.state == "closed":
        fail(closed_off)


@pytest.mark.usefixtures("_opened")
@pytest.mark.parametrize("kind", [Plain, Blocking, Async])
def test_a_filter_that_does_nothing_answers_with_the_verdict(kind: type[Filter]) -> None:
    outcome = run(kind, b"Subject: x\r\n\r\n")
    assert (outcome.verdict, outcome.steps[-1].step) == (BUSY, "mail")


@pytest.mark.usefixtures("_opened")
def test_a_filter_may_do_otherwise() -> None:
    outcome = run(Otherwise, b"Subject: x\r\n\r\n")
    assert outcome.verdict == CONTINUE
    assert outcome.apply().message == b"Subject: x\r\nX-Unchecked: yes\r\n\r\n"
