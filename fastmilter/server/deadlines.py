"""How long a callback may take: what the class says, else what the MTA's own time-outs leave.

Sources: Sendmail ``sendmail/milter.c`` (``R:10s`` for every reply, ``E:5m`` for the end of the message in total),
Postfix ``milter_command_timeout`` (30 s) and ``milter_content_timeout`` (300 s). Postfix starts its clock anew with
every PROGRESS, Sendmail only that of ``R``.
"""

from collections.abc import Mapping
from typing import Final

from fastmilter.constants import STEPS, Step
from fastmilter.filter import Deadline
from fastmilter.plan import CONTENT_STEPS

SENDMAIL_ANSWER_S: Final = 10.0
"""How long Sendmail waits for an answer by default: R of ``T=``."""

SENDMAIL_END_S: Final = 300.0
"""How long Sendmail waits for the end of the message in total: E of ``T=``."""

POSTFIX_COMMAND_TIMEOUT_S: Final = 30.0
"""How long Postfix waits for the answer to a command by default."""

POSTFIX_CONTENT_TIMEOUT_S: Final = 300.0
"""How long Postfix waits for the answer to content, or to its end, by default."""

COMMAND_S: Final = 8.0
"""For an answer that Sendmail waits 10 s for; an MTA that is not known is treated as Sendmail."""

POSTFIX_COMMAND_S: Final = 25.0
"""For an answer that Postfix waits 30 s for."""

CONTENT_S: Final = 280.0
"""For the end of the message, and for content that Postfix waits 300 s for."""


class Deadlines:
    """The deadlines of a filter class, in seconds, by the number of the step.

    >>> deadlines = Deadlines({"mail": 3})
    >>> mail, data = list(STEPS).index("mail"), list(STEPS).index("data")
    >>> deadlines.of("sendmail", 0)[mail], deadlines.of("sendmail", 1 << data)[data], deadlines.of("postfix", 0)[data]
    (3.0, 8.0, 280.0)
    """

    def __init__(self, deadline: Deadline) -> None:
        """Take the ``deadline`` of a class: one number, a mapping by step, or ``None`` for what suits the MTA."""
        by_step = deadline if isinstance(deadline, Mapping) else dict.fromkeys(STEPS, deadline)
        self.own: Final[dict[str, float]] = {
            str(step): float(limit) for step, limit in by_step.items() if limit is not None
        }
        """What the class says, by step."""
        self._known: dict[tuple[str | None, int], tuple[float, ...]] = {}

    def of(self, mta: str | None, answered: int) -> tuple[float, ...]:
        """Return the deadline of each step for an MTA that waits for ``answered``, bit n for step n."""
        known = self._known.get((mta, answered))
        if known is None:
            known = tuple(
                self.own.get(step, _default(step, mta, bool(answered >> number & 1)))
                for number, step in enumerate(STEPS)
            )
            self._known[mta, answered] = known
        return known


def _default(step: Step, mta: str | None, is_answered: bool) -> float:
    if step is Step.END_OF_MESSAGE or not is_answered:
        return CONTENT_S  # nobody waits for a step without an answer; it counts once the end of the message is there
    if mta == "postfix":
        return CONTENT_S if step in CONTENT_STEPS else POSTFIX_COMMAND_S
    return COMMAND_S
