"""What the lines of the log have in common."""

import logging
import os
from typing import Final

from fastmilter.conversation import Conversation
from fastmilter.errors import FastmilterError, RemoteProtocolError
from fastmilter.server.counters import Count
from fastmilter.server.log_limit import LogLimit

EVERY_S: Final = 10.0
BURST: Final = 10
"""How many lines in that time connections may cause that end badly, of each level and in each worker."""


def about(conversation: Conversation) -> dict[str, str | int]:
    """Return what a log line about a conversation tells at its end; queue id and client come from outside."""
    told: dict[str, str | int] = {"pid": os.getpid()}
    if conversation.queue_id is not None:
        told["qid"] = conversation.queue_id[:40]
    if conversation.connection is not None:
        told["client"] = str(conversation.connection.address)[:80]
    peer = getattr(conversation, "peer", None)  # of a Link whose MTA a proxy has named
    if peer is not None:
        told["mta"] = peer
    return told


def end_of_line(conversation: Conversation) -> str:
    """Return the end of a log line about a conversation, quoted."""
    return "".join(f" {name}={value!r}" for name, value in about(conversation).items())


class EndLog:
    """Why connections are closed before their MTA wanted it: whoever makes many such connections fills no disk."""

    def __init__(self, log: logging.Logger) -> None:
        """Write to ``log``."""
        self._warnings = LogLimit(lambda text: log.warning("%s", text), EVERY_S, burst=BURST)
        self._errors = LogLimit(lambda text: log.error("%s", text), EVERY_S, burst=BURST)

    def silent(self, conversation: Conversation, seconds: float, what: str, now: float) -> None:
        """Note a connection whose MTA said nothing for so long."""
        text = f"the MTA was silent for {seconds:.0f} s {what}, its connection is closed"
        self._warnings.add(text + end_of_line(conversation), now)

    def failed(self, conversation: Conversation, error: FastmilterError, now: float) -> Count:
        """Note a connection that ends with ``error``; return what that counts as."""
        end = end_of_line(conversation)
        if isinstance(error, RemoteProtocolError):
            self._warnings.add(f"the peer broke the protocol, its connection is closed: {error}{end}", now)
            return Count.PROTOCOL_ERRORS
        self._errors.add(f"negotiation failed, the MTA takes its default action: {error}{end}", now)
        return Count.NEGOTIATION_FAILURES

    def on_time(self, now: float) -> None:
        """Say what was left out, when its time has come."""
        self._warnings.on_time(now)
        self._errors.on_time(now)
