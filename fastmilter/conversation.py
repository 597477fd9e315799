"""A session and its filter: events become callbacks, results become answers.

The conversation never runs user code of its own accord. A driver asks ``next_call()`` whether there is something to
run, has ``invoke()`` run it in its own way (thread, asyncio) and hands back the outcome with ``returned()`` or
``failed()``, until there is nothing left to run; then it sends what is in ``session.out`` and ``session.tail``::

    while conversation.next_call():
        try:
            result = conversation.invoke()
        except Exception as error:
            conversation.failed(error)
        else:
            conversation.returned(result)

Every outcome leads to an answer: a callback that raises, or returns what is no verdict, is reported to the host and
answered by ``on_error`` or ``error_verdict``, and its own edits are dropped.
"""

import inspect
import reprlib
from types import SimpleNamespace
from typing import Any, Protocol

from fastmilter._call import call_method
from fastmilter._messages import (
    Body,
    Connect,
    Data,
    EndOfHeaders,
    EndOfMessage,
    Header,
    Helo,
    MailFrom,
    Negotiate,
    RcptTo,
    Unknown,
)
from fastmilter._text import to_text
from fastmilter.addresses import address_of, params_of, socket_address
from fastmilter.constants import Step
from fastmilter.edits import body_packets, discard
from fastmilter.errors import FastmilterError
from fastmilter.events import Closed, Dropped, Event
from fastmilter.filter import Binding, Filter
from fastmilter.macros import STAGE_OF_LETTER, Macros
from fastmilter.message import Connection, EditableMessage, Message
from fastmilter.negotiation import (
    BODY,
    DATA,
    END_OF_HEADERS,
    END_OF_MESSAGE,
    HEADER,
    MAIL,
    RCPT,
    Offer,
    Wish,
    negotiate,
)
from fastmilter.plan import Plan
from fastmilter.purpose import Purpose
from fastmilter.replies import CONTINUE, TEMPFAIL, Answer, Verdict, VerdictKind
from fastmilter.session import ADMISSIBLE, Session

_HEADER_BIT = 1 << HEADER
# A look into an enumeration costs as much as a callback.
_ACCEPT, _DISCARD, _SKIP = VerdictKind.ACCEPT, VerdictKind.DISCARD, VerdictKind.SKIP


class Host(Protocol):
    """What a driver does for its conversations."""

    def callback_failed(self, conversation: "Conversation", callback: str, error: BaseException) -> None:
        """Log a callback that raised, once, with its traceback."""

    def complain(self, conversation: "Conversation", text: str) -> None:
        """Log a fault of the filter's author or an oddity of the peer."""

    def transmit(self, conversation: "Conversation") -> None:
        """Send what is in ``session.out`` now."""

    def message_ended(self, conversation: "Conversation", verdict: Verdict | None, edits: int) -> None:
        """Count a message that has its verdict, and so many edits with it, or was dropped before one (``None``)."""


_STEP, _ERROR, _LAST_CHUNK, _MAKE, _NEGOTIATE, _NOTICE, _MESSAGE_END, _CLOSE = Purpose


def _is_answered(purpose: int) -> bool:
    """Tell whether the call is answered by a verdict."""
    return purpose <= _LAST_CHUNK


