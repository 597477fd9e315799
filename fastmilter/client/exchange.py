"""The conversation of a client with a milter, without saying how it waits: the one logic of both clients.

A call of a client is a *flow*: a generator that yields what it wants done (``Want``), is sent the result, and returns
what the call returns. A driver carries wants out: ``Client`` on a blocking socket, ``AsyncClient`` on an event loop. It
does so until the deadline of the want (``time.monotonic``), throws whatever stops it into the flow (``TimeoutError``,
``OSError``, a cancellation), and closes the connection if ``is_open`` is false when the flow has ended.

A flow that fails on the way has closed the exchange, since what comes next on the connection could not be told apart
from what is still missing; the caller's own mistakes (``LocalProtocolError``) leave it open.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar, cast

from fastmilter import codec
from fastmilter.addresses import SocketAddress
from fastmilter.client_session import Agreed, ClientSession
from fastmilter.constants import Step
from fastmilter.endpoints import Endpoint, EndpointKind
from fastmilter.errors import (
    ConnectFailed,
    ConnectionLost,
    LocalProtocolError,
    NoConnection,
    ProtocolBroken,
    RemoteProtocolError,
    TimedOut,
)
from fastmilter.mta import Mta, Text, as_bytes, connect_message, wire_path
from fastmilter.replies import Verdict, VerdictKind

READ_BYTES: Final = 65536
"""Most bytes of one read; above malloc's mmap threshold each read would cost a mapping of its own."""

FLUSH_BYTES: Final = 65536
"""So much may wait for the next command that is answered; more leaves at once."""

_CONTENT: Final = frozenset({Step.HEADER, Step.END_OF_HEADERS, Step.BODY, Step.END_OF_MESSAGE})

_T = TypeVar("_T")


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


class Resolve(NamedTuple):
    """Look a host up; the result is what ``socket.getaddrinfo`` gives."""

    host: str
    port: int | str
    family: int
    deadline: float


class Open(NamedTuple):
    """Connect a new socket of ``family`` to ``address``, and keep it."""

    family: int
    address: Any
    deadline: float


class Send(NamedTuple):
    """Send all of ``data``."""

    data: bytes
    deadline: float


class Receive(NamedTuple):
    """Read at most ``READ_BYTES``; the result is what came, nothing at the end of the stream."""

    deadline: float


Want: TypeAlias = Resolve | Open | Send | Receive
"""What a driver is asked to do."""

Flow: TypeAlias = Generator[Want, Any, _T]
"""A call in the making: yields wants, is sent their results, returns the result of the call."""


