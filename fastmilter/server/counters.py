"""What a server counts: blocks of shared memory that the monitor reads; one writer each, no locks.

Three kinds of blocks lie one after the other: one that the master writes about the whole server, one in which the
master keeps what dead workers had counted (so that no sum ever goes down), and one for each slot, which the worker in
it writes. Every number is one aligned word of 64 bits. Counts stand in the front of a block and only grow; behind them
stand gauges, the guards of the filter, the messages in flight, and a text.

The master moves the counts of a dead worker while ``VERSION`` is odd; a reader that meets an odd or another version
afterwards reads again. The messages in flight have such a version in each block, of the worker in it. Times are seconds
of ``time.monotonic()``, unless they say otherwise.

Errors: ``IndexError`` for a slot that does not exist. What a reader finds may be a moment old, but makes sense.
"""

import logging
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Final, NamedTuple, TypeVar

from fastmilter.negotiation import STEP_NUMBERS
from fastmilter.plan import CALLBACKS
from fastmilter.replies import CONTINUE, Verdict, VerdictKind

log: Final = logging.getLogger(__name__)

_T = TypeVar("_T")

STEPS: Final = tuple(str(step) for step in STEP_NUMBERS)
"""The steps by their numbers."""

TIMED: Final = (*STEPS, "other")
"""What callbacks are timed for; ``other``: those of no step, such as ``on_close``."""

CALLED: Final = (*CALLBACKS, "__init__")
"""Whatever of a filter is called by name; exceptions are counted for each."""

OUTCOMES: Final = (*(str(kind) for kind in VerdictKind if kind != "reply"), "reply_4xx", "reply_5xx", "dropped")
"""How a message can end; all but the last are verdicts."""

BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the classes of callback time, in seconds; one more class is without a bound."""

MOST_GUARDS: Final = 16
"""How many guards a worker shows, by name."""
MOST_SHOWN: Final = 20
"""How many messages in flight a worker shows: the oldest."""
NAME_BYTES: Final = 32
"""Longest name of a guard, and longest queue id, in bytes; longer ones are cut."""
TEXT_BYTES: Final = 512

_WORD_BYTES: Final = 8
_BLOCK_WORDS: Final = 1024
_BLOCKS_IN_FRONT: Final = 2
_RETRIES: Final = 1000


class Count(IntEnum):
    """Counts of a worker that are one number each; behind them come the tables."""

    ACCEPTED = 0
    REFUSED = 1  # connections of peers that may not, or of too many
    ACCEPT_FAILURES = 2
    BYTES_READ = 3
    EDITS = 4
    COMPLAINTS = 5
    PROTOCOL_ERRORS = 6
    NEGOTIATION_FAILURES = 7
    INTERNAL_ERRORS = 8
    SILENT_NEGOTIATION = 9
    SILENT_PACKET = 10
    SILENT_IDLE = 11
    CALLBACK_TIMEOUTS = 12
    LATE_CALLBACKS = 13


_KINDS: Final = len(OUTCOMES) - 1
_CLASSES: Final = len(BUCKETS_S) + 1
_TIMES: Final = _CLASSES + 1  # the classes, and the sum in nanoseconds

_OUTCOMES_AT: Final = len(Count)
_VERDICTS_AT: Final = _OUTCOMES_AT + len(OUTCOMES)
_EXCEPTIONS_AT: Final = _VERDICTS_AT + len(STEPS) * _KINDS
_TIMES_AT: Final = _EXCEPTIONS_AT + len(CALLED)
_COUNTS: Final = _TIMES_AT + len(TIMED) * _TIMES


class Gauge(IntEnum):
    """What may go down again; nothing of it outlives its worker."""

    IN_MESSAGE = 0
    THREADS = 1
    THREADS_BUSY = 2
    JOBS_WAITING = 3
    TASKS = 4
    READ_AHEAD_BYTES = 5


class GuardState(IntEnum):
    """The state of a guard (a circuit breaker) in a worker."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


