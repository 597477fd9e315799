"""The client: be the MTA, and talk to any milter.

``Client`` and ``AsyncClient`` have one method per step of an SMTP session, and ``send_message`` for a whole message,
which returns an ``Outcome``; ``Chain`` plays it to several milters in a row; ``send`` and ``receive`` exchange single
messages of ``fastmilter.codec``. ``apply_modifications`` says what Postfix or Sendmail make of a message. What goes
wrong between the two sides is in ``fastmilter.errors``.
"""

from typing import TYPE_CHECKING

from fastmilter.client.apply import Applied, apply_modifications
from fastmilter.client.chain import Chain, ChainOutcome, MilterOutcome
from fastmilter.client.connection import Client
from fastmilter.client.exchange import Timeouts
from fastmilter.client.message import Outcome, PlayedStep
from fastmilter.errors import ConnectFailed, ConnectionLost, ProtocolBroken, TimedOut

if TYPE_CHECKING:
    from fastmilter.client.aio import AsyncClient

__all__ = [
    "Applied",
    "AsyncClient",
    "Chain",
    "ChainOutcome",
    "Client",
    "ConnectFailed",
    "ConnectionLost",
    "MilterOutcome",
    "Outcome",
    "PlayedStep",
    "ProtocolBroken",
    "TimedOut",
    "Timeouts",
    "apply_modifications",
]


def __getattr__(name: str) -> object:
    """Import ``AsyncClient`` when it is asked for: nobody else needs ``asyncio``."""
    if name == "AsyncClient":
        from fastmilter.client.aio import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
