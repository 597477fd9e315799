"""How many connections each TCP peer has, over all workers: shared memory without locks.

Each worker has a table of its own, which only it writes to: a mark of an address, and a number. Everybody adds up what
the tables say. Peers of a milter are a few MTAs; beyond ``PEERS`` at the same time in one worker the others are not
counted there, and so not limited.

An entry whose number is 0 is free for another peer, but never empty again, so a search ends only where no entry has
ever been.
"""

import ipaddress
import mmap
from collections.abc import Iterable
from typing import Final

PEERS: Final = 256
"""Peers that are counted in a worker at the same time."""

_WORDS: Final = 2 * PEERS  # a mark and a number for each
_WORD_BYTES: Final = 8
_ALL_BITS: Final = (1 << 64) - 1
_EMPTY: Final = memoryview(bytes(_WORDS * _WORD_BYTES)).cast("Q")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class PeerCounts:
    """Numbers of connections by peer and worker; made by the master, before the first fork.

    >>> counts = PeerCounts(8)
    >>> address = ipaddress.ip_address("192.0.2.1")
    >>> counts.add(0, address, 1); counts.add(5, address, 1); counts.total(address, [0, 5])
    2
    """

    def __init__(self, slots: int) -> None:
        """Make the memory for so many workers; what is not touched costs nothing."""
        self._map = mmap.mmap(-1, slots * _WORDS * _WORD_BYTES)
        self._words = memoryview(self._map).cast("Q")

    def clear(self, slot: int) -> None:
        """Forget what a worker counted, before the birth or after the death of it."""
        self._words[slot * _WORDS : (slot + 1) * _WORDS] = _EMPTY

    def add(self, slot: int, address: _Address, number: int) -> None:
        """Count ``number`` more connections of a peer in a worker's own table."""
        words = self._words
        mark = _mark(address)
        at = self._find(slot, mark)
        if at is None:
            at = next((at for at in _places(slot, mark) if words[at + 1] == 0), None)
            if at is None:
                return
            words[at] = mark
        words[at + 1] = max(0, words[at + 1] + number)

    def total(self, address: _Address, slots: Iterable[int]) -> int:
        """Return how many connections a peer has in the workers of ``slots``."""
        mark = _mark(address)
        places = [self._find(slot, mark) for slot in slots]
        return sum(self._words[at + 1] for at in places if at is not None)

    def _find(self, slot: int, mark: int) -> int | None:
        """Return where the table of a worker has connections of a peer."""
        words = self._words
        for at in _places(slot, mark):
            if words[at] == 0:
                return None
            if words[at] == mark and words[at + 1]:
                return at
        return None


def _mark(address: _Address) -> int:
    # Python's hash has a secret that all children of a master share, so nobody can choose an address with the mark of
    # another one. 0 is for entries that nobody has used.
    return hash(address.packed) & _ALL_BITS or 1


def _places(slot: int, mark: int) -> list[int]:
    start = slot * _WORDS
    return [start + 2 * ((mark + step) % PEERS) for step in range(PEERS)]
