"""A worker whose callbacks run beside its loop: what threads (``offload``) and asyncio (``aio``) have in common.

The loop reads, writes and keeps the time. The calls that a connection's packets lead to are one ``Job``, which runs
them one after the other and owns the conversation meanwhile; its answers leave when it is done. Nothing of a
connection is decoded while it has a job: what is read goes to ``ReadAhead``, and only the heads of the packets are
looked at.

Time runs from the oldest command that the MTA waits for an answer to, over all calls in between. A job that is out of
time is answered in its place (``WaitingLink.out_of_time``) and becomes late: it goes on, but nothing of what it does
counts. Where the MTA takes it, PROGRESS tells it from time to time that work goes on.

A connection whose MTA has gone stays until its last callbacks have run (``_leaving``).
"""

import logging
import math
import sys
import traceback
from contextlib import AbstractContextManager
from enum import IntEnum
from inspect import isawaitable
from typing import Any, Final

from fastmilter.constants import STEPS, Step
from fastmilter.conversation import Conversation
from fastmilter.filter import Filter
from fastmilter.replies import Answer, Verdict
from fastmilter.server import channel as master_channel
from fastmilter.server._in_work import InWork
from fastmilter.server._sockets import Stream, monotonic
from fastmilter.server.counters import Count, Gauge
from fastmilter.server.deadlines import CONTENT_S, Deadlines
from fastmilter.server.log_context import log_about
from fastmilter.server.log_lines import end_of_line
from fastmilter.server.overtime import WaitingLink
from fastmilter.server.pace import ACCEPT_PAUSE_S, HEADROOM, RECEIVE_BYTES
from fastmilter.server.read_ahead import Room
from fastmilter.server.stacks import MOST_FRAMES
from fastmilter.server.tiers import ALL
from fastmilter.server.worker import Link, Worker
from fastmilter.session import Phase

log = logging.getLogger(__name__)

PROGRESS_S: Final = 4.0
"""How often an MTA is told that work goes on; Sendmail waits 10 s for each packet."""

LOOK_S: Final = 0.1
"""How far apart, at least, the looks at the clocks of all jobs are."""

CLOSE_S: Final = 2.0
"""How long a worker that leaves waits for the callbacks that its last connections still get."""

_CLOSED: Final = Phase.CLOSED
_HEADROOM = HEADROOM
_STEPS: Final = tuple(STEPS)


class JobState(IntEnum):
    """Where a job stands."""

    QUEUED = 0
    RUNNING = 1
    EXPIRING = 2
    """Out of time; ``on_timeout`` is asked what to answer."""
    LATE = 3
    """Answered in its place; it comes back some day."""
    DONE = 4


QUEUED, RUNNING, EXPIRING, LATE, DONE = JobState


class Job:
    """The calls that a connection's packets lead to, until there are none left."""

    def __init__(self, link: WaitingLink, lock: AbstractContextManager[Any]) -> None:
        """Prepare the calls of ``link``; ``lock`` guards it and its conversation while a callback runs."""
        self.link = link
        self.lock = lock
        self.state = QUEUED
        self.runner: Any = None
        """What runs it: for the driver."""
        self.ends_by = math.inf
        """When it is given up, whatever its deadline says."""
        self.fault: Exception | None = None
        """What nobody foresaw, outside of any callback."""

    def begin(self) -> bool:
        """Tell whether the first call is still to be run; then it is running: under the lock."""
        if self.state is not QUEUED:
            return False
        self.state = RUNNING if self.link.is_wanted() else DONE
        return self.state is RUNNING

    def run_call(self) -> Any:
        """Return what is to be run first, or ``None`` if nothing is any more: under the lock."""
        return self.link.take_call() if self.begin() else None

    def next_call(self, result: Any, error: BaseException | None) -> Any:
        """Take what the last call returned or raised; return what is to be run next, or ``None``: under the lock."""
        if self.state is not RUNNING:
            return None
        if self.link.take_outcome(result, error):
            return self.link.take_call()
        self.state = DONE
        return None

    def run(self) -> bool:
        """Run all calls, in a thread of their own; tell whether there were any."""
        with self.lock:
            call = self.run_call()
        if call is None:
            return False
        while call is not None:
            result = error = None
            try:
                result = call()
            except BaseException as raised:  # noqa: BLE001 - not even sys.exit() of a callback may end us
                error = raised
            with self.lock:
                call = self.next_call(result, error)
        return True

    def run_in_loop(self, in_work: InWork) -> Any:
        """Run calls up to the first that returns an awaitable; return that, or ``None`` if there is none.

        Only the loop itself may: nobody else looks at the conversation meanwhile, so there is no lock.
        """
        link = self.link
        is_next = self.begin()
        awaitable = None
        while is_next and awaitable is None:
            result = error = None
            in_work.enter(link)
            try:
                result = link.invoke()
            except BaseException as raised:  # noqa: BLE001 - not even sys.exit() of a callback may end us
                error = raised
            message = link.message
            if result is not None and isawaitable(result):
                awaitable = result
            elif message is not None and message._unread_body is not None and _is_verdict(error):
                awaitable = _given(result, error)  # whose task reads the body, as after any callback
            else:
                is_next = link.take_outcome(result, error)
        in_work.leave()
        if awaitable is None:
            self.state = DONE
        return awaitable


