"""Lines that others may cause as often as they like, and that must not fill the disk."""

from collections.abc import Callable


class LogLimit:
    """Lets ``burst`` lines through in ``every_s`` seconds, then the last one of the rest, with how many there were.

    >>> said = []
    >>> limit = LogLimit(said.append, 1.0)
    >>> for now in (10.0, 10.1, 10.2): limit.add("refused", now)
    >>> limit.on_time(11.5); said
    ['refused', 'refused (1 more like it)']
    """

    def __init__(self, say: Callable[[str], None], every_s: float, *, burst: int = 1) -> None:
        """``say`` writes a line."""
        self._say = say
        self._every_s = every_s
        self._burst = burst
        self._room = 0  # lines that may still be said before _next
        self._next = float("-inf")
        self._last = ""  # of those that were left out
        self._left_out = 0

    def add(self, text: str, now: float) -> None:
        """Say ``text``, or count it."""
        self.on_time(now)
        if now >= self._next:
            self._begin(now)
        if self._room:
            self._room -= 1
            self._say(text)
        else:
            self._last = text
            self._left_out += 1

    def take(self, now: float) -> bool:
        """Tell whether there is room for a line that somebody else says; one that there is none for is not counted."""
        if now >= self._next:
            self._begin(now)
        has_room = self._room > 0
        self._room -= has_room
        return has_room

    def on_time(self, now: float) -> None:
        """Say what was left out if its time has come; to be called now and then."""
        if not self._left_out or now < self._next:
            return
        more = self._left_out - 1
        self._left_out = 0
        self._begin(now)
        self._room -= 1
        self._say(self._last + (f" ({more} more like it)" if more else ""))

    def _begin(self, now: float) -> None:
        self._next = now + self._every_s
        self._room = self._burst
