"""The control socket: what may be asked of a server by whoever owns it.

A client connects, sends one JSON object on a line, and gets one back: ``{"command": "status"}`` is answered by
``{"ok": true, "text": "...", "status": {...}}``. The other commands are ``reload``, ``stop`` (with ``"now": true``: at
once), ``scale`` (with ``"workers": N``) and ``reopen-logs``; their answer comes when it is known what became of them.
The file is its owner's alone, and the kernel is asked who connects besides: the same user, or root.

This module is the monitor's side, which runs in one thread a connection; orders go on to the master.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from fastmilter.server import channel
from fastmilter.server.counters import Of, State
from fastmilter.server.peers import user_of
from fastmilter.server.policy import MOST_WORKERS
from fastmilter.server.settings import Settings
from fastmilter.server.slots import Slots

COMMANDS: Final = ("status", "reload", "stop", "scale", "reopen-logs")

MOST_BYTES: Final = 1024
"""Longest request."""
REQUEST_S: Final = 5.0
ORDER_S: Final = 5.0
"""How long an order may take of which the master knows at once what becomes."""

_READ_BYTES: Final = 2048


def read_until(connection: socket.socket, ends: tuple[bytes, ...], *, most: int, seconds: float) -> bytes:
    """Read until one of ``ends`` has come, ``most`` bytes at least, or the other side has nothing more to say.

    ``TimeoutError`` when it has taken longer than ``seconds``.
    """
    deadline, data = time.monotonic() + seconds, bytearray()
    while len(data) < most and not any(end in data for end in ends):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        piece = connection.recv(_READ_BYTES)
        if not piece:
            break
        data += piece
    return bytes(data)


class Control:
    """Answers what comes over the control socket."""

    def __init__(
        self,
        slots: Slots,
        settings: Settings,
        order: Callable[[channel.Message], bool],
        status: Callable[[], dict[str, Any]],
    ) -> None:
        """Read from ``slots``; ``order`` sends to the master, ``status`` says everything."""
        self._counters = slots.counters
        self._settings = settings
        self._order = order
        self._status = status
        self._allowed = {0, os.geteuid()}
        self._news = threading.Condition()
        self._gone = False

    def notice(self, *, gone: bool) -> None:
        """Have those who wait look again: the master says that something has changed, or is ``gone``."""
        with self._news:
            self._gone = self._gone or gone
            self._news.notify_all()

    def serve(self, connection: socket.socket) -> None:
        """Answer one request; ``OSError`` if the client does not let us."""
        user = user_of(connection)  # None: the mode of the file must do
        if user is not None and user not in self._allowed:
            answer = refusal(f"user {user} may not: the server belongs to user {os.geteuid()}")
        else:
            answer = self._answer(read_until(connection, (b"\n",), most=MOST_BYTES, seconds=REQUEST_S))
        connection.settimeout(REQUEST_S)
        connection.sendall(json.dumps(answer).encode() + b"\n")

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line) if line.endswith(b"\n") else None
        except (ValueError, RecursionError):
            request = None
        if not isinstance(request, dict) or not isinstance(request.get("command"), str):
            return refusal('write one line of JSON, such as {"command": "status"}')
        match request["command"]:
            case "status":
                return {"ok": True, "text": "", "status": self._status()}
            case "reload":
                return self._reload()
            case "stop":
                return self._stop(now=request.get("now") is True)
            case "scale":
                return self._scale(request.get("workers"))
            case "reopen-logs":
                return self._reopen_logs()
        return refusal(f"there is no command {request['command'][:40]!r}; there are {', '.join(COMMANDS)}")

    # -- orders --------------------------------------------------------------------------------------------------------

    def _reload(self) -> dict[str, Any]:
        if self._state() is State.STOPPING:
            return refusal("the server is stopping")
        is_first = self._state() is State.SERVING
        reloads, failures = self._of(Of.RELOADS), self._of(Of.FAILED_RELOADS)
        if not self._order(channel.Reload()):
            return refusal("the master does not listen")
        if not is_first:
            return accepted("remembered: another change of generations is under way, the reload comes after it")
        seconds = 2 * self._settings.ready_timeout + ORDER_S  # the first worker, then the others
        if not self._wait(lambda: (self._of(Of.RELOADS), self._of(Of.FAILED_RELOADS)) != (reloads, failures), seconds):
            return refusal(f"not done within {seconds:.0f} s; see fastmilter status")
        if self._of(Of.RELOADS) > reloads:
            return accepted(f"generation {self._of(Of.GENERATION)} serves, the old workers drain")
        return refusal(self._counters.error())

    def _stop(self, *, now: bool) -> dict[str, Any]:
        message = channel.StopNow() if now else channel.Stop()
        limit = self._settings.drain_stop[2]
        text = "stopping now" if now else f"stopping: sessions are finished, which takes {limit:.0f} s and some at most"
        return self._ordered(message, lambda: self._state() is State.STOPPING, text)

    def _scale(self, workers: object) -> dict[str, Any]:
        if not isinstance(workers, int) or isinstance(workers, bool) or not 1 <= workers <= MOST_WORKERS:
            return refusal(f"{workers!r} is no number of workers: write one from 1 to {MOST_WORKERS}")
        if self._state() is State.STOPPING:
            return refusal("the server is stopping")
        text = f"the number of workers is now {workers}"
        return self._ordered(channel.Scale(workers), lambda: self._of(Of.WANTED) == workers, text)

    def _reopen_logs(self) -> dict[str, Any]:
        if self._settings.log_file is None:
            return refusal("the server has no log file (--log-file)")
        done, failed = self._of(Of.REOPENED), self._of(Of.NOT_REOPENED)
        answer = self._ordered(
            channel.ReopenLogs(),
            lambda: (self._of(Of.REOPENED), self._of(Of.NOT_REOPENED)) != (done, failed),
            "the log file is open anew",
        )
        return refusal(self._counters.error()) if self._of(Of.NOT_REOPENED) > failed else answer

    def _ordered(self, message: channel.Message, done: Callable[[], bool], text: str) -> dict[str, Any]:
        """Send an order, and wait until it was carried out."""
        if not self._order(message):
            return refusal("the master does not listen")
        return accepted(text) if self._wait(done, ORDER_S) else refusal(f"the master did not answer in {ORDER_S:.0f} s")

    def _wait(self, done: Callable[[], bool], seconds: float) -> bool:
        with self._news:
            self._news.wait_for(lambda: self._gone or done(), seconds)
        return done()

    def _of(self, what: Of) -> int:
        return self._counters.of_server(what)

    def _state(self) -> State:
        return State(self._of(Of.STATE))


def accepted(text: str) -> dict[str, Any]:
    """Return the answer to an order that was carried out."""
    return {"ok": True, "text": text}


def refusal(text: str) -> dict[str, Any]:
    """Return the answer to what cannot be done."""
    return {"ok": False, "text": text}
