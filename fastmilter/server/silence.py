"""How long an MTA may say nothing, which depends on what is expected of it."""

from typing import TYPE_CHECKING, Final

from fastmilter.server.counters import Count
from fastmilter.server.settings import Settings
from fastmilter.session import Phase

if TYPE_CHECKING:
    from fastmilter.server.worker import Link

MOST_SWEEP_S: Final = 5.0
"""How far apart two looks at the connections are, at most."""


def limit_of(link: "Link", settings: Settings) -> tuple[float, str, Count]:
    """Return how many seconds a connection may be silent now, what it is in the middle of, and as what that counts."""
    if link.session.phase < Phase.OPEN:
        return settings.negotiation_timeout, "before the negotiation", Count.SILENT_NEGOTIATION
    if link.session.mid_packet or link.unsent is not None:
        return settings.packet_timeout, "in the middle of a packet", Count.SILENT_PACKET
    return settings.idle_timeout, "between two packets", Count.SILENT_IDLE


def sweep_s(settings: Settings) -> float:
    """Return how often, in seconds, connections are looked at: four times within the shortest limit, at least."""
    return min(settings.negotiation_timeout / 4, settings.packet_timeout / 4, settings.idle_timeout / 4, MOST_SWEEP_S)
