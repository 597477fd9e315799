"""A conversation that is counted: verdicts, the time of callbacks, what is in flight.

What a conversation tells its host (``conversation.Host``) the worker counts there; here is the rest. Callbacks are
timed only if the tally asks for that, since it takes two looks at the clock for each. Where callbacks run beside the
loop, their driver says when one begins and ends (``begin_timing``, ``end_timing``).
"""

import heapq
import logging
import sys
import time
from collections.abc import Iterable
from typing import Any, Final

from fastmilter.constants import STEPS
from fastmilter.conversation import Conversation
from fastmilter.replies import Verdict, VerdictKind
from fastmilter.server.counters import MOST_GUARDS, MOST_SHOWN, NO_STATE, GuardState, ShownGuard, Tally

log: Final = logging.getLogger(__name__)

_CONTINUE = VerdictKind.CONTINUE
_CALLED: Final = tuple(f"on_{step}" for step in STEPS)
"""The callbacks of the steps, by number: a filter need not have them all, and the last one called may be older."""
_STATES: Final = {state.name.lower().replace("_", "-"): state for state in GuardState}
"""As ``fastmilter.guard`` calls them."""


class Counted(Conversation):
    """A conversation whose callbacks and verdicts are counted."""

    def count_in(self, tally: Tally) -> None:
        """Count in ``tally`` from now on; to be called at once (a constructor of its own would cost more)."""
        self._tally = tally
        self._call_began = 0.0

    def invoke(self) -> Any:
        """Run what is to be run, and take its time if that is wanted."""
        return self._timed() if self._tally.timed else Conversation.invoke(self)

    def _timed(self) -> Any:
        began = time.monotonic()
        try:
            return Conversation.invoke(self)
        finally:
            self._tally.observe(self.callback, time.monotonic() - began)

    def begin_timing(self) -> None:
        """Take the time of a call that runs beside the loop."""
        if self._tally.timed:
            self._call_began = time.monotonic()

    def end_timing(self) -> None:
        """Count the time of that call, if it has begun and is not counted yet."""
        if self._call_began:
            self._tally.observe(self.callback, time.monotonic() - self._call_began)
            self._call_began = 0.0

    def _conclude(self, verdict: Verdict) -> None:
        """Count a verdict that the filter gave, for whatever reason, unless it is to go on."""
        if verdict.kind is not _CONTINUE:
            self._tally.verdict(self.session.step, verdict)
        Conversation._conclude(self, verdict)


def show_in_flight(tally: Tally, conversations: Iterable[Counted]) -> None:
    """Show the oldest messages in flight, and how many there are."""
    in_message = [each for each in conversations if each.message is not None]
    oldest = heapq.nsmallest(MOST_SHOWN, in_message, key=_began) if len(in_message) > MOST_SHOWN else in_message
    for place, conversation in enumerate(oldest):
        tally.show(place, conversation.queue_id or "", _CALLED[conversation.session.step], _began(conversation))
    tally.set_shown(len(oldest), len(in_message))


def show_guards(tally: Tally) -> None:
    """Show the guards of the filter, if it has any: those of one name as one, with what those that are gone counted."""
    guard = sys.modules.get("fastmilter.guard")
    if guard is None:  # nobody has made one
        return
    named: dict[str, dict[int, Any]] = {}
    for number, each in guard.living():
        named.setdefault(each.name, {})[number] = each
    for name in sorted(named.keys() - tally.guards.keys()):
        _give_place(tally, name)
    for name, shown in tally.guards.items():
        living = {number: each.statistics() for number, each in named.get(name, {}).items()}
        counts = {number: (each.calls, each.failures, each.refused, each.opened) for number, each in living.items()}
        state = _STATES[living[max(living)].state] if living else NO_STATE  # of the latest
        running = sum([each.running for each in living.values()])
        tally.show_guard(shown.place, name, state, running, shown.count(counts))


def _give_place(tally: Tally, name: str) -> None:
    place = len(tally.guards)
    if place < MOST_GUARDS:
        tally.guards[name] = ShownGuard(place)
    elif not tally.is_short_of_places:
        tally.is_short_of_places = True
        log.warning("more than %d names of guards: metrics and status lack those beyond, such as %s", MOST_GUARDS, name)


def _began(conversation: Counted) -> float:
    assert conversation.message is not None
    return conversation.message._began
