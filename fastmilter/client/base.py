"""What ``Client`` and ``AsyncClient`` have in common: how they are made, what can be asked of them, their socket."""

import socket
from typing import Any, Final, Generic, TypeVar

from fastmilter.client.exchange import Exchange, Timeouts
from fastmilter.client_session import Agreed
from fastmilter.constants import ALL_ACTIONS, PROTOCOL_VERSION
from fastmilter.endpoints import Endpoint, EndpointKind, parse_endpoint
from fastmilter.errors import ConfigError, LocalProtocolError, NoConnection
from fastmilter.mta import Mta
from fastmilter.replies import Verdict

SocketT = TypeVar("SocketT", bound=Any)

POSTFIX_TIMEOUTS: Final = Timeouts()


class BaseClient(Generic[SocketT]):
    """A connection to a milter, without a way to wait. The arguments are explained at ``Client``."""

    def __init__(
        self,
        address: str | Endpoint | SocketT,
        *,
        mta: str | Mta = "postfix",
        version: int = PROTOCOL_VERSION,
        actions: int = ALL_ACTIONS,
        protocol: int | None = None,
        timeouts: Timeouts = POSTFIX_TIMEOUTS,
    ) -> None:
        """Prepare a connection; ``open`` makes it."""
        self._given: SocketT | None = None
        self._socket: SocketT | None = None
        endpoint: Endpoint | None = None
        if isinstance(address, str | Endpoint):
            endpoint = parse_endpoint(address) if isinstance(address, str) else address
            if endpoint.kind is EndpointKind.FD:
                raise ConfigError(f"a client cannot connect to {endpoint}")
        else:
            self._given = address
        self._exchange = Exchange(endpoint, timeouts, mta=mta, version=version, actions=actions, protocol=protocol)

    def _take_given(self) -> None:
        """Use the socket that was given, if that is where the connection comes from."""
        if self._exchange.is_open:
            raise LocalProtocolError("the connection is already open")
        if self._exchange.endpoint is None:
            if self._given is None:
                raise NoConnection("the socket that was given is used up")
            self._socket, self._given = self._given, None

    def _close(self) -> None:
        self._exchange.is_open = False
        for connection in (self._socket, self._given):
            if connection is not None:
                connection.close()
        self._socket = self._given = None

    @property
    def endpoint(self) -> Endpoint | None:
        """Where the milter is; ``None`` if a connected socket was given."""
        return self._exchange.endpoint

    @property
    def timeouts(self) -> Timeouts:
        """The time-outs of the calls."""
        return self._exchange.timeouts

    @property
    def agreed(self) -> Agreed:
        """What the milter asked for in the negotiation; ``NoConnection`` before it."""
        return self._exchange.agreed

    @property
    def is_open(self) -> bool:
        """Whether the connection stands: opened, and neither closed nor failed since."""
        return self._exchange.is_open

    @property
    def in_message(self) -> bool:
        """Whether a message is open: MAIL was sent, and neither a verdict nor ``abort`` ended it."""
        return self._exchange.session.in_message

    @property
    def session_verdict(self) -> Verdict | None:
        """The verdict that ended the session, so that only ``quit`` is left; ``ACCEPT``: the mail goes on unseen."""
        return self._exchange.session.session_verdict

    @property
    def mta(self) -> Mta:
        """The habits this client has."""
        return self._exchange.session.mta


def new_socket(family: int) -> socket.socket:
    """Return a socket for a connection to a milter: a packet leaves when it is written (TCP_NODELAY)."""
    made = socket.socket(family, socket.SOCK_STREAM)
    if family != socket.AF_UNIX:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made
