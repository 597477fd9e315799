"""Numbers that all processes of a server can read: one slot of shared memory per worker, no locks.

The memory is made by the master before the first fork and has no name, so nothing of it outlives the server. A slot has
one writer at a time: the worker that lives in it; before its birth and after its death the master. Everybody else only
reads. Every number is one aligned word of 64 bits, so a reader sees either the old or the new value of a word; two
words read one after the other may be from different moments, which is good enough for balancing and for display.

A master that replaces itself in place hands the memory on by its descriptor, if both mean the same by it (``LAYOUT``).
"""

import contextlib
import mmap
import os
from enum import IntEnum
from typing import Final

from fastmilter.plan import CALLBACKS
from fastmilter.server import counters
from fastmilter.server.peer_counts import PeerCounts

CAPACITY: Final = 4096
"""Slots that a server makes; untouched ones cost no memory. Two generations of the most workers allowed fit."""

_WORDS_PER_SLOT: Final = 32  # 256 bytes: cache lines of its own, so that workers do not slow each other down
_WORD_BYTES: Final = 8

QUEUE_ID_BYTES: Final = 40
"""How much of a queue id fits into a slot; the longest of a real MTA has 17."""

CALLBACK_NAMES: Final = ("", "__init__", *CALLBACKS)
"""What a worker may be in, by the number that its slot has for it: nothing, making a filter object, a callback."""


class _Word(IntEnum):
    """Places of the numbers within a slot."""

    PID = 0
    GENERATION = 1
    LISTENING = 2
    CONNECTIONS = 3
    HEARTBEAT = 4  # a double, all others are unsigned integers
    POLLING = 5
    NUMBER = 6
    CALLS = 7
    CALLBACK = 8
    STACKS = 9
    LISTENED = 10
    QUEUE_ID = 11  # and the words behind it: bytes, up to the first zero


_PID, _GENERATION, _LISTENING, _CONNECTIONS, _HEARTBEAT, _POLLING, _NUMBER = tuple(_Word)[:7]
_CALLS, _CALLBACK, _STACKS, _LISTENED, _QUEUE_ID = tuple(_Word)[7:]


LAYOUT: Final = " ".join(
    [f"{CAPACITY}x{_WORDS_PER_SLOT}", *(word.name for word in _Word), *CALLBACK_NAMES, counters.LAYOUT]
)
"""What the memory means: two versions with the same text may share it."""


