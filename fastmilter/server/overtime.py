"""A connection whose callbacks run beside the loop, which waits for them, but not for ever.

What ``Conversation`` does not know: a callback may be out of time, and still run. Then its step is answered with a
verdict of its own (``out_of_time``), its message is sealed and keeps that verdict, and until it comes back
(``come_back``) nothing of the filter is called: what comes meanwhile is answered without it, a new message with 421, as
is one after a CONNECT or HELO that the filter could not see, and the notices (``on_abort``, ``on_message_end``,
``on_close``) wait. So there are never two callbacks of one
connection at once, and a callback that comes back late can reach its own message only, which has ended.

And a message may be known to be dropped before the packets in between are worked off (``drop``).
"""

from functools import partial
from typing import Any, Final

from fastmilter._call import call_method
from fastmilter._messages import Connect
from fastmilter._scan import Scanner
from fastmilter.constants import STEPS
from fastmilter.conversation import Host
from fastmilter.negotiation import CONNECT, END_OF_MESSAGE
from fastmilter.plan import Plan
from fastmilter.purpose import Purpose
from fastmilter.replies import Verdict
from fastmilter.server._sockets import Stream
from fastmilter.server.counters import Tally
from fastmilter.server.read_ahead import ReadAhead, Room
from fastmilter.server.worker import Link
from fastmilter.session import LEAVING, Phase

_STEP, _ERROR, _LAST_CHUNK, _MAKE, _NEGOTIATE, _NOTICE, _MESSAGE_END, _CLOSE = Purpose
_LETTERS: Final = {ord(facts.letter) - ord("A"): number for number, facts in enumerate(STEPS.values())}
"""The steps by their letters, as ``Scanner`` counts them."""

_END: Final = 1 << ord("E") - ord("A")
_ENDING: Final = sum(1 << ord(letter) - ord("A") for letter in "QK")
_DROPPING: Final = _ENDING | sum(1 << ord(letter) - ord("A") for letter in "AMH")


