"""Milters (mail filters for Postfix and Sendmail) in Python, run by a preforking server.

Subclass ``Filter``, run it with ``fastmilter serve module:Class``, and point the MTA at it. To be the MTA instead, use
``Client``; for bytes alone, ``fastmilter.codec``.
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

from fastmilter._version import __version__
from fastmilter.addresses import Address, Params, Recipient, SocketAddress
from fastmilter.constants import Action, ProtocolFlag, Step
from fastmilter.errors import (
    ConfigError,
    ConnectFailed,
    ConnectionLost,
    FastmilterError,
    InvalidMessage,
    LocalProtocolError,
    MessageEnded,
    NoConnection,
    NoMessage,
    NotNegotiated,
    ProtocolBroken,
    RemoteProtocolError,
    TimedOut,
)
from fastmilter.filter import Filter, early_verdict, no_reply
from fastmilter.macros import Macros
from fastmilter.message import Connection, Message
from fastmilter.negotiation import Offer, Wish
from fastmilter.replies import (
    ACCEPT,
    CONTINUE,
    DISCARD,
    REJECT,
    SKIP,
    TEMPFAIL,
    Answer,
    Verdict,
    VerdictKind,
    reply,
)
from fastmilter.server import serve

if TYPE_CHECKING:
    from fastmilter.client.aio import AsyncClient
    from fastmilter.client.apply import Applied, apply_modifications
    from fastmilter.client.chain import Chain, ChainOutcome, MilterOutcome
    from fastmilter.client.connection import Client
    from fastmilter.client.exchange import Timeouts
    from fastmilter.client.message import Outcome, PlayedStep
    from fastmilter.server.connection import ServerConnection

__all__ = [
    "ACCEPT",
    "CONTINUE",
    "DISCARD",
    "REJECT",
    "SKIP",
    "TEMPFAIL",
    "Action",
    "Address",
    "Answer",
    "Applied",
    "AsyncClient",
    "Chain",
    "ChainOutcome",
    "Client",
    "ConfigError",
    "ConnectFailed",
    "Connection",
    "ConnectionLost",
    "FastmilterError",
    "Filter",
    "InvalidMessage",
    "LocalProtocolError",
    "Macros",
    "Message",
    "MessageEnded",
    "MilterOutcome",
    "NoConnection",
    "NoMessage",
    "NotNegotiated",
    "Offer",
    "Outcome",
    "Params",
    "PlayedStep",
    "ProtocolBroken",
    "ProtocolFlag",
    "Recipient",
    "RemoteProtocolError",
    "ServerConnection",
    "SocketAddress",
    "Step",
    "TimedOut",
    "Timeouts",
    "Verdict",
    "VerdictKind",
    "Wish",
    "__version__",
    "apply_modifications",
    "early_verdict",
    "no_reply",
    "reply",
    "serve",
]

# A worker runs filters and needs none of these: the client brings in ``email``, its asynchronous half ``asyncio``,
# which would be memory of every process and time at every start. A type checker sees the imports above instead: it
# would take any name for one of ours if it saw ``__getattr__``.
_ON_DEMAND: Final = {
    "Applied": "fastmilter.client.apply",
    "AsyncClient": "fastmilter.client.aio",
    "Chain": "fastmilter.client.chain",
    "ChainOutcome": "fastmilter.client.chain",
    "Client": "fastmilter.client.connection",
    "MilterOutcome": "fastmilter.client.chain",
    "Outcome": "fastmilter.client.message",
    "PlayedStep": "fastmilter.client.message",
    "ServerConnection": "fastmilter.server.connection",
    "Timeouts": "fastmilter.client.exchange",
    "apply_modifications": "fastmilter.client.apply",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import what is asked for now."""
        if name not in _ON_DEMAND:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(_ON_DEMAND[name]), name)
        return value

    def __dir__() -> list[str]:
        """Name what can be imported too."""
        return sorted({*globals(), *_ON_DEMAND})
