"""Blocking filters: callbacks in threads, the loop in the main thread.

A job is run by one thread from its first call to its last, so that a connection with many small callbacks changes
threads once. The thread holds the job's lock whenever it touches the conversation, and never while a callback runs:
then the loop may say PROGRESS, or give the callback up. A thread whose callback was given up counts no more: another
takes its place, and it leaves when it comes back. When as many are stuck as there should be threads, the worker asks
to be replaced.

Only the loop touches sockets. What a thread has to tell it stands in a queue, and ``_alarm`` wakes it.
"""

import contextlib
import os
import queue
import sys
import threading
from collections import deque
from typing import Any, Final

from fastmilter.conversation import Conversation
from fastmilter.filter import Filter
from fastmilter.guard import give_up_thread
from fastmilter.replies import Verdict
from fastmilter.server.counters import Gauge
from fastmilter.server.log_context import log_about
from fastmilter.server.overtime import WaitingLink
from fastmilter.server.settings import Settings
from fastmilter.server.waiting import LATE, Job, WaitingWorker, stack_of

SWITCH_S: Final = 0.0005
"""How long a thread computes before another may, the loop above all (Python's own default is ten times that)."""


class Alarm:
    """A descriptor that becomes readable when a thread sets it."""

    def __init__(self) -> None:
        """Open it."""
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._is_set = False

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._read

    def set(self) -> None:
        """Wake the loop, once however often it is called before ``clear``."""
        if not self._is_set:
            self._is_set = True
            os.write(self._write, b"!")  # a byte for each clear(), or a few where threads come at once

    def clear(self) -> None:
        """Forget what was set; whoever looks at what it was set for after this misses nothing."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 64)
        self._is_set = False  # not before: then a byte could be read that was written for what is set again


class ThreadedWorker(WaitingWorker):
    """A worker for filters with ``blocking = True``."""

    def __init__(self, filter_class: type[Filter[Any]], settings: Settings, *handed_over: Any) -> None:
        """Take what the master hands over, as ``Worker``."""
        super().__init__(filter_class, settings, *handed_over)
        self._threads = 0
        self._stuck = 0
        self._queue: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._ended: deque[Job] = deque()
        self._waiting: deque[Conversation] = deque()  # for their PROGRESS to be sent
        self._counting = threading.Lock()
        self._loop = threading.get_ident()
        self._alarm_clock = Alarm()
        self._alarm = self._alarm_clock.fileno()

    def _begin(self) -> None:
        sys.setswitchinterval(SWITCH_S)
        self._poller.add(self._alarm)
        super()._begin()

    # -- the loop's side -----------------------------------------------------------------------------------------

    def _begin_job(self, link: WaitingLink) -> bool:
        job = Job(link, threading.Lock())
        self._enlist(link, job)
        self._queue.put(job)
        if len(self._jobs) > self._threads - self._stuck and self._threads - self._stuck < self._settings.threads:
            self._start_thread()
        return True

    def _start_thread(self) -> None:
        with self._counting:
            self._threads += 1
        threading.Thread(target=self._work, name="fastmilter callbacks", daemon=True).start()

    def _on_alarm(self) -> None:
        self._alarm_clock.clear()
        while self._waiting:
            link = self._waiting.popleft()
            assert isinstance(link, WaitingLink)
            job: Job | None = link.job
            if job is not None:
                with job.lock:
                    super().transmit(link)
        while self._ended:
            job = self._ended.popleft()
            self._end_job(job)

    def _interrupt(self, job: Job) -> None:
        if job.state is LATE:
            give_up_thread(job.runner)  # whatever it waits for has failed
            with self._counting:
                self._stuck += 1
            if self._queue.qsize():
                self._start_thread()
            self._retire_with(self._stuck)

    def _stack(self, job: Job) -> str:
        return stack_of(job.runner)

    def _publish_runners(self, running: int) -> None:
        self._tally.set(Gauge.THREADS, self._threads)
        self._tally.set(Gauge.THREADS_BUSY, running)

    # -- the threads' side ---------------------------------------------------------------------------------------

    def _work(self) -> None:
        """Run jobs, until a callback of one was given up: then another thread has taken this one's place."""
        while True:
            job = self._queue.get()
            job.runner = threading.get_ident()
            log_about(job.link)
            try:
                was_running = job.run()
            except Exception as fault:  # noqa: BLE001 - the loop logs it, and closes the connection
                was_running, job.fault = True, fault
            is_late = was_running and job.state is LATE
            if is_late:
                with self._counting:
                    self._threads -= 1
                    self._stuck -= 1
            log_about(None)
            self._ended.append(job)
            self._alarm_clock.set()
            if is_late:
                return

    # -- for the conversations -----------------------------------------------------------------------------------

    def transmit(self, conversation: Conversation) -> None:
        """Have the loop send what is written so far."""
        if threading.get_ident() == self._loop:
            super().transmit(conversation)
        else:
            self._waiting.append(conversation)
            self._alarm_clock.set()

    def message_ended(self, conversation: Conversation, verdict: Verdict | None, edits: int) -> None:
        """Count a message, and note it in the log that was asked for: one thread at a time."""
        with self._counting:
            super().message_ended(conversation, verdict, edits)
