"""What can go wrong between a client and a milter, told apart.

All are ``FastmilterError`` and ``OSError``, so that a program that treats a milter as one more network service can
catch them as such:

``ConnectFailed``  nobody answers at the address (``ConnectionError``)
``TimedOut``       no answer in time (``TimeoutError``)
``ProtocolBroken`` the answer breaks the protocol (``RemoteProtocolError``, ``ConnectionError``)
``ConnectionLost`` the milter closed the connection (``ConnectionError``)
"""

from typing import Final

from fastmilter.constants import Step
from fastmilter.errors import FastmilterError, RemoteProtocolError

SHOWN_BYTES: Final = 64
"""How many of the offending bytes an error keeps."""


class ConnectFailed(FastmilterError, ConnectionError):
    """No connection to the milter: refused, unreachable, no such socket, no such host."""


class TimedOut(FastmilterError, TimeoutError):
    """The milter did not answer in time. ``step``: what was asked (``None``: the negotiation or another exchange)."""

    def __init__(self, text: str, step: Step | None = None) -> None:
        """Keep the step beside the text."""
        super().__init__(text)
        self.step = step


class ProtocolBroken(RemoteProtocolError, ConnectionError):
    """The milter broke the protocol. ``received``: the last bytes that came from it, 64 at most."""

    def __init__(self, text: str, received: bytes = b"", step: Step | None = None) -> None:
        """Keep the step and the bytes beside the text."""
        self.received = received[:SHOWN_BYTES]
        self.step = step
        super().__init__(f"{text}; last received: {self.received!r}" if received else text)


class ConnectionLost(FastmilterError, ConnectionError):
    """The milter closed the connection. ``in_message``: whether a message was open, ``step``: what was asked."""

    def __init__(self, text: str, step: Step | None = None, *, in_message: bool = False) -> None:
        """Keep the step and the state beside the text."""
        super().__init__(text)
        self.step = step
        self.in_message = in_message
