"""``AsyncClient``: be the MTA, on an event loop.

The same methods, verdicts and errors as ``Client``, since it is the same conversation (``fastmilter.client.exchange``);
here is how a flow waits without keeping anybody from running. The socket is our own, without a transport: what was sent
is with the kernel, and what is closed is closed at once, also when a task is cancelled.

Errors: those of ``Client``.
"""

import asyncio
import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Self, TypeVar, cast

from fastmilter import codec
from fastmilter.addresses import SocketAddress
from fastmilter.client.base import BaseClient, new_socket
from fastmilter.client.exchange import READ_BYTES, Flow, Open, Resolve, Send, Want
from fastmilter.client.fields import MessageSource
from fastmilter.client.message import Letter, MacrosByStep, Outcome, Visitor, play
from fastmilter.constants import Step
from fastmilter.errors import LocalProtocolError
from fastmilter.mta import Text
from fastmilter.replies import Verdict

_FULL_QUEUE_S: Final = 0.02
"""How long to wait before a full queue is tried again."""

_IN: Final = frozenset({"in"})
_OUT: Final = frozenset({"out"})
_BOTH: Final = _IN | _OUT
"""The directions of the connection that a call needs for itself."""

_T = TypeVar("_T")


class AsyncClient(BaseClient[socket.socket]):
    """``Client`` for ``asyncio``: the same arguments, and each of its methods is a coroutine here.

    >>> import asyncio
    >>> async def refused() -> str:
    ...     try:
    ...         async with AsyncClient("unix:/nonexistent/milter.sock") as client:
    ...             await client.connect("localhost")
    ...     except OSError as error:
    ...         return type(error).__name__
    ...     return "taken"
    >>> asyncio.run(refused())
    'ConnectFailed'

    A call that is cancelled, or runs into a time-out around it (``asyncio.timeout``), closes the connection, as any
    failure does. One call at a time: a second task that calls meanwhile gets a ``LocalProtocolError``. Only ``send``
    may run beside ``receive``, as a proxy needs it.
    """

    # Replaced, never changed: one object for all clients is enough to begin with.
    _in_use: frozenset[str] = frozenset()
    _waits: "frozenset[_Wait]" = frozenset()

    # -- life ----------------------------------------------------------------------------------------------------------

    async def open(self, *, negotiate: bool = True) -> Self:
        """As ``Client.open``; the look-up of a host name has to be over in ``timeouts.connect`` too."""
        self._take_given()
        if self._socket is not None:
            self._socket.setblocking(False)
        await self._run(self._exchange.open(negotiate=negotiate))
        return self

    async def close(self) -> None:
        """As ``Client.close``."""
        self._close()

    async def quit(self) -> None:
        """As ``Client.quit``."""
        await self._run(self._exchange.quit())

    async def __aenter__(self) -> Self:
        """Open and negotiate."""
        return await self.open()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Say QUIT; just close if the block failed."""
        if kind is None:
            await self.quit()
        else:
            self._close()

    # -- level 1: the steps --------------------------------------------------------------------------------------------

    async def macros(self, step: Step | str, values: Mapping[str, Text]) -> None:
        """As ``Client.macros``."""
        self._exchange.macros(step, values)

    async def connect(
        self, hostname: Text, address: str | SocketAddress | None = "127.0.0.1", port: int = 0
    ) -> Verdict | None:
        """As ``Client.connect``."""
        return await self._run(self._exchange.connect(hostname, address, port))

    async def helo(self, name: Text) -> Verdict | None:
        """As ``Client.helo``."""
        return await self._run(self._exchange.helo(name))

    async def mail(self, sender: Text, params: Iterable[Text] = ()) -> Verdict | None:
        """As ``Client.mail``."""
        return await self._run(self._exchange.mail(sender, params))

    async def rcpt(self, recipient: Text, params: Iterable[Text] = ()) -> Verdict | None:
        """As ``Client.rcpt``."""
        return await self._run(self._exchange.rcpt(recipient, params))

    async def rejected_rcpt(
        self, recipient: Text, params: Iterable[Text] = (), *, enhanced: Text = "5.1.1", reason: Text = "User unknown"
    ) -> Verdict | None:
        """As ``Client.rejected_rcpt``."""
        return await self._run(self._exchange.rejected_rcpt(recipient, params, enhanced, reason))

    async def data(self) -> Verdict | None:
        """As ``Client.data``."""
        return await self._run(self._exchange.data())

    async def header(self, name: Text, value: Text) -> Verdict | None:
        """As ``Client.header``."""
        return await self._run(self._exchange.header(name, value))

    async def end_of_headers(self) -> Verdict | None:
        """As ``Client.end_of_headers``."""
        return await self._run(self._exchange.end_of_headers())

    async def body(self, chunk: bytes) -> Verdict | None:
        """As ``Client.body``."""
        return await self._run(self._exchange.body(chunk))

    async def end_of_message(self) -> tuple[Verdict, list[codec.Modification]]:
        """As ``Client.end_of_message``."""
        return await self._run(self._exchange.end_of_message())

    async def unknown(self, command: Text) -> Verdict | None:
        """As ``Client.unknown``."""
        return await self._run(self._exchange.unknown(command))

    async def abort(self) -> None:
        """As ``Client.abort``."""
        await self._run(self._exchange.abort())

    async def new_connection(self) -> None:
        """As ``Client.new_connection``."""
        self._exchange.new_connection()

    # -- level 1: a whole message --------------------------------------------------------------------------------------

    async def send_message(
        self,
        message: MessageSource,
        sender: Text,
        recipients: Iterable[Text],
        *,
        hostname: Text = "localhost",
        address: str | SocketAddress | None = "127.0.0.1",
        port: int = 25,
        helo: Text | None = "localhost",
        macros: MacrosByStep | None = None,
        sender_params: Iterable[str] = (),
    ) -> Outcome:
        """As ``Client.send_message``."""
        visitor = Visitor(hostname, address, port, helo)
        letter = Letter.of(message, sender, recipients, sender_params, macros)
        return await self._run(play(self._exchange, letter, visitor))

    # -- level 2: messages ---------------------------------------------------------------------------------------------

    async def send(self, *messages: codec.Command, timeout: float | None = None) -> None:
        """As ``Client.send``."""
        await self._run(self._exchange.send(messages, timeout), _OUT)

    async def receive(self, *, timeout: float | None = None, progress: bool = False) -> codec.Response:
        """As ``Client.receive``."""
        return await self._run(self._exchange.receive(timeout, progress=progress), _IN)

    # -- the socket and the loop ---------------------------------------------------------------------------------------

    async def _run(self, flow: Flow[_T], needs: frozenset[str] = _BOTH) -> _T:
        """Carry out what ``flow`` wants and return its result."""
        if needs & self._in_use:
            raise LocalProtocolError("another call of this client is not over yet")
        self._in_use |= needs
        try:
            want = next(flow)
            while True:
                try:
                    result = await self._carry_out(want)
                except BaseException as error:  # noqa: BLE001 - the flow says what it means, and raises it again
                    want = flow.throw(error)
                else:
                    want = flow.send(result)
        except StopIteration as end:
            return cast(_T, end.value)
        finally:
            self._in_use -= needs
            if not self.is_open and self._given is None:
                self._close()

    def _close(self) -> None:
        # What still waits for the descriptor must let go of it before its number can be another's.
        for wait in self._waits:
            wait.end(ConnectionAbortedError("closed by another call"))
        super()._close()

    async def _carry_out(self, want: Want) -> Any:
        left = want.deadline - time.monotonic()
        if left <= 0 and not isinstance(want, Send):
            raise TimeoutError
        async with asyncio.timeout(max(left, 0.001)):
            if isinstance(want, Resolve):
                loop = asyncio.get_running_loop()
                return await loop.getaddrinfo(want.host, want.port, family=want.family, type=socket.SOCK_STREAM)
            if isinstance(want, Open):
                return await self._connect(want)
            connection = self._socket
            if connection is None:
                raise ConnectionAbortedError("closed by another call")
            return await (self._send(connection, want.data) if isinstance(want, Send) else self._receive(connection))

    async def _connect(self, place: Open) -> None:
        connection = new_socket(place.family)
        try:
            connection.setblocking(False)
            while (number := connection.connect_ex(place.address)) == errno.EAGAIN:
                # The queue of a unix socket is full, and the kernel tells nobody when it is not any more.
                await self._wait(lambda wait: wait.for_seconds(_FULL_QUEUE_S))
            if number == errno.EINPROGRESS:
                await self._wait(lambda wait: wait.for_writing(connection))
                number = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                raise OSError(number, os.strerror(number))
        except BaseException:
            connection.close()
            raise
        self._socket = connection

    async def _receive(self, connection: socket.socket) -> bytes:
        while True:
            # Waiting first: a milter that never stops talking must not keep the other tasks from running.
            await self._wait(lambda wait: wait.for_reading(connection))
            with contextlib.suppress(BlockingIOError):
                return connection.recv(READ_BYTES)

    async def _send(self, connection: socket.socket, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[connection.send(rest) :]
            except BlockingIOError:
                await self._wait(lambda wait: wait.for_writing(connection))

    async def _wait(self, begin: Callable[["_Wait"], None]) -> None:
        wait = _Wait()
        self._waits |= {wait}
        try:
            begin(wait)
            await wait.future
        finally:
            self._waits -= {wait}
            wait.end()


class _Wait:
    """One wait for the socket. However it ends, the loop has forgotten the descriptor then, and only once.

    ``loop.sock_recv`` forgets it one round of the loop after a cancellation, when its number may be another's.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._forget: Callable[[], object] | None = None
        self.future: asyncio.Future[None] = self._loop.create_future()

    def for_reading(self, connection: socket.socket) -> None:
        """Wait until there is something to read."""
        number = connection.fileno()
        self._loop.add_reader(number, self.end)
        self._forget = lambda: self._loop.remove_reader(number)

    def for_writing(self, connection: socket.socket) -> None:
        """Wait until something can be written."""
        number = connection.fileno()
        self._loop.add_writer(number, self.end)
        self._forget = lambda: self._loop.remove_writer(number)

    def for_seconds(self, seconds: float) -> None:
        """Wait some time."""
        self._forget = self._loop.call_later(seconds, self.end).cancel

    def end(self, error: Exception | None = None) -> None:
        """End the wait, with ``error`` if it is one; does nothing if it has ended."""
        forget, self._forget = self._forget, None
        if forget is not None:
            forget()
        if not self.future.done():
            if error is None:
                self.future.set_result(None)
            else:
                self.future.set_exception(error)
                self.future.exception()  # it counts as looked at, should the task be cancelled before it is
