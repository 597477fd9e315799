"""Macros: what the MTA tells beside each step, with libmilter's lifetime and look-up order.

A MACRO packet replaces the whole set of its step; an empty one leaves the old set. A step clears the sets of the
steps after it, so a value lives exactly as long as what it describes. The sets stay raw until somebody asks.

Sources: ``libmilter/engine.c`` (st_macros, mi_clr_macros), ``libmilter/smfi.c`` (smfi_getsymval).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from fastmilter import codec
from fastmilter._text import to_bytes, to_text

Stages = Sequence[codec.Macros | None]
"""The macro sets of a session, one per stage in the order of ``STAGE_OF_LETTER``."""

STAGE_OF_LETTER: Final[dict[bytes, int]] = {b"C": 0, b"H": 1, b"M": 2, b"R": 3, b"T": 4, b"N": 5, b"E": 6}
"""Where each set is kept. Postfix sends sets for L, B and U too; libmilter ignores them, and so do we."""

NO_STAGES: Final[Stages] = (None,) * 7
"""The sets of a session that was sent none; a tuple that idle connections share."""

CONNECTION_STAGES: Final = 2
"""How many of the sets describe the connection (CONNECT, HELO); the others describe a message."""

_STAGE_OF: Final = tuple(STAGE_OF_LETTER.get(bytes([letter]), -1) for letter in range(256))
_MAIL: Final = STAGE_OF_LETTER[b"M"]
_RCPT: Final = STAGE_OF_LETTER[b"R"]


def stored(stages: Stages, macros: codec.Macros) -> Stages:
    """Return ``stages`` after a MACRO packet.

    Sets of CONNECT, HELO and MAIL come before the message they belong to has begun: they go into a new tuple, so that
    the message before keeps its own. Later ones go into the list of the message in work.
    """
    stage = _STAGE_OF[macros.command[0]]
    if stage < 0 or not macros:  # an empty set leaves the old one
        return stages
    changed = list(stages) if stage <= _MAIL or not isinstance(stages, list) else stages
    changed[stage] = macros
    return tuple(changed) if stage <= _MAIL else changed


def cleared(stages: Stages, first: int) -> Stages:
    """Return ``stages`` without the sets from ``first`` on: what CONNECT, HELO and the end of a message do.

    It is a tuple: thousands of idle connections hold one, and a list is a third larger.
    """
    if isinstance(stages, tuple) and _end_of(stages) <= first:
        return stages
    return tuple(_without(stages, first))


def _end_of(stages: Stages) -> int:
    """Return the number of the stage after the last one that has a set."""
    for stage in range(len(stages) - 1, -1, -1):
        if stages[stage] is not None:
            return stage + 1
    return 0


def for_message(stages: Stages) -> Stages:
    """Return the sets that a message begins with: what MAIL does, in a list that will get those of later steps."""
    return _without(stages, _RCPT)


def _without(stages: Stages, first: int) -> list[codec.Macros | None]:
    kept = list(stages)
    clear(kept, first)
    return kept


def clear(stages: Stages, first: int) -> None:
    """Take the sets from ``first`` on out of ``stages`` itself: what RCPT does within a message."""
    if isinstance(stages, list):
        for stage in range(first, len(stages)):
            stages[stage] = None


def look_up(stages: Stages, name: bytes) -> str | None:
    """Return the value that the latest step gave to the macro ``name``, spelled without braces."""
    for stage in range(len(stages) - 1, -1, -1):
        macros = stages[stage]
        if macros is not None:
            value = macros.get(name)
            if value is not None:
                return to_text(value)
    return None


def _bare(name: str) -> bytes:
    """Return the name of a macro without its braces."""
    return to_bytes(name[1:-1] if name.startswith("{") and name.endswith("}") else name)


class Macros(Mapping[str, str]):
    """A read-only view of macro sets: the latest step first, braces optional.

    ``macros["i"]`` raises ``KeyError`` if the MTA sent no such macro (smfi_getsymval).

    >>> sets = [codec.Macros(b"C", ((b"{client_port}", b"25"), (b"j", b"mx.example")))]
    >>> macros = Macros(sets)
    >>> macros["client_port"], macros["{j}"], macros.get("i")
    ('25', 'mx.example', None)
    """

    __slots__ = ("_stages",)

    def __init__(self, stages: Stages) -> None:
        """View ``stages``, which may still change."""
        self._stages = stages

    def __getitem__(self, name: str) -> str:
        """Return the value that the latest step gave."""
        value = look_up(self._stages, _bare(name))
        if value is None:
            raise KeyError(name)
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value that the latest step gave, ``default`` if the MTA sent no such macro."""
        value = look_up(self._stages, _bare(name))
        return default if value is None else value

    def __iter__(self) -> Iterator[str]:
        """Yield each name once, without braces, earliest step first."""
        names = {name: None for macros in self._stages if macros is not None for name in macros.names()}
        return map(to_text, names)

    def __len__(self) -> int:
        """Return how many different macros there are."""
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        """Return the macros as a dictionary shows them."""
        return f"Macros({dict(self)!r})"
