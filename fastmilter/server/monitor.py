"""The monitor: a child of the master that serves whoever wants to look, over HTTP and over the control socket.

It reads shared memory, and asks the system about the processes. It imports nothing of the filter, changes nothing, and
passes orders on to the master. All that comes is bounded: so many connections at a time of each kind, so many bytes and
seconds for a request. A thread serves each connection; the main thread accepts, and listens to the master, whose end of
the channel, once closed, says that there is nothing left to do here.

HTTP: GET /metrics (Prometheus), /healthz (a milter connection is made and negotiated), /readyz (somebody takes new
connections). Control: one JSON object a line, see ``fastmilter.server.control``.
"""

import contextlib
import errno
import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from fastmilter.endpoints import Endpoint
from fastmilter.server import channel, control, metrics
from fastmilter.server.control import Control
from fastmilter.server.listen import Listener
from fastmilter.server.log_file import take_log_files
from fastmilter.server.monitor_keeper import LEAVE_S, Windows
from fastmilter.server.peers import Network
from fastmilter.server.settings import Settings
from fastmilter.server.slots import Slots
from fastmilter.server.status import is_ready, snapshot

log = logging.getLogger(__name__)

MOST_AT_A_TIME: Final = 8
"""Connections served at the same time, by HTTP and on the control socket each. More are closed at once, but over HTTP,
where anybody may come, who has said nothing for longest is closed first: a probe must get through."""
REQUEST_S: Final = 5.0
"""How long a client may take to say what it wants, and as long again to read the answer."""
PROBE_FRESH_S: Final = 1.0
"""A result of /healthz serves everybody who asks within this time: looking often must not cost the server much."""
FAREWELL_S: Final = LEAVE_S - 2.0
"""What those who are being served get when the monitor leaves: as long as a request and its answer may take."""

GIVE_WAY_S: Final = 0.2
"""How long a client that has not said what it wants may take to give its place to another."""

_ENDS_OF_HEAD: Final = (b"\r\n\r\n", b"\n\n")
_MOST_BYTES: Final = 8192
_PAUSE_S: Final = 0.5

_PAGES: Final = "fastmilter: /metrics, /healthz, /readyz\n"


Probe = Callable[[Endpoint, tuple[Network, ...]], None]
"""Negotiates with a milter as an MTA would, or as one of these proxies; raises what went wrong."""


