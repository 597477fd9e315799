"""``Client``: be the MTA, on a blocking socket.

Level 1 is one method per step of the SMTP session, each returning the milter's verdict; level 2 is ``send`` and
``receive`` with the messages of ``fastmilter.codec``. The conversation is that of ``fastmilter.client.exchange``; here
is the socket. Every call ends within its time-out; a call that fails closes the connection, since what comes next on it
could not be told apart from what is still missing.

Errors: ``ConnectFailed``, ``TimedOut``, ``ProtocolBroken`` and ``ConnectionLost`` of ``fastmilter.errors`` for the
milter's side, ``LocalProtocolError`` for the caller's.
"""

import socket
import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, Self, TypeVar, cast

from fastmilter import codec
from fastmilter.addresses import SocketAddress
from fastmilter.client.base import BaseClient, new_socket
from fastmilter.client.exchange import READ_BYTES, Flow, Open, Resolve, Send, Timeouts, Want
from fastmilter.client.fields import MessageSource
from fastmilter.client.message import Letter, MacrosByStep, Outcome, Visitor, play
from fastmilter.constants import Step
from fastmilter.mta import Text
from fastmilter.replies import Verdict

__all__ = ["Client", "Stream", "Timeouts"]

_T = TypeVar("_T")


class Stream(Protocol):
    """What a client needs of a connected socket."""

    def settimeout(self, seconds: float | None, /) -> None:
        """Bound each of the following calls, which raise ``TimeoutError`` then."""

    def sendall(self, data: bytes, /) -> None:
        """Send all of ``data``."""

    def recv(self, size: int, /) -> bytes:
        """Return what is there, ``size`` bytes at most; nothing: the other side has closed."""

    def close(self) -> None:
        """Close this side."""