class Slots:
    """Shared numbers of ``count`` workers; a slot is named by its index from 0.

    >>> slots = Slots(8)
    >>> slots.claim(2, pid=4711, generation=1)
    >>> slots.set_listening(2, True); slots.set_connections(2, 10)
    >>> slots.active(), slots.mean_connections(), slots.least_loaded()
    ([2], 10.0, 2)
    """

    def __init__(self, count: int = CAPACITY, *, memory: int = -1, bell: int = -1) -> None:
        """Make the memory, before the first fork; or take over ``memory`` and ``bell``, descriptors of other slots."""
        self.count = count
        # One slot more, in front: its first word says how many slots have ever been in use, so that readers need not
        # scan thousands of empty ones. Only the master writes it.
        own = (count + 1) * _WORDS_PER_SLOT * _WORD_BYTES
        size = own + counters.size_for(count)
        self.memory = _make_memory(size) if memory < 0 else memory
        self._map = mmap.mmap(self.memory, size)
        view = memoryview(self._map)
        self._words = view[:own].cast("Q")
        self._clocks = view[:own].cast("d")
        self.counters: Final = counters.Counters(count, view[own:])
        """What the workers count, for whoever watches the server."""
        self.peers: Final = PeerCounts(count)
        """The connections of each peer, where they are limited; not handed on, since its marks are one master's."""
        self.bell: Final = _make_bell() if bell < 0 else bell

    def _at(self, slot: int, word: int) -> int:
        if not 0 <= slot < self.count:
            raise IndexError(f"slot {slot} of {self.count}")
        return (slot + 1) * _WORDS_PER_SLOT + word

    def forget_memory(self) -> None:
        """Close the descriptor of the memory, in a child: only a master hands it on."""
        if self.memory >= 0:
            os.close(self.memory)
            self.memory = -1

    # The bell: wakes every worker that waits for it.

    def ring(self) -> None:
        """Ask the workers that leave new connections to others to look again whether they still should."""
        if self.bell is not None:
            os.eventfd_write(self.bell, 1)  # nobody reads it: whoever waits for its edge is woken by each write

    # The master's, while no worker lives in the slot.

    def clear(self, slot: int) -> None:
        """Empty a slot, before the birth or after the death of its worker; what that one counted is kept."""
        self.counters.retire(slot)
        for word in range(_WORDS_PER_SLOT):
            self._words[self._at(slot, word)] = 0
        self.peers.clear(slot)
        self._words[0] = max(self._words[0], slot + 1)

    # The worker's, in its own slot.

    def claim(self, slot: int, *, pid: int, generation: int, number: int = 0) -> None:
        """Say who lives here; from now on the slot is one of ``active()``."""
        self._words[self._at(slot, _NUMBER)] = number
        self._words[self._at(slot, _GENERATION)] = generation
        self._words[self._at(slot, _PID)] = pid
        if self._words[0] <= slot:  # only without a master, as in a test
            self._words[0] = slot + 1

    def set_listening(self, slot: int, listening: bool) -> None:
        """Say whether this worker takes new connections: true from READY to the drain, however busy it is."""
        if listening:
            self._words[self._at(slot, _LISTENED)] = 1
        self._words[self._at(slot, _LISTENING)] = listening

    def set_polling(self, slot: int, polling: bool) -> None:
        """Say whether this worker waits for new connections now: not while it has more than its share."""
        self._words[self._at(slot, _POLLING)] = polling

    def set_connections(self, slot: int, number: int) -> None:
        """Publish the number of connections open now."""
        self._words[self._at(slot, _CONNECTIONS)] = number

    def beat(self, slot: int, now: float) -> None:
        """Publish that the loop turned at ``now`` (``time.monotonic()``)."""
        self._clocks[self._at(slot, _HEARTBEAT)] = now

    def set_stacks(self, slot: int) -> None:
        """Say that this process writes its stack when it gets ``stacks.STACK_SIGNAL``, which ends any other."""
        self._words[self._at(slot, _STACKS)] = 1

    # Everybody's.

    def pid(self, slot: int) -> int:
        """Return the process that lives in the slot, 0 if none."""
        return self._words[self._at(slot, _PID)]

    def generation(self, slot: int) -> int:
        """Return the generation of the worker, from 1; each reload starts a new one."""
        return self._words[self._at(slot, _GENERATION)]

    def number(self, slot: int) -> int:
        """Return the number of the worker, from 1, which its title shows too; a reload gives the new one the same."""
        return self._words[self._at(slot, _NUMBER)]

    def listening(self, slot: int) -> bool:
        """Tell whether the worker takes new connections."""
        return bool(self._words[self._at(slot, _LISTENING)])

    def has_listened(self, slot: int) -> bool:
        """Tell whether the worker has ever taken new connections: if it does not now, it drains or leaves."""
        return bool(self._words[self._at(slot, _LISTENED)])

    def polling(self, slot: int) -> bool:
        """Tell whether the worker waits for new connections now."""
        return bool(self._words[self._at(slot, _POLLING)])

    def connections(self, slot: int) -> int:
        """Return the number of connections that the worker has open."""
        return self._words[self._at(slot, _CONNECTIONS)]

    def heartbeat(self, slot: int) -> float:
        """Return when the loop of the worker last turned (``time.monotonic()``); 0.0 before and after its loop."""
        return self._clocks[self._at(slot, _HEARTBEAT)]

    def in_use(self) -> int:
        """Return how many slots, from the first, a worker has ever lived in."""
        return self._words[0]

    def calls(self, slot: int) -> int:
        """Return the number of callbacks begun since the worker started: the same twice, it is in the same one."""
        return self._words[self._at(slot, _CALLS)]

    def callback(self, slot: int) -> str:
        """Return the name of the callback that the worker is in, "" if none; ``__init__``: it makes a filter object."""
        number = self._words[self._at(slot, _CALLBACK)]
        return CALLBACK_NAMES[number] if number < len(CALLBACK_NAMES) else ""

    def queue_id(self, slot: int) -> bytes:
        """Return the queue id of the message in work, cut; empty if there is none, or the MTA has not told it.

        It is written without a lock: while it changes, it may be read half. That is good enough for the log.
        """
        place = self._at(slot, _QUEUE_ID) * _WORD_BYTES
        return self._map[place : place + QUEUE_ID_BYTES].partition(b"\0")[0]

    def stacks(self, slot: int) -> bool:
        """Tell whether the process writes its stack when it gets ``stacks.STACK_SIGNAL``."""
        return bool(self._words[self._at(slot, _STACKS)])

    def active(self) -> list[int]:
        """Return the slots in which a worker lives."""
        return [slot for slot in range(self._words[0]) if self.pid(slot)]

    def all_connections(self) -> int:
        """Return the number of connections of all workers, those of draining ones among them."""
        return sum([self.connections(slot) for slot in range(self._words[0])])

    def mean_connections(self) -> float:
        """Return the mean number of connections of the workers that take new ones; 0.0 if there is none."""
        connections = workers = 0
        for slot in range(self._words[0]):
            if self._takes_new_ones(slot):
                connections += self.connections(slot)
                workers += 1
        return connections / workers if workers else 0.0

    def least_loaded(self) -> int | None:
        """Return the slot of the worker with the fewest connections that takes new ones (ties: the lowest slot)."""
        least, fewest = -1, 0
        for slot in range(self._words[0]):
            if self._takes_new_ones(slot) and (least < 0 or self.connections(slot) < fewest):
                least, fewest = slot, self.connections(slot)
        return None if least < 0 else least

    def _takes_new_ones(self, slot: int) -> bool:
        return self.pid(slot) != 0 and self.listening(slot)


def _make_memory(size: int) -> int:
    """Return a descriptor of fresh memory, -1 where the system gives none (then it cannot be handed on)."""
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            memory = os.memfd_create("fastmilter", os.MFD_CLOEXEC)
            os.ftruncate(memory, size)
            return memory
    return -1


def _make_bell() -> int | None:
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) if hasattr(os, "eventfd") else None