NO_STATE: Final = len(GuardState)
"""Instead of one, of a guard that is gone: what it counted still counts."""


class GuardCount(IntEnum):
    """What a guard counts."""

    CALLS = 0
    FAILURES = 1
    REFUSED = 2
    OPENED = 3


_GAUGES_AT: Final = _COUNTS
_GUARDS_AT: Final = _GAUGES_AT + len(Gauge)
_GUARD_STATE: Final = NAME_BYTES // _WORD_BYTES
_GUARD_RUNNING: Final = _GUARD_STATE + 1
_GUARD_COUNTS: Final = _GUARD_STATE + 2
_GUARD_WORDS: Final = _GUARD_COUNTS + len(GuardCount)
_SHOWN_AT: Final = _GUARDS_AT + MOST_GUARDS * _GUARD_WORDS  # how many
_SHOWN_VERSION_AT: Final = _SHOWN_AT + 1  # odd while the rows are written
_ROWS_AT: Final = _SHOWN_AT + 2  # of each: queue id, callback, began
_SHOWN_WORDS: Final = NAME_BYTES // _WORD_BYTES + 2
_TEXT_AT: Final = _ROWS_AT + MOST_SHOWN * _SHOWN_WORDS
assert _TEXT_AT + TEXT_BYTES // _WORD_BYTES <= _BLOCK_WORDS

MOST_KEPT_GUARDS: Final = (_BLOCK_WORDS - _GUARDS_AT) // _GUARD_WORDS
"""How many guards of dead workers are kept, by name: all the block has room for, since nothing is in flight there."""


class Of(IntEnum):
    """What the master tells of the whole server; times are by the clock on the wall (``time.time()``)."""

    VERSION = 0
    STARTED_AT = 1
    STATE = 2
    GENERATION = 3
    WANTED = 4
    RELOADS = 5
    FAILED_RELOADS = 6
    RELOADED_AT = 7
    STARTS = 8
    ERROR_AT = 9
    DRAINED = 10  # from here: why workers ended, in the order of ``ENDS``
    KILLED = 11
    CRASHED = 12
    FAILED = 13
    CONFIG = 14
    MONITOR_STARTS = 15
    REOPENED = 16  # how often the log file was
    NOT_REOPENED = 17  # how often that failed


ENDS: Final = ("drained", "killed", "crashed", "failed", "config")
"""Why a worker ended: asked to; by a signal of somebody, be it the kernel or the master (``--kill-hung``); by one
of its own fault; with an error status; with 78."""


class State(IntEnum):
    """What the whole server is doing."""

    STARTING = 0
    SERVING = 1
    RELOADING = 2
    STOPPING = 3


_NAMES: Final = [
    *(word.name for words in (Count, Gauge, GuardState, GuardCount, Of, State) for word in words),
    *(*STEPS, *CALLED, *OUTCOMES, *ENDS),
    *map(str, (*BUCKETS_S, MOST_GUARDS, MOST_SHOWN, NAME_BYTES, TEXT_BYTES, _BLOCK_WORDS)),
    *map(str, (_GUARDS_AT, _SHOWN_AT, _SHOWN_VERSION_AT, _ROWS_AT, _TEXT_AT, MOST_KEPT_GUARDS)),
]
LAYOUT: Final = " ".join(_NAMES)
"""What the memory means: two versions with the same text may share it."""


class Shown(NamedTuple):
    """A message in flight."""

    queue_id: str
    callback: str
    since: float


class GuardNumbers(NamedTuple):
    """A guard of the filter, over all workers: how many are in each state, and the counts by ``GuardCount``."""

    states: tuple[int, ...]
    running: int
    counts: tuple[int, ...]


