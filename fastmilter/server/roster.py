"""What the master knows of its workers and generations: records alone, which ``policy`` keeps and acts on.

Times are seconds of ``time.monotonic()``, which goes on over an upgrade in place: so do the records (``to_state``).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from typing import Any, Self

from fastmilter.server.channel import Reason


@dataclass(frozen=True, slots=True)
class Limits:
    """The times of a generation, in seconds."""

    ready: float
    drain_stop: tuple[float, float, float]
    drain_reload: tuple[float, float, float]


class State(Enum):
    """Where a worker is in its life."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


@dataclass(slots=True)
class Worker:
    """One worker, from its fork until it is reaped."""

    worker: int
    number: int
    slot: int
    generation: int
    deadline: float
    """When it is killed unless something happens; infinite while it serves."""
    state: State = State.STARTING
    ready_at: float = math.inf
    drained_by: float = math.inf
    """While draining: when it must be gone."""
    asks: Reason | None = None
    """Why it asked for a successor, if it did."""
    retiring: bool = False
    """Whether it serves on until its successor, which has been started, is ready."""
    told_to_stop: bool = False
    lost: bool = False
    killed: bool = False

    @property
    def was_ready(self) -> bool:
        """Whether it has ever served."""
        return self.ready_at < math.inf

    def to_state(self) -> dict[str, Any]:
        """Return everything as JSON can hold it, for the master that follows by an upgrade in place."""
        finite = {name: value for name, value in asdict(self).items() if value != math.inf}
        return {**finite, "state": self.state.value}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Make a record of what another version may have written: what only that one knows is left out."""
        known = {name: state[name] for name in (field.name for field in fields(cls)) if name in state}
        asks = known.get("asks")
        known["asks"] = None if asks is None else Reason(asks)
        return cls(**{"deadline": math.inf, **known, "state": State(known["state"])})


@dataclass(slots=True)
class Generation:
    """The workers that were started with the same settings, as a whole."""

    generation: int
    wanted: int
    limits: Limits
    proven: bool = False
    """Whether one of its workers ever became ready."""
    failures: dict[int, int] = field(default_factory=dict)
    missing: dict[int, float] = field(default_factory=dict)
    """Number of a worker that is to be replaced, and when."""
