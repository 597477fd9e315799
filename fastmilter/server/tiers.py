"""The tiers of a drain, as a worker goes through them: what is over, and when the next one ends."""

import math
from typing import Final

from fastmilter.server.pace import FINAL_GRACE_S

AT_REST: Final = 3
"""So many are over when connections are closed on which nothing is under way."""
ALL: Final = 4
"""And so many when the others are, too."""


class Tiers:
    """Serve on; 421 at MAIL; 421 also at RCPT and DATA; close what is at rest; close all.

    >>> tiers = Tiers((10.0, 20.0, 30.0), 1000.0)
    >>> [tiers.over(now) for now in (1000.0, 1010.0, 1029.9, 1030.0, 1035.0)]
    [0, 1, 2, 3, 4]
    >>> tiers.next_end(1010.0), tiers.next_end(1035.0)
    (1020.0, inf)
    """

    def __init__(self, limits: tuple[float, float, float], now: float) -> None:
        """Begin ``now``; ``limits`` are seconds from here on."""
        self._ends = (*(now + limit for limit in limits), now + limits[-1] + FINAL_GRACE_S)

    def over(self, now: float) -> int:
        """Return how many have ended."""
        return sum(now >= end for end in self._ends)

    def next_end(self, now: float) -> float:
        """Return when the next one ends."""
        return min((end for end in self._ends if end > now), default=math.inf)