class Exchange:
    """One connection to a milter: the session, what is known of the SMTP client, and whether the connection stands.

    ``endpoint``: where to connect to, or ``None`` if the driver has a connection already.
    """

    def __init__(
        self,
        endpoint: Endpoint | None,
        timeouts: Timeouts,
        *,
        mta: str | Mta,
        version: int,
        actions: int,
        protocol: int | None,
    ) -> None:
        """Prepare; ``ConfigError`` for an MTA that is not known."""
        self.endpoint = endpoint
        self.timeouts = timeouts
        self.is_open = False
        self.smtp_client: codec.Connect | None = None
        """The SMTP client that was told; ``None`` before CONNECT."""
        self.helo_name: Text | None = None
        self._new_session: Callable[[], ClientSession] = lambda: ClientSession(
            mta=mta,
            version=version,
            actions=actions,
            protocol=protocol,
            queue_prefix=os.urandom(3).hex().upper(),
        )
        self.session = self._new_session()
        self._last = b""
        self._used = False

    @property
    def agreed(self) -> Agreed:
        """What the milter asked for; ``NoConnection`` before the negotiation."""
        if self.session.agreed is None:
            raise NoConnection("the connection is not negotiated")
        return self.session.agreed

    # -- life ----------------------------------------------------------------------------------------------------------

    def open(self, *, negotiate: bool) -> Flow[None]:
        """Connect and negotiate."""
        if self.is_open:
            raise LocalProtocolError("the connection is already open")
        if self._used:
            self.session = self._new_session()
            self.smtp_client = self.helo_name = None
            self._last, self._used = b"", False
        if self.endpoint is not None:
            yield from self._connect(self.endpoint)
        self.is_open = self._used = True
        if negotiate:
            self.session.negotiate()
            yield from self._converse(None, self.session.take_agreement)

    def quit(self) -> Flow[None]:
        """Say QUIT as the MTA does; closes the exchange, and does nothing if it is closed."""
        if not self.is_open:
            return
        try:
            if self.session.awaiting is None and self.session.quit():
                # The milter may have gone already, which is its right now.
                with contextlib.suppress(ConnectionLost, TimedOut):
                    yield from self._flush(None, self._deadline(None))
        finally:
            self.is_open = False

    # -- level 1 -------------------------------------------------------------------------------------------------------

    def connect(self, hostname: Text, address: str | SocketAddress | None, port: int) -> Flow[Verdict | None]:
        """SMFIC_CONNECT."""
        message = connect_message(hostname, address, port, self.session.mta)
        due = self.session.connect(message)
        self.smtp_client = message
        return (yield from self._answer(Step.CONNECT, due))

    def helo(self, name: Text) -> Flow[Verdict | None]:
        """SMFIC_HELO."""
        due = self.session.helo(name)
        self.helo_name = name
        return (yield from self._answer(Step.HELO, due))

    def mail(self, sender: Text, params: Iterable[Text]) -> Flow[Verdict | None]:
        """SMFIC_MAIL."""
        due = self.session.mail(wire_path(sender), [as_bytes(param) for param in params])
        return (yield from self._answer(Step.MAIL, due))

    def rcpt(self, recipient: Text, params: Iterable[Text]) -> Flow[Verdict | None]:
        """SMFIC_RCPT."""
        due = self.session.rcpt(wire_path(recipient), [as_bytes(param) for param in params])
        return (yield from self._answer(Step.RCPT, due))

    def rejected_rcpt(
        self, recipient: Text, params: Iterable[Text], enhanced: Text, reason: Text
    ) -> Flow[Verdict | None]:
        """SMFIC_RCPT of a recipient that the MTA itself refuses."""
        path, encoded = wire_path(recipient), [as_bytes(param) for param in params]
        return (yield from self._answer(Step.RCPT, self.session.rejected_rcpt(path, encoded, enhanced, reason)))

    def data(self) -> Flow[Verdict | None]:
        """SMFIC_DATA."""
        verdict = yield from self._answer(Step.DATA, self.session.data())
        # The client sends its message now, which takes time: both MTAs let go of what they hold before that.
        yield from self._flush(Step.DATA, self._deadline(Step.DATA))
        return verdict

    def header(self, name: Text, value: Text) -> Flow[Verdict | None]:
        """SMFIC_HEADER."""
        return (yield from self._answer(Step.HEADER, self.session.header(name, value)))

    def end_of_headers(self) -> Flow[Verdict | None]:
        """SMFIC_EOH."""
        return (yield from self._answer(Step.END_OF_HEADERS, self.session.end_of_headers()))

    def body(self, chunk: bytes) -> Flow[Verdict | None]:
        """SMFIC_BODY, as often as the size of ``chunk`` takes, until a verdict is not CONTINUE."""
        verdict: Verdict | None = None
        for piece in self.session.pieces(chunk):
            verdict = yield from self._answer(Step.BODY, self.session.body(piece))
            if verdict is not None and verdict.kind is not VerdictKind.CONTINUE:
                break
        return verdict

    def end_of_message(self) -> Flow[tuple[Verdict, list[codec.Modification]]]:
        """SMFIC_BODYEOB."""
        verdict = yield from self._answer(Step.END_OF_MESSAGE, self.session.end_of_message())
        assert verdict is not None  # nothing suppresses the end of the message or its answer
        return verdict, self.session.modifications

    def unknown(self, command: Text) -> Flow[Verdict | None]:
        """SMFIC_UNKNOWN."""
        return (yield from self._answer(Step.UNKNOWN, self.session.unknown(command)))

    def abort(self) -> Flow[None]:
        """SMFIC_ABORT where the MTA says it, when it says it."""
        self.session.abort()
        if not self.session.mta.abort_at_reset:
            yield from self._flush(None, self._deadline(None))

    def new_connection(self) -> None:
        """SMFIC_QUIT_NC, which leaves with the next command."""
        self.session.quit_new_connection()
        self.smtp_client = self.helo_name = None

    def macros(self, step: Step | str, values: Mapping[str, Text]) -> None:
        """Keep macros for the next ``step``."""
        self.session.macros(step, values)

    # -- level 2 -------------------------------------------------------------------------------------------------------

    def send(self, messages: Iterable[codec.Command], timeout: float | None) -> Flow[None]:
        """Send messages as they are, in one piece."""
        self._require_open()
        self.session.queue(*messages)
        yield from self._flush(None, self._deadline(None, timeout))

    def receive(self, timeout: float | None, *, progress: bool) -> Flow[codec.Response]:
        """Return the next response as it is."""

        def take() -> codec.Response | None:
            message = self.session.next_message()
            while not progress and isinstance(message, codec.Progress):
                message = self.session.next_message()
            return message

        seconds = self.timeouts.content if timeout is None else timeout
        # mypy takes the join of the union's members for the type variable, which is object.
        return cast(codec.Response, (yield from self._converse(None, take, seconds)))

    # -- the wire and the clock ----------------------------------------------------------------------------------------

    def _require_open(self) -> None:
        if not self.is_open:
            raise NoConnection("the connection to the milter is not open")

    def _seconds(self, step: Step | None) -> float:
        return self.timeouts.content if step in _CONTENT else self.timeouts.command

    def _deadline(self, step: Step | None, seconds: float | None = None) -> float:
        return time.monotonic() + (self._seconds(step) if seconds is None else seconds)

    def _answer(self, step: Step, due: bool) -> Flow[Verdict | None]:
        """Wait for the verdict if one is due; otherwise send what has piled up if it is much."""
        if due:
            return (yield from self._converse(step, self.session.take_answer))
        self._require_open()
        if self.session.queued > FLUSH_BYTES:
            yield from self._flush(step, self._deadline(step))
        return None

    def _flush(self, step: Step | None, deadline: float) -> Flow[None]:
        """Send what is queued."""
        self._require_open()
        output = self.session.take_output()
        if not output:
            return
        try:
            yield Send(output, deadline)
        except TimeoutError:
            self.is_open = False
            raise TimedOut(f"{self._milter} takes no data{_at(step)}", step) from None
        except OSError as error:
            self.is_open = False
            raise self._lost(step, error) from error
        except BaseException:
            self.is_open = False  # how much of it left, nobody knows
            raise

    def _converse(self, step: Step | None, take: Callable[[], _T | None], seconds: float | None = None) -> Flow[_T]:
        """Send what is queued and read until ``take`` has what was asked for."""
        start = time.monotonic()
        patience = self._seconds(step) if seconds is None else seconds
        deadline = start + patience
        progress = self.session.progress
        try:
            while (answer := take()) is None:
                yield from self._flush(step, deadline)
                if self.session.progress != progress:
                    progress = self.session.progress
                    deadline = min(time.monotonic() + patience, start + max(patience, self.timeouts.progress))
                self.session.feed((yield from self._read(step, deadline)))
        except RemoteProtocolError as error:
            self.is_open = False
            raise ProtocolBroken(str(error), self._last, step) from error
        except BaseException:
            self.is_open = False  # interrupted: whether the answer is still to come, nobody knows
            raise
        return answer

    def _read(self, step: Step | None, deadline: float) -> Flow[bytes]:
        self._require_open()
        try:
            data: bytes = yield Receive(deadline)
        except TimeoutError:
            raise TimedOut(f"{self._milter} did not answer in time{_at(step)}", step) from None
        except OSError as error:
            raise self._lost(step, error) from error
        if not data:
            raise self._lost(step)
        self._last = data
        return data

    def _lost(self, step: Step | None, error: OSError | None = None) -> ConnectionLost:
        in_message = self.session.in_message
        where = ", in the middle of a message" if in_message else ""
        why = f": {error.strerror or error}" if error is not None else ""
        text = f"{self._milter} closed the connection{_at(step)}{where}{why}"
        return ConnectionLost(text, step, in_message=in_message)

    @property
    def _milter(self) -> str:
        """What errors call the other side."""
        return "the milter" if self.endpoint is None else f"the milter at {self.endpoint}"

    # -- connecting ----------------------------------------------------------------------------------------------------

    def _connect(self, endpoint: Endpoint) -> Flow[None]:
        """Connect to the first address of ``endpoint`` that takes the connection."""
        deadline = time.monotonic() + self.timeouts.connect
        if endpoint.kind is EndpointKind.UNIX:
            yield from self._connect_one(Open(socket.AF_UNIX, endpoint.sun_path, deadline))
            return
        ipv6 = endpoint.kind is EndpointKind.INET6
        host = endpoint.host or ("::1" if ipv6 else "127.0.0.1")
        family = socket.AF_INET6 if ipv6 else socket.AF_UNSPEC
        try:
            found = yield Resolve(host, endpoint.port, family, deadline)
        except TimeoutError:
            raise TimedOut(f"{self._milter} is not found in time") from None
        except (OSError, UnicodeError) as error:
            raise self._failed(error) from error
        failure: ConnectFailed | TimedOut | None = None
        for address_family, _, _, _, address in found:
            try:
                yield from self._connect_one(Open(address_family, address, deadline))
            except (ConnectFailed, TimedOut) as error:
                failure = error
            else:
                return
        raise failure or ConnectFailed(f"cannot connect to {self._milter}: no address")

    def _connect_one(self, place: Open) -> Flow[None]:
        try:
            yield place
        except TimeoutError:
            raise TimedOut(f"{self._milter} does not take the connection in time") from None
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> ConnectFailed:
        why = error.strerror if isinstance(error, OSError) else None
        return ConnectFailed(f"cannot connect to {self._milter}: {why or error}")


def _at(step: Step | None) -> str:
    return f" at {step}" if step is not None else ""