_KIND_PLACES: Final = {kind: OUTCOMES.index(kind) for kind in VerdictKind if kind != "reply"}
_REPLY = OUTCOMES.index("reply_4xx")
_DROPPED = OUTCOMES.index("dropped")
_CALLED_PLACES: Final = {name: place for place, name in enumerate(CALLED)}
_TIMED_PLACES: Final = {name: TIMED.index(name.removeprefix("on_")) for name in CALLED if name[3:] in STEPS}
_OTHER = TIMED.index("other")
_CONTINUE = CONTINUE
_IN_MESSAGE = int(Gauge.IN_MESSAGE)
_EDITS = int(Count.EDITS)


def _outcome(verdict: Verdict) -> int:
    """Return the place of a verdict in ``OUTCOMES``."""
    if verdict is _CONTINUE:
        return 0
    place = _KIND_PLACES.get(verdict.kind)
    if place is not None:
        return place
    return _REPLY + 1 if (verdict.code or 0) >= 500 else _REPLY


class ShownGuard:
    """What a worker shows of its guards of one name: a place for good, and the counts of all that there ever were."""

    def __init__(self, place: int) -> None:
        """Begin with no guard."""
        self.place: Final = place
        self._gone = [0] * len(GuardCount)
        self._living: dict[int, list[int]] = {}

    def count(self, living: Mapping[int, Sequence[int]]) -> list[int]:
        """Return the sums, given the counts of the guards that live, each by a number that no other ever has."""
        for number in self._living.keys() - living.keys():
            self._gone = _sums(self._gone, self._living.pop(number))
        for number, counts in living.items():  # a guard may take back a call, which would be a number that goes down
            self._living[number] = list(map(max, self._living.get(number, counts), counts))
        return _sums(self._gone, *self._living.values())


class Tally:
    """A worker's block, for its worker: adds to counts, sets gauges. Never raises for a number."""

    def __init__(self, block: memoryview, *, timed: bool = False, watched: bool = False) -> None:
        """Write to ``block``. ``timed``: the time of callbacks is wanted; ``watched``: so is what is in flight."""
        self.timed = timed
        self.watched = watched
        self.guards: Final[dict[str, ShownGuard]] = {}
        """The guards that have a place, by name."""
        self.is_short_of_places = False
        """Whether it has been said that there are more."""
        self._block = block
        self._words = block.cast("Q")
        self._clocks = block.cast("d")

    def add(self, count: int, number: int = 1) -> None:
        """Add to a ``Count``."""
        self._words[count] += number

    def set(self, gauge: int, number: int) -> None:
        """Set a ``Gauge``."""
        self._words[_GAUGES_AT + gauge] = number

    def message(self, verdict: Verdict | None, edits: int) -> None:
        """Count a message that has ended (``None``: dropped), and its edits."""
        self._words[_OUTCOMES_AT + (_DROPPED if verdict is None else _outcome(verdict))] += 1
        if edits:
            self._words[_EDITS] += edits

    def messages(self) -> int:
        """Return how many messages had a verdict."""
        return sum(self._words[_OUTCOMES_AT : _OUTCOMES_AT + _DROPPED])

    def verdict(self, step: int, verdict: Verdict) -> None:
        """Count a verdict at a step, by its number."""
        self._words[_VERDICTS_AT + step * _KINDS + _outcome(verdict)] += 1

    def exception(self, callback: str) -> None:
        """Count a callback that raised, by its name."""
        self._words[_EXCEPTIONS_AT + _CALLED_PLACES[callback]] += 1

    def observe(self, callback: str, seconds: float) -> None:
        """Count how long a callback took, by its name."""
        place = 0
        for bound in BUCKETS_S:
            if seconds <= bound:
                break
            place += 1
        start = _TIMES_AT + _TIMED_PLACES.get(callback, _OTHER) * _TIMES
        self._words[start + place] += 1
        self._words[start + _CLASSES] += int(max(seconds, 0.0) * 1e9)

    def show(self, place: int, queue_id: str, callback: str, began: float) -> None:
        """Show a message in flight, the ``place``-th of the oldest; nobody reads it before ``set_shown``."""
        self._words[_SHOWN_VERSION_AT] |= 1
        at = _ROWS_AT + place * _SHOWN_WORDS
        _put(self._block, at, NAME_BYTES, queue_id)
        self._words[at + _SHOWN_WORDS - 2] = _CALLED_PLACES.get(callback, 0)
        self._clocks[at + _SHOWN_WORDS - 1] = began

    def set_shown(self, number: int, in_message: int) -> None:
        """Tell how many messages are shown, and how many are in flight."""
        self._words[_SHOWN_VERSION_AT] |= 1
        self._words[_SHOWN_AT] = number
        self._words[_SHOWN_VERSION_AT] += 1
        self._words[_GAUGES_AT + _IN_MESSAGE] = in_message

    def show_guard(self, place: int, name: str, state: int, running: int, counts: Sequence[int]) -> None:
        """Show a guard of the filter: its place from 0 to MOST_GUARDS - 1, and its counts by ``GuardCount``."""
        at = _guard_at(place)
        _put(self._block, at, NAME_BYTES, name)
        self._words[at + _GUARD_STATE] = state
        self._words[at + _GUARD_RUNNING] = running
        for count, number in enumerate(counts):
            self._words[at + _GUARD_COUNTS + count] = number


