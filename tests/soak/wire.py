"""A connection as a client of the soak wants it: one that can be slow, break off, and listen to the end."""

import contextlib
import socket
from collections.abc import Callable
from typing import Final

from fastmilter.endpoints import EndpointKind, parse_endpoint

PATIENCE_S: Final = 30.0
_BYTE_PAUSE_S: Final = 0.002
"""Between two bytes of a slow client: a message takes it a second or two, and most packets come in many reads."""


class CutOff(OSError):
    """The client hung up in the middle of a packet, as it was told to."""


class Wire:
    """A connected socket, for ``Client``."""

    def __init__(self, address: str, *, pause: Callable[[float], object] | None = None) -> None:
        """Connect; with ``pause`` everything is sent one byte at a time, and that is called in between."""
        endpoint = parse_endpoint(address)
        if endpoint.kind is EndpointKind.UNIX:
            self._socket = socket.socket(socket.AF_UNIX)
            place: str | tuple[str, int] = endpoint.sun_path
        else:
            self._socket = socket.socket(socket.AF_INET)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            place = (endpoint.host or "127.0.0.1", int(endpoint.port))
        self._pause = pause
        self.cut = False
        """What is sent next breaks off in its middle."""
        self.farewell = False
        """QUIT is said next: nothing may come any more."""
        self.stray = 0
        """Bytes that came after the last answer."""
        self._socket.settimeout(PATIENCE_S)
        try:
            self._socket.connect(place)
        except OSError:
            self._socket.close()
            raise

    def settimeout(self, seconds: float | None, /) -> None:
        self._socket.settimeout(seconds)

    def sendall(self, data: bytes, /) -> None:
        if self.cut:
            self._socket.sendall(data[: len(data) // 2])
            raise CutOff
        if self._pause is None:
            self._socket.sendall(data)
            return
        for place in range(len(data)):
            self._socket.sendall(data[place : place + 1])
            self._pause(_BYTE_PAUSE_S)

    def recv(self, size: int, /) -> bytes:
        return self._socket.recv(size)

    def close(self) -> None:
        """Close; after QUIT not before the other side has, and with a count of what it still said."""
        try:
            if self.farewell:
                self._socket.settimeout(PATIENCE_S)
                with contextlib.suppress(ConnectionError):  # a killed worker says nothing more either
                    while piece := self._socket.recv(4096):
                        self.stray += len(piece)
        finally:
            self._socket.close()
