"""A worker as a process, as the master sees it."""

import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from fastmilter.server import channel
from fastmilter.server.settings import Settings
from fastmilter.server.slots import Slots


class Runnable(Protocol):
    """What a worker class makes."""

    def run(self) -> int:
        """Serve until told otherwise; return the exit status."""
        ...


WorkerClass = Callable[[Any, Settings, list[socket.socket], socket.socket, Slots, int], Runnable]
"""Filter class, settings, listeners, channel to the master, shared slots, own slot; called in the child."""


@dataclass(slots=True)
class Child:
    """What the master has of a worker that it has not reaped yet."""

    worker: int
    number: int
    slot: int
    generation: int
    pid: int
    link: socket.socket
    """The master's end of the channel."""
    pidfd: int
    """A descriptor that is readable once the process has ended; -1 where the system has none."""
    reader: channel.Reader = field(default_factory=channel.Reader)
    lost: bool = False

    def to_state(self) -> dict[str, Any]:
        """Return what the master that follows by an upgrade in place has to know besides the policy's record."""
        return {"pid": self.pid, "link": self.link.fileno(), "unreachable": self.lost}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], *, pidfds: bool) -> Self:
        """Take over a worker of the former master, from this and the policy's record in one."""
        link = socket.socket(fileno=state["link"])
        link.setblocking(False)
        pid = state["pid"]
        pidfd = open_pidfd(pid) if pidfds else -1
        place = {name: state[name] for name in ("worker", "number", "slot", "generation")}
        return cls(**place, pid=pid, link=link, pidfd=pidfd, lost=state["unreachable"])


def open_pidfd(pid: int) -> int:
    """Return a descriptor of a child, -1 if there can be none: an old kernel, or no descriptor left."""
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):
            return os.pidfd_open(pid)
    return -1