def size_for(count: int) -> int:
    """Return the bytes that the counters of ``count`` slots take."""
    return (count + _BLOCKS_IN_FRONT) * _BLOCK_WORDS * _WORD_BYTES


class Counters:
    """The memory of all blocks; made by the master before its first fork.

    >>> counters = Counters(4)
    >>> counters.tally(2).add(Count.ACCEPTED)
    >>> counters.retire(2)
    >>> counters.totals(4)[Count.ACCEPTED]
    1
    """

    def __init__(self, count: int, memory: memoryview | None = None) -> None:
        """Use ``memory`` (``size_for(count)`` bytes of it) for ``count`` slots, or make some of its own."""
        self.count = count
        self._map = memoryview(mmap.mmap(-1, size_for(count))) if memory is None else memory
        self._server = self._block(0)
        self._retired = self._block(1)
        self._is_short_of_places = False

    def _block(self, place: int) -> memoryview:
        size = _BLOCK_WORDS * _WORD_BYTES
        return self._map[place * size : (place + 1) * size]

    def _slot(self, slot: int) -> memoryview:
        if not 0 <= slot < self.count:
            raise IndexError(f"slot {slot} of {self.count}")
        return self._block(_BLOCKS_IN_FRONT + slot)

    # The worker's.

    def tally(self, slot: int, *, timed: bool = False, watched: bool = False) -> Tally:
        """Return the block of a slot, for the worker that lives there."""
        return Tally(self._slot(slot), timed=timed, watched=watched)

    def set_failure(self, slot: int, text: str) -> None:
        """Leave word of what ends this worker."""
        _put(self._slot(slot), _TEXT_AT, TEXT_BYTES, text)

    # The master's.

    def failure(self, slot: int) -> str:
        """Return what the last worker in the slot left word of, "" if nothing."""
        return _get(self._slot(slot), _TEXT_AT, TEXT_BYTES)

    def retire(self, slot: int) -> None:
        """Keep the counts of a worker that is gone, and empty its block."""
        block = self._slot(slot)
        words, kept = block.cast("Q"), self._retired.cast("Q")
        self.add_of_server(Of.VERSION)
        for place in range(_COUNTS):
            if words[place]:
                kept[place] += words[place]
        for place in range(MOST_GUARDS):
            self._retire_guard(block, _guard_at(place))
        block[:] = bytes(len(block))
        self.add_of_server(Of.VERSION)

    def _retire_guard(self, block: memoryview, at: int) -> None:
        name = _get(block, at, NAME_BYTES)
        if not name:
            return
        kept, words = self._retired.cast("Q"), block.cast("Q")
        for place in range(MOST_KEPT_GUARDS):
            here = _GUARDS_AT + place * _GUARD_WORDS
            known = _get(self._retired, here, NAME_BYTES)
            if known in ("", name):
                _put(self._retired, here, NAME_BYTES, name)
                for count in GuardCount:
                    kept[here + _GUARD_COUNTS + count] += words[at + _GUARD_COUNTS + count]
                return
        if not self._is_short_of_places:
            self._is_short_of_places = True
            log.warning(
                "there have been more than %d names of guards: what those beyond count, such as %s, goes down in the "
                "metrics when their workers end",
                MOST_KEPT_GUARDS,
                name,
            )

    def set_of_server(self, what: Of, number: int) -> None:
        """Tell a number of the whole server."""
        self._server.cast("Q")[what] = number

    def set_time(self, what: Of, at: float) -> None:
        """Tell when something happened, by the clock on the wall."""
        self._server.cast("d")[what] = at

    def add_of_server(self, what: int, number: int = 1) -> None:
        """Add to a number of the whole server."""
        self._server.cast("Q")[what] += number

    def set_error(self, text: str, now: float) -> None:
        """Tell what went wrong last, and when (``time.time()``)."""
        _put(self._server, len(Of), TEXT_BYTES, text)
        self.set_time(Of.ERROR_AT, now)

    # Everybody's.

    def of_server(self, what: int) -> int:
        """Return a number of the whole server."""
        return self._server.cast("Q")[what]

    def time_of(self, what: Of) -> float:
        """Return when something happened, by the clock on the wall; 0.0: never."""
        return self._server.cast("d")[what]

    def error(self) -> str:
        """Return what went wrong last, "" if nothing did."""
        return _get(self._server, len(Of), TEXT_BYTES)

    def totals(self, slots: int) -> list[int]:
        """Return all counts of the first ``slots`` slots and of dead workers together; ``Totals`` tells them apart."""
        blocks = [self._retired, *(self._slot(slot) for slot in range(slots))]
        return self._unmoved(lambda: _sums(*(block.cast("Q")[:_COUNTS].tolist() for block in blocks)))

    def _unmoved(self, read: Callable[[], _T]) -> _T:
        """Return what ``read`` does, with no count of a dead worker twice or not at all."""
        found, _ = _whole(lambda: self.of_server(Of.VERSION), read)
        return found  # not whole: the master died or stands still in the middle of it

    def counts(self, slot: int) -> list[int]:
        """Return the counts of one slot."""
        return self._slot(slot).cast("Q")[:_COUNTS].tolist()

    def gauge(self, slot: int, gauge: Gauge) -> int:
        """Return a gauge of one slot."""
        return self._slot(slot).cast("Q")[_GAUGES_AT + gauge]

    def in_flight(self, slot: int) -> list[Shown]:
        """Return the oldest messages in flight of a worker, the oldest first; none while it does not finish them."""
        block = self._slot(slot)
        words = block.cast("Q")
        shown, is_whole = _whole(lambda: words[_SHOWN_VERSION_AT], lambda: _rows_in(block))
        return sorted(shown, key=lambda each: each.since) if is_whole else []

    def guards(self, slots: int) -> dict[str, GuardNumbers]:
        """Return the guards of the first ``slots`` slots by name, with what dead workers counted."""
        return self._unmoved(lambda: self._guards(slots))

    def _guards(self, slots: int) -> dict[str, GuardNumbers]:
        found: dict[str, GuardNumbers] = {}
        blocks = [(self._retired, MOST_KEPT_GUARDS), *((self._slot(slot), MOST_GUARDS) for slot in range(slots))]
        for number, (block, most) in enumerate(blocks):
            for name, state, running, counts in _guards_in(block, most):
                known = found.get(name) or GuardNumbers((0,) * len(GuardState), 0, (0,) * len(GuardCount))
                lives = number > 0
                states = tuple(many + (lives and place == state) for place, many in enumerate(known.states))
                found[name] = GuardNumbers(states, known.running + running * lives, tuple(_sums(known.counts, counts)))
        return found


