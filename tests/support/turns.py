"""A worker in the test's own process, whose turns the test makes."""

import socket
from contextlib import ExitStack
from pathlib import Path

from fastmilter.server.counters import Count
from fastmilter.server.load import load_filter
from fastmilter.server.models import make_worker
from fastmilter.server.settings import load_settings
from fastmilter.server.slots import Slots
from fastmilter.server.worker import Worker

FILTER = f"{Path(__file__).parents[2] / 'examples' / 'tagger.py'}:Tagger"


class Bench:
    def __init__(self, stack: ExitStack, path: Path, **settings: object) -> None:
        self.stack = stack
        self.path = str(path)
        loaded = load_settings({"target": FILTER, "listen": [f"unix:{path}"], "log_level": "error", **settings}, {})
        self.listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        self.listener.bind(self.path)
        self.listener.listen(512)
        self.listener.setblocking(False)
        ours, self.master = (stack.enter_context(end) for end in socket.socketpair())
        ours.setblocking(False)
        self.slots = Slots(4)
        self.slots.claim(0, pid=1, generation=1)
        self.worker: Worker = make_worker(load_filter(loaded.target), loaded, [self.listener], ours, self.slots, 0)
        self.worker._begin()
        stack.callback(self.worker._close_all)
        assert self.master.recv(1024), "the worker is ready"

    def come(self, number: int = 1) -> list[socket.socket]:
        """Connect so often."""
        made = [self.stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(number)]
        for client in made:
            client.connect(self.path)
            client.settimeout(10)
        return made

    def turn(self) -> int:
        """Make a turn; return how many connections were accepted at it."""
        before = self.accepted
        self.worker._turn(False)
        return self.accepted - before

    @property
    def accepted(self) -> int:
        return self.slots.counters.totals(4)[Count.ACCEPTED]
