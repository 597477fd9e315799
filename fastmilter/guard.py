"""A guard for what a filter asks of others: a limit of calls at a time, and a circuit breaker.

>>> dns = Guard("dns", limit=100, failures=5, recovery=30)
>>> with dns:
...     pass  # ask
>>> dns.statistics()
GuardStatistics(name='dns', state='closed', running=0, calls=1, failures=0, refused=0, opened=0)

``with guard:`` in plain and blocking callbacks, ``async with guard:`` in ``async`` ones, around the call to the
back-end and its time-out. While the back-end fails, or is busy up to the limit, the block is not entered:
``Unavailable`` is raised, an ``Answer`` with the verdict that the guard was made with.

It is our own because none of the kept libraries fits all three kinds of filter: pybreaker holds its lock during the
call and does not know asyncio, circuitbreaker has no lock and lets every caller try when it half-opens, purgatory has
another class for asyncio than for threads, and none of them limits calls.

State is that of this process: each worker finds out for itself. A process that is forked begins anew.
"""

import contextvars
import itertools
import logging
import math
import os
import reprlib
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from fastmilter.errors import ConfigError
from fastmilter.replies import TEMPFAIL, Answer, Verdict

if TYPE_CHECKING:
    import asyncio

log: Final = logging.getLogger(__name__)

OUT_OF_TIME: Final = "out of time"
"""The message (``task.cancel(OUT_OF_TIME)``) that tells a callback cancelled at its deadline, which counts as a failure
of the back-end it waits for, from one whose message was dropped, which does not."""

_SHORT: Final = reprlib.Repr()
_SHORT.maxstring = 120


