"""What a worker does at the moment its master dies, whatever it is in: no TCP port may stay open for nobody."""

from typing import Final

ORPHAN_SIGNAL: Final[int | None]
"""What the system sends a worker whose master has died; ``None``: there is none here."""

def shut_down_when_orphaned(sockets: list[int], parent: int) -> bool:
    """Shut ``sockets`` down once the process ``parent`` is gone; once in a process, after it took its last identity.

    Tells whether that can be done: elsewhere than on Linux, and for more than 64 sockets, it cannot.
    """
