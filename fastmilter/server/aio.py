"""Async filters: callbacks on asyncio, the loop of the worker within it.

asyncio waits for one descriptor: that of the poller, which waits for all others. So connections are accepted, read,
written and shared with the other workers by the same compiled code as everywhere, and no transport or protocol object
of asyncio is made for them. A callback that has nothing to wait for runs at once; from the first that returns an
awaitable on, the rest of the job is one task, in a context of its own for each connection.

A message that is dropped, and a callback that is out of time, have their task cancelled; what is to be called after
it waits until the task has ended.
"""

import asyncio
import contextlib
import contextvars
import inspect
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any, Final

from fastmilter.filter import Filter
from fastmilter.guard import OUT_OF_TIME, give_up_thread
from fastmilter.replies import Answer, Verdict
from fastmilter.server._in_work import Turns
from fastmilter.server.counters import Gauge
from fastmilter.server.ends import EXIT_OK
from fastmilter.server.log_context import log_about
from fastmilter.server.overtime import WaitingLink
from fastmilter.server.settings import Settings
from fastmilter.server.stacks import MOST_FRAMES
from fastmilter.server.waiting import (
    CLOSE_S,
    EXPIRING,
    LATE,
    RUNNING,
    Job,
    WaitingWorker,
    stack_of,
    step_of,
)
from fastmilter.server.worker import Worker

log = logging.getLogger(__name__)

CANCEL_S: Final = 5.0
"""How long a callback whose message was dropped may take to end once it was cancelled."""

ON_TIMEOUT_S: Final = 1.0
"""How long an async ``on_timeout`` may take."""

STOPPED_S: Final = 5.0
"""How long ``worker_stopped`` may take."""

