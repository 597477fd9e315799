"""Filters whose every callback may be slow, wrong or late, as the message that it looks at says.

What a message brings is worked out from its number, by the filter and by the client alike (``script_of``). In the
directory that the server runs in each worker leaves word of what it had: the connections that came to it, as they come
(a worker may be killed), and at its end what it counted.
"""

import asyncio
import contextlib
import os
import random
import threading
import time
from dataclasses import dataclass
from typing import Any, Final

from fastmilter import Filter, Step, Verdict, reply
from fastmilter.errors import NoConnection

CONNECTIONS: Final = "connections"
"""A directory with a file for each worker, by its number: the names of the clients that connected to it."""
COUNTS: Final = "counts"
"""A file with a line for each worker that ended by itself."""
DEADLINE_S: Final = 0.4
LOOP_S: Final = 0.001
"""The longest that a callback in the loop takes: all other connections of the worker wait for it."""
SLOW: Final = reply(451, "4.3.2", "slow today")
REFUSED: Final = reply(550, "5.7.1", "as scripted")
_STEPS: Final = (Step.MAIL, Step.RCPT, Step.DATA, Step.HEADER, Step.BODY, Step.END_OF_MESSAGE)


@dataclass(frozen=True)
class Act:
    """What a callback does at a step."""

    delay: float
    verdict: Verdict | None = None
    raises: bool = False


def script_of(number: int) -> dict[Step, Act]:
    """Return what the callbacks of the message with this number do."""
    dice = random.Random(number)
    script = {}
    for step in _STEPS:
        roll = dice.random()
        delay = dice.choice([0.0, 0.0, 0.001, 0.01])
        if roll < 0.01:
            script[step] = Act(3 * DEADLINE_S)
        elif roll < 0.03:
            script[step] = Act(delay, raises=True)
        elif roll < 0.06:
            script[step] = Act(delay, REFUSED)
        else:
            script[step] = Act(delay)
    return script


class _Counts:
    """What happened in this process, written when it ends."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.numbers = dict.fromkeys(("made", "opened", "closed", "begun", "ended", "overlaps"), 0)

    def add(self, what: str) -> None:
        with self.lock:
            self.numbers[what] += 1


class _Common(Filter[Any]):
    counts = _Counts()
    connections = -1

    def __init__(self) -> None:
        self.counts.add("made")
        self.busy = self.is_known = False

    def enter(self) -> None:
        # Not in __init__: where that runs out of time, another object takes the place of the one that it makes.
        if not self.is_known:
            self.is_known = True
            self.counts.add("opened")
            with contextlib.suppress(NoConnection):  # whole, and there even if the next thing is SIGKILL
                os.write(self.connections, f"{self.connection.hostname}\n".encode())
        if self.busy:
            self.counts.add("overlaps")
        self.busy = True

    def leave(self) -> None:
        self.busy = False

    def on_connect(self, hostname: str, address: Any) -> None:  # not called where no thread was free in time
        self.enter()
        self.leave()

    @property
    def number(self) -> int:
        return int(self.message.sender.local_part)

    def finish(self, act: Act, step: Step) -> Verdict | None:
        if act.raises:
            raise ValueError(f"as scripted at {step}")
        return act.verdict

    def mark(self, number: int) -> None:
        self.message.add_header("X-Mark", str(number))

    def begin(self) -> None:
        """Count a message when the filter first hears of it."""
        state = self.message.state
        if not hasattr(state, "is_known"):
            state.is_known = True
            self.counts.add("begun")

    def on_message_end(self, verdict: Verdict | None) -> None:
        self.enter()
        self.begin()  # on_mail is not called if no thread was free in time
        self.counts.add("ended")
        self.leave()

    def on_close(self) -> None:
        self.enter()
        self.counts.add("closed")
        self.leave()

    @classmethod
    def worker_started(cls, options: Any) -> None:
        os.makedirs(CONNECTIONS, exist_ok=True)
        cls.connections = os.open(f"{CONNECTIONS}/{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)

    @classmethod
    def worker_stopped(cls) -> None:
        with open(COUNTS, "a") as counts:  # small enough to be written whole
            counts.write(
                " ".join(f"{name}={number}" for name, number in cls.counts.numbers.items()) + f" pid={os.getpid()}\n"
            )


class Plain(_Common):
    """In the loop of the worker, where nothing can run out of time."""

    longest = LOOP_S

    def act(self, step: Step) -> Verdict | None:
        self.enter()
        try:
            act = script_of(self.number)[step]
            time.sleep(min(act.delay, self.longest))
            return self.finish(act, step)
        finally:
            self.leave()

    def on_mail(self, sender: Any, params: Any) -> Verdict | None:
        self.begin()
        return self.act(Step.MAIL)

    def on_rcpt(self, recipient: Any, params: Any) -> Verdict | None:
        return self.act(Step.RCPT)

    def on_data(self) -> Verdict | None:
        return self.act(Step.DATA)

    def on_header(self, name: str, value: str) -> Verdict | None:
        return self.act(Step.HEADER)

    def on_body(self, chunk: bytes) -> Verdict | None:
        return self.act(Step.BODY)

    def on_end_of_message(self) -> Verdict | None:
        number = self.number
        self.mark(number)
        return self.act(Step.END_OF_MESSAGE)


class Threaded(Plain):
    """In threads."""

    blocking = True
    longest = 3 * DEADLINE_S
    deadline = DEADLINE_S
    timeout_verdict = SLOW


class Waiting(_Common):
    """On asyncio."""

    deadline = DEADLINE_S
    timeout_verdict = SLOW

    async def act(self, step: Step) -> Verdict | None:
        self.enter()
        try:
            act = script_of(self.number)[step]
            await asyncio.sleep(act.delay)
            return self.finish(act, step)
        finally:
            self.leave()

    async def on_mail(self, sender: Any, params: Any) -> Verdict | None:
        self.begin()
        return await self.act(Step.MAIL)

    async def on_rcpt(self, recipient: Any, params: Any) -> Verdict | None:
        return await self.act(Step.RCPT)

    async def on_data(self) -> Verdict | None:
        return await self.act(Step.DATA)

    async def on_header(self, name: str, value: str) -> Verdict | None:
        return await self.act(Step.HEADER)

    async def on_body(self, chunk: bytes) -> Verdict | None:
        return await self.act(Step.BODY)

    async def on_end_of_message(self) -> Verdict | None:
        number = self.number
        self.mark(number)
        return await self.act(Step.END_OF_MESSAGE)


class Mixed(Threaded):
    """Both: callbacks without async run in threads."""

    async def on_rcpt(self, recipient: Any, params: Any) -> Verdict | None:  # type: ignore[override]
        self.enter()
        try:
            act = script_of(self.number)[Step.RCPT]
            await asyncio.sleep(act.delay)
            return self.finish(act, Step.RCPT)
        finally:
            self.leave()