class WaitingLink(Link):
    """A conversation with its socket, whose callbacks are waited for."""

    def __init__(self, plan: Plan, host: Host, tally: Tally, stream: Stream, now: float) -> None:
        """Begin a connection that was accepted ``now``."""
        super().__init__(plan, host, tally, stream, now)
        self.job: Any = None
        """What runs for this connection, or waits to; while there is one, the conversation is its own."""
        self.context: Any = None
        """Where its callbacks run: for the driver."""
        self.thread = 0
        """The thread that a callback of an async filter runs in."""
        self.is_queued = False
        """Whether a callback of an async filter waits for a thread."""
        self.is_connected = True
        """Whether the socket is open."""
        self.has_ended = False
        """Whether the MTA has said its last; the conversation learns it when everything before is worked off."""
        self.is_dropped = False
        """Whether the message in work is dropped further on."""
        self.is_stuck = False
        """Whether a callback that was out of time has not come back."""
        self._is_turned_away = False  # the SMTP connection: it began while a callback of a former one was stuck
        self._is_helo_unseen = False  # the last HELO came while a callback was stuck
        self.is_paused = False
        """Whether the socket is not read, since too much is read ahead."""
        self.ahead: ReadAhead | None = None
        self.ahead_since = 0.0
        """When the first of what is read ahead came."""
        self.since = 0.0
        """When the first of what is worked off now came."""
        self.due_step = -1
        """The step that the MTA waits for an answer to; -1: none that we know of."""
        self.due_since = 0.0
        self.progress_at = 0.0
        """When the MTA is to be told again that work goes on."""
        self.answered = 0
        self._scanner = Scanner()
        self._postponed: list[tuple[int, str, tuple[Any, ...]]] = []  # calls that wait for the stuck one, first first
        self._place = 0  # where those of the event in work begin

    # -- what comes ----------------------------------------------------------------------------------------------

    def scan(self, data: memoryview, start: int, size: int, now: float) -> bool:
        """Look at what was read; tell whether it ends the message in work, or the session, if that comes ahead."""
        letters = self._scanner.scan(data, start, size)
        if letters and not self.answered and self.session.phase >= Phase.OPEN:
            self.answered = self.session.agreement.answered
        if self.due_step < 0:
            self._note_due(letters, now)
        elif self.due_step == END_OF_MESSAGE:
            return False  # an MTA waits for its answer, and says nothing before
        return bool(letters & (_DROPPING if self.session.in_message else _ENDING))

    def _note_due(self, letters: int, now: float) -> None:
        while letters:
            lowest = (letters & -letters).bit_length() - 1
            letters &= letters - 1
            step = _LETTERS.get(lowest, -1)
            if step >= 0 and self.answered >> step & 1:
                self.due_step, self.due_since = step, now
                return

    def is_dropped_ahead(self) -> bool:
        """Tell whether the message whose callback is next is dropped by what has come behind it already.

        Not if its end has come too: an MTA waits for the answer to that.
        """
        if not self._is_for_step() or not self.session.in_message:
            return False
        letters = self.session.letters_ahead
        return bool(letters & _DROPPING) and not letters & _END

    def keep(self, data: bytes, now: float, room: Room) -> None:
        """Keep what was read while the conversation belongs to a job."""
        if self.ahead is None:
            self.ahead = ReadAhead(room)
            self.ahead_since = now
        self.ahead.put(data)

    def take_ahead(self, most: int) -> bytes:
        """Take what was kept, ``most`` bytes of it or a little more."""
        ahead = self.ahead
        if ahead is None:
            return b""
        data = ahead.take(most)
        self.since = self.ahead_since
        if not ahead.size:
            self.ahead = None
        return data

    @property
    def read_ahead(self) -> int:
        """How many bytes are kept."""
        return 0 if self.ahead is None else self.ahead.size

    def progress(self) -> bool:
        """Tell the MTA that work goes on, if it takes that now and is not answered already."""
        if self.is_stuck or self.is_dropped:
            return False  # the next answer that it reads is no longer the one to the end of this message
        return Link.progress(self)

    # -- what is called ------------------------------------------------------------------------------------------

    def next_call(self) -> bool:
        """Tell whether there is something to run; what no longer depends on it is sent first."""
        if not Link.next_call(self):
            return False
        if self.is_noticing and (self.session.out or self.session.tail is not None):
            self._host.transmit(self)
        return True

    def take_call(self) -> Any:
        """Return what is to be run, a function without arguments: ``invoke`` for whoever does not own this object."""
        self.begin_timing()
        if self._purpose == _MAKE:
            return self.plan.filter_class
        arguments, self._arguments = self._arguments, ()
        return partial(call_method, self.filter, self.callback, arguments)

    def is_wanted(self) -> bool:
        """Tell whether the call in work is still wanted: not if its message is dropped, which is done here then."""
        if self.is_dropped and self.session.in_message and self._is_for_step():
            self.drop()
        return not self.is_dropped or not self._is_for_step()

    def take_outcome(self, result: Any, error: BaseException | None) -> bool:
        """Take what a call returned or raised, in time; tell whether there is another."""
        self.end_timing()
        if self.is_dropped and self.session.in_message and self._is_for_step():
            self.drop()
        elif error is None:
            self.returned(result)
        else:
            self.failed(error)
        return not self.is_dropped and self.next_call()

    def _is_for_step(self) -> bool:
        return self._purpose <= _LAST_CHUNK

    def drop(self) -> None:
        """Drop the message in work: that it ends without a verdict comes further on in what was read."""
        if self._todo is not None:
            self._todo = [call for call in self._todo if call[0] > _LAST_CHUNK] or None
        self._held = None
        self._recipient = None
        self._asked = 0
        self._place = len(self._postponed)
        self.session.abandon()
        self._dropped()

    # -- out of time ---------------------------------------------------------------------------------------------

    @property
    def is_noticing(self) -> bool:
        """Whether no answer depends on the call in work."""
        purpose = self._purpose
        if purpose == _MAKE and self._todo is not None:
            purpose = self._todo[-1][0]
        return purpose > _LAST_CHUNK and purpose != _NEGOTIATE

    @property
    def is_notice(self) -> bool:
        """Whether the call in work must be made, however late: what it tells has happened, and is told once."""
        return self._purpose >= _NOTICE

    @property
    def is_interruptible(self) -> bool:
        """Whether the call in work may be ended early where its message, or its session, is over."""
        return self._is_for_step() or self._purpose == _NEGOTIATE

    def out_of_time(self, verdict: Verdict, is_running: bool) -> None:
        """Answer the step in work with ``verdict``, since its callback has run out of time.

        ``is_running``: the callback has begun, and will come back some day; otherwise it is not called any more. The
        rest of the message gets the same verdict, without callbacks; its edits by this callback are dropped.
        """
        message = self.message
        if message is not None and self.session.in_message:
            message._roll_back(self._mark)
            message._seal()
            self._asked = 0
        purpose = self._give_up_call(is_running)
        if purpose == _NEGOTIATE:
            self._agree(None)
            if verdict.is_refusal:
                self.session.kept_for_connection = verdict
        elif purpose <= _LAST_CHUNK:
            self._purpose = purpose
            self._conclude(verdict)
        if self.session.in_message and self.session.kept is None and verdict.is_refusal:
            self.session.kept = verdict

    def _give_up_call(self, is_running: bool) -> int:
        """Let go of the call in work; return its purpose. What is still to be called waits for it to come back."""
        if is_running:
            self.end_timing()
        purpose = self._purpose
        is_notice = self.is_noticing
        todo = self._todo or []
        self._todo = None
        if purpose == _MAKE:
            purpose, self.callback, self._arguments = todo.pop()
        elif purpose == _ERROR:
            purpose = self._interrupted
        if is_notice and (not is_running or self._purpose == _MAKE):
            todo.append((purpose, self.callback, self._arguments))  # it has not been called, and must be
        self._postponed = todo[::-1]
        self._place = len(self._postponed)
        if is_running or is_notice:
            self.is_stuck = self.session.is_held_up = True
        else:
            self._resume()
        return purpose

    def come_back(self) -> None:
        """Take note that the stuck callback has come back: what waited for it can be called."""
        self.is_stuck = False
        self.session.is_held_up = self._is_helo_unseen
        self._resume()

    def _resume(self) -> None:
        self._todo = self._postponed[::-1] or None
        self._postponed = []

    # -- what is answered without the filter while it is stuck -------------------------------------------------------

    def _connect(self, event: Connect) -> bool:
        if self.is_stuck and self.connection is not None:
            self._is_turned_away = True  # the former one is not closed for the filter yet, and keeps its connection
            self.session.answer(LEAVING)
            return False
        self._see_helo(False)
        return Link._connect(self, event)

    def _helo(self, event: Any) -> bool:
        self._see_helo(self.is_stuck and "on_helo" in self._overridden)
        return Link._helo(self, event)

    def _see_helo(self, is_unseen: bool) -> None:
        """Take note of whether the filter misses a HELO: then no message goes on until it has seen another."""
        self._is_helo_unseen = is_unseen
        self.session.is_held_up = self.is_stuck or is_unseen

    def _closed(self) -> None:
        if self._is_turned_away:
            self._is_turned_away = False
        else:
            Link._closed(self)

    def _take(self, event: Any) -> bool:
        self._place = len(self._postponed)
        return Link._take(self, event)

    def _later(self, purpose: int, name: str, arguments: tuple[Any, ...]) -> None:
        if self.is_stuck:
            self._postponed.insert(self._place, (purpose, name, arguments))
        else:
            Link._later(self, purpose, name, arguments)

    def _call(self, purpose: int, name: str, arguments: tuple[Any, ...]) -> bool:
        if not self.is_stuck:
            return Link._call(self, purpose, name, arguments)
        self._purpose, self.callback = purpose, name
        if self.session.step == CONNECT and self.session.kept_for_connection is None:
            self.session.answer(LEAVING)  # what the filter has not seen must not go on, not even when it has come back
        else:
            self._go_on()
        return False

    def _ended(self, verdict: Verdict | None, edits: int = 0) -> None:
        if not self.is_stuck:
            Link._ended(self, verdict, edits)
            return
        message = self._in_work()
        message._seal()
        self._host.message_ended(self, verdict, edits)
        self._later(_MESSAGE_END, "on_message_end", (verdict,))