_NO_LOCK: Final = contextlib.nullcontext()
_UNSET: Final = object()


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes event loops: uvloop's where it is installed, else asyncio's own."""
    try:
        import uvloop  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


class AsyncWorker(WaitingWorker):
    """A worker for filters with ``async def``."""

    def __init__(self, filter_class: type[Filter[Any]], settings: Settings, *handed_over: Any) -> None:
        """Take what the master hands over, as ``Worker``."""
        super().__init__(filter_class, settings, *handed_over)
        on_timeout = getattr(filter_class, "on_timeout", None)
        self._asks_on_timeout = inspect.iscoroutinefunction(on_timeout)
        self._threads = ThreadPoolExecutor(settings.threads, "fastmilter callbacks") if filter_class.blocking else None
        self._asking: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def run(self) -> int:
        """Serve until the master says otherwise; return the exit status of the process."""
        self._loop = loop_factory()()
        asyncio.set_event_loop(self._loop)
        # Not asyncio.run(), which at the end would wait for callbacks that do not come back: this process ends now.
        return self._loop.run_until_complete(self._serve())

    async def _serve(self) -> int:
        self._over = self._loop.create_future()
        await _settled(self._start_filter())
        self._context = contextvars.copy_context()
        self._begin()
        self._loop.add_reader(self._poller.fileno(), self._on_ready)
        self._on_ready()
        await self._over
        await self._leave()
        try:
            await asyncio.wait_for(_settled(self._filter_class.worker_stopped()), STOPPED_S)
        except TimeoutError:
            log.error("%s.worker_stopped did not end within %.0f s", self._filter_class.__name__, STOPPED_S)
        return EXIT_OK

    # -- the loop ------------------------------------------------------------------------------------------------

    def _on_ready(self) -> None:
        """Handle what the poller has, and have the loop come back in time."""
        try:
            self._turn(False)
        except BaseException as error:  # noqa: BLE001 - the worker ends by it, as it would without asyncio
            if not self._over.done():
                self._over.set_exception(error)
            return
        self._set_timer()
        if self._finished() and not self._over.done():
            self._over.set_result(None)

    def _on_timer(self) -> None:
        self._timer = None  # it may come a little early, and is set again then
        self._on_ready()

    def _set_timer(self) -> None:
        at = self._wake_at()
        if self._timer is not None:
            if self._timer_at <= at:
                return  # it comes early enough; then we look again
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(max(0.0, at - time.monotonic()), self._on_timer, context=self._context)

    async def _leave(self) -> None:
        """Close what is open, and wait a while for the last callbacks."""
        Worker._close_all(self)
        until = time.monotonic() + CLOSE_S
        while (left := until - time.monotonic()) > 0:
            tasks = {job.runner for job in (*self._jobs, *self._late)}
            if not tasks:
                break
            await asyncio.wait(tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        self._tell_left()
        self._loop.remove_reader(self._poller.fileno())
        if self._timer is not None:
            self._timer.cancel()
        self._close_logs()

    def _publish_runners(self, running: int) -> None:
        self._tally.set(Gauge.TASKS, running)
        if self._threads is not None:
            self._tally.set(Gauge.THREADS, self._settings.threads)

    # -- jobs ----------------------------------------------------------------------------------------------------

    def _begin_job(self, link: WaitingLink) -> bool:
        job = Job(link, _NO_LOCK)
        if link.context is None:
            link.context = self._context.copy()  # not of where we are: another connection's may have set the timer
            link.context.run(log_about, link)
        if self._threads is None:
            awaitable = link.context.run(job.run_in_loop, self._in_work)
        else:
            call = job.run_call()
            awaitable = None if call is None else self._called(link, call)
        if awaitable is None:
            return False
        self._start_task(job, awaitable if self._threads is not None else self._in_turns(link, awaitable))
        return True

    def _start_task(self, job: Job, awaitable: Awaitable[Any]) -> None:
        self._enlist(job.link, job)
        job.runner = self._loop.create_task(self._run(job, awaitable), context=job.link.context)
        self._set_timer()

    async def _run(self, job: Job, awaitable: Awaitable[Any]) -> None:
        """Run the calls of a job from the first that has something to wait for to the last."""
        link = job.link
        try:
            while True:
                result = None
                error: BaseException | None = None
                try:
                    try:
                        result = await awaitable
                    except Answer as answer:  # a verdict like one that is returned
                        error = answer
                    message = link.message
                    if message is not None and message._has_unread_body:
                        await self._in_turns(link, message._read_body())
                except asyncio.CancelledError as raised:
                    error = self._cancelled(job, raised)
                except BaseException as raised:  # noqa: BLE001 - not even sys.exit() of a callback may end us
                    error = raised
                call = job.next_call(result, error)
                if call is None:
                    return
                awaitable = self._called(link, call)
        except Exception as fault:  # noqa: BLE001 - logged with the end of the connection
            job.fault = fault
        finally:
            self._task_ended(job)

    async def _called(self, link: WaitingLink, call: Callable[[], Any]) -> Any:
        """Make a call, in a thread if it may block, and wait for what it returns."""
        if self._threads is not None and link.callback not in self.plan.async_callbacks:
            return await self._in_thread(link, call)
        result = self._on_loop(link, call)
        return await self._in_turns(link, result) if inspect.isawaitable(result) else result

    def _in_turns(self, link: WaitingLink, awaitable: Awaitable[Any]) -> Turns:
        """Return what waits for a callback so that the master sees which one it is, should it hold up the loop."""
        return Turns(self._in_work, link, awaitable)

    def _on_loop(self, link: WaitingLink, call: Callable[[], Any]) -> Any:
        """Make a call that holds up the loop until it returns."""
        self._in_work.enter(link)
        try:
            return call()
        finally:
            self._in_work.leave()

    async def _in_thread(self, link: WaitingLink, call: Callable[[], Any]) -> Any:
        """Make a call in a thread; when cancelled, wait for it all the same: it runs until it comes back.

        One that has not begun is not made then, unless it is a notice.
        """
        assert self._threads is not None
        context = contextvars.copy_context()
        must_run = link.is_notice

        def run() -> Any:
            link.is_queued = False
            link.thread = threading.get_ident()
            try:
                return context.run(call)
            finally:
                link.thread = 0

        link.is_queued = True
        submitted = self._threads.submit(run)
        waiting = asyncio.wrap_future(submitted)
        waiting.add_done_callback(_note_exception)  # asyncio would complain of one that came after the cancellation
        cancelled: asyncio.CancelledError | None = None
        while not submitted.done():
            try:
                await asyncio.wait({waiting})
            except asyncio.CancelledError as error:
                cancelled = error
                if not must_run:
                    submitted.cancel()  # unless it has begun
        link.is_queued = False
        for variable, value in context.items():  # what the callback has set is for the next ones too
            if variable.get(_UNSET) is not value:
                variable.set(value)
        if cancelled is not None:
            raise cancelled
        return submitted.result()

    def _cancelled(self, job: Job, error: asyncio.CancelledError) -> BaseException | None:
        """Return what a cancelled callback counts as: nothing, if it was cancelled by us."""
        task = asyncio.current_task()
        assert task is not None
        is_ours = False
        while task.cancelling():
            is_ours = True
            task.uncancel()
        return None if is_ours else error

    def _task_ended(self, job: Job) -> None:
        if job.state is not EXPIRING:  # else who asks on_timeout goes on
            # Not at once: what comes next enters the context of the connection, and the task is in it still.
            self._loop.call_soon(self._take_up, job)

    def _take_up(self, job: Job) -> None:
        """Take up a connection again whose task has ended."""
        self._end_job(job)
        self._flush_log()
        self._set_timer()
        if self._finished() and not self._over.done():
            self._over.set_result(None)

    def _interrupt(self, job: Job) -> None:
        """Cancel the callback that runs: nothing of what it does counts any more."""
        job.ends_by = min(job.ends_by, time.monotonic() + CANCEL_S)
        self._next_look = min(self._next_look, job.ends_by)
        if job.state is LATE and self._threads is not None:
            give_up_thread(job.link.thread)  # whatever it waits for has failed
            self._retire_with(sum(late.link.thread != 0 for late in self._late))
        self._loop.call_soon(self._cancel, job)  # not at once: a task that has not begun would never reach its end

    def _cancel(self, job: Job) -> None:
        if job.state is LATE or job.link.is_interruptible:
            job.runner.cancel(OUT_OF_TIME if job.state is LATE else None)  # the difference is for guards of back-ends

    def _expire(self, job: Job, now: float) -> None:
        link = job.link
        if self._asks_on_timeout and job.state is RUNNING and not link.is_noticing and link.filter is not None:
            job.state = EXPIRING
            asking = self._loop.create_task(self._ask_on_timeout(job), context=link.context)
            self._asking.add(asking)
            asking.add_done_callback(self._asking.discard)
        else:
            super()._expire(job, now)

    async def _ask_on_timeout(self, job: Job) -> None:
        """Ask an async ``on_timeout`` what to answer, and give the job up."""
        link = job.link
        own = verdict = self._filter_class.timeout_verdict
        try:
            async with asyncio.timeout(ON_TIMEOUT_S):
                result = await link.filter.on_timeout(step_of(link))  # type: ignore[union-attr]
            verdict = self._verdict_or(result, own, link)
        except Answer as answer:
            verdict = answer.verdict
        except BaseException as error:  # noqa: BLE001 - not even sys.exit() of a callback may end us
            self.callback_failed(link, "on_timeout", error)
        self._loop.call_soon(self._give_up_asked, job, verdict)  # not at once, as in _task_ended

    def _give_up_asked(self, job: Job, verdict: Verdict) -> None:
        job.state = RUNNING
        self._give_up(job, verdict, not job.runner.done())
        self._set_timer()

    def _stack(self, job: Job) -> str:
        if job.link.thread:
            return stack_of(job.link.thread)
        if job.link.is_queued:
            return "  it waits for a thread: raise --threads"
        lines = [
            f"  File {frame.f_code.co_filename!r}, line {frame.f_lineno}, in {frame.f_code.co_name}"
            for frame in _frames(job.runner.get_coro())
        ]
        return "\n".join(lines)


def _note_exception(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


def _frames(waiting: Any) -> Iterator[FrameType]:
    """Yield the frames of what a coroutine waits for, outermost first, without this module's own."""
    for _ in range(MOST_FRAMES):
        if isinstance(waiting, Turns):
            waiting = waiting.awaited
        frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "gi_frame", None)
        if frame is None:
            return
        if frame.f_code.co_filename != __file__:
            yield frame
        waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "gi_yieldfrom", None)


async def _settled(result: Any) -> Any:
    """Return ``result``, or what it is waited for to give."""
    return await result if inspect.isawaitable(result) else result
