"""What the policy of the master decides, each for the supervisor to do."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spawn:
    """Fork a worker; ``worker`` names it from now on, ``number`` is for people, ``slot`` is its shared memory."""

    worker: int
    number: int
    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class SendDrain:
    """Tell a worker to drain within these limits."""

    worker: int
    limits: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class SendStopNow:
    """Tell a worker to leave at once."""

    worker: int


@dataclass(frozen=True, slots=True)
class Kill:
    """Send SIGKILL to a worker."""

    worker: int


@dataclass(frozen=True, slots=True)
class CloseListeners:
    """Stop listening: the server leaves."""


@dataclass(frozen=True, slots=True)
class PrepareReload:
    """Read the settings again; then call ``begin_reload``, or leave everything as it is."""


@dataclass(frozen=True, slots=True)
class PrepareUpgrade:
    """Try the code that is installed now; then become it, or leave everything as it is."""


@dataclass(frozen=True, slots=True)
class LogAsBefore:
    """The reload has failed: what is said of it belongs into the log of those that stay."""


@dataclass(frozen=True, slots=True)
class EndReload:
    """The reload is over: what belongs to another generation than ``kept`` (settings, listeners) can go."""

    kept: int


@dataclass(frozen=True, slots=True)
class Say:
    """Log a line."""

    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Leave:
    """End the master; no worker is left."""

    status: int


Action = (
    Spawn
    | SendDrain
    | SendStopNow
    | Kill
    | CloseListeners
    | PrepareReload
    | PrepareUpgrade
    | LogAsBefore
    | EndReload
    | Say
    | Leave
)