class Client(BaseClient[Stream]):
    """A milter connection, seen from the MTA. A context manager: opens and negotiates, and says QUIT at the end.

    ``address``: ``inet:8894@127.0.0.1``, ``inet:host:port``, ``inet6:...``, ``unix:/path``, an ``Endpoint``, or a
    socket that is connected already: the client owns it then, and can be opened once. ``mta``: ``"postfix"`` or
    ``"sendmail"`` (or a table of ``fastmilter.mta``): whose habits it has. ``version``, ``actions``, ``protocol``: what
    it offers (``protocol=None``: all of the version). Raises ``ConfigError`` for a wrong address.

    A step that the milter does not want, or answers to with nothing, returns ``None`` and may leave later, together
    with the next one. A step that no MTA would send at this point is a ``LocalProtocolError``. Text is ``str`` (UTF-8
    with ``surrogateescape``) or ``bytes``. Not shared between threads.
    """

    # -- life ----------------------------------------------------------------------------------------------------------

    def open(self, *, negotiate: bool = True) -> Self:
        """Connect and negotiate. ``negotiate=False`` leaves that to the caller, who then has level 2 only."""
        self._take_given()
        self._run(self._exchange.open(negotiate=negotiate))
        return self

    def close(self) -> None:
        """Close the socket without a word; does nothing if it is closed."""
        self._close()

    def quit(self) -> None:
        """Say QUIT as the MTA does and close; does nothing if the connection is closed."""
        self._run(self._exchange.quit())

    def __enter__(self) -> Self:
        """Open and negotiate."""
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Say QUIT; just close if the block failed."""
        if kind is None:
            self.quit()
        else:
            self.close()

    # -- level 1: the steps --------------------------------------------------------------------------------------------

    def macros(self, step: Step | str, values: Mapping[str, Text]) -> None:
        """Tell macros before the next ``step``, besides those that the MTA tells by itself. Braces are optional.

        If the milter asked for macros at that step, only those that it asked for are sent.
        """
        self._exchange.macros(step, values)

    def connect(
        self, hostname: Text, address: str | SocketAddress | None = "127.0.0.1", port: int = 0
    ) -> Verdict | None:
        """Tell the SMTP client: its name, its address (``None``: unknown; a path: a unix socket) and port."""
        return self._run(self._exchange.connect(hostname, address, port))

    def helo(self, name: Text) -> Verdict | None:
        """Tell the name the client gave in HELO or EHLO."""
        return self._run(self._exchange.helo(name))

    def mail(self, sender: Text, params: Iterable[Text] = ()) -> Verdict | None:
        """Tell the reverse-path, ``a@b`` or ``<a@b>`` (``bytes`` go out as they are), and its ESMTP parameters."""
        return self._run(self._exchange.mail(sender, params))

    def rcpt(self, recipient: Text, params: Iterable[Text] = ()) -> Verdict | None:
        """Tell a forward-path and its ESMTP parameters; a refusal concerns this recipient only."""
        return self._run(self._exchange.rcpt(recipient, params))

    def rejected_rcpt(
        self, recipient: Text, params: Iterable[Text] = (), *, enhanced: Text = "5.1.1", reason: Text = "User unknown"
    ) -> Verdict | None:
        """Tell a recipient that the MTA itself refuses; not sent unless the milter asked for those (RCPT_REJ).

        Whatever the milter answers, the recipient stays refused.
        """
        return self._run(self._exchange.rejected_rcpt(recipient, params, enhanced, reason))

    def data(self) -> Verdict | None:
        """Tell that the client said DATA; after a refusal the transaction is still open."""
        return self._run(self._exchange.data())

    def header(self, name: Text, value: Text) -> Verdict | None:
        """Tell a header field. ``value`` is all that stands behind the colon, a leading space included."""
        return self._run(self._exchange.header(name, value))

    def end_of_headers(self) -> Verdict | None:
        """Tell that the headers are complete."""
        return self._run(self._exchange.end_of_headers())

    def body(self, chunk: bytes) -> Verdict | None:
        """Tell a part of the body, with CRLF line ends, cut to the size that the milter takes.

        Returns the first verdict that is not CONTINUE, after which nothing more of ``chunk`` is sent.
        """
        return self._run(self._exchange.body(chunk))

    def end_of_message(self) -> tuple[Verdict, list[codec.Modification]]:
        """Ask for the verdict on the message; returns it with the modifications that came before it, in order."""
        return self._run(self._exchange.end_of_message())

    def unknown(self, command: Text) -> Verdict | None:
        """Tell an SMTP command that the MTA does not know."""
        return self._run(self._exchange.unknown(command))

    def abort(self) -> None:
        """Drop the open message, as the MTA does at RSET: Postfix's ABORT leaves with the next command.

        Does nothing if no message is open. To put an ABORT on the wire in any case: ``send(codec.Abort())``.
        """
        self._run(self._exchange.abort())

    def new_connection(self) -> None:
        """Say QUIT_NC: the next step is CONNECT of another SMTP session. No MTA does; libmilter may fall silent."""
        self._exchange.new_connection()

    # -- level 1: a whole message --------------------------------------------------------------------------------------

    def send_message(
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
        """Play a whole message as the MTA does, and return what came of it.

        ``message``: bytes, a binary file or an ``EmailMessage``; a recipient with ESMTP parameters is a ``Recipient``.
        ``hostname``, ``address``, ``port``, ``helo`` describe the SMTP client and are told once per connection
        (``helo=None``: it said none); later messages may leave them out. ``macros``: by step, as for ``macros()``.

        Raises ``LocalProtocolError`` for another SMTP client on the same connection, where a message is open, and for a
        message without recipients; ``ValueError`` for a step in ``macros`` that is none.
        """
        visitor = Visitor(hostname, address, port, helo)
        letter = Letter.of(message, sender, recipients, sender_params, macros)
        return self._run(play(self._exchange, letter, visitor))

    # -- level 2: messages ---------------------------------------------------------------------------------------------

    def send(self, *messages: codec.Command, timeout: float | None = None) -> None:
        """Send messages as they are, in one piece, whatever the order.

        ``timeout`` in seconds (default: ``timeouts.command``).
        """
        self._run(self._exchange.send(messages, timeout))

    def receive(self, *, timeout: float | None = None, progress: bool = False) -> codec.Response:
        """Return the next response as it is; ``timeout`` in seconds (default: ``timeouts.content``).

        PROGRESS is absorbed, and does not prolong the wait, unless ``progress`` asks to see it.
        """
        return self._run(self._exchange.receive(timeout, progress=progress))

    # -- the socket ----------------------------------------------------------------------------------------------------

    def _run(self, flow: Flow[_T]) -> _T:
        """Carry out what ``flow`` wants and return its result."""
        try:
            want = next(flow)
            while True:
                try:
                    result = self._carry_out(want)
                except BaseException as error:  # noqa: BLE001 - the flow says what it means, and raises it again
                    want = flow.throw(error)
                else:
                    want = flow.send(result)
        except StopIteration as end:
            return cast(_T, end.value)
        finally:
            if not self.is_open and self._given is None:
                self._close()

    def _carry_out(self, want: Want) -> Any:
        if isinstance(want, Resolve):
            return socket.getaddrinfo(want.host, want.port, want.family, socket.SOCK_STREAM)
        left = want.deadline - time.monotonic()
        if isinstance(want, Open):
            return self._connect(want, left)
        connection = self._socket
        assert connection is not None  # the exchange is open
        if isinstance(want, Send):
            connection.settimeout(max(left, 0.001))
            return connection.sendall(want.data)
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        return connection.recv(READ_BYTES)

    def _connect(self, place: Open, left: float) -> None:
        if left <= 0:
            raise TimeoutError
        connection = new_socket(place.family)
        try:
            connection.settimeout(left)
            connection.connect(place.address)
        except BaseException:
            connection.close()
            raise
        self._socket = connection
