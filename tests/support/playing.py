"""An MTA in memory: plays commands to a ``Conversation`` as a driver would, and keeps what came of it."""

from collections.abc import Callable, Iterable
from typing import Any, Final

from fastmilter import codec
from fastmilter.constants import STEPS
from fastmilter.conversation import Conversation
from fastmilter.filter import Filter, early_verdict, no_reply
from fastmilter.plan import CALLBACKS
from fastmilter.replies import Verdict

V6: Final = codec.Negotiate(6, 0x1FF, 0x1FFFFF)
"""What Postfix and Sendmail offer today."""
V4: Final = codec.Negotiate(4, 0x3F, 0x37F)
V2: Final = codec.Negotiate(2, 0x3F, 0x7F)
NO_BITS: Final = codec.Negotiate(6, 0x1FF, 0x100000)
"""An MTA that leaves out nothing and waits for every answer."""

CONNECT: Final = codec.Connect(b"client.example", b"4", 12345, b"192.0.2.1")
HELO: Final = codec.Helo(b"client.example")
MAIL: Final = codec.MailFrom(b"<ann@from.example>")
RCPT: Final = codec.RcptTo(b"<bob@rcpt.example>")
DATA: Final = codec.Data()
HEADER: Final = codec.Header(b"Subject", b"hi")
EOH: Final = codec.EndOfHeaders()
BODY: Final = codec.Body(b"text\r\n")
EOM: Final = codec.EndOfMessage()
UNKNOWN: Final = codec.Unknown(b"FOO")
ABORT: Final = codec.Abort()
QUIT: Final = codec.Quit()
QUIT_NC: Final = codec.QuitNewConnection()

GREETING: Final = (CONNECT, HELO)
CONTENT: Final = (HEADER, EOH, BODY, EOM)
MESSAGE: Final = (MAIL, RCPT, DATA, *CONTENT)
POSTFIX: Final = codec.Macros(b"C", ((b"v", b"Postfix 3.7.11"), (b"j", b"mx.example")))
SENDMAIL: Final = codec.Macros(b"C", ((b"j", b"mx.example"), (b"{daemon_name}", b"MTA")))


def letters(responses: Iterable[codec.Response]) -> str:
    """The letters of ``responses`` as they are on the wire."""
    return "".join(chr(codec.encode(response, 1 << 20)[4]) for response in responses)


STEP_CALLBACKS: Final = [f"on_{step}" for step in STEPS]
QUIET_CALLBACKS: Final = ("on_connect", "on_helo", "on_mail", "on_rcpt", "on_data")
CONTENT_CALLBACKS: Final = ("on_header", "on_end_of_headers", "on_body")


def doing(value: Any) -> Callable[..., Any]:
    """A callback that returns ``value``, or raises it."""

    def callback(self: Any, *arguments: Any) -> Any:
        if isinstance(value, BaseException):
            raise value
        return value

    return callback


def made(marks: str = "", /, **namespace: Any) -> Any:
    """A filter class with ``namespace``, where a callback that is no function stands for what it returns or raises.

    ``marks``: ``"no_reply"`` or ``"early_verdict"`` for all callbacks that may have it.
    """
    for name, value in namespace.items():
        if name in CALLBACKS:
            callback = value if callable(value) and not isinstance(value, type) else doing(value)
            if marks == "no_reply" and name in QUIET_CALLBACKS:
                callback = no_reply(callback)
            if marks == "early_verdict" and name in CONTENT_CALLBACKS:
                callback = early_verdict(callback)
            namespace[name] = callback
    return type("Made", (Filter,), namespace)


def everything(marks: str = "", /, **namespace: Any) -> Any:
    """A filter class that looks at every step, and does ``namespace`` on the way."""
    return made(marks, **(dict.fromkeys(STEP_CALLBACKS) | namespace))


class Mta:
    """Plays commands to a filter class and is the host of its conversation."""

    def __init__(self, filter_class: type[Filter[Any]], offer: codec.Negotiate | None = V6) -> None:
        """Open a connection, and negotiate unless ``offer`` is ``None``."""
        self.messages = 0
        self.edits: list[int] = []  # of each message that ended
        self.complaints: list[str] = []
        self.failures: list[tuple[str, BaseException]] = []
        self.calls: list[tuple[Any, ...]] = []
        """What was called: name and arguments; ``__init__`` where the filter object was made."""
        self.filters: list[Filter[Any]] = []
        self.transmitted: list[codec.Response] = []
        """What left from within a callback."""
        self.conversation = Conversation(filter_class._fastmilter_plan, self)
        self.session = self.conversation.session
        self._responses = codec.ResponseDecoder()
        self.agreed: list[codec.Response] = [] if offer is None else self.send(offer)

    @property
    def names(self) -> list[str]:
        """The names of what was called, without ``__init__``."""
        return [name for name, *_ in self.calls if name != "__init__"]

    @property
    def failed(self) -> list[str]:
        """The callbacks that failed."""
        return [name for name, _ in self.failures]

    def send(self, *commands: codec.Command) -> list[codec.Response]:
        """Send ``commands`` in one piece; return what the filter answered."""
        return self.feed(b"".join(codec.encode(command, 1 << 20) for command in commands))

    def each(self, *commands: codec.Command) -> list[str]:
        """Send ``commands`` one by one; return the letters that answer each."""
        return [letters(self.send(command)) for command in commands]

    def feed(self, data: bytes) -> list[codec.Response]:
        """Send bytes; return what the filter answered."""
        self.session.receive(data)
        return self._work()

    def eof(self) -> list[codec.Response]:
        """Close the MTA's side."""
        self.session.receive_eof()
        return self._work()

    def _work(self) -> list[codec.Response]:
        """Run what there is to run, as the loop of a worker does."""
        answers: list[codec.Response] = []
        while True:
            self._run_calls()
            answers += self._take_output()
            if self.session.tail is None:
                return answers
            self.session.out.extend(self.session.tail)
            answers += self._take_output()
            self.session.tail = None

    def _run_calls(self) -> None:
        conversation = self.conversation
        while conversation.next_call():
            try:
                result = self._invoke()
                while result is None and conversation.next_in_row():
                    result = self._invoke()
            except (Exception, SystemExit) as error:  # noqa: BLE001 - the door around user code
                conversation.failed(error)
            else:
                if conversation.callback == "__init__":
                    self.filters.append(result)
                conversation.returned(result)

    def _invoke(self) -> Any:
        self.calls.append((self.conversation.callback, *self.conversation.arguments))
        return self.conversation.invoke()

    def _take_output(self) -> list[codec.Response]:
        self._responses.feed(b"".join(self.session.out))
        self.session.out.clear()
        responses = list(self._responses)
        assert self._responses.buffered == 0, "half a packet was sent"
        return responses

    # -- conversation.Host ---------------------------------------------------------------------------------------

    def callback_failed(self, conversation: Conversation, callback: str, error: BaseException) -> None:
        """Keep a callback that failed."""
        self.failures.append((callback, error))

    def complain(self, conversation: Conversation, text: str) -> None:
        """Keep a complaint."""
        self.complaints.append(text)

    def transmit(self, conversation: Conversation) -> None:
        """Take what is to be sent at once."""
        self.transmitted += self._take_output()

    def message_ended(self, conversation: Conversation, verdict: Verdict | None, edits: int) -> None:
        """Count a message."""
        self.messages += verdict is not None
        self.edits.append(edits)
