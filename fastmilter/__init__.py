"""Milters (mail filters for Postfix and Sendmail) in Python, run by a preforking server.

Subclass ``Filter``, run it with ``fastmilter serve module:Class``, and point the MTA at it. To be the MTA instead, use
``Client``; for bytes alone, ``fastmilter.codec``.
"""

from fastmilter._version import __version__
from fastmilter.addresses import Address, Params, Recipient, SocketAddress
from fastmilter.client import Client, Timeouts
from fastmilter.constants import Action, ProtocolFlag, Step
from fastmilter.errors import (
    ConfigError,
    FastmilterError,
    LocalProtocolError,
    MessageEnded,
    NoConnection,
    NoMessage,
    NotNegotiated,
    RemoteProtocolError,
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
    "Client",
    "ConfigError",
    "Connection",
    "FastmilterError",
    "Filter",
    "LocalProtocolError",
    "Macros",
    "Message",
    "MessageEnded",
    "NoConnection",
    "NoMessage",
    "NotNegotiated",
    "Offer",
    "Params",
    "ProtocolFlag",
    "Recipient",
    "RemoteProtocolError",
    "SocketAddress",
    "Step",
    "Timeouts",
    "Verdict",
    "VerdictKind",
    "Wish",
    "__version__",
    "early_verdict",
    "no_reply",
    "reply",
    "serve",
]
