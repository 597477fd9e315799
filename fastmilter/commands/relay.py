"""A transparent proxy between MTA and milter: one loop, no threads, bounded memory.

What one side sends goes to the other as it is. Of each direction at most one read is held; until the other side has
taken it, nothing more is read from this one, so that a slow side is as slow as it would be without a proxy. A closed
half is passed on as a closed half, a broken connection as a broken one. The recording is somebody else's business: it
is told what happens (``Witness``) and cannot fail here.
"""

import contextlib
import errno
import logging
import selectors
import signal
import socket
import struct
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from fastmilter.commands.recordings import TO_FILTER, TO_MTA, Direction
from fastmilter.endpoints import Endpoint, EndpointKind
from fastmilter.errors import ConfigError
from fastmilter.server.signals import SignalPipe

log = logging.getLogger(__name__)

READ_BYTES: Final = 65536
"""Most bytes of one read, and so most bytes held of one direction."""

_ACCEPT_AT_ONCE: Final = 64
_NO_ROOM_PAUSE_S: Final = 1.0
"""How long connections wait in the queue of the kernel when there are no descriptors left."""

_RETRY_S: Final = 0.05
_CONNECT_S: Final = 30.0
"""How often, and for how long, a unix socket whose queue is full is tried: there is no event to wait for."""

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)

Place = tuple[socket.AddressFamily, Any]


class Witness(Protocol):
    """What is told of every connection; returns at once and does not raise."""

    def opened(self, conn: int) -> None:
        """An MTA connected."""

    def data(self, conn: int, direction: Direction, data: bytes) -> None:
        """This was read from the side where ``direction`` begins."""

    def event(self, conn: int, direction: Direction, event: str) -> None:
        """``eof``, ``reset`` or ``refused``, of the side where ``direction`` begins."""

    def closed(self, conn: int) -> None:
        """Nothing more comes of this connection."""


def resolve(endpoint: Endpoint) -> list[Place]:
    """Return the places that an address of a milter means; ``ConfigError`` if there are none."""
    if endpoint.kind is EndpointKind.FD:
        raise ConfigError(f"nobody can connect to {endpoint}")
    if endpoint.kind is EndpointKind.UNIX:
        return [(socket.AF_UNIX, endpoint.path)]
    family = socket.AF_INET6 if endpoint.kind is EndpointKind.INET6 else socket.AF_UNSPEC
    host = endpoint.host or ("::1" if endpoint.kind is EndpointKind.INET6 else "127.0.0.1")
    try:
        found = socket.getaddrinfo(host, endpoint.port, family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"{endpoint}: {error.strerror or error}") from None
    return [(kind, place) for kind, _, _, _, place in found]


class _Side:
    """One socket of a connection, and what is on its way to it."""

    def __init__(self, direction: Direction) -> None:
        self.direction: Final[Direction] = direction
        """Of what this side sends."""
        self.socket: socket.socket | None = None
        self.pending = memoryview(b"")
        """What the other side sent and this one has not taken yet."""
        self.ended = ""
        """How this side ended its sending: "eof" or "reset"; "" while it may still send."""
        self.deaf = False
        """This side takes nothing more: its half is shut, or the connection to it is broken."""
        self.mask = 0


