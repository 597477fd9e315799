"""``Client``: be the MTA, on a blocking socket.

Level 1 is one method per step of the SMTP session, each returning the milter's verdict; level 2 is ``send`` and
``receive`` with the messages of ``fastmilter.codec``. The protocol is ``ClientSession``'s; here are the socket and the
clock. Every call ends within its time-out; a call that fails closes the connection, since what comes next on it could
not be told apart from what is still missing.

Errors: those of ``fastmilter.client.errors`` for the milter's side, ``LocalProtocolError`` for the caller's.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self, TypeVar, cast

from fastmilter import codec
from fastmilter.addresses import SocketAddress
from fastmilter.client.errors import ConnectFailed, ConnectionLost, ProtocolBroken, TimedOut
from fastmilter.client.fields import MessageSource
from fastmilter.client.message import MacrosByStep, Outcome, Player, play
from fastmilter.client_session import Agreed, ClientSession
from fastmilter.constants import ALL_ACTIONS, PROTOCOL_VERSION, Step
from fastmilter.endpoints import Endpoint, EndpointKind, parse_endpoint
from fastmilter.errors import ConfigError, LocalProtocolError, NoConnection, RemoteProtocolError
from fastmilter.mta import Mta, Text, as_bytes, connect_message, wire_path
from fastmilter.replies import Verdict, VerdictKind

READ_BYTES: Final = 65536
"""Most bytes of one read; above malloc's mmap threshold each read would cost a mapping of its own."""

FLUSH_BYTES: Final = 65536
"""So much may wait for the next command that is answered; more leaves at once."""

_T = TypeVar("_T")

_DEFAULT_CLIENT: Final = codec.Connect(b"localhost", b"4", 25, b"127.0.0.1")

_CONTENT: Final = frozenset({Step.HEADER, Step.END_OF_HEADERS, Step.BODY, Step.END_OF_MESSAGE})


@dataclass(frozen=True)
class Timeouts:
    """Time-outs in seconds; the first three are Postfix's ``milter_connect_timeout`` and so on, with its defaults.

    ``connect``: for the connection itself. ``command``: for the negotiation and each step up to DATA. ``content``: for
    each step of the message. PROGRESS starts ``command`` or ``content`` anew; ``progress`` bounds that: no answer takes
    longer in all.
    """

    connect: float = 30
    command: float = 30
    content: float = 300
    progress: float = 3600


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


