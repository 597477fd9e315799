"""A connection whose callbacks take as long as a test likes: it says when each begins, comes back, or is late."""

from collections.abc import Callable
from typing import Any

from fastmilter import codec
from fastmilter.conversation import Conversation
from fastmilter.filter import Filter
from fastmilter.replies import Verdict
from fastmilter.server._sockets import Stream
from fastmilter.server.counters import Counters
from fastmilter.server.overtime import WaitingLink
from tests.support.playing import V6


class Waited:
    """One connection, without a socket and a clock; what a worker does, step by step."""

    def __init__(self, filter_class: type[Filter[Any]], offer: codec.Negotiate = V6) -> None:
        """Open a connection and negotiate."""
        self.link = WaitingLink(filter_class._fastmilter_plan, self, Counters(1).tally(0), Stream(), 0.0)
        self.session = self.link.session
        self.answers: list[codec.Response] = []
        self.ended: list[Verdict | None] = []
        self.failures: list[str] = []
        self.complaints: list[str] = []
        self.called: list[str] = []
        self._call: Callable[[], Any] | None = None
        self._late: Callable[[], Any] | None = None
        self._responses = codec.ResponseDecoder()
        self.send(offer)

    # -- what a worker does --------------------------------------------------------------------------------------

    def send(self, *commands: codec.Command) -> None:
        """Take commands; a worker would keep them while a callback runs, so there must be none."""
        assert not self.is_pending
        self.session.receive(b"".join(codec.encode(command, 1 << 20) for command in commands))
        self._proceed()

    def eof(self) -> None:
        """Take note that the MTA has gone."""
        assert not self.is_pending
        self.session.receive_eof()
        self._proceed()

    @property
    def is_pending(self) -> bool:
        """Whether something is to be called, or is being called."""
        return self._call is not None or self._queued

    def begin(self) -> str:
        """Begin the call that waits; return its name."""
        self._queued = False
        self._call = self.link.take_call()
        return self.link.callback

    def come_back(self, result: Any = None, error: BaseException | None = None) -> None:
        """End the call in time: run it, unless a result or an error is given in its place."""
        assert self._call is not None
        call, self._call = self._call, None
        self.called.append(self.link.callback)
        if error is None and result is None:
            try:
                result = call()
            except Exception as raised:  # noqa: BLE001 - the door around user code
                error = raised
        if self.link.take_outcome(result, error):
            self._queued = True
        else:
            self._proceed()

    def run(self) -> list[str]:
        """Have everything called that is to be called; return the names."""
        before = len(self.called)
        while self.is_pending:
            if self._call is None:
                self.begin()
            self.come_back()
        return self.called[before:]

    def out_of_time(self, verdict: Verdict) -> None:
        """Answer in place of the call, whether it has begun or not."""
        assert self.is_pending
        is_running = self._call is not None
        self.link.out_of_time(verdict, is_running)
        self._late, self._call = self._call, None
        self._queued = False
        self._proceed()

    def come_back_late(self) -> Any:
        """End the call that was out of time; return what it returned, or raise what it raised."""
        assert self.link.is_stuck
        late, self._late = self._late, None
        try:
            return late() if late is not None else None
        finally:
            self.link.come_back()
            self._proceed()

    def _proceed(self) -> None:
        while True:
            self._take_output()
            if self.link.next_call():
                self._queued = True
                return
            if not self.session.out and self.session.tail is None:
                return

    def _take_output(self) -> None:
        out = [*self.session.out, *(self.session.tail or ())]
        self.session.out.clear()
        self.session.tail = None
        self._responses.feed(b"".join(out))
        self.answers += self._responses

    _queued = False

    def take_answers(self) -> list[codec.Response]:
        """Return what was answered since the last time."""
        answers, self.answers = self.answers, []
        return answers

    # -- conversation.Host ---------------------------------------------------------------------------------------

    def callback_failed(self, conversation: Conversation, callback: str, error: BaseException) -> None:
        """Keep the name of a callback that failed."""
        self.failures.append(callback)

    def complain(self, conversation: Conversation, text: str) -> None:
        """Keep a complaint."""
        self.complaints.append(text)

    def transmit(self, conversation: Conversation) -> None:
        """Take what is to be sent at once."""
        self._take_output()

    def message_ended(self, conversation: Conversation, verdict: Verdict | None, edits: int) -> None:
        """Keep how a message ended."""
        self.ended.append(verdict)