class Monitor:
    """The monitor process; made and run once, in the child."""

    def __init__(
        self,
        settings: Settings,
        slots: Slots,
        link: socket.socket,
        windows: Windows,
        addresses: list[Endpoint],
        probe: Probe | None,
    ) -> None:
        """Take what the master hands over. ``probe`` makes a milter connection to the first of ``addresses``."""
        self._settings = settings
        self._slots = slots
        self._link = link
        self._reader = channel.Reader()
        self._windows = windows
        self._addresses = addresses
        self._probe = probe
        self._master = os.getppid()
        self._probing = threading.Lock()
        self._probed_at = float("-inf")
        self._trouble = ""  # what the last probe found, "" if all was well
        self._threads: set[threading.Thread] = set()
        self._silent: dict[
            socket.socket, None
        ] = {}  # clients of HTTP that have not said what they want, the oldest first
        self._rooms = {"http": threading.Semaphore(MOST_AT_A_TIME), "control": threading.Semaphore(MOST_AT_A_TIME)}
        self._control = Control(slots, settings, self._order, self._status)

    def run(self) -> int:
        """Serve until the master lets go; return the exit status."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._link, selectors.EVENT_READ)
            for listener, kind in ((self._windows.metrics, "http"), (self._windows.control, "control")):
                if listener is not None:
                    selector.register(listener.socket, selectors.EVENT_READ, (listener, kind))
            self._order(channel.Ready())
            while True:
                for key, _ in selector.select():  # whatever happens comes through a descriptor; so does the end
                    if key.data is not None:
                        self._accept(*key.data)
                    elif self._hear():
                        self._leave()
                        return 0

    def _hear(self) -> bool:
        """Read what the master says; return whether it has let go."""
        log_files: list[int] = []
        _, gone = channel.receive(self._link, self._reader, log_files)
        take_log_files(log_files)
        self._control.notice(gone=gone)
        return gone

    def _leave(self) -> None:
        for listener in self._windows.listeners:
            listener.socket.close()  # the master's path, if there is one, is not ours to remove
        deadline = time.monotonic() + FAREWELL_S
        for thread in list(self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))

    def _order(self, message: channel.Message) -> bool:
        return channel.send(self._link, message)

    def _status(self) -> dict[str, Any]:
        listen = [str(address) for address in self._addresses]
        return snapshot(self._slots, name=str(self._settings.target), pid=self._master, listen=listen)

    # -- connections ---------------------------------------------------------------------------------------------------

    def _accept(self, listener: Listener, kind: str) -> None:
        try:
            connection, _ = listener.socket.accept()
        except BlockingIOError:
            return  # a monitor that leaves was faster
        except OSError as error:
            if error.errno == errno.EINVAL:
                return  # the master has shut it down, and lets go of us in a moment
            log.error("the monitor cannot accept a connection: %s", error)
            threading.Event().wait(_PAUSE_S)  # out of descriptors: who is being served gives some back
            return
        room = self._rooms[kind]
        if not room.acquire(blocking=False) and not (kind == "http" and self._send_silent_away(room)):
            connection.close()
            return
        if kind == "http":
            self._silent[connection] = None
        serve = self._serve_http if kind == "http" else self._control.serve
        thread = threading.Thread(target=self._serve, args=(connection, serve, room), daemon=True)
        self._threads.add(thread)
        thread.start()

    def _send_silent_away(self, room: threading.Semaphore) -> bool:
        """Take a place from whoever has kept one for longest without a word; tell whether there is one."""
        for oldest in list(self._silent)[:1]:
            self._silent.pop(oldest, None)
            with contextlib.suppress(OSError):  # it is gone
                oldest.shutdown(socket.SHUT_RDWR)
            return room.acquire(timeout=GIVE_WAY_S)
        return False

    def _serve(
        self, connection: socket.socket, serve: Callable[[socket.socket], None], room: threading.Semaphore
    ) -> None:
        try:
            with connection, contextlib.suppress(OSError):  # it went away, or took too long
                connection.settimeout(REQUEST_S)
                serve(connection)
        except Exception:
            log.exception("internal error of the monitor")
        finally:
            self._silent.pop(connection, None)
            room.release()
            self._threads.discard(threading.current_thread())

    # -- HTTP ----------------------------------------------------------------------------------------------------------

    def _serve_http(self, connection: socket.socket) -> None:
        head = control.read_until(connection, _ENDS_OF_HEAD, most=_MOST_BYTES, seconds=REQUEST_S)
        self._silent.pop(connection, None)
        status, text, kind = self._answer(head)
        body = text.encode()
        lines = [
            f"HTTP/1.1 {status}",
            f"Content-Type: {kind}",
            f"Content-Length: {len(body)}",
            "Cache-Control: no-store",
            "Connection: close",
        ]
        if status.startswith("405"):
            lines.append("Allow: GET")
        connection.settimeout(REQUEST_S)
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        connection.shutdown(socket.SHUT_WR)

    def _answer(self, head: bytes) -> tuple[str, str, str]:
        """Return the status line's end, the body and its type for a request."""
        plain = "text/plain; charset=utf-8"
        if not any(end in head for end in _ENDS_OF_HEAD):
            too_long = len(head) >= _MOST_BYTES
            return ("431 Request Header Fields Too Large" if too_long else "400 Bad Request"), "", plain
        words = head.split(b"\n", 1)[0].split()
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return "400 Bad Request", "", plain
        if words[0] != b"GET":
            return "405 Method Not Allowed", "GET is all there is\n", plain
        match words[1].partition(b"?")[0]:
            case b"/":
                return "200 OK", _PAGES, plain
            case b"/metrics":
                return "200 OK", metrics.render(self._slots, self._status()), metrics.CONTENT_TYPE
            case b"/readyz":
                if is_ready(self._slots):
                    return "200 OK", "ready\n", plain
                return "503 Service Unavailable", "no worker takes new connections\n", plain
            case b"/healthz" if self._probe is not None:
                trouble = self._look()
                if not trouble:
                    return "200 OK", "a milter connection was made and negotiated\n", plain
                return "503 Service Unavailable", f"{trouble}\n", plain
        return "404 Not Found", _PAGES, plain

    def _look(self) -> str:
        """Make a milter connection unless that was just done; return what is wrong, "" if nothing."""
        assert self._probe is not None
        with self._probing:
            if time.monotonic() - self._probed_at > PROBE_FRESH_S:
                try:
                    self._probe(self._addresses[0], self._settings.proxy_from)
                    self._trouble = ""
                except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
                    self._trouble = f"{type(error).__name__}: {error}"
                self._probed_at = time.monotonic()
            return self._trouble
