"""``ServerConnection``: be the filter on a blocking socket, message by message.

This is level 2 of the filter's side: no callbacks, no order of steps, no answer that is due. Who uses it (a proxy, a
test, a filter of a kind that ``Filter`` is not made for) keeps the protocol: one answer to each command that expects
one. What it does take care of is the stream: packets, their limits, time, and the size of packets that was negotiated.

Errors: ``TimedOut``, ``ProtocolBroken`` and ``ConnectionLost`` of ``fastmilter.errors`` for the MTA's side, after which
the connection is closed (but for ``TimedOut`` while receiving: nothing is lost then), ``InvalidMessage`` and
``NoConnection`` for the caller's.
"""

import socket
import time
from collections.abc import Iterator
from typing import Final, Self

from fastmilter import codec
from fastmilter.constants import MAX_DATA_BYTES
from fastmilter.errors import ConnectionLost, NoConnection, ProtocolBroken, RemoteProtocolError, TimedOut
from fastmilter.negotiation import max_data_of

READ_BYTES: Final = 65536
"""Most bytes of one read."""

DEFAULT_TIMEOUT_S: Final = 7210.0
"""libmilter's (MI_TIMEOUT): both MTAs are silent while a client uploads its message."""


class ServerConnection:
    """A milter connection, seen from the filter: commands come, responses go.

    ``connection``: a connected stream socket, as ``accept`` returns it; it belongs to this object from now on.
    ``timeout``: seconds for each call that names none. A context manager: closes at the end. Not shared between
    threads.

    >>> import socket
    >>> from fastmilter import codec
    >>> ours, mta = socket.socketpair()
    >>> with ServerConnection(ours, timeout=10) as connection:
    ...     mta.sendall(codec.encode(codec.Helo(b"client.example")))
    ...     print(connection.receive())
    ...     connection.send(codec.ReplyCode(b"550 5.7.1 no thanks"))
    Helo(name=b'client.example')
    >>> mta.recv(100)
    b'\\x00\\x00\\x00\\x15y550 5.7.1 no thanks\\x00'
    >>> mta.close()
    """

    def __init__(self, connection: socket.socket, *, timeout: float = DEFAULT_TIMEOUT_S) -> None:
        """Take over a socket."""
        self.timeout = timeout
        self._socket: socket.socket | None = connection
        self._decoder = codec.CommandDecoder()
        self._offered = 0
        self._max_data = MAX_DATA_BYTES
        self._last = b""
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def receive(self, *, timeout: float | None = None) -> codec.Command | None:
        """Return the next command as it is, macros included; ``None`` if the MTA closed the connection.

        ``timeout``: seconds, whatever trickles in meanwhile; after ``TimedOut`` a later call goes on where this one
        was. ``ConnectionLost`` if the end comes within a packet.
        """
        self._open_socket()
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while True:
            try:
                command = next(self._decoder, None)
            except RemoteProtocolError as error:
                self.close()
                raise ProtocolBroken(str(error), self._last) from error
            if command is not None:
                if isinstance(command, codec.Negotiate):
                    self._offered = command.protocol
                return command
            data = self._read(deadline)
            if not data:
                return None
            self._decoder.feed(data)

    def __iter__(self) -> Iterator[codec.Command]:
        """Yield the commands up to the end of the connection."""
        while (command := self.receive()) is not None:
            yield command

    def send(self, *responses: codec.Response, timeout: float | None = None) -> None:
        """Send responses as they are, in one piece: modifications and the verdict behind them belong together.

        A ``Negotiate`` that agrees to larger packets (MDS) applies from here on, both ways. ``timeout``: seconds.
        """
        connection = self._open_socket()
        output = b"".join([codec.encode(response, self._max_data) for response in responses])
        for response in responses:
            if isinstance(response, codec.Negotiate):
                self._max_data = self._decoder.max_data = max_data_of(self._offered & response.protocol)
        try:
            connection.settimeout(max(self.timeout if timeout is None else timeout, 0.001))
            connection.sendall(output)
        except TimeoutError:
            self.close()
            raise TimedOut("the MTA takes no data") from None
        except OSError as error:
            self.close()
            raise ConnectionLost(f"the MTA closed the connection: {error.strerror or error}") from error
        except BaseException:
            self.close()  # how much of it left, nobody knows
            raise

    def close(self) -> None:
        """Close the socket; does nothing if it is closed."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    @property
    def is_open(self) -> bool:
        """Whether the connection stands: neither closed nor failed."""
        return self._socket is not None

    def fileno(self) -> int:
        """Return the number of the descriptor, for ``select``; commands that came already are not seen there."""
        return self._open_socket().fileno()

    def __enter__(self) -> Self:
        """Return this object."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _open_socket(self) -> socket.socket:
        if self._socket is None:
            raise NoConnection("the connection to the MTA is closed")
        return self._socket

    def _read(self, deadline: float) -> bytes:
        connection = self._open_socket()
        left = deadline - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            connection.settimeout(left)
            data = connection.recv(READ_BYTES)
        except TimeoutError:
            raise TimedOut("the MTA sent no command in time") from None
        except OSError as error:
            self.close()
            raise ConnectionLost(f"the MTA closed the connection: {error.strerror or error}") from error
        if data:
            self._last = data
        elif self._decoder.buffered:
            self.close()
            raise ConnectionLost("the MTA closed the connection in the middle of a packet")
        return data