class WaitingWorker(Worker):
    """The loop, without what runs the jobs."""

    def __init__(self, filter_class: type[Filter[Any]], *handed_over: Any) -> None:
        """Take what the master hands over, as ``Worker``."""
        super().__init__(filter_class, *handed_over)
        self._deadlines = Deadlines(filter_class.deadline)
        self._ahead_room = Room(self._settings.read_ahead_memory, self._settings.read_ahead_disk)
        self._soonest = min(PROGRESS_S, *self._deadlines.of(None, ~0))
        self._jobs: set[Job] = set()
        self._late: set[Job] = set()
        self._leaving: set[WaitingLink] = set()
        self._next_look = math.inf
        self._asked_to_retire = False

    # -- what runs the jobs, in a subclass -----------------------------------------------------------------------

    def _begin_job(self, link: WaitingLink) -> bool:
        """Have the calls of ``link`` run; tell whether that is still to be waited for.

        Then ``_enlist`` took the job down, and ``_end_job`` is due when it has run.
        """
        raise NotImplementedError

    def _interrupt(self, job: Job) -> None:
        """End the callback that runs, if that can be done: nothing of what it does counts any more."""

    def _retire_with(self, stuck: int) -> None:
        """Ask to be replaced, once, when as many threads are stuck as there should be."""
        if stuck < self._settings.threads or self._asked_to_retire:
            return
        self._asked_to_retire = master_channel.send(self._channel, master_channel.Retire())
        if self._asked_to_retire:
            log.error("%d callbacks are stuck: this worker asks to be replaced", stuck)

    def _stack(self, job: Job) -> str:
        """Return what a job that is late is doing, as the lines of a traceback."""
        raise NotImplementedError

    def _enlist(self, link: WaitingLink, job: Job) -> None:
        link.job = job
        self._jobs.add(job)
        since = link.since if link.due_step < 0 else min(link.since, link.due_since)
        link.progress_at = since + PROGRESS_S
        self._next_look = min(self._next_look, since + self._soonest)

    def _end_job(self, job: Job) -> None:
        """Take up a connection again whose job has run, in time or late."""
        link = job.link
        if job in self._late:
            self._tally.add(Count.LATE_CALLBACKS)
            self._late.discard(job)
            link.since = monotonic()  # what waited for it has its own time
            link.come_back()
        elif link.job is not job:
            return  # it was answered before it could begin, and another one has the connection by now
        else:
            self._jobs.discard(job)
            link.job = None
        if job.fault is None:
            self._go_on_with(link)
        else:
            self._lose_by_fault(link, job.fault)

    # -- connections ---------------------------------------------------------------------------------------------

    def _make_link(self, stream: Stream, now: float) -> WaitingLink:
        return WaitingLink(self.plan, self, self._tally, stream, now)

    def _handle(self, link: Link, now: float) -> None:
        assert isinstance(link, WaitingLink)
        try:
            if link.unsent is not None:
                if self._send(link, link.unsent, link.sent):
                    self._poller.await_room(link.fd, False)
                    self._send_on(link)
                return
            count = link.stream.receive(self._room)
            if count > 0:
                self._take_in(link, count, now)
            elif count == 0:
                self._lose(link)
        except OSError:
            self._lose(link)
        except Exception as error:  # noqa: BLE001 - logged there
            self._lose_by_fault(link, error)

    def _send_on(self, link: WaitingLink) -> None:
        """Go on after what could not be sent at once has left."""
        job: Job | None = link.job
        if job is None:
            self._proceed(link)
        elif link.session.tail is not None:
            with job.lock:
                self.transmit(link)

    def _take_in(self, link: WaitingLink, count: int, now: float) -> None:
        """Take ``count`` bytes that were read."""
        self._tally.add(Count.BYTES_READ, count)
        link.last_read = now
        is_end = link.scan(self._buffer, _HEADROOM, count, now)
        data = self._room[:count]
        if link.job is None and link.ahead is None:
            link.since = now
            link.session.receive(data)
            self._proceed(link)
            return
        link.keep(bytes(data), now, self._ahead_room)
        if link.ahead is not None and link.ahead.is_full:
            why = link.ahead.trouble or "--read-ahead-memory, --read-ahead-disk"
            size, end = link.ahead.size, end_of_line(link)
            log.warning("%d bytes are read ahead (%s), the MTA has to wait%s", size, why, end)
            self._poller.remove(link.fd)
            link.is_paused = True
        if link.due_step >= 0:
            self._next_look = min(self._next_look, link.due_since + self._soonest)
        if is_end:
            self._see_end_ahead(link)

    def _see_end_ahead(self, link: WaitingLink) -> None:
        """Spare a message the rest of its callbacks: it ends without a verdict further on."""
        job: Job | None = link.job
        if job is None:
            return
        with job.lock:
            if job.state in (QUEUED, RUNNING):
                link.is_dropped = link.session.in_message
                if link.is_interruptible:
                    self._interrupt(job)

    def _proceed(self, link: WaitingLink) -> None:
        """Go on with a connection that has no job, as far as it goes without its filter and without its MTA."""
        session = link.session
        if link.is_dropped:
            link.is_dropped = False
            if session.in_message:
                link.drop()
        while self._flush(link):
            session.tail = None
            if link.next_call():
                if link.is_dropped_ahead():
                    link.drop()
                elif self._begin_job(link):
                    return
                continue
            if session.out or session.tail is not None:
                continue
            if session.phase is _CLOSED:
                self._close(link)
                return
            data = link.take_ahead(RECEIVE_BYTES)
            if link.is_paused and link.ahead is None:
                link.is_paused = False
                if link.is_connected:
                    self._poller.add(link.fd)
            if data:
                session.receive(data)
            elif link.has_ended:
                session.receive_eof()
            else:
                link.stream.acknowledge()  # as in worker.py
                return

    def _go_on_with(self, link: WaitingLink) -> None:
        """Proceed, at the door of one connection."""
        try:
            self._proceed(link)
        except OSError:
            self._lose(link)
        except Exception as error:  # noqa: BLE001 - logged there
            self._lose_by_fault(link, error)

    def _flush(self, link: Link) -> bool:
        assert isinstance(link, WaitingLink)
        session = link.session
        if not link.is_connected:
            session.out.clear()
            session.tail = None
            return True
        if session.out or session.tail is not None:
            link.due_step = -1
        return Worker._flush(self, link)

    def transmit(self, conversation: Conversation) -> None:
        """Send what is written so far, while a callback runs: only the loop may."""
        assert isinstance(conversation, WaitingLink)
        if conversation.is_connected:
            due = conversation.due_step
            Worker.transmit(self, conversation)
            if not conversation.is_noticing:
                conversation.due_step = due  # it still waits

    def _lose(self, link: Link) -> None:
        """Give up the socket of a connection: its MTA has gone, or has to. The rest of its callbacks follow."""
        assert isinstance(link, WaitingLink)
        self._disconnect(link)
        link.has_ended = True
        if link.job is not None:
            self._see_end_ahead(link)
            return
        if link.ahead is None:
            link.since = monotonic()
        try:
            self._proceed(link)
        except Exception:
            log.exception("internal error while closing a connection%s", end_of_line(link))
            self._leaving.discard(link)

    def _disconnect(self, link: WaitingLink) -> None:
        if not link.is_connected:
            return
        link.is_connected = False
        self._links.pop(link.fd, None)
        self._leaving.add(link)
        if self._door is not None:
            self._door.leave(link.fd)
        if not link.is_paused:
            self._poller.remove(link.fd)
        link.stream.close()
        self._count_again()

    def _close(self, link: Link) -> None:
        """Close a connection whose conversation has come to its end, but for a callback that is stuck."""
        assert isinstance(link, WaitingLink)
        error = link.session.error
        if error is not None and not link.is_stuck:
            self._tally.add(self._log.ended(link, error, link.stream.fileno()))
        self._disconnect(link)
        if not link.is_stuck:
            self._leaving.discard(link)
            link.context = None  # which knows the link in turn

    # -- time ----------------------------------------------------------------------------------------------------

    def _close_silent(self, now: float) -> None:
        for job in self._jobs:
            link = job.link
            link.last_read = now  # its MTA waits for us, and has not been silent
        Worker._close_silent(self, now)

    def _wake_at(self) -> float:
        return min(self._next_tick, self._next_look)

    def _turn(self, may_wait: bool) -> None:
        Worker._turn(self, may_wait)
        now = monotonic()
        if now >= self._next_look:
            self._look(now)

    def _look(self, now: float) -> None:
        """Look at the clocks of all jobs: say to the MTA that work goes on, or answer in their place."""
        nearest = math.inf
        is_behind = False
        for job in list(self._jobs):
            link = job.link
            with job.lock:
                if job.state not in (QUEUED, RUNNING):
                    continue  # it is done, and on its way to us
                expires_at = min(self._expires_at(link), job.ends_by)
                if now >= expires_at:
                    self._expire(job, now)
                    continue
                if now >= link.progress_at:
                    link.progress_at = now + PROGRESS_S
                    if link.is_connected:
                        link.progress()
                is_behind = is_behind or (is_queued(job) and 2 * now > expires_at + link.since)
                nearest = min(nearest, expires_at, link.progress_at)
        self._next_look = max(nearest, now + LOOK_S)
        if is_behind:
            self._pause_accepting(now)

    def _pause_accepting(self, now: float) -> None:
        """Leave new connections to others while jobs have waited for half of their time."""
        if self._tiers is None:
            if self._accept_again_at is None:
                log.warning("callbacks wait for a thread for long: no new connections for now; raise --threads")
            self._leave_listeners()
            self._accept_again_at = now + ACCEPT_PAUSE_S

    def _expires_at(self, link: WaitingLink) -> float:
        """Return when the job of a connection is out of time."""
        mta = None if link.connection is None else link.connection.mta
        limits = self._deadlines.of(mta, link.answered)
        at = link.since + (CONTENT_S if link.is_noticing else limits[link.session.step])
        if link.due_step >= 0:
            at = min(at, link.due_since + limits[link.due_step])
        return at

    def _expire(self, job: Job, now: float) -> None:
        """Answer in place of a job that is out of time: under its lock."""
        self._give_up(job, self._timeout_verdict(job.link), job.state is RUNNING)

    def _give_up(self, job: Job, verdict: Verdict, is_running: bool) -> None:
        link = job.link
        self._tell_late(job, verdict, is_running)
        job.state = LATE if is_running or link.is_noticing else DONE
        self._jobs.discard(job)
        link.job = None
        link.out_of_time(verdict, is_running)
        if job.state is LATE:
            self._late.add(job)
            if is_running:
                self._interrupt(job)
        self._go_on_with(link)

    def _timeout_verdict(self, link: WaitingLink) -> Verdict:
        """Return what ``on_timeout`` says, or what the class has for it."""
        own: Verdict = self._filter_class.timeout_verdict
        if "on_timeout" not in self.plan.overridden or link.filter is None or link.is_noticing:
            return own
        log_about(link)
        try:
            result = link.filter.on_timeout(step_of(link))  # type: ignore[attr-defined]
        except Answer as answer:
            return answer.verdict
        except BaseException as error:  # noqa: BLE001 - not even sys.exit() of a callback may end us
            self.callback_failed(link, "on_timeout", error)
            return own
        finally:
            log_about(None)
        return self._verdict_or(result, own, link)

    def _verdict_or(self, result: Any, own: Verdict, link: WaitingLink) -> Verdict:
        if isinstance(result, Verdict):
            return result
        if result is not None:
            self.complain(link, "on_timeout returned what is neither a verdict nor None")
        return own

    def _tell_late(self, job: Job, verdict: Verdict, is_running: bool) -> None:
        link = job.link
        self._tally.add(Count.CALLBACK_TIMEOUTS)
        since = link.since if link.due_step < 0 else min(link.since, link.due_since)
        what = f"{self._filter_class.__name__}.{link.callback} is out of time after {monotonic() - since:.1f} s"
        answer = "" if link.is_noticing else f", its step is answered with {verdict.kind}"
        if is_running:
            log.error("%s%s%s\n%s", what, answer, end_of_line(link), self._stack(job))
        else:
            log.error("%s before it could begin%s%s", what, answer, end_of_line(link))

    def _publish(self) -> None:
        Worker._publish(self)
        waiting = sum(map(is_queued, self._jobs))
        self._tally.set(Gauge.JOBS_WAITING, waiting)
        self._tally.set(Gauge.READ_AHEAD_BYTES, sum([job.link.read_ahead for job in (*self._jobs, *self._late)]))
        self._publish_runners(len(self._jobs) - waiting + len(self._late))

    def _publish_runners(self, running: int) -> None:
        """Tell what runs the jobs, ``running`` of them now."""
        raise NotImplementedError

    # -- the end -------------------------------------------------------------------------------------------------

    def _is_at_rest(self, link: Link, now: float) -> bool:
        assert isinstance(link, WaitingLink)
        if link.due_step >= 0 or link.is_paused:
            return False
        return Worker._is_at_rest(self, link, now) and link.due_step < 0  # what was read now may be due

    def _finished(self) -> bool:
        if self._stop_now:
            return True
        tiers = self._tiers
        if tiers is None or self._count():
            return False
        return not self._leaving or tiers.over(monotonic()) == ALL

    def _close_all(self) -> None:
        Worker._close_all(self)
        until = monotonic() + CLOSE_S
        while self._leaving and monotonic() < until:
            self._next_look = min(self._next_look, until)
            self._turn(True)
        self._tell_left()

    def _tell_left(self) -> None:
        if self._leaving:
            log.error(
                "%d connections are left without their last callbacks: theirs do not come back", len(self._leaving)
            )


def is_queued(job: Job) -> bool:
    """Whether the call of a job waits for a thread."""
    return job.state is QUEUED or bool(job.link.is_queued)


def _is_verdict(error: BaseException | None) -> bool:
    """Whether a callback did not fail: it returned, or raised the verdict."""
    return error is None or isinstance(error, Answer)


async def _given(result: Any, answer: BaseException | None) -> Any:
    """Return ``result``, or raise ``answer``."""
    if answer is not None:
        raise answer
    return result


def stack_of(thread: int) -> str:
    """Return what a thread is doing, as the lines of a traceback."""
    frame = sys._current_frames().get(thread)
    return "  its thread is gone" if frame is None else "".join(traceback.format_stack(frame, MOST_FRAMES)).rstrip()


def step_of(link: WaitingLink) -> Step:
    """Return the step whose callback is in work."""
    return _STEPS[link.session.step]
