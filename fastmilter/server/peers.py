"""Who may connect: the rules, and the door of a worker that keeps them.

A connection that is not allowed is closed right after it was accepted, before a byte of it is read. The kernel says who
it is: the address of a TCP peer, the user that a unix socket's peer had when it connected (``SO_PEERCRED``). Where
there are no rules there is no door, and nothing is asked.

Errors: ``ConfigError`` for rules that cannot be read or kept.
"""

import ipaddress
import logging
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastmilter.endpoints import Endpoint
from fastmilter.errors import ConfigError
from fastmilter.server.log_limit import LogLimit
from fastmilter.server.privileges import user_number

if TYPE_CHECKING:
    from fastmilter.server.settings import Settings
    from fastmilter.server.slots import Slots

log = logging.getLogger(__name__)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

LOG_EVERY_S: Final = 1.0
"""Of refusals a worker logs one in this time, and the number of the others."""

_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: process, user, group
_NOBODY_KNOWS: Final = 0xFFFFFFFF
_MAPPED_BITS: Final = 96
"""Of an IPv6 address that holds an IPv4 address: those before it."""


# Reading the options.


def parse_networks(value: object) -> tuple[Network, ...]:
    """Read addresses and networks; IPv4 in IPv6 is IPv4, as of peers (``address_of``).

    >>> parse_networks(["192.0.2.0/28", "::1"])
    (IPv4Network('192.0.2.0/28'), IPv6Network('::1/128'))
    """
    return tuple(_network(text) for text in _texts(value, "an address or a network, or a list of them"))


def _network(text: str) -> Network:
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ConfigError(
            f"{text!r} is no address or network: write 192.0.2.1, 192.0.2.0/24 or 2001:db8::/32"
        ) from None
    host, slash, bits = text.partition("/")
    address, _, zone = host.partition("%")
    if zone:
        raise ConfigError(f"{text!r} has a zone, and those of peers do not count: write {address}{slash}{bits}")
    try:
        network = ipaddress.ip_network(text)
        mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
        if mapped is None or network.prefixlen < _MAPPED_BITS:
            return network
        return ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
    except ValueError:
        raise ConfigError(f"{text!r} is an address within a network: write {meant} or {host}") from None


def parse_users(value: object) -> tuple[int, ...]:
    """Read names and numbers of users of this machine; return numbers."""
    return tuple(user_number(text) for text in _texts(value, "the name or number of a user, or a list of them"))


def _texts(value: object, form: str) -> Sequence[str]:
    texts = [value] if isinstance(value, str | int) and not isinstance(value, bool) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) or type(text) is int for text in texts):
        raise ConfigError(f"{value!r} will not do: write {form}")
    return [str(text) for text in texts]


# The rules.


@dataclass(frozen=True, slots=True)
class Rules:
    """Who may connect; an empty tuple: everybody.

    >>> rules = Rules(parse_networks("192.0.2.0/28"), ())
    >>> rules.allow_address("192.0.2.15"), rules.allow_address("::ffff:192.0.2.16"), rules.allow_user(1000)
    (True, False, True)
    """

    networks: tuple[Network, ...]
    users: tuple[int, ...]

    def allow_address(self, text: str) -> bool:
        """Tell whether a TCP peer may connect; ``text`` as ``getpeername`` gives it."""
        if not self.networks:
            return True
        address = address_of(text)
        return any(address in network for network in self.networks)

    def allow_user(self, uid: int) -> bool:
        """Tell whether a user of this machine may connect to a unix socket."""
        return not self.users or uid in self.users


def user_of(peer: socket.socket) -> int | None:
    """Return the user at the other end of a unix socket, ``None`` where the system does not say; ``OSError``."""
    credentials = _credentials_of(peer)
    return None if credentials is None else credentials[1] & _NOBODY_KNOWS


def process_of(peer: socket.socket) -> int | None:
    """Return the process at the other end of a unix socket (0: of another pid namespace); as ``user_of`` otherwise."""
    credentials = _credentials_of(peer)
    return None if credentials is None else credentials[0]


def _credentials_of(peer: socket.socket) -> tuple[int, int, int] | None:
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    pid, uid, gid = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid, gid


