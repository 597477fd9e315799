"""Where connections to an address with ``?proxy=yes`` stay until they have told who they are.

There, who connects may be a proxy: if ``--proxy-from`` lists it, it must say first for whom it speaks
(``proxy_header.py``), and the MTA that it names is the peer from then on, for ``--allow``, for the limit of each peer
and in the log. Others speak for themselves, and must send no header: they could claim to be anybody.

Only the header is read here, not a byte more: what follows stays in the kernel until the connection is let in. The
loop knows these connections by their descriptors; they cost others nothing.
"""

import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from fastmilter.errors import RemoteProtocolError
from fastmilter.server.log_limit import LogLimit
from fastmilter.server.peers import LOG_EVERY_S, Door, Network, address_of
from fastmilter.server.proxy_header import MAX_BYTES, ProxyHeader, may_begin_header, parse_proxy_header

if TYPE_CHECKING:
    from fastmilter.server._sockets import Poller, Stream
    from fastmilter.server.settings import Settings

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_SPEAKS_FOR_ITSELF: Final = ProxyHeader(0, None, True)


class Guest:
    """A connection that has not told yet who it is."""

    __slots__ = ("address", "head", "is_proxy", "peer", "since", "stream")

    def __init__(self, stream: "Stream", address: str, is_proxy: bool, now: float) -> None:
        """``address``: whose connection it is as the kernel sees it; ``is_proxy``: that is one of ``--proxy-from``."""
        self.stream: Final = stream
        self.address: Final = address
        self.is_proxy: Final = is_proxy
        self.since: Final = now
        self.head = b""
        self.peer: str | None = None
        """Who is behind the proxy, if it has named somebody."""


class Lobby:
    """The connections of a worker that have not told yet who they are."""

    def __init__(
        self,
        proxies: tuple[Network, ...],
        families: dict[int, int],
        door: Door | None,
        poller: "Poller",
        patience_s: float,
    ) -> None:
        """``families``: of the listeners that are meant, by descriptor; ``patience_s``: how long a guest may stay."""
        self.guests: Final[dict[int, Guest]] = {}
        """By descriptor."""
        self.listeners: Final = families
        self._proxies = proxies
        self._door = door
        self._poller = poller
        self._patience_s = patience_s
        self._refusals = LogLimit(lambda text: log.warning("%s", text), LOG_EVERY_S)

    def enter(self, stream: "Stream", listener: int, now: float) -> bool:
        """Take in a connection that was just accepted; tell whether it may stay, otherwise it is closed."""
        fd = stream.fileno()
        try:
            address = str(_socket_call(fd, lambda peer: peer.getpeername()[0]))
        except OSError:
            stream.close()
            return False  # it has gone again
        is_proxy = any(address_of(address) in network for network in self._proxies)
        if not is_proxy and self._door is not None and not self._door.admit(fd, listener, now):
            stream.close()
            return False
        self.guests[fd] = Guest(stream, address, is_proxy, now)
        self._poller.add(fd)
        return True

    def hear(self, fd: int, now: float) -> Guest | None:
        """Read what has come; return the guest if it leaves to come in, ``None`` if it stays, or was closed."""
        guest = self.guests[fd]
        try:
            header = self._header_of(guest)
        except OSError:
            self._turn_away(guest)  # it has gone
            return None
        except RemoteProtocolError as error:
            self._refuse(guest, str(error), now)
            return None
        if header is None:
            return None
        # A proxy that speaks for itself, as in its health checks, needs no more permission than to be one.
        if self._door is not None and not header.is_local:
            why = self._door.why_not(header.source or guest.address, fd)
            if why is not None:
                self._refuse(guest, f"{why} (by the proxy {guest.address})", now)
                return None
        self._leave(guest)
        guest.peer = header.source
        return guest

    def on_time(self, now: float) -> None:
        """Turn away who has been here for too long; log what was left out. To be called every second or so."""
        for guest in list(self.guests.values()):
            if now - guest.since > self._patience_s:
                expected = "header of the PROXY protocol" if guest.is_proxy else "packet"
                self._refuse(guest, f"{guest.address} sent no {expected} for {self._patience_s:.0f} s", now)
        self._refusals.on_time(now)

    def close_all(self) -> None:
        """Turn away everybody."""
        for guest in list(self.guests.values()):
            self._turn_away(guest)

    def _header_of(self, guest: Guest) -> ProxyHeader | None:
        """Return what a guest says of itself, ``None`` if there is more to come; take no byte beyond that."""
        fd = guest.stream.fileno()
        try:
            new = _socket_call(fd, lambda peer: peer.recv(MAX_BYTES - len(guest.head), socket.MSG_PEEK))
        except (BlockingIOError, InterruptedError):
            return None
        if not new:
            raise ConnectionError("closed by the other side")
        if not guest.is_proxy:
            # One byte is enough: with the first of a header, the length of a milter packet would be above any limit.
            if may_begin_header(new):
                raise RemoteProtocolError(
                    f"{guest.address} sends a header of the PROXY protocol, and is in no network of --proxy-from"
                )
            return _SPEAKS_FOR_ITSELF
        data = guest.head + new
        try:
            header = parse_proxy_header(data)
        except RemoteProtocolError as error:
            raise RemoteProtocolError(f"{guest.address} is in --proxy-from, and sends {error}") from None
        taken = len(new) if header is None else header.size - len(guest.head)
        guest.head += _socket_call(fd, lambda peer: peer.recv(taken))
        return header

    def _refuse(self, guest: Guest, why: str, now: float) -> None:
        self._refusals.add(f"connection refused before its first packet: {why} pid={os.getpid()}", now)
        self._turn_away(guest)

    def _turn_away(self, guest: Guest) -> None:
        if self._door is not None:
            self._door.leave(guest.stream.fileno())
        self._leave(guest)
        guest.stream.close()

    def _leave(self, guest: Guest) -> None:
        fd = guest.stream.fileno()
        self._poller.remove(fd)
        del self.guests[fd]


def _socket_call(fd: int, call: Callable[[socket.socket], _T]) -> _T:
    """Make a call on the socket of a stream, which stays open."""
    peer = socket.socket(fileno=fd)
    try:
        return call(peer)
    finally:
        peer.detach()


def open_lobby(
    settings: "Settings", listeners: Sequence[socket.socket], door: Door | None, poller: "Poller"
) -> Lobby | None:
    """Return the lobby of a worker, or ``None`` if no address has ``?proxy=yes``; the two are in the same order."""
    pairs = zip(settings.listen, listeners, strict=True)
    families = {listener.fileno(): int(listener.family) for address, listener in pairs if address.proxy}
    if not families:
        return None
    return Lobby(settings.proxy_from, families, door, poller, settings.negotiation_timeout)
