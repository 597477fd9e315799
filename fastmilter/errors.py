"""Who did wrong, in types.

``LocalProtocolError``: the program that uses fastmilter asked for what the protocol does not allow.
``RemoteProtocolError``: the peer sent what the protocol does not allow.
``ConfigError``: an option, a file or a class cannot be used as it stands.

What can go wrong with a connection is told apart, and is ``OSError`` too, so that a program that treats a milter as one
more network service can catch it as such:

``ConnectFailed``  nobody answers at the address (``ConnectionError``)
``TimedOut``       nothing came, or went, in time (``TimeoutError``)
``ProtocolBroken`` the peer broke the protocol (``RemoteProtocolError``, ``ConnectionError``)
``ConnectionLost`` the peer closed the connection (``ConnectionError``)
"""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fastmilter.constants import Step

SHOWN_BYTES: Final = 64
"""How many of the offending bytes an error keeps."""


class FastmilterError(Exception):
    """The root of every error that fastmilter raises on purpose."""


class LocalProtocolError(FastmilterError):
    """The caller asked for something that the protocol does not allow; nothing was sent."""


class InvalidMessage(LocalProtocolError, ValueError):
    """A message or an argument cannot be put on the wire: NUL inside, too long, out of range."""


class NotNegotiated(LocalProtocolError):
    """The other side did not agree to this when the connection was opened."""


class MessageEnded(LocalProtocolError):
    """The message had its verdict or was dropped; it cannot be changed any more."""


class NoMessage(LocalProtocolError):
    """There is no message now: ``Filter.message`` lives from MAIL to the end of the message."""


class NoConnection(LocalProtocolError):
    """There is no connection now: ``Filter.connection`` lives from CONNECT to the close."""


class RemoteProtocolError(FastmilterError):
    """The peer broke the protocol; its connection ends, and nothing else notices."""


class ConfigError(FastmilterError):
    """An option, a configuration file or a filter class cannot be used; the text says what would be right."""


class ConnectFailed(FastmilterError, ConnectionError):
    """No connection to the peer: refused, unreachable, no such socket, no such host."""


class TimedOut(FastmilterError, TimeoutError):
    """The peer did not answer in time. ``step``: what was asked (``None``: the negotiation or another exchange)."""

    def __init__(self, text: str, step: "Step | None" = None) -> None:
        """Keep the step beside the text."""
        super().__init__(text)
        self.step = step


class ProtocolBroken(RemoteProtocolError, ConnectionError):
    """The peer broke the protocol. ``received``: the last bytes that came from it, 64 at most."""

    def __init__(self, text: str, received: bytes = b"", step: "Step | None" = None) -> None:
        """Keep the step and the bytes beside the text."""
        self.received = received[:SHOWN_BYTES]
        self.step = step
        super().__init__(f"{text}; last received: {self.received!r}" if received else text)


class ConnectionLost(FastmilterError, ConnectionError):
    """The peer closed the connection. ``in_message``: whether a message was open, ``step``: what was asked."""

    def __init__(self, text: str, step: "Step | None" = None, *, in_message: bool = False) -> None:
        """Keep the step and the state beside the text."""
        super().__init__(text)
        self.step = step
        self.in_message = in_message
