"""A laboratory on loopback: real Postfix and real Sendmail, a sink for their mail, a client to provoke them."""

from __future__ import annotations

from .environment import (
    LabError,
    free_port,
    missing_for_postfix,
    missing_for_sendmail,
    new_directory,
    required,
    wait_until,
)
from .mta import UNKNOWN_RECIPIENT, Mta
from .postfix import Postfix
from .sendmail import Sendmail
from .sink import Delivery, Sink
from .smtp import ClosedByServer, Reply, SmtpClient, SmtpError

KINDS: dict[str, type[Postfix] | type[Sendmail]] = {"postfix": Postfix, "sendmail": Sendmail}
"""Both MTAs, by name."""

__all__ = [
    "KINDS",
    "UNKNOWN_RECIPIENT",
    "ClosedByServer",
    "Delivery",
    "LabError",
    "Mta",
    "Postfix",
    "Reply",
    "Sendmail",
    "Sink",
    "SmtpClient",
    "SmtpError",
    "free_port",
    "missing_for_postfix",
    "missing_for_sendmail",
    "new_directory",
    "required",
    "wait_until",
]
