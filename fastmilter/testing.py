"""For tests of filters: run a filter class in this process, without a socket.

>>> from fastmilter import Filter
>>> class Tagger(Filter):
...     def on_end_of_message(self):
...         self.message.add_header("X-Tagged", "yes")
>>> outcome = run(Tagger, b"Subject: hello\\r\\n\\r\\nbody\\r\\n")
>>> outcome.verdict.kind
<VerdictKind.CONTINUE: 'continue'>
>>> outcome.apply().message
b'Subject: hello\\r\\nX-Tagged: yes\\r\\n\\r\\nbody\\r\\n'

The two ends are the real ones: ``Client`` as the MTA, ``Conversation`` as the server, and the packets between them.
What is missing is the process around: no worker, no time-out (``deadline`` does not count), no threads (callbacks of a
class with ``blocking = True`` run where the test runs).
"""

import asyncio
import contextlib
import inspect
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from fastmilter.addresses import SocketAddress
from fastmilter.client.connection import Client
from fastmilter.client.fields import MessageSource
from fastmilter.client.message import MacrosByStep, Outcome
from fastmilter.conversation import Conversation
from fastmilter.errors import ConnectionLost
from fastmilter.filter import Filter
from fastmilter.mta import Mta, Text
from fastmilter.plan import build_options
from fastmilter.replies import Answer, Verdict

__all__ = ["Outcome", "run"]

log: Final = logging.getLogger(__name__)


def run(
    filter_class: type[Filter[Any]],
    message: MessageSource,
    *,
    sender: Text = "a@example.org",
    recipients: Iterable[Text] = ("b@example.net",),
    macros: MacrosByStep | None = None,
    options: Any = None,
    mta: str | Mta = "postfix",
    hostname: Text = "localhost",
    address: str | SocketAddress | None = "127.0.0.1",
    port: int = 25,
    helo: Text | None = "localhost",
    sender_params: Iterable[str] = (),
    raise_errors: bool = True,
) -> Outcome:
    """Play one message to ``filter_class`` as ``mta`` does, and return what came of it, as ``Client.send_message``.

    A whole life of the class: ``worker_started``, one SMTP connection with this message, ``worker_stopped``. ``async``
    callbacks and hooks are awaited, on one event loop for the whole run. ``options``: the ``[filter]`` table as a
    mapping, or an instance of the class's ``Options``. The other arguments are those of ``Client.send_message``.

    What a callback raises is raised here once the connection is closed, and so is a failed negotiation.
    ``raise_errors=False``: it is logged and answered as in the server (``on_error``, ``error_verdict``). What the
    server would log as a warning is a ``RuntimeWarning``: a verdict that is not possible at its step, for instance.

    Raises ``ConfigError`` for options that the class does not know, ``RuntimeError`` for a class with ``async``
    callbacks where an event loop is running already (use ``await asyncio.to_thread(run, ...)`` there).
    """
    if not (isinstance(filter_class, type) and issubclass(filter_class, Filter)):
        raise TypeError(f"run() takes a filter class, not {filter_class!r}")
    with _caller(filter_class) as call:
        call(filter_class.worker_started, _options(filter_class, options))
        try:
            server = _Server(filter_class, call, raise_errors=raise_errors)
            outcome = server.serve(
                Client(server, mta=mta),
                lambda client: client.send_message(
                    message,
                    sender,
                    recipients,
                    hostname=hostname,
                    address=address,
                    port=port,
                    helo=helo,
                    macros=macros,
                    sender_params=sender_params,
                ),
            )
        finally:
            call(filter_class.worker_stopped)
    for text in server.complaints:
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    return outcome


def _options(filter_class: Any, options: Any) -> Any:
    if options is None or isinstance(options, Mapping):
        return build_options(filter_class, options or {})
    return options