def name_of_peer(fd: int) -> str | None:
    """Return who is at the other end of a connection, as the log names it; ``None`` if that cannot be told any more."""
    try:
        peer = socket.socket(fileno=fd)
    except OSError:
        return None
    try:
        if peer.family == socket.AF_UNIX:
            uid = user_of(peer)
            return None if uid is None else f"user {uid}"
        return str(peer.getpeername()[0])
    except OSError:
        return None
    finally:
        peer.detach()


def address_of(text: str) -> Address:
    """Return the address of a peer; IPv4 in IPv6 (of a socket that takes both) is IPv4, and zones do not count."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def refuse_half_a_proxy(listen: Sequence[Endpoint], proxy_from: tuple[Network, ...]) -> None:
    """Refuse an address with ``?proxy=yes`` where no proxy is listed, and listed proxies without such an address."""
    addresses = [address for address in listen if address.proxy]
    if addresses and not proxy_from:
        raise ConfigError(f"{addresses[0]}: name the proxies with --proxy-from NETWORK, or leave out ?proxy=yes")
    if proxy_from and not addresses:
        raise ConfigError("--proxy-from: no address has ?proxy=yes, as in inet:8894@192.0.2.1?proxy=yes")


# The door.


class Door:
    """Lets connections of a worker in or not, and counts those of each TCP peer where that is limited."""

    def __init__(self, rules: Rules, most: int, slots: "Slots", slot: int, families: dict[int, int]) -> None:
        """``most``: connections of a peer, 0: any number; ``families``: of the listeners, by descriptor."""
        self._rules = rules
        self._most = most
        self._slots = slots
        self._slot = slot
        self._families = families
        self._peers: dict[int, Address] = {}  # who is counted, by descriptor
        self._refusals = LogLimit(lambda text: log.warning("%s", text), LOG_EVERY_S)

    def admit(self, fd: int, listener: int, now: float) -> bool:
        """Tell whether a connection that was just accepted may stay; if not, it is to be closed."""
        family = self._families[listener]
        peer = socket.socket(family, socket.SOCK_STREAM, fileno=fd)
        try:
            why = self._why_not_user(peer) if family == socket.AF_UNIX else self._why_not_address(peer, fd)
        except OSError:
            return False  # it has gone again, and nobody is told
        finally:
            peer.detach()
        if why is not None:
            self._refusals.add(f"connection refused before anything was read: {why} pid={os.getpid()}", now)
        return why is None

    def _why_not_user(self, peer: socket.socket) -> str | None:
        if not self._rules.users:
            return None
        uid = user_of(peer)
        return None if uid is not None and self._rules.allow_user(uid) else f"user {uid} is none of --allow-user"

    def _why_not_address(self, peer: socket.socket, fd: int) -> str | None:
        return self.why_not(str(peer.getpeername()[0]), fd)

    def why_not(self, text: str, fd: int) -> str | None:
        """Return why a TCP peer may not have connection ``fd``, or take note that it has it."""
        if not self._rules.allow_address(text):
            return f"{text} is in no network of --allow"
        if self._most:
            address = address_of(text)
            if self._slots.peers.total(address, self._slots.active()) >= self._most:
                return f"{text} has {self._most} connections (--max-connections-per-peer)"
            self._slots.peers.add(self._slot, address, 1)
            self._peers[fd] = address
        return None

    def leave(self, fd: int) -> None:
        """Take note that a connection has ended."""
        address = self._peers.pop(fd, None)
        if address is not None:
            self._slots.peers.add(self._slot, address, -1)

    def on_time(self, now: float) -> None:
        """Log what was left out, when its time has come; to be called every second or so."""
        self._refusals.on_time(now)


def open_door(settings: "Settings", slots: "Slots", slot: int, listeners: Sequence[socket.socket]) -> Door | None:
    """Return the door of a worker, or ``None`` if everybody may come in."""
    if not (settings.allow or settings.allow_user or settings.max_connections_per_peer):
        return None
    if settings.allow_user and not hasattr(socket, "SO_PEERCRED"):
        raise ConfigError("--allow-user: this system does not tell who connects to a unix socket")
    families = {listener.fileno(): int(listener.family) for listener in listeners}
    rules = Rules(settings.allow, settings.allow_user)
    return Door(rules, settings.max_connections_per_peer, slots, slot, families)
