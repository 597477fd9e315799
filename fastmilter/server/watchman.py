"""Watches the workers for the master: reads their slots, has stacks written, logs what stands still.

What is worth a report ``Watch`` decides. A report is begun by asking the worker for its stack, and logged later or
when the worker ends, with what has come until then: nothing is waited for.
"""

import logging
import time
from dataclasses import dataclass
from typing import Final

from fastmilter.server.message_log import quoted
from fastmilter.server.settings import Settings
from fastmilter.server.slots import Slots
from fastmilter.server.stacks import StackPipe, frames_of, render
from fastmilter.server.watch import STACK_S, Finding, GoesOn, Hangs, Sight, StandsStill, Watch

log = logging.getLogger(__name__)

BELOW: Final = "_be_worker"
"""The function of the supervisor that all of a worker runs in: what lies below it says nothing."""

HINT: Final = "a filter that waits sets blocking = True, or makes its callbacks async def and awaits"
UNNAMED: Final = "the stack shows what: a task of the filter that blocks, or a thread that holds the interpreter"


@dataclass(slots=True)
class _Report:
    """A report that waits for the stack."""

    text: str
    due: float


@dataclass(slots=True)
class _Post:
    """What is known of one worker."""

    number: int
    pid: int
    slot: int
    filter: str
    kill_s: float | None
    pipe: StackPipe
    report: _Report | None = None


class Watchman:
    """The watch over all workers of a master, at the moments that ``next_look`` gives."""

    def __init__(self, slots: Slots) -> None:
        """Begin without workers."""
        self._slots = slots
        self._watch = Watch(clock=time.monotonic)
        self._posts: dict[int, _Post] = {}

    def add(self, worker: int, *, number: int, pid: int, slot: int, settings: Settings, pipe: StackPipe) -> None:
        """Watch a worker from now on; its end of ``pipe`` belongs to the child alone."""
        self._posts[worker] = _Post(number, pid, slot, settings.target.name, settings.kill_hung, pipe)
        self._watch.add(worker, slow=settings.slow_callback, kill=settings.kill_hung)

    def remove(self, worker: int) -> None:
        """Forget a worker that has ended; say first what was still to be said of it."""
        post = self._posts.pop(worker)
        self._watch.remove(worker)
        _finish(post)
        post.pipe.close()

    def pipe(self, worker: int) -> StackPipe:
        """Return the pipe of a worker, for the master that follows."""
        return self._posts[worker].pipe

    def forget(self) -> None:
        """Let go of the pipes of all workers, in a child."""
        for post in self._posts.values():
            post.pipe.close()

    def next_look(self) -> float | None:
        """Return when ``look`` has something to do, ``None`` if there is nothing to watch."""
        return self._watch.next_look()

    def look(self) -> list[int]:
        """Look at the workers if it is time; return those to be killed."""
        next_look = self._watch.next_look()
        now = time.monotonic()
        if next_look is None or now < next_look:
            return []
        for post in self._posts.values():
            if post.report is not None and now >= post.report.due:
                _finish(post)
        findings = self._watch.look({worker: self._sight(post.slot) for worker, post in self._posts.items()})
        return [finding.worker for finding in findings if self._act(finding, now)]

    def _sight(self, slot: int) -> Sight:
        slots = self._slots
        return Sight(slots.callback(slot), slots.calls(slot), slots.heartbeat(slot))

    def _act(self, finding: Finding, now: float) -> bool:
        """Log a finding, or begin to; tell whether the worker is to be killed."""
        post = self._posts[finding.worker]
        _finish(post)
        what = f"{post.filter}.{finding.callback}" if finding.callback else "its loop"
        seconds = f"{finding.seconds:.1f} s or more"
        match finding:
            case StandsStill():
                post.report = _Report(self._describe(post, what, seconds) + self._tail(post), now + STACK_S)
                if self._slots.stacks(post.slot):
                    post.pipe.ask(post.pid)
            case GoesOn():
                log.info("worker %d goes on: %s stood for %s pid=%d", post.number, what, seconds, post.pid)
            case Hangs():
                text = f"worker {post.number} is killed, and its connections break: {what} stood for {seconds}"
                log.error("%s, kill_hung is %g s%s", text, post.kill_s, self._tail(post))
                return True
        return False

    def _describe(self, post: _Post, what: str, seconds: str) -> str:
        if _is_stopped(post.pid):
            return f"worker {post.number} is stopped, by SIGSTOP or a debugger: nothing has moved for {seconds}"
        if self._slots.callback(post.slot):
            return f"worker {post.number} stands still: {what} has run for {seconds}; {HINT}"
        return f"worker {post.number} stands still: {what} has not turned for {seconds}; {UNNAMED}"

    def _tail(self, post: _Post) -> str:
        queue_id = self._slots.queue_id(post.slot)
        return f" pid={post.pid}" + (f" qid={quoted(queue_id, len(queue_id))}" if queue_id else "")


def _finish(post: _Post) -> None:
    """Log the report that was begun, with the stack as far as it has come."""
    report, post.report = post.report, None
    if report is not None:
        frames = frames_of(post.pipe.take(), below=BELOW)
        stack = f"\nstack, innermost call first:\n{render(frames)}" if frames else " (no stack)"
        log.warning("%s%s", report.text, stack)


def _is_stopped(pid: int) -> bool:
    """Tell whether a process is stopped, where the system says so in /proc."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[:1] in ([b"T"], [b"t"])
    except OSError:
        return False