class Conversation(Binding):
    """One milter connection and, for each SMTP connection on it, one object of the filter class."""

    def __init__(self, plan: Plan, host: Host) -> None:
        """Begin a connection for the filter class of ``plan``."""
        self._begin_with(plan, host)

    def _begin_with(self, plan: Plan, host: Host) -> None:
        self.plan = plan
        self.session = Session()
        self.filter: Filter[SimpleNamespace] | None = None
        self.connection: Connection | None = None
        self.message: Message[SimpleNamespace] | None = None
        self.last_read = 0.0  # for the driver, by its clock
        self._host = host
        self._overridden = plan.overridden
        self._steps = plan.steps
        self._reused = False  # an SMTP connection has ended on this milter connection (QUIT_NC)
        self._unmade = False  # the filter object could not be made: notices are not worth another attempt
        self._purpose: int = _NOTICE
        self.callback = ""
        """The name of the callback in work, or of the last one."""
        self._arguments: tuple[Any, ...] = ()  # what the callback in work is called with
        self._mark = 0  # how many edits there were before the callback in work
        self._held: Event | None = None  # an event that is in work (the offer), or comes next (the end of the message)
        self._todo: list[tuple[int, str, tuple[Any, ...]]] | None = None  # calls that follow an event, last first
        self._asked = 0  # steps of this message whose callbacks are to be called, a bit each
        self._interrupted: int = _STEP  # what on_error answers for
        self._recipient: RcptTo | None = None  # the one that on_rcpt looks at
        self.broken: tuple[str | None, Connection | None] | None = None  # what it was when the session broke

    def _complain(self, text: str) -> None:
        self._host.complain(self, text)

    @property
    def macros(self) -> Macros:
        """The macros of the connection and of the message in work."""
        return Macros(self.session.stages) if self.message is None else self.message.macros

    @property
    def queue_id(self) -> str | None:
        """The queue id of the message in work, for the log."""
        return None if self.message is None else self.message.queue_id

    def progress(self) -> bool:
        """Tell the MTA that work goes on, if it takes that now; see ``Filter.progress``."""
        if not _is_answered(self._purpose):
            return False  # on_close, on_message_end and the like: no reply is due that PROGRESS could come before
        is_postfix = self.connection is not None and self.connection.mta == "postfix"
        written = self.session.progress(is_postfix)
        if written:
            self._host.transmit(self)
        return written

    # -- what to run ---------------------------------------------------------------------------------------------

    def next_call(self) -> bool:
        """Tell whether there is something to ``invoke``; if not: send what there is, and wait for more from the MTA."""
        while True:
            if self._todo is not None:
                if self._take_up():
                    return True
                continue
            if self._held is None and self.session.is_worked_off():
                return False
            in_headers = self.session.step == HEADER and self._asked & _HEADER_BIT
            if in_headers and self.filter is not None and self._next_field():
                return True
            event = self._held
            if event is None:
                event = self.session.next_event()
                if event is None:
                    return False
            else:
                self._held = None
            if self._take(event):
                return True

    def invoke(self) -> Any:
        """Run what is to be run; hand what it returns to ``returned``, and what it raises to ``failed``.

        This is the one place where user code runs; to be called once after each ``next_call`` or ``next_in_row``.
        """
        if self._purpose == _MAKE:
            return self.plan.filter_class()
        arguments, self._arguments = self._arguments, ()  # a piece of the body lives no longer than its callback wants
        return call_method(self.filter, self.callback, arguments)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What ``invoke`` is going to call the callback with."""
        return () if self._purpose == _MAKE else self._arguments

    def _take(self, event: Any) -> bool:
        """Take up an event; tell whether there is a call to make for it. The most frequent ones come first."""
        kind = type(event)
        if kind is Header:
            return self._header(event)
        if kind is Body:
            return self._ask(BODY, "on_body", (event.chunk,))
        if kind is RcptTo:
            return self._rcpt(event)
        if kind is MailFrom:
            return self._mail(event)
        if kind is Data:
            return self._ask(DATA, "on_data", ())
        if kind is EndOfHeaders:
            return self._ask(END_OF_HEADERS, "on_end_of_headers", ())
        if kind is EndOfMessage:
            return self._end_of_message(event)
        return self._take_for_connection(kind, event)

    def _take_for_connection(self, kind: type, event: Any) -> bool:
        """Take up an event that is no step of a message; tell whether there is a call to make for it."""
        if kind is Helo:
            return self._helo(event)
        if kind is Connect:
            return self._connect(event)
        if kind is Negotiate:
            return self._negotiate(event)
        if kind is Unknown:
            return self._unknown(event)
        if self.session.error is not None and self.broken is None:
            self.broken = self.queue_id, self.connection
        if kind is Closed:
            self._closed()
        elif kind is Dropped:
            self._dropped()
        else:
            self._complain(event.text)
        return False

    def _later(self, purpose: int, name: str, arguments: tuple[Any, ...]) -> None:
        """Have a callback called before anything else; of several, the last first."""
        if self._todo is None:  # an idle connection does without a list
            self._todo = []
        self._todo.append((purpose, name, arguments))

    def _take_up(self) -> bool:
        """Take up the next of ``_todo``; tell whether there is a call to make."""
        todo = self._todo
        assert todo is not None
        purpose, name, arguments = todo[-1]
        wanted = name in self._overridden
        if wanted and self.filter is None and not self._unmade:
            return self._make()
        todo.pop()
        if not todo:
            self._todo = None
        if wanted and self.filter is not None:
            return self._begin(purpose, name, arguments)
        self._noticed(purpose)
        return False

    def _call(self, purpose: int, name: str, arguments: tuple[Any, ...]) -> bool:
        """Have a callback called next, or before it what must be there first: the filter object."""
        if self.filter is not None:
            return self._begin(purpose, name, arguments)
        self._later(purpose, name, arguments)
        return self._make()

    def _begin(self, purpose: int, name: str, arguments: tuple[Any, ...]) -> bool:
        self._purpose, self.callback, self._arguments = purpose, name, arguments
        message = self.message
        if message is not None and purpose != _ERROR:
            self._mark = len(message._edits)
        return True

    def _make(self) -> bool:
        """Have the filter object made; what needs it is the last of ``_todo``."""
        self._purpose, self.callback = _MAKE, "__init__"
        return True

    # -- events --------------------------------------------------------------------------------------------------

    def _negotiate(self, event: Negotiate) -> bool:
        self._held = event
        if "on_negotiate" in self._overridden:
            return self._call(_NEGOTIATE, "on_negotiate", (Offer.of(event),))
        self._agree(None)
        return False

    def _agree(self, wish: Wish | None) -> None:
        """Answer the offer with what ``on_negotiate`` wished for, or the class (``None``)."""
        event = self._held
        assert isinstance(event, Negotiate)
        self._held = None
        try:
            self.session.agree(self.plan.agreement(event) if wish is None else negotiate(Offer.of(event), wish))
        except FastmilterError as error:
            self.session.refuse(error)

    def _connect(self, event: Connect) -> bool:
        self.connection = Connection(self.session, event)
        if "on_connect" in self._overridden:
            address = socket_address(event.family, event.port, event.address)
            return self._call(_STEP, "on_connect", (to_text(event.hostname), address))
        self._go_on()
        return False

    def _helo(self, event: Helo) -> bool:
        self._connected()._helo = event.name
        if "on_helo" in self._overridden:
            return self._call(_STEP, "on_helo", (to_text(event.name),))
        self._go_on()
        return False

    def _connected(self) -> Connection:
        if self.connection is None:  # a peer may leave CONNECT out
            self.connection = Connection(self.session, None)
        return self.connection

    def _mail(self, event: MailFrom) -> bool:
        self._connected()
        session = self.session
        self.message = Message(session.agreement, session.stages, event, self.plan)
        self.message._began = self.last_read
        self._asked = self._steps
        if self._asks(MAIL):
            return self._call(_STEP, "on_mail", (address_of(event.sender), params_of(event.params)))
        self._go_on()
        return False

    def _rcpt(self, event: RcptTo) -> bool:
        session = self.session
        if session.shows_rejected and self._refused_by_mta():
            if session.kept is None:
                arguments = (address_of(event.recipient), params_of(event.params), self.macros.get("rcpt_addr", ""))
                self._later(_NOTICE, "on_rejected_rcpt", arguments)
            self._spare()  # whatever the filter says of it, the recipient stays refused
            return False
        if self._asks(RCPT):
            self._recipient = event
            return self._call(_STEP, "on_rcpt", (address_of(event.recipient), params_of(event.params)))
        if session.kept is None or session.kept.kind is _ACCEPT:
            self._in_work()._recipients.append(event)
        self._spare()
        return False

    def _refused_by_mta(self) -> bool:
        """Whether the MTA itself refuses the recipient: then {rcpt_mailer} is "error" in the macros of this RCPT."""
        macros = self.session.stages[STAGE_OF_LETTER[b"R"]]
        return macros is not None and macros.get(b"rcpt_mailer") == b"error"

    def _asks(self, step: int) -> bool:
        """Whether the callback of a step of the message is to be called."""
        return bool(self._asked >> step & 1) and self.session.kept is None

    def _in_work(self) -> EditableMessage:
        message = self.message
        assert message is not None  # the session shows no step of a message before MAIL
        return message

    def _spare(self) -> None:
        """Answer the step in work without its callback."""
        if self.session.spare():
            self._let_go(self.session.over)
            self._ended(self.session.over)

    def _header(self, event: Header) -> bool:
        name = to_text(event.name)
        self._in_work()._shown.append(name)  # spared or not: it counts for the MTA, so it counts for indices
        if self._asks(HEADER):
            return self._call(_STEP, "on_header", (name, to_text(event.value)))
        self._spare()
        return False

    def _next_field(self) -> bool:
        """Have ``on_header`` called for one more field of several in a row: there are dozens, so the shortest way."""
        session = self.session
        field = session.next_field() if session.kept is None else None
        if field is None:
            return False
        self._in_work()._shown.append(field[0])
        return self._begin(_STEP, "on_header", field)

    def next_in_row(self) -> bool:
        """Tell whether one more header field came behind the one whose callback returned ``None``, and nobody waits.

        Then it is to ``invoke`` at once, and ``returned`` has nothing to do for the one before.
        """
        if self._purpose != _STEP or self._todo is not None or self.session.step != HEADER:
            return False
        return not self.session._is_answered(HEADER) and self._next_field()

    def _ask(self, step: int, name: str, arguments: tuple[Any, ...]) -> bool:
        """Have the callback of a step of the message called, or answer in its place."""
        if self._asks(step):
            return self._call(_STEP, name, arguments)
        self._spare()
        return False

    def _end_of_message(self, event: EndOfMessage) -> bool:
        if self.session.kept is not None:
            self._finish(self.session.kept)
            return False
        if event.chunk and self._asks(BODY):
            self._held = EndOfMessage()
            return self._call(_LAST_CHUNK, "on_body", (event.chunk,))
        if self._asks(END_OF_MESSAGE):
            return self._call(_STEP, "on_end_of_message", ())
        self._finish(CONTINUE)
        return False

    def _unknown(self, event: Unknown) -> bool:
        if "on_unknown" in self._overridden:
            return self._call(_STEP, "on_unknown", (to_text(event.command),))
        self._go_on()
        return False

    def _dropped(self) -> None:
        self._let_go(None)
        self._ended(None)
        self._later(_NOTICE, "on_abort", ())  # comes before on_message_end

    def _closed(self) -> None:
        if not self._reused or self.filter is not None or self.connection is not None:
            self._later(_CLOSE, "on_close", ())  # unless nothing has begun since QUIT_NC

    # -- outcomes ------------------------------------------------------------------------------------------------

    def returned(self, result: Any) -> None:
        """Take what the call returned."""
        purpose = self._purpose
        if purpose == _STEP:
            if result is None or result is CONTINUE:
                self._go_on()
            elif isinstance(result, Verdict):
                self._conclude(result)
            else:
                self._refuse_result(result)
        elif purpose == _ERROR:
            if result is not None and not isinstance(result, Verdict):
                self._refuse_result(result)
                return
            self._purpose = self._interrupted
            # An on_error that only writes a log must not let unfiltered mail through.
            self._conclude(result if isinstance(result, Verdict) else self.plan.filter_class.error_verdict)
        elif purpose == _LAST_CHUNK:
            if result is None or isinstance(result, Verdict):
                self._conclude(result or CONTINUE)
            else:
                self._refuse_result(result)
        elif purpose == _MAKE:
            self.filter = result
            self._unmade = False
            result._fastmilter = self
        elif purpose == _NEGOTIATE:
            if result is None or isinstance(result, Wish):
                self._agree(result)
            else:
                self.failed(TypeError(f"on_negotiate returned {result!r}, which is neither a Wish nor None"))
        else:
            self._noticed(purpose)

    def _refuse_result(self, result: Any) -> None:
        hint = ""
        if inspect.isawaitable(result):
            hint = ": declare the callback with async def"
            if inspect.iscoroutine(result):
                result.close()
        shown = reprlib.repr(result)  # short, and safe if the object's own repr raises
        self.failed(TypeError(f"{self.callback} returned {shown}, which is neither a verdict nor None{hint}"))

    def failed(self, error: BaseException) -> None:
        """Take what the call raised."""
        purpose = self._purpose
        if isinstance(error, Answer) and _is_answered(purpose):
            self.returned(error.verdict)
            return
        self._host.callback_failed(self, self.callback, error)
        if self.message is not None and not self.message._sealed:
            self.message._roll_back(self._mark)
        if _is_answered(purpose):
            if purpose == _ERROR:
                self._purpose = self._interrupted
            elif "on_error" in self._overridden:
                self._interrupted = purpose
                self._later(_ERROR, "on_error", (Step(self.callback.removeprefix("on_")), error))
                return
            self._conclude(self.plan.filter_class.error_verdict)
        elif purpose == _NEGOTIATE:
            self._negotiate_failed()
        elif purpose == _MAKE:
            self._make_failed()
        else:
            self._noticed(purpose)

    def _negotiate_failed(self) -> None:
        """Agree on what the class wishes, and refuse what comes: the MTA gets its answers all the same."""
        self._agree(None)
        verdict = self.plan.filter_class.error_verdict
        if verdict.kind in ADMISSIBLE[MAIL] and verdict.is_refusal:
            self.session.kept_for_connection = verdict

    def _make_failed(self) -> None:
        """Answer in place of the callback that the filter object was to be made for; notices are left out."""
        self._unmade = True
        assert self._todo is not None
        purpose, name, _ = self._todo[-1]
        if purpose != _NEGOTIATE and not _is_answered(purpose):
            return
        self._todo.pop()
        if not self._todo:
            self._todo = None
        if purpose == _NEGOTIATE:
            self._negotiate_failed()
        else:
            self._purpose, self.callback = purpose, name
            self._conclude(self.plan.filter_class.error_verdict)

    def _noticed(self, purpose: int) -> None:
        if purpose == _MESSAGE_END:
            self.message = None
        elif purpose == _CLOSE:
            if self.filter is not None:
                self.filter._fastmilter = None  # else the two would wait for the garbage collector
                self.filter = None
            self.connection = None
            self._reused = True
            self._unmade = False

    def _go_on(self) -> None:
        """Answer the step in work with CONTINUE: what ``_conclude`` comes to in nearly every case."""
        step = self.session.step
        if step == END_OF_MESSAGE:
            self._conclude_end(CONTINUE)
        else:
            if step == RCPT:
                self._conclude_rcpt(CONTINUE)
            self.session.answer(CONTINUE)

    def _conclude(self, verdict: Verdict) -> None:
        """Answer the step in work with ``verdict``."""
        session = self.session
        step = session.step
        kind = verdict.kind
        if kind not in ADMISSIBLE[step]:
            self._complain(f"{self.callback} gave the verdict {kind}, which is not possible there: answered tempfail")
            verdict, kind = TEMPFAIL, TEMPFAIL.kind
        if step == END_OF_MESSAGE:
            self._conclude_end(verdict)
            return
        if kind is _SKIP:
            self._asked &= ~(1 << step)  # no more of this step
        if step == RCPT:
            verdict = self._conclude_rcpt(verdict)
        if kind is _ACCEPT and MAIL <= step < END_OF_MESSAGE and self._in_work()._edits:
            session.carry(verdict)
        elif session.answer(verdict):
            self._let_go(verdict)
            self._ended(verdict)

    def _conclude_end(self, verdict: Verdict) -> None:
        if self._purpose == _LAST_CHUNK:
            if verdict.kind in (CONTINUE.kind, _SKIP):
                return  # the end of the message itself is held, and comes next
            self._held = None
        self._finish(verdict)

    def _conclude_rcpt(self, verdict: Verdict) -> Verdict:
        recipient, self._recipient = self._recipient, None
        if verdict is CONTINUE or not verdict.is_refusal:
            if recipient is not None:
                self._in_work()._recipients.append(recipient)
        elif not self.session.reply_due:
            self._complain("on_rcpt refused one recipient but is marked @no_reply: the message gets tempfail instead")
            return TEMPFAIL
        return verdict

    def _let_go(self, verdict: Verdict | None) -> None:
        """Drop the edits of a message that ends with ``verdict``: the MTA would not apply them."""
        message = self._in_work()
        if verdict is not None and message._wants_quarantine():
            self._complain(f"the message was to be quarantined, but the verdict {verdict.kind} wins")
        discard(message._edits)

    def _ended(self, verdict: Verdict | None, edits: int = 0) -> None:
        self._in_work()._seal()
        self._host.message_ended(self, verdict, edits)
        if verdict is None or "on_message_end" in self._overridden:  # on_abort may still look at a dropped message
            self._later(_MESSAGE_END, "on_message_end", (verdict,))
        else:
            self.message = None

    def _finish(self, verdict: Verdict) -> None:
        """Answer the end of the message."""
        message, edits = self._in_work(), 0
        if verdict is not CONTINUE and verdict.kind is _SKIP:
            verdict = CONTINUE
        if not message._edits:
            self.session.finish(verdict)
        elif verdict is not CONTINUE and (verdict.is_refusal or verdict.kind is _DISCARD):
            self._let_go(verdict)
            self.session.finish(verdict)
        else:
            edits = self._finish_with_edits(message, verdict)
        self._ended(verdict, edits)

    def _finish_with_edits(self, message: EditableMessage, verdict: Verdict) -> int:
        session = self.session
        composed = message._compose(self._connected()._find_mta() == "sendmail")
        if composed.body is None:
            session.finish(verdict, composed.head + composed.foot)
        else:
            foot = b"".join((*composed.foot, verdict.packet))
            session.finish(verdict, composed.head, body_packets(composed.body, session.agreement.max_data, foot))
        return len(composed.head) + len(composed.foot) + (composed.body is not None)