class Client:
    """A milter connection, seen from the MTA. A context manager: opens and negotiates, and says QUIT at the end.

    ``address``: ``inet:8894@127.0.0.1``, ``inet:host:port``, ``inet6:...``, ``unix:/path``, an ``Endpoint``, or a
    socket that is connected already: the client owns it then, and can be opened once. ``mta``: ``"postfix"`` or
    ``"sendmail"`` (or a table of ``fastmilter.mta``): whose habits it has. ``version``, ``actions``, ``protocol``: what
    it offers (``protocol=None``: all of the version). Raises ``ConfigError`` for a wrong address.

    A step that the milter does not want, or answers to with nothing, returns ``None`` and may leave later, together
    with the next one. A step that no MTA would send at this point is a ``LocalProtocolError``. Text is ``str`` (UTF-8
    with ``surrogateescape``) or ``bytes``. Not shared between threads.
    """

    def __init__(
        self,
        address: str | Endpoint | Stream,
        *,
        mta: str | Mta = "postfix",
        version: int = PROTOCOL_VERSION,
        actions: int = ALL_ACTIONS,
        protocol: int | None = None,
        timeouts: Timeouts = Timeouts(),
    ) -> None:
        """Prepare a connection; ``open`` makes it."""
        self._given: Stream | None = None
        self.endpoint: Endpoint | None = None
        if isinstance(address, str | Endpoint):
            self.endpoint = parse_endpoint(address) if isinstance(address, str) else address
            if self.endpoint.kind is EndpointKind.FD:
                raise ConfigError(f"a client cannot connect to {self.endpoint}")
        else:
            self._given = address
        self.timeouts = timeouts
        self._session = ClientSession(
            mta=mta,
            version=version,
            actions=actions,
            protocol=protocol,
            queue_prefix=os.urandom(3).hex().upper(),
        )
        self._socket: Stream | None = None
        self._last = b""
        self._smtp_client: codec.Connect | None = None
        self._helo: Text | None = None

    # -- life ----------------------------------------------------------------------------------------------------------

    def open(self, *, negotiate: bool = True) -> Self:
        """Connect and negotiate. ``negotiate=False`` leaves that to the caller, who then has level 2 only."""
        if self._socket is not None:
            raise LocalProtocolError("the connection is already open")
        if self.endpoint is not None:
            self._socket = _connected(self.endpoint, self.timeouts.connect)
        elif self._given is not None:
            self._socket, self._given = self._given, None
        else:
            raise NoConnection("the socket that was given is used up")
        if negotiate:
            self._session.negotiate()
            self._converse(None, self._session.take_agreement)
        return self

    def close(self) -> None:
        """Close the socket without a word; does nothing if it is closed."""
        for connection in (self._socket, self._given):
            if connection is not None:
                connection.close()
        self._socket = self._given = None

    def quit(self) -> None:
        """Say QUIT as the MTA does and close; does nothing if the connection is closed."""
        if self._socket is None:
            return
        try:
            if self._session.awaiting is None and self._session.quit():
                # The milter may have gone already, which is its right now.
                with contextlib.suppress(ConnectionLost, TimedOut):
                    self._flush(None, self._deadline(None))
        finally:
            self.close()

    def __enter__(self) -> Self:
        """Open and negotiate."""
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Say QUIT; just close if the block failed."""
        if kind is None:
            self.quit()
        else:
            self.close()

    @property
    def agreed(self) -> Agreed:
        """What the milter asked for in the negotiation; ``NoConnection`` before it."""
        if self._session.agreed is None:
            raise NoConnection("the connection is not negotiated")
        return self._session.agreed

    @property
    def is_open(self) -> bool:
        """Whether the connection stands: opened, and neither closed nor failed since."""
        return self._socket is not None

    @property
    def in_message(self) -> bool:
        """Whether a message is open: MAIL was sent, and neither a verdict nor ``abort`` ended it."""
        return self._session.in_message

    @property
    def session_verdict(self) -> Verdict | None:
        """The verdict that ended the session, so that only ``quit`` is left; ``ACCEPT``: the mail goes on unseen."""
        return self._session.session_verdict

    @property
    def mta(self) -> Mta:
        """The habits this client has."""
        return self._session.mta

    # -- level 1: the steps --------------------------------------------------------------------------------------------

    def macros(self, step: Step | str, values: Mapping[str, Text]) -> None:
        """Tell macros before the next ``step``, besides those that the MTA tells by itself. Braces are optional.

        If the milter asked for macros at that step, only those that it asked for are sent.
        """
        self._session.macros(step, values)

    def connect(
        self, hostname: Text, address: str | SocketAddress | None = "127.0.0.1", port: int = 0
    ) -> Verdict | None:
        """Tell the SMTP client: its name, its address (``None``: unknown; a path: a unix socket) and port."""
        message = connect_message(hostname, address, port, self._session.mta)
        due = self._session.connect(message)
        self._smtp_client = message
        return self._answer(Step.CONNECT, due)

    def helo(self, name: Text) -> Verdict | None:
        """Tell the name the client gave in HELO or EHLO."""
        due = self._session.helo(name)
        self._helo = name
        return self._answer(Step.HELO, due)

    def mail(self, sender: Text, params: Iterable[Text] = ()) -> Verdict | None:
        """Tell the reverse-path, ``a@b`` or ``<a@b>`` (``bytes`` go out as they are), and its ESMTP parameters."""
        return self._answer(Step.MAIL, self._session.mail(wire_path(sender), [as_bytes(param) for param in params]))

    def rcpt(self, recipient: Text, params: Iterable[Text] = ()) -> Verdict | None:
        """Tell a forward-path and its ESMTP parameters; a refusal concerns this recipient only."""
        return self._answer(Step.RCPT, self._session.rcpt(wire_path(recipient), [as_bytes(param) for param in params]))

    def rejected_rcpt(
        self, recipient: Text, params: Iterable[Text] = (), *, enhanced: Text = "5.1.1", reason: Text = "User unknown"
    ) -> Verdict | None:
        """Tell a recipient that the MTA itself refuses; not sent unless the milter asked for those (RCPT_REJ).

        Whatever the milter answers, the recipient stays refused.
        """
        path, encoded = wire_path(recipient), [as_bytes(param) for param in params]
        return self._answer(Step.RCPT, self._session.rejected_rcpt(path, encoded, enhanced, reason))

    def data(self) -> Verdict | None:
        """Tell that the client said DATA; after a refusal the transaction is still open."""
        verdict = self._answer(Step.DATA, self._session.data())
        # The client sends its message now, which takes time: both MTAs let go of what they hold before that.
        self._flush(Step.DATA, self._deadline(Step.DATA))
        return verdict

    def header(self, name: Text, value: Text) -> Verdict | None:
        """Tell a header field. ``value`` is all that stands behind the colon, a leading space included."""
        return self._answer(Step.HEADER, self._session.header(name, value))

    def end_of_headers(self) -> Verdict | None:
        """Tell that the headers are complete."""
        return self._answer(Step.END_OF_HEADERS, self._session.end_of_headers())

    def body(self, chunk: bytes) -> Verdict | None:
        """Tell a part of the body, with CRLF line ends, cut to the size that the milter takes.

        Returns the first verdict that is not CONTINUE, after which nothing more of ``chunk`` is sent.
        """
        verdict: Verdict | None = None
        for piece in self._session.pieces(chunk):
            verdict = self._answer(Step.BODY, self._session.body(piece))
            if verdict is not None and verdict.kind is not VerdictKind.CONTINUE:
                break
        return verdict

    def end_of_message(self) -> tuple[Verdict, list[codec.Modification]]:
        """Ask for the verdict on the message; returns it with the modifications that came before it, in order."""
        verdict = self._answer(Step.END_OF_MESSAGE, self._session.end_of_message())
        assert verdict is not None  # nothing suppresses the end of the message or its answer
        return verdict, self._session.modifications

    def unknown(self, command: Text) -> Verdict | None:
        """Tell an SMTP command that the MTA does not know."""
        return self._answer(Step.UNKNOWN, self._session.unknown(command))

    def abort(self) -> None:
        """Drop the open message, as the MTA does at RSET: Postfix's ABORT leaves with the next command.

        Does nothing if no message is open. To put an ABORT on the wire in any case: ``send(codec.Abort())``.
        """
        self._session.abort()
        if not self._session.mta.abort_at_reset:
            self._flush(None, self._deadline(None))

    def new_connection(self) -> None:
        """Say QUIT_NC: the next step is CONNECT of another SMTP session. No MTA does; libmilter may fall silent."""
        self._session.quit_new_connection()
        self._smtp_client = self._helo = None

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
        told = connect_message(hostname, address, port, self.mta)

        def introduce(player: Player) -> None:
            if self._smtp_client is None:
                player.step(Step.CONNECT, lambda: self.connect(hostname, address, port))
            elif told not in (self._smtp_client, _DEFAULT_CLIENT):
                raise LocalProtocolError("a connection is one SMTP session: another SMTP client needs another Client")
            if helo is not None and (self._helo is None or helo not in (self._helo, "localhost")):
                player.step(Step.HELO, lambda: self.helo(helo))

        return play(self, message, sender, recipients, sender_params=sender_params, introduce=introduce, macros=macros)

    # -- level 2: messages ---------------------------------------------------------------------------------------------

    def send(self, message: codec.Command, *, timeout: float | None = None) -> None:
        """Send one message as it is, whatever the order; ``timeout`` in seconds (default: ``timeouts.command``)."""
        self._open_socket()
        self._session.queue(message)
        self._flush(None, self._deadline(None, timeout))

    def receive(self, *, timeout: float | None = None, progress: bool = False) -> codec.Response:
        """Return the next response as it is; ``timeout`` in seconds (default: ``timeouts.content``).

        PROGRESS is absorbed, and does not prolong the wait, unless ``progress`` asks to see it.
        """

        def take() -> codec.Response | None:
            message = self._session.next_message()
            while not progress and isinstance(message, codec.Progress):
                message = self._session.next_message()
            return message

        seconds = self.timeouts.content if timeout is None else timeout
        # mypy takes the join of the union's members for the type variable, which is object.
        return cast(codec.Response, self._converse(None, take, seconds))

    # -- the socket and the clock --------------------------------------------------------------------------------------

    @property
    def _milter(self) -> str:
        """What errors call the other side."""
        return "the milter" if self.endpoint is None else f"the milter at {self.endpoint}"

    def _open_socket(self) -> Stream:
        if self._socket is None:
            raise NoConnection("the connection to the milter is not open")
        return self._socket

    def _seconds(self, step: Step | None) -> float:
        return self.timeouts.content if step in _CONTENT else self.timeouts.command

    def _deadline(self, step: Step | None, seconds: float | None = None) -> float:
        return time.monotonic() + (self._seconds(step) if seconds is None else seconds)

    def _answer(self, step: Step, due: bool) -> Verdict | None:
        """Wait for the verdict if one is due; otherwise send what has piled up if it is much."""
        if due:
            return self._converse(step, self._session.take_answer)
        self._open_socket()
        if self._session.queued > FLUSH_BYTES:
            self._flush(step, self._deadline(step))
        return None

    def _flush(self, step: Step | None, deadline: float) -> None:
        """Send what is queued."""
        connection = self._open_socket()
        output = self._session.take_output()
        if not output:
            return
        try:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            connection.sendall(output)
        except KeyboardInterrupt:
            self.close()  # how much of it left, nobody knows
            raise
        except TimeoutError:
            self.close()
            raise TimedOut(f"{self._milter} takes no data{_at(step)}", step) from None
        except OSError as error:
            self.close()
            raise self._lost(step, error) from error

    def _converse(self, step: Step | None, take: Callable[[], _T | None], seconds: float | None = None) -> _T:
        """Send what is queued and read until ``take`` has what was asked for; close the connection if that fails."""
        start = time.monotonic()
        patience = self._seconds(step) if seconds is None else seconds
        deadline = start + patience
        progress = self._session.progress
        while True:
            try:
                answer = take()
                if answer is not None:
                    return answer
                self._flush(step, deadline)
                if self._session.progress != progress:
                    progress = self._session.progress
                    deadline = min(time.monotonic() + patience, start + max(patience, self.timeouts.progress))
                self._session.feed(self._read(step, deadline))
            except RemoteProtocolError as error:
                self.close()
                raise ProtocolBroken(str(error), self._last, step) from error
            except BaseException:
                self.close()  # interrupted: whether the answer is still to come, nobody knows
                raise

    def _read(self, step: Step | None, deadline: float) -> bytes:
        connection = self._open_socket()
        left = deadline - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            connection.settimeout(left)
            data = connection.recv(READ_BYTES)
        except TimeoutError:
            self.close()
            raise TimedOut(f"{self._milter} did not answer in time{_at(step)}", step) from None
        except OSError as error:
            self.close()
            raise self._lost(step, error) from error
        if not data:
            self.close()
            raise self._lost(step)
        self._last = data
        return data

    def _lost(self, step: Step | None, error: OSError | None = None) -> ConnectionLost:
        in_message = self._session.in_message
        where = ", in the middle of a message" if in_message else ""
        why = f": {error.strerror or error}" if error is not None else ""
        text = f"{self._milter} closed the connection{_at(step)}{where}{why}"
        return ConnectionLost(text, step, in_message=in_message)


def _at(step: Step | None) -> str:
    return f" at {step}" if step is not None else ""


def _connected(endpoint: Endpoint, seconds: float) -> socket.socket:
    """Return a socket that is connected to ``endpoint``: the first of its addresses that takes the connection.

    The look-up of a host name is the resolver's and keeps the resolver's time.
    """
    deadline = time.monotonic() + seconds
    if endpoint.kind is EndpointKind.UNIX:
        return _connect_one(endpoint, socket.AF_UNIX, endpoint.path or "", deadline)
    family = socket.AF_INET6 if endpoint.kind is EndpointKind.INET6 else socket.AF_UNSPEC
    host = endpoint.host or ("::1" if endpoint.kind is EndpointKind.INET6 else "127.0.0.1")
    try:
        found = socket.getaddrinfo(host, endpoint.port, family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConnectFailed(f"cannot connect to the milter at {endpoint}: {error.strerror or error}") from error
    failure: ConnectFailed | TimedOut | None = None
    for address_family, _, _, _, address in found:
        try:
            return _connect_one(endpoint, address_family, address, deadline)
        except (ConnectFailed, TimedOut) as error:
            failure = error
    raise failure or ConnectFailed(f"cannot connect to the milter at {endpoint}: no address")


def _connect_one(endpoint: Endpoint, family: int, address: Any, deadline: float) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        connection.connect(address)
        if family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except TimeoutError:
        connection.close()
        raise TimedOut(f"the milter at {endpoint} does not take the connection in time") from None
    except OSError as error:
        connection.close()
        raise ConnectFailed(f"cannot connect to the milter at {endpoint}: {error.strerror or error}") from error
    except BaseException:
        connection.close()
        raise
    return connection