@contextlib.contextmanager
def _caller(filter_class: type[Filter[Any]]) -> Iterator[Callable[..., Any]]:
    """Give what calls the functions of this class with their arguments: directly, or on an event loop of its own."""
    if not filter_class._fastmilter_plan.is_async:
        yield lambda function, *arguments: function(*arguments)
        return
    if _loop_is_running():
        raise RuntimeError(
            f"run() awaits the callbacks of {filter_class.__name__} on a loop of its own, and one is running here "
            "already: use await asyncio.to_thread(run, ...)"
        )

    async def awaited(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        result = function(*arguments)
        return await result if inspect.isawaitable(result) else result

    with asyncio.Runner() as runner:
        yield lambda function, *arguments: runner.run(awaited(function, arguments))


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class _Server:
    """The server of one connection, and its host; to the client it is the connected socket."""

    def __init__(self, filter_class: type[Filter[Any]], call: Callable[..., Any], *, raise_errors: bool) -> None:
        """Wait for the client."""
        self.complaints: list[str] = []
        self._name = filter_class.__name__
        self._call = call
        self._raise_errors = raise_errors
        self._failure: BaseException | None = None
        self._conversation = Conversation(filter_class._fastmilter_plan, self)
        self._session = self._conversation.session
        self._output = bytearray()
        self._over = False

    def serve(self, client: Client, play: Callable[[Client], Outcome]) -> Outcome:
        """Let ``client`` play, to the end of its connection; raises what a callback raised."""
        try:
            with client:
                outcome = play(client)
        except ConnectionLost:
            failure = self._failure or self._session.error
            if failure is None:
                raise
            raise failure from None
        if self._failure is not None:
            raise self._failure
        return outcome

    # -- the socket ----------------------------------------------------------------------------------------------

    def settimeout(self, seconds: float | None, /) -> None:
        """Do nothing: there is no waiting."""

    def sendall(self, data: bytes, /) -> None:
        """Take what the client says, and work it off."""
        self._session.receive(data)
        self._work()

    def recv(self, size: int, /) -> bytes:
        """Return the answers that are there; nothing, as if closed, once a callback has failed."""
        if self._failure is not None:
            return b""
        data = bytes(self._output[:size])
        del self._output[:size]
        return data

    def close(self) -> None:
        """End the connection: ``on_abort``, ``on_message_end`` and ``on_close``, as far as they are due."""
        if not self._over:
            self._over = True
            self._session.receive_eof()
            self._work()

    def _work(self) -> None:
        session = self._session
        while True:
            self._run_calls()
            self._take_output()
            if session.tail is None:
                return
            self._output += b"".join(session.tail)
            session.tail = None

    def _run_calls(self) -> None:
        while self._conversation.next_call():
            try:
                result = self._call_one()
            except (Exception, SystemExit) as error:  # noqa: BLE001 - the door around user code
                self._conversation.failed(error)
            except BaseException:
                self._over = True  # the test itself ends here: nothing more of the filter is to run
                raise
            else:
                self._conversation.returned(result)

    def _call_one(self) -> Any:
        """Run what is to be run, and read the body that it handed over, also with a verdict that is raised."""
        result, answer = None, None
        try:
            result = self._call(self._conversation.invoke)
        except Answer as raised:
            answer = raised
        message = self._conversation.message
        if message is not None and message._has_unread_body:
            self._call(message._read_body)
        if answer is not None:
            raise answer
        return result

    def _take_output(self) -> None:
        self._output += b"".join(self._session.out)
        self._session.out.clear()

    # -- conversation.Host ---------------------------------------------------------------------------------------

    def callback_failed(self, conversation: Conversation, callback: str, error: BaseException) -> None:
        """Keep the first error for the test, or log it as a worker does."""
        if not self._raise_errors:
            log.error("%s.%s failed", self._name, callback, exc_info=error)
        elif self._failure is None:
            self._failure = error

    def complain(self, conversation: Conversation, text: str) -> None:
        """Keep a fault of the filter's author, or an oddity of the message."""
        self.complaints.append(text)

    def transmit(self, conversation: Conversation) -> None:
        """Send what is written so far."""
        self._take_output()

    def message_ended(self, conversation: Conversation, verdict: Verdict | None, edits: int) -> None:
        """Do nothing: the client has the outcome."""
