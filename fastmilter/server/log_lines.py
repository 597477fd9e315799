"""What the lines of the log have in common."""

import logging
import os

from fastmilter.conversation import Conversation
from fastmilter.errors import FastmilterError, RemoteProtocolError
from fastmilter.server.counters import Count


def end_of_line(conversation: Conversation) -> str:
    """Return the end of a log line: the queue id and the client, quoted, since both came from outside."""
    parts = [f"pid={os.getpid()}"]
    if conversation.queue_id is not None:
        parts.append(f"qid={conversation.queue_id[:40]!r}")
    if conversation.connection is not None:
        parts.append(f"client={str(conversation.connection.address)[:80]!r}")
    peer = getattr(conversation, "peer", None)  # of a Link whose MTA a proxy has named
    if peer is not None:
        parts.append(f"mta={peer!r}")
    return " " + " ".join(parts)


def log_end(log: logging.Logger, conversation: Conversation, error: FastmilterError) -> Count:
    """Log why a connection is closed before its MTA wanted it; return what that counts as."""
    if isinstance(error, RemoteProtocolError):
        log.warning("the peer broke the protocol, its connection is closed: %s%s", error, end_of_line(conversation))
        return Count.PROTOCOL_ERRORS
    log.error("negotiation failed, the MTA takes its default action: %s%s", error, end_of_line(conversation))
    return Count.NEGOTIATION_FAILURES
