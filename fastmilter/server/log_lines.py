"""What the lines of the log about connections have in common, and how many of them peers may cause."""

import logging
import os
from functools import partial
from typing import Final

from fastmilter.conversation import Conversation
from fastmilter.errors import FastmilterError, RemoteProtocolError
from fastmilter.server._sockets import monotonic
from fastmilter.server.counters import Count
from fastmilter.server.log_limit import LogLimit
from fastmilter.server.peers import name_of_peer

EVERY_S: Final = 10.0
BURST: Final = 10
"""How many lines of a kind in that time peers may cause, in each worker."""


def about(conversation: Conversation) -> dict[str, str | int]:
    """Return what a log line about a conversation tells at its end; queue id and client come from outside."""
    told: dict[str, str | int] = {"pid": os.getpid()}
    queue_id, connection = conversation.broken or (conversation.queue_id, conversation.connection)
    if queue_id is not None:
        told["qid"] = queue_id[:40]
    if connection is not None:
        told["client"] = str(connection.address)[:80]
    peer = getattr(conversation, "peer", None)  # of a Link whose MTA a proxy has named
    if peer is not None:
        told["mta"] = peer
    return told


def end_of_line(conversation: Conversation) -> str:
    """Return the end of a log line about a conversation, quoted."""
    return _quoted(about(conversation))


def _quoted(told: dict[str, str | int]) -> str:
    return "".join(f" {name}={value!r}" for name, value in told.items())


class ConnectionLog:
    """What goes wrong with connections: whoever has many that go wrong fills no disk."""

    def __init__(self, log: logging.Logger) -> None:
        """Write to ``log``."""
        self._log = log
        self._silent, self._broken, self._complaints, self._failed = (
            LogLimit(partial(log.log, level, "%s"), EVERY_S, burst=BURST)
            for level in (logging.WARNING, logging.WARNING, logging.WARNING, logging.ERROR)
        )
        self._tracebacks = LogLimit(log.error, EVERY_S, burst=BURST)

    def silent(self, conversation: Conversation, seconds: float, what: str, now: float) -> None:
        """Note a connection whose MTA said nothing for so long."""
        text = f"the MTA was silent for {seconds:.0f} s {what}, its connection is closed"
        self._silent.add(text + end_of_line(conversation), now)

    def ended(self, conversation: Conversation, error: FastmilterError, fd: int) -> Count:
        """Note a connection that ends with ``error``, ``fd`` is still open or -1; return what that counts as."""
        told = about(conversation)
        peer = name_of_peer(fd)
        if peer is not None:
            told.setdefault("mta", peer)
        if isinstance(error, RemoteProtocolError):
            text = f"the peer broke the protocol, its connection is closed: {error}{_quoted(told)}"
            self._broken.add(text, monotonic())
            return Count.PROTOCOL_ERRORS
        text = f"negotiation failed, the MTA takes its default action: {error}{_quoted(told)}"
        self._failed.add(text, monotonic())
        return Count.NEGOTIATION_FAILURES

    def complain(self, conversation: Conversation, text: str) -> None:
        """Note a fault of the filter's author or an oddity of the peer."""
        self._complaints.add(text + end_of_line(conversation), monotonic())

    def raised(self, conversation: Conversation, callback: str, error: BaseException) -> None:
        """Note a callback that raised, with its traceback unless there are many."""
        end = end_of_line(conversation)
        if self._tracebacks.take(monotonic()):
            self._log.error("%s failed%s", callback, end, exc_info=error)
        else:
            self._log.error("%s failed again with %s%s", callback, type(error).__name__, end)

    def on_time(self, now: float) -> None:
        """Say what was left out, when its time has come."""
        for limit in (self._silent, self._broken, self._complaints, self._failed):
            limit.on_time(now)