class Totals:
    """Counts by their meaning: a view of what ``Counters.totals`` or ``Counters.counts`` returned."""

    def __init__(self, counts: list[int]) -> None:
        """Look at ``counts``."""
        self._counts = counts

    def __getitem__(self, count: Count) -> int:
        """Return a single count."""
        return self._counts[count]

    def messages(self, outcome: str) -> int:
        """Return how many messages ended so (one of ``OUTCOMES``)."""
        return self._counts[_OUTCOMES_AT + OUTCOMES.index(outcome)]

    def verdicts(self, step: str, outcome: str) -> int:
        """Return how many verdicts of a kind were given at a step."""
        return self._counts[_VERDICTS_AT + STEPS.index(step) * _KINDS + OUTCOMES.index(outcome)]

    def exceptions(self, callback: str) -> int:
        """Return how often a callback raised."""
        return self._counts[_EXCEPTIONS_AT + _CALLED_PLACES[callback]]

    def times(self, what: str) -> tuple[list[int], float]:
        """Return how many calls for ``what`` (of ``TIMED``) took at most each of ``BUCKETS_S``, and all; seconds."""
        start = _TIMES_AT + TIMED.index(what) * _TIMES
        classes = self._counts[start : start + _CLASSES]
        return [sum(classes[: place + 1]) for place in range(_CLASSES)], self._counts[start + _CLASSES] / 1e9


