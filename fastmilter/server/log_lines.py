"""What the lines of the log have in common."""

import logging
import os

from fastmilter.conversation import Conversation
from fastmilter.errors import FastmilterError, RemoteProtocolError
from fastmilter.server.counters import Count


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


def log_end(log: logging.Logger, conversation: Conversation, error: FastmilterError) -> Count:
    """Log why a connection is closed before its MTA wanted it; return what that counts as."""
    if isinstance(error, RemoteProtocolError):
        log.warning("the peer broke the protocol, its connection is closed: %s%s", error, end_of_line(conversation))
        return Count.PROTOCOL_ERRORS
    log.error("negotiation failed, the MTA takes its default action: %s%s", error, end_of_line(conversation))
    return Count.NEGOTIATION_FAILURES