class _Pair:
    """One connection of an MTA, and the one to the milter that belongs to it."""

    def __init__(self, relay: "Relay", number: int, mta: socket.socket) -> None:
        self.relay = relay
        self.number = number
        self.mta = _Side(TO_FILTER)
        self.mta.socket = mta
        self.filter = _Side(TO_MTA)
        self.places = list(relay.upstream)
        self.connecting = True
        self.patience = _CONNECT_S

    def other(self, side: _Side) -> _Side:
        return self.filter if side is self.mta else self.mta

    # -- the connection to the milter ----------------------------------------------------------------------------------

    def connect(self) -> None:
        """Begin to connect to the next place there is; refuse the MTA if there is none left."""
        while self.places:
            family, place = self.places.pop(0)
            try:
                sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            except OSError:
                break
            self.filter.socket = sock
            if family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            code = sock.connect_ex(place)
            if code in (0, errno.EINPROGRESS):
                self.watch()
                return
            self._forget_filter()
            if code == errno.EAGAIN and self.relay.try_later(self):
                self.places.insert(0, (family, place))
                return
        self.relay.witness.event(self.number, TO_MTA, "refused")
        self.close(reset=True)

    def _forget_filter(self) -> None:
        self._mask(self.filter, 0)
        if self.filter.socket is not None:
            self.filter.socket.close()
            self.filter.socket = None

    def _connected(self) -> None:
        assert self.filter.socket is not None
        code = self.filter.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code == errno.ECONNRESET:  # it was connected, and broken off before the loop came to it
            self.relay.witness.event(self.number, TO_MTA, "reset")
            self.close(reset=True)
            return
        if code:
            self._forget_filter()
            self.connect()
            return
        self.connecting = False
        self.watch()

    # -- the traffic ---------------------------------------------------------------------------------------------------

    def on_ready(self, side: _Side, mask: int) -> None:
        """Do what a socket is ready for, unless the connection was closed since it became so."""
        if side.socket is None:
            return
        if self.connecting:
            self._connected()
            return
        if mask & selectors.EVENT_WRITE:
            self._send(side)
        if mask & selectors.EVENT_READ and side.socket is not None and self._may_read(side):
            self._read(side)
        if self.mta.deaf and self.filter.deaf:
            self.close()
        else:
            self.watch()

    def _may_read(self, side: _Side) -> bool:
        return not side.ended and not self.other(side).pending

    def _read(self, side: _Side) -> None:
        assert side.socket is not None
        try:
            count = side.socket.recv_into(self.relay.buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            side.ended = "reset"
            side.deaf = True
            self.relay.witness.event(self.number, side.direction, "reset")
            self._pass_end_on(side)
            return
        if not count:
            side.ended = "eof"
            self.relay.witness.event(self.number, side.direction, "eof")
            self._pass_end_on(side)
            return
        data = bytes(memoryview(self.relay.buffer)[:count])
        # Sent first: the recording is not to cost the traffic anything.
        receiver = self.other(side)
        if not receiver.deaf:
            receiver.pending = memoryview(data)
            self._send(receiver)
        self.relay.witness.data(self.number, side.direction, data)

    def _send(self, side: _Side) -> None:
        assert side.socket is not None
        while side.pending:
            try:
                side.pending = side.pending[side.socket.send(side.pending) :]
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                # It is gone. What it said before that is still to be read, and ends with how it went.
                side.pending = memoryview(b"")
                side.deaf = True
                return
        sender = self.other(side)
        if sender.ended:
            self._pass_end_on(sender)

    def _pass_end_on(self, side: _Side) -> None:
        """Do to the other side what this one did, once it has everything that came before."""
        receiver = self.other(side)
        if receiver.pending or receiver.socket is None:
            return
        if side.ended == "reset":
            self.close(reset=True)
        elif not receiver.deaf:
            receiver.deaf = True
            with contextlib.suppress(OSError):
                receiver.socket.shutdown(socket.SHUT_WR)

    # -- what the loop waits for ---------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Wait for what can be done now."""
        if self.connecting:
            self._mask(self.filter, selectors.EVENT_WRITE)
            return
        for side in (self.mta, self.filter):
            mask = selectors.EVENT_READ if self._may_read(side) else 0
            self._mask(side, mask | (selectors.EVENT_WRITE if side.pending else 0))

    def _mask(self, side: _Side, mask: int) -> None:
        selector = self.relay.selector
        if mask == side.mask or side.socket is None:
            return
        if not mask:
            selector.unregister(side.socket)
        elif side.mask:
            selector.modify(side.socket, mask, lambda ready: self.on_ready(side, ready))
        else:
            selector.register(side.socket, mask, lambda ready: self.on_ready(side, ready))
        side.mask = mask

    def close(self, *, reset: bool = False) -> None:
        """Close both sockets; ``reset``: break off what is still open."""
        for side in (self.mta, self.filter):
            if side.socket is None:
                continue
            self._mask(side, 0)
            if reset and side.socket.family != socket.AF_UNIX:
                with contextlib.suppress(OSError):
                    side.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            side.socket.close()
            side.socket = None
            side.pending = memoryview(b"")
        self.mta.deaf = self.filter.deaf = True
        self.relay.forget(self)


class Relay:
    """The proxy; made and run once."""

    def __init__(
        self,
        listener: socket.socket,
        upstream: list[Place],
        witness: Witness,
        *,
        grace_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare to pass what comes to ``listener`` on to the first of ``upstream`` that takes it."""
        self.upstream: Final = upstream
        self.witness: Final = witness
        self.buffer: Final = bytearray(READ_BYTES)
        self.connections = 0
        """How many there have been."""
        self._listener = listener
        self._listening = False
        self._pairs: set[_Pair] = set()
        self._later: set[_Pair] = set()
        self._retry_at = 0.0
        self._grace_s = grace_s
        self._clock = clock
        self._accept_at = 0.0
        self._end_at: float | None = None

    def run(self) -> None:
        """Pass on until TERM or INT: then take no more connections, and end with the last one, or when time is up."""
        with (
            SignalPipe((signal.SIGTERM, signal.SIGINT)) as signals,
            selectors.DefaultSelector() as self.selector,
        ):
            self.selector.register(signals, selectors.EVENT_READ, lambda _: self._on_signals(signals.take()))
            while self._end_at is None or (self._pairs and self._clock() < self._end_at):
                self._listen()
                self._retry()
                for key, mask in self.selector.select(self._timeout()):
                    key.data(mask)
            for pair in list(self._pairs):
                pair.close(reset=True)

    def try_later(self, pair: _Pair) -> bool:
        """Let ``pair`` connect again in a moment; not if it has waited long enough."""
        pair.patience -= _RETRY_S
        if pair.patience < 0:
            return False
        self._later.add(pair)
        return True

    def _retry(self) -> None:
        if not self._later or self._clock() < self._retry_at:
            return
        self._retry_at = self._clock() + _RETRY_S
        pairs, self._later = self._later, set()
        for pair in pairs:
            pair.connect()

    def forget(self, pair: _Pair) -> None:
        """Count a connection as ended."""
        self._later.discard(pair)
        if pair in self._pairs:
            self._pairs.discard(pair)
            self._accept_at = 0.0  # there are descriptors again
            self.witness.closed(pair.number)

    def _timeout(self) -> float | None:
        """How long to wait; ``None`` where whatever can happen comes through a descriptor."""
        moments = [self._end_at] if self._end_at is not None else []
        moments += [self._retry_at] if self._later else []
        moments += [self._accept_at] if self._end_at is None and not self._listening else []
        return max(min(moments) - self._clock(), 0.0) if moments else None

    def _on_signals(self, numbers: set[signal.Signals]) -> None:
        if not numbers:
            return
        if self._end_at is not None:
            self._end_at = self._clock()
            return
        log.info("stopping: %d connections are open", len(self._pairs))
        self._end_at = self._clock() + self._grace_s
        self._stop_listening()
        self._listener.close()

    # -- the listener --------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        if not self._listening and self._end_at is None and self._clock() >= self._accept_at:
            self.selector.register(self._listener, selectors.EVENT_READ, lambda _: self._accept())
            self._listening = True

    def _stop_listening(self) -> None:
        if self._listening:
            self.selector.unregister(self._listener)
            self._listening = False

    def _accept(self) -> None:
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.error("cannot take a connection: %s", error.strerror)
                self._stop_listening()
                self._accept_at = self._clock() + _NO_ROOM_PAUSE_S
                return
            sock.setblocking(False)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self.connections += 1
            pair = _Pair(self, self.connections, sock)
            self._pairs.add(pair)
            self.witness.opened(pair.number)
            pair.connect()