def _guard_at(place: int) -> int:
    if not 0 <= place < MOST_GUARDS:
        raise IndexError(f"guard {place} of {MOST_GUARDS}")
    return _GUARDS_AT + place * _GUARD_WORDS


def _sums(*columns: Sequence[int]) -> list[int]:
    return [sum(column) for column in zip(*columns, strict=True)]


def _whole(version: Callable[[], int], read: Callable[[], _T]) -> tuple[_T, bool]:
    """Read until the version is even before and the same afterwards; tell also whether it came to that."""
    for _ in range(_RETRIES):
        before, found = version(), read()
        if before % 2 == 0 and before == version():
            return found, True
    return found, False


def _rows_in(block: memoryview) -> list[Shown]:
    words, clocks = block.cast("Q"), block.cast("d")
    shown = []
    for place in range(min(words[_SHOWN_AT], MOST_SHOWN)):
        at = _ROWS_AT + place * _SHOWN_WORDS
        callback = CALLED[min(words[at + _SHOWN_WORDS - 2], len(CALLED) - 1)]
        shown.append(Shown(_get(block, at, NAME_BYTES), callback, clocks[at + _SHOWN_WORDS - 1]))
    return shown


def _guards_in(block: memoryview, most: int) -> Iterator[tuple[str, int, int, list[int]]]:
    words = block.cast("Q")
    for at in range(_GUARDS_AT, _GUARDS_AT + most * _GUARD_WORDS, _GUARD_WORDS):
        name = _get(block, at, NAME_BYTES)
        if name:
            counts = words[at + _GUARD_COUNTS : at + _GUARD_WORDS].tolist()
            yield name, words[at + _GUARD_STATE], words[at + _GUARD_RUNNING], counts


def _put(block: memoryview, word: int, size: int, text: str) -> None:
    """Write a text at a word, filled with NUL; cut between characters if it is too long."""
    data = text.encode("utf-8", "backslashreplace")[:size].decode("utf-8", "ignore").encode()
    block[word * _WORD_BYTES : word * _WORD_BYTES + size] = data.ljust(size, b"\0")


def _get(block: memoryview, word: int, size: int) -> str:
    data = bytes(block[word * _WORD_BYTES : word * _WORD_BYTES + size])
    return data.partition(b"\0")[0].decode("utf-8", "replace")