class State(StrEnum):
    """``closed``: calls go through. ``open``: none does. ``half-open``: one does, to see whether it works again."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class GuardStatistics(NamedTuple):
    """The numbers of one guard in this process. All but ``running`` count since the process began.

    ``running``: calls now. ``calls``: those let through. ``failures``: those of them that failed. ``refused``: those
    not let through. ``opened``: how often it opened, a failed try to close included.
    """

    name: str
    state: str
    running: int
    calls: int
    failures: int
    refused: int
    opened: int


class Unavailable(Answer):
    """The call was not made. ``guard``: the name of the guard, ``state``: ``closed`` means that the limit is reached.

    Uncaught in a callback, it answers the step with ``verdict``.
    """

    def __init__(self, guard: str, state: State, verdict: Verdict) -> None:
        """Keep which guard refused, and in which state."""
        super().__init__(verdict)
        self.guard = guard
        self.state = state

    def __str__(self) -> str:
        """Say why."""
        why = "the limit of calls is reached" if self.state is State.CLOSED else f"the guard is {self.state}"
        return f"{self.guard}: {why}, answered {self.verdict}"


class _Call:
    """A call that was let through: what its end has to be told apart by."""

    __slots__ = ("guard", "is_counted", "life", "period")

    def __init__(self, guard: "Guard", life: int, period: int) -> None:
        self.guard = guard
        self.life = life
        self.period = period
        self.is_counted = False
        """Whether it has failed already, while it is still under way."""


_calls: contextvars.ContextVar[tuple[_Call, ...]] = contextvars.ContextVar("fastmilter guard calls", default=())
"""The calls that this thread or task is in, the innermost last."""

_in_threads: dict[int, tuple[_Call, ...]] = {}
"""The same for threads that began calls with ``with``, by their number: for whoever gives one up."""


class _Waiter:
    """A caller that waits for a slot; ``period`` is set when it has one, ``refused`` when it will not get one."""

    period: int | None = None
    refused = False

    def wake(self) -> bool:
        """Have the caller look; ``False`` if there is nobody any more."""
        raise NotImplementedError


class _Thread(_Waiter):
    def __init__(self) -> None:
        self.event = threading.Event()

    def wake(self) -> bool:
        self.event.set()
        return True


class _Task(_Waiter):
    def __init__(self, loop: "asyncio.AbstractEventLoop") -> None:
        self.loop = loop
        self.future = loop.create_future()

    def wake(self) -> bool:
        try:
            self.loop.call_soon_threadsafe(self._finish)
        except RuntimeError:  # the loop is closed
            return False
        return True

    def _finish(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class Guard:
    """A limit of calls at a time to one back-end, with a circuit breaker; the same object for threads and asyncio.

    It opens after ``failures`` calls in a row that failed: then every call is refused at once. After ``recovery``
    seconds one call is let through (half-open): if it works the guard closes, if it fails, or takes more than another
    ``recovery`` seconds, the next one is tried likewise.

    A call fails by any exception that leaves the block, and when its callback runs out of time. These do not count:
    what is listed in ``ignore`` (an exception type, or a tuple of them: "not found" is an answer, so the back-end
    works), ``Answer``, and the end of the call from outside: cancelled because the message was dropped, or the process
    leaves. So time-outs belong inside the block. A thread that is stuck keeps its slot until it comes back.

    ``limit``: calls at a time in this process, ``None`` for any number. ``wait``: seconds that a call may wait at the
    limit for another to end; then, or with 0 at once, it is refused. Callbacks on the main thread, which all
    connections of the worker share, never wait, unless with ``async with``.

    ``verdict``: what refused calls are answered with, TEMPFAIL by default; CONTINUE lets mail pass unchecked.

    Enter and leave it within one callback. ``name`` is for the log and the statistics; of several guards of one name in
    one process the latest is the one in the statistics. ``clock``: for tests, seconds as ``time.monotonic``.

    Raises ``ConfigError`` for values that make no sense.
    """

    def __init__(
        self,
        name: str,
        *,
        limit: int | None = None,
        failures: int = 5,
        recovery: float = 30.0,
        verdict: Verdict = TEMPFAIL,
        wait: float = 0.0,
        ignore: type[Exception] | tuple[type[Exception], ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not isinstance(name, str) or not name or not name.isprintable():
            raise ConfigError(f"the name of a guard must be printable text, such as 'clamav', not {name!r}")
        if limit is not None:
            _check_count(name, "limit", limit)
        _check_count(name, "failures", failures)
        _check_seconds(name, "recovery", recovery)
        if recovery == 0:
            raise ConfigError(f"guard {name}: recovery must be more than 0 seconds")
        _check_seconds(name, "wait", wait)
        if not isinstance(verdict, Verdict):
            raise ConfigError(f"guard {name}: verdict must be one such as TEMPFAIL or reply(...), not {verdict!r}")
        ignored = ignore if isinstance(ignore, tuple) else (ignore,)
        if not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in ignored):
            raise ConfigError(f"guard {name}: ignore must be an exception type or a tuple of them, not {ignore!r}")
        self.name: Final = name
        self.verdict: Final = verdict
        self._limit = limit
        self._most_failures = failures
        self._recovery = recovery
        self._wait = wait
        self._answers: tuple[type[Exception], ...] = (Answer, *ignored)
        self._clock = clock
        self._life = 0
        self._number = next(_numbers)
        self._begin_anew()
        _register(self)

    def _begin_anew(self) -> None:
        """Be as a guard that has just been made; for the start, and for the child of a fork."""
        self._lock = threading.Lock()
        self._life += 1
        self._period = 0  # counts up when the state changes: a call of an earlier period has no say in this one
        self._state = State.CLOSED
        self._until = 0.0  # when it is open: until when; when it is half-open: how long the one call may take
        self._failures_in_a_row = 0
        self._queue: deque[_Waiter] = deque()
        self._running = self._calls = self._failures = self._refused = self._opened = 0

    @property
    def state(self) -> State:
        """Whether calls go through; an open guard becomes half-open by the next call after ``recovery``."""
        return self._state

    def statistics(self) -> GuardStatistics:
        """Return the numbers of this process."""
        with self._lock:
            return GuardStatistics(
                self.name,
                self._state.value,
                self._running,
                self._calls,
                self._failures,
                self._refused,
                self._opened,
            )

    # -- the block -----------------------------------------------------------------------------------------------

    def __enter__(self) -> "Guard":
        """Begin a call; ``Unavailable`` if it is not to be made."""
        waiter = _Thread() if self._wait and _may_block() else None
        period = self._admit(waiter)
        if period is None:
            assert waiter is not None
            waiter.event.wait(self._wait)
            period = self._admitted(waiter)
        self._enter(period)
        _in_threads[threading.get_ident()] = _calls.get()
        return self

    async def __aenter__(self) -> "Guard":
        """Begin a call; ``Unavailable`` if it is not to be made."""
        if not self._wait:
            self._enter(self._admit(None))
            return self
        import asyncio  # here it is loaded already; plain filters need none of it

        waiter = _Task(asyncio.get_running_loop())
        period = self._admit(waiter)
        if period is None:
            try:
                await asyncio.wait((waiter.future,), timeout=self._wait)
            except BaseException:
                self._give_up(waiter)
                raise
            period = self._admitted(waiter)
        self._enter(period)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the call, and count how it went."""
        self._exit(error)
        if calls := _calls.get():
            _in_threads[threading.get_ident()] = calls
        else:
            _in_threads.pop(threading.get_ident(), None)

    def _exit(self, error: BaseException | None) -> None:
        calls = _calls.get()
        for position in range(len(calls) - 1, -1, -1):
            if calls[position].guard is self:
                _calls.set(calls[:position] + calls[position + 1 :])
                self._leave(calls[position], error)
                return
        raise RuntimeError(f"guard {self.name} was left where it was not entered: do both in one callback")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """End the call, and count how it went."""
        self._exit(error)

    def _enter(self, period: int | None) -> None:
        assert period is not None
        _calls.set((*_calls.get(), _Call(self, self._life, period)))

    # -- who may call --------------------------------------------------------------------------------------------

    def _admit(self, waiter: _Waiter | None) -> int | None:
        """Return the period that the call belongs to; ``None`` if ``waiter`` stands in the queue now."""
        half_opens = False
        with self._lock:
            full = self._limit is not None and self._running >= self._limit
            if self._state is not State.CLOSED:
                now = self._clock()
                if now < self._until or full:
                    self._refuse()
                half_opens = self._state is State.OPEN
                self._change(State.HALF_OPEN, now + self._recovery)
            elif full:
                if waiter is None:
                    self._refuse()
                self._queue.append(waiter)
                return None
            self._running += 1
            self._calls += 1
            period = self._period
        if half_opens:
            log.info("guard %s half-opens: one call is tried", self.name)
        return period

    def _refuse(self) -> NoReturn:
        self._refused += 1
        raise Unavailable(self.name, self._state, self.verdict)

    def _change(self, state: State, until: float = 0.0) -> None:
        self._state = state
        self._until = until
        self._period += 1

    def _admitted(self, waiter: _Waiter) -> int:
        """Return the period of a call that has waited; ``Unavailable`` if it has waited in vain."""
        with self._lock:
            if waiter.period is None:
                if not waiter.refused:
                    self._queue.remove(waiter)
                self._refuse()
            assert waiter.period is not None
            return waiter.period

    def _give_up(self, waiter: _Waiter) -> None:
        """Take a caller that was cancelled out of the queue; the slot that it was given meanwhile goes on."""
        with self._lock:
            if waiter.period is not None:
                self._calls -= 1  # it never came to a call
                self._pass_on()
            elif not waiter.refused:
                self._queue.remove(waiter)

    def _pass_on(self) -> None:
        """Give a slot that is free to the first in the queue."""
        while self._queue:
            waiter = self._queue.popleft()
            if waiter.wake():
                waiter.period = self._period
                self._calls += 1
                return
            waiter.refused = True
        self._running -= 1

    # -- how it went ---------------------------------------------------------------------------------------------

    def _leave(self, call: _Call, error: BaseException | None) -> None:
        if call.life != self._life:
            return  # entered before a fork, left in the child: the call is the parent's
        failed = self._has_failed(error)
        with self._lock:
            change = None if call.is_counted else self._count(call, failed)
            self._pass_on()
        self._log_change(change, error)

    def _give_up_call(self, call: _Call) -> None:
        """Count a call as failed that is still under way, and keeps its slot."""
        with self._lock:
            if call.is_counted or call.life != self._life:
                return
            call.is_counted = True
            change = self._count(call, True)
        self._log_change(change, TimeoutError(OUT_OF_TIME))

    def _count(self, call: _Call, failed: bool | None) -> State | None:
        """Count how a call went; return the state that it led to, if that is another."""
        was = self._state
        self._failures += failed is True
        if call.period == self._period:
            if failed:
                self._count_failure()
            elif failed is not None:
                self._count_success()
            elif was is State.HALF_OPEN:
                self._until = self._clock()  # the next call is tried instead
        return None if self._state is was else self._state

    def _has_failed(self, error: BaseException | None) -> bool | None:
        """Whether a call that ended so has failed; ``None``: that says nothing about the back-end."""
        if isinstance(error, Unavailable):
            return None  # another guard, within this one, did not even let it begin
        if error is None or isinstance(error, self._answers):
            return False
        # A task at its deadline is cancelled, which is no Exception; so is one whose message was dropped.
        return True if isinstance(error, Exception) or error.args == (OUT_OF_TIME,) else None

    def _count_failure(self) -> None:
        self._failures_in_a_row += 1
        if self._state is State.CLOSED and self._failures_in_a_row < self._most_failures:
            return
        self._opened += 1
        self._change(State.OPEN, self._clock() + self._recovery)
        while self._queue:
            waiter = self._queue.popleft()
            waiter.refused = True
            waiter.wake()

    def _count_success(self) -> None:
        self._failures_in_a_row = 0
        if self._state is State.HALF_OPEN:
            self._change(State.CLOSED)

    def _log_change(self, change: State | None, error: BaseException | None) -> None:
        if change is None:
            return
        if change is State.CLOSED:
            log.info("guard %s closes: the back-end works again", self.name)
            return
        last = f"{type(error).__name__} {_SHORT.repr(str(error))}"  # quoted and cut: a back-end may say anything
        log.warning(
            "guard %s opens for %g s: failures in a row: %d, the last: %s; meanwhile the answer is %s",
            self.name,
            self._recovery,
            self._failures_in_a_row,
            last,
            self.verdict,
        )


