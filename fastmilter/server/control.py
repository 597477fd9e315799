"""The control socket: what may be asked of a server by whoever owns it.

A client connects, sends one JSON object on a line, and gets one back: ``{"command": "status"}`` is answered by
``{"ok": true, "text": "...", "status": {...}}``. The other commands are ``reload``, ``stop`` (with ``"now": true``: at
once), ``scale`` (with ``"workers": N`` or ``"auto"``) and ``reopen-logs``; their answer comes when it is known what
became of them. Who adds ``"interim": true`` gets a line before it, at once: ``{"within": 125.0, "text": "..."}`` tells
how many seconds the answer may take, and what else is waited for. The answer to ``stop`` has ``within`` too: so many
seconds later the server is gone.

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
from fastmilter.server.options import processors
from fastmilter.server.peers import user_of
from fastmilter.server.policy import DRAIN_GRACE_S, KILL_GRACE_S, MOST_WORKERS
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
        self._slots = slots
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
            request = _request_in(read_until(connection, (b"\n",), most=MOST_BYTES, seconds=REQUEST_S))
            if request is not None and request.get("interim") is True:  # OSError: it has gone, and so has its order
                _send(connection, self._interim(request["command"]))
            answer = self._answer(request)
        _send(connection, answer)

    def _answer(self, request: dict[str, Any] | None) -> dict[str, Any]:
        if request is None:
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
        is_first, seconds = self._state() is State.SERVING, self._reload_s()
        reloads, failures = self._of(Of.RELOADS), self._of(Of.FAILED_RELOADS)
        if not self._order(channel.Reload()):
            return refusal("the master does not listen")
        if not is_first:
            return accepted("remembered: another change of generations is under way, the reload comes after it")
        if not self._wait(lambda: (self._of(Of.RELOADS), self._of(Of.FAILED_RELOADS)) != (reloads, failures), seconds):
            return refusal(f"not done within {seconds:.0f} s; see fastmilter status")
        if self._of(Of.RELOADS) > reloads:
            return accepted(f"generation {self._of(Of.GENERATION)} serves, the old workers drain")
        return refusal(self._counters.error())

    def _stop(self, *, now: bool) -> dict[str, Any]:
        message = channel.StopNow() if now else channel.Stop()
        limit = self._settings.drain_stop[2]
        text = "stopping now" if now else f"stopping: sessions are finished, which takes {limit:.0f} s and some at most"
        answer = self._ordered(message, lambda: self._state() is State.STOPPING, text)
        return {**answer, "within": (2 * KILL_GRACE_S if now else self._drain_s()) + ORDER_S}

    def _scale(self, workers: object) -> dict[str, Any]:
        if workers == "auto":
            workers = processors()
        if not isinstance(workers, int) or isinstance(workers, bool) or not 1 <= workers <= MOST_WORKERS:
            return refusal(f"{workers!r} is no number of workers: write one from 1 to {MOST_WORKERS}, or auto")
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

    def _interim(self, command: str) -> dict[str, Any]:
        """Return how long the answer may take, and what else is waited for meanwhile, "" if nothing."""
        if command != "reload":
            return {"within": ORDER_S, "text": ""}
        older = self._older()
        many = f"{older} worker{'' if older == 1 else 's'} of another generation"
        text = f"{many} must finish first, which takes {self._drain_s():.0f} s at most" if older else ""
        return {"within": self._reload_s(), "text": text}

    def _reload_s(self) -> float:
        """Return how long a reload may take: the first new worker, then the others, but first of all the older ones."""
        seconds = 2 * self._settings.ready_timeout + ORDER_S
        return seconds + self._drain_s() if self._older() else seconds

    def _drain_s(self) -> float:
        """Return how long workers may stay that are to leave as in a stop: a waiting reload hurries older ones so."""
        return self._settings.drain_stop[2] + DRAIN_GRACE_S + KILL_GRACE_S

    def _older(self) -> int:
        """Return how many workers of other generations than the one that serves are there."""
        serving = self._of(Of.GENERATION)
        return sum(self._slots.generation(slot) != serving for slot in self._slots.active())

    def _of(self, what: Of) -> int:
        return self._counters.of_server(what)

    def _state(self) -> State:
        return State(self._of(Of.STATE))


def _request_in(line: bytes) -> dict[str, Any] | None:
    """Read a request; ``None`` if it is none."""
    try:
        request = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return request if isinstance(request, dict) and isinstance(request.get("command"), str) else None


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.settimeout(REQUEST_S)
    connection.sendall(json.dumps(message).encode() + b"\n")


def accepted(text: str) -> dict[str, Any]:
    """Return the answer to an order that was carried out."""
    return {"ok": True, "text": text}


def refusal(text: str) -> dict[str, Any]:
    """Return the answer to what cannot be done."""
    return {"ok": False, "text": text}