def give_up_thread(thread: int) -> None:
    """Count the calls that a thread is in as failed: its callback is out of time, whenever it may come back."""
    for call in _in_threads.get(thread, ()):
        call.guard._give_up_call(call)


def _check_count(name: str, what: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"guard {name}: {what} must be a whole number from 1 on, not {value!r}")


def _check_seconds(name: str, what: str, value: float) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < 0:
        raise ConfigError(f"guard {name}: {what} must be a number of seconds, not {value!r}")


def _may_block() -> bool:
    """Whether this thread is one of a pool: others are not held up when it waits."""
    if threading.current_thread() is threading.main_thread():
        return False
    aio = sys.modules.get("asyncio")
    return aio is None or aio._get_running_loop() is None


# -- the guards of this process ------------------------------------------------------------------------------------

_guards: "weakref.WeakSet[Guard]" = weakref.WeakSet()
_guards_lock = threading.Lock()
_numbers = itertools.count()


def _register(guard: Guard) -> None:
    with _guards_lock:
        taken = any(other.name == guard.name for other in _guards)
        _guards.add(guard)
    if taken:
        log.warning("there are several guards named %s: the statistics show the latest", guard.name)


def living() -> list[tuple[int, Guard]]:
    """Return all guards of this process in the order in which they were made, each with its number: for the server."""
    with _guards_lock:
        return sorted(((guard._number, guard) for guard in _guards), key=lambda pair: pair[0])


def statistics() -> list[GuardStatistics]:
    """Return the numbers of all guards of this process, by name."""
    latest = {guard.name: guard for _, guard in living()}
    return [latest[name].statistics() for name in sorted(latest)]


def _forked() -> None:
    """Begin anew in the child: its locks may be held, and its calls made, by threads that are not there."""
    global _guards_lock
    _in_threads.clear()
    _guards_lock = threading.Lock()
    for guard in list(_guards):
        guard._begin_anew()


os.register_at_fork(after_in_child=_forked)
