"""The filter's side of a milter connection as a state machine: bytes in, events out, verdicts in, bytes out.

``receive()`` takes what was read, ``next_event()`` returns the next step that the filter has to look at, and
``answer()`` takes its verdict. The session knows when a reply is due and writes exactly one for each command that
expects one; a verdict given where no reply is due is kept and delivered later (``KEPT`` below). What the filter must
not see (a session it has refused, a message that has its verdict) is answered here.

It knows no socket, clock or log. A peer that breaks the protocol ends in ``error``, after which only the events that
end the connection come. Anything that raises ``RemoteProtocolError`` out of here is a bug.

What real MTAs do and libmilter does not survive is welcome: ABORT twice or without a message, HELO before ABORT, a
new MAIL without ABORT (Sendmail with MAIL unanswered), RCPT after a refused DATA, CONNECT missing, QUIT_NC anywhere.

KEPT, a verdict given where no reply is due:
  connect, helo      delivered at every later answered step of the connection (ACCEPT: once a message)
  mail               delivered at every later answered step of the message, its end included (ACCEPT, DISCARD: once)
  data .. body       delivered at the end of the message

Sources: ``libmilter/engine.c`` (the table of states, sendreply), Postfix ``src/milter/milter8.c``, Sendmail
``sendmail/milter.c``.
"""

from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Any, Final

from fastmilter._codec import CommandDecoder
from fastmilter._encode import encode
from fastmilter._messages import (
    Abort,
    Body,
    Connect,
    Data,
    EndOfHeaders,
    EndOfMessage,
    Header,
    Helo,
    Macros,
    MailFrom,
    Negotiate,
    Progress,
    Quit,
    QuitNewConnection,
    RcptTo,
    Unknown,
)
from fastmilter.codec import Command
from fastmilter.constants import MAX_DATA_BYTES, STEPS, ProtocolFlag, Step
from fastmilter.errors import FastmilterError, RemoteProtocolError
from fastmilter.events import CLOSED, DROPPED, BeyondLimit, Event, OutOfOrder
from fastmilter.limits import DEFAULT_LIMITS, HEADER_TOO_LARGE, TOO_MANY_RECIPIENTS, Extent, Limits
from fastmilter.macros import NO_STAGES, STAGE_OF_LETTER, Stages, clear, cleared, for_message, stored
from fastmilter.negotiation import (
    BODY,
    CONNECT,
    DATA,
    END_OF_HEADERS,
    END_OF_MESSAGE,
    HEADER,
    HELO,
    MAIL,
    RCPT,
    UNKNOWN,
    Agreement,
)
from fastmilter.replies import CONTINUE, DISCARD, SKIP, TEMPFAIL, Verdict, VerdictKind, reply

_HELO_STAGE: Final = STAGE_OF_LETTER[b"H"]
_MAIL_STAGE: Final = STAGE_OF_LETTER[b"M"]
_RCPT_STAGE: Final = STAGE_OF_LETTER[b"R"]
_DATA_STAGE: Final = STAGE_OF_LETTER[b"T"]

_MACROS_KEPT: Final = sum(1 << (letter[0] - ord("A")) for letter in STAGE_OF_LETTER)

STEP_NAMES: Final[tuple[Step, ...]] = tuple(STEPS)
"""The step of each number."""

LEAVING: Final = reply(421, "4.7.0", "Service restarting, please try again")
"""How a filter that must stop leaves an SMTP session: both MTAs pass it on, and no mail is lost."""

_ANY = frozenset(VerdictKind)
_NO_DISCARD = _ANY - {VerdictKind.DISCARD, VerdictKind.SKIP}
ADMISSIBLE: Final[tuple[frozenset[VerdictKind], ...]] = tuple(
    {
        # Postfix ignores DISCARD here; Sendmail drops the filter and lets the mail through unfiltered.
        Step.CONNECT: _NO_DISCARD,
        Step.HELO: _NO_DISCARD,
        # ACCEPT makes Postfix's smtpd panic ("bad state 7"), DISCARD hits the next message.
        Step.UNKNOWN: frozenset({VerdictKind.CONTINUE, VerdictKind.REJECT, VerdictKind.TEMPFAIL, VerdictKind.REPLY}),
    }.get(step, _ANY)
    for step in STEPS
)
"""Which verdicts each step admits, by step number: the one table about it."""


class Phase(IntEnum):
    """Where a connection stands."""

    NEW = 0
    NEGOTIATING = 1
    """The offer is there, ``agree`` has not been called."""
    OPEN = 2
    """Agreed; also after QUIT_NC."""
    CONNECTED = 3
    """The SMTP client is known."""
    CLOSED = 4


_NEW, _NEGOTIATING, _OPEN, _CONNECTED, _CLOSED = Phase


class _BeginAgain:
    """What follows CLOSED where the milter connection stays open."""


_BEGIN_AGAIN: Final = _BeginAgain()


class Session:
    """One milter connection, seen from the filter."""

    agreement: Agreement
    """What was agreed; only after the negotiation."""

    def __init__(self) -> None:
        """Begin a connection."""
        self.phase = _NEW
        self.stages: Stages = NO_STAGES
        self.out: list[bytes] = []
        """What is to be sent, in order."""
        self.tail: Iterator[bytes] | None = None
        """What is to be sent after ``out``; no event comes before it is exhausted and set to ``None``."""
        self.error: FastmilterError | None = None
        """Why the connection ends, if the peer broke the protocol or cannot give what the filter requires."""
        self.step = CONNECT
        """The number of the step that waits for ``answer()``."""
        self.over: Verdict | None = None
        """The verdict of a message that is over while the MTA may still talk of it."""
        self.kept: Verdict | None = None
        """A verdict for the message in work that could not be delivered yet."""
        self.kept_for_connection: Verdict | None = None
        """A verdict for the whole SMTP connection."""
        self.drain = 0
        """0: serve; 1: 421 at MAIL; 2: also at RCPT and DATA."""
        self.limits: Limits = DEFAULT_LIMITS  # of each message
        self.extent: Extent | None = None  # what came of the message in work, if one is
        self.is_held_up = False
        """Whether no new message can begin, since a callback of the last one has not come back: 421 at MAIL."""
        self._carried = False  # the kept verdict waits for the end of the message, whatever is answered before
        self._delivered = False  # self.over has been told to the MTA
        self._decoder = CommandDecoder(MAX_DATA_BYTES, _MACROS_KEPT)
        self._pushed: Command | BeyondLimit | _BeginAgain | None = None  # to be taken up next
        self._eof = False
        self._answered = 0  # the steps that get a reply, a bit each; 0 before the agreement
        self.shows_rejected = False
        """Whether recipients come that the MTA itself refuses."""

    # -- bytes in ------------------------------------------------------------------------------------------------

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Take what was read; call ``next_event`` until it returns ``None``."""
        if not self._eof:
            self._decoder.feed(data)

    def receive_eof(self) -> None:
        """Take note that nothing more will come; what is buffered is still worked off."""
        self._eof = True

    @property
    def mid_packet(self) -> bool:
        """Whether a packet has come in part."""
        return self._decoder.buffered > 0

    @property
    def letters_ahead(self) -> int:
        """The letters of the packets that have come and are not taken up yet, as ``Scanner`` counts them."""
        return self._decoder.letters_ahead

    @property
    def in_message(self) -> bool:
        """Whether a message is in work: from MAIL, which the filter saw, to its verdict or drop."""
        return self.extent is not None

    @property
    def past_data(self) -> bool:
        """Whether a message is in work whose client may have said DATA: it must still get its verdict."""
        if self.extent is None:
            return False
        if RCPT < self.step < UNKNOWN:
            return True
        # What was not asked for may have happened unseen.
        unseen = self.agreement.protocol
        return bool(unseen & ProtocolFlag.NO_DATA) and (self.step != MAIL or bool(unseen & ProtocolFlag.NO_RCPT))

    def receive_lent(self, view: memoryview, start: int, size: int) -> None:
        """Take ``size`` bytes of ``view`` from ``start`` on without a copy; ``settle`` before they change.

        The bytes before ``start`` are for what has come of a packet already.
        """
        if not self._eof:
            self._decoder.lend(view, start, size)

    def settle(self) -> None:
        """Keep what is left of what was lent."""
        self._decoder.settle()

    # -- events out ----------------------------------------------------------------------------------------------

    def next_event(self) -> Event | None:
        """Return the next event, or ``None`` if there is none until more is received (or ``tail`` is sent)."""
        while self.tail is None and self.phase is not _CLOSED:
            message = self._pushed
            if message is not None:
                self._pushed = None
            elif self.error is not None:
                return self._end_of_stream()
            else:
                try:
                    message = self._decoder.next_message()
                except RemoteProtocolError as error:
                    return self._fail(error)
                if message is None:
                    return self._end_of_stream() if self._eof else None
            event = self._take(message)
            if event is not None:
                return event
        return None

    def is_worked_off(self) -> bool:
        """Tell whether all that was lent last has been taken up, so that ``next_event`` would return ``None``."""
        decoder = self._decoder
        return decoder.is_worked_off() and self._pushed is None and self.error is None and not self._eof

    def next_field(self) -> tuple[str, str] | None:
        """Return name and value of one more header field, without an event.

        Only after an event that was one; ``None``: whatever comes next is for ``next_event``.
        """
        if self.step != HEADER or self.extent is None or self._pushed is not None:
            return None
        field = self._decoder.next_field()
        if field is None:
            return None
        name, value = field
        if self.extent.field_is_beyond(len(name) + len(value)) and self.kept is None:
            self._pushed = self._refuse_header(self.extent)  # from the next field on none is shown
        return field

    def _take(self, message: Any) -> Event | None:
        """Take up one message: the event that it is, or ``None``. The most frequent ones come first."""
        kind = type(message)
        if not self._answered and kind is not Negotiate and kind is not Quit:
            return self._fail(RemoteProtocolError(f"{kind.__name__} came before the negotiation"))
        if kind is Header:
            return self._header(message)
        if kind is Macros:
            self.stages = stored(self.stages, message)
            return None
        if kind is Body:
            return self._message_step(BODY, message)
        if kind is RcptTo:
            clear(self.stages, _DATA_STAGE)
            return self._recipient(message)
        if kind is MailFrom:
            return self._mail(message)
        if kind is Data:
            return self._envelope_step(DATA, message)
        if kind is EndOfHeaders:
            return self._message_step(END_OF_HEADERS, message)
        if kind is EndOfMessage:
            # Data that comes with the end (no MTA in use sends any) is a last piece of the body: the caller shows it
            # before the end, and one reply answers both.
            return self._message_step(END_OF_MESSAGE, message)
        if kind is Abort:
            return self._abort()
        return self._take_for_connection(kind, message)

    def _take_for_connection(self, kind: type, message: Any) -> Event | None:
        """Take up what does not belong to a message."""
        if kind is Helo:
            return self._helo(message)
        if kind is Connect:
            return self._connect(message)
        if kind is Quit:
            return self._quit(message)
        if kind is Negotiate:
            return self._negotiate(message)
        if kind is Unknown:
            return self._unknown(message)
        if kind is QuitNewConnection:
            return self._quit_new_connection(message)
        if isinstance(message, BeyondLimit):
            return message
        self._begin_again()
        return None

    def _fail(self, error: FastmilterError) -> Event:
        self.error = error
        self._eof = True
        return self._end_of_stream()

    def _end_of_stream(self) -> Event:
        if self.extent is not None:
            return self._drop()  # the caller comes back for CLOSED
        self.phase = _CLOSED
        return CLOSED

    def _drop(self) -> Event:
        self.extent = None
        self.over = None
        return DROPPED

    def _negotiate(self, message: Negotiate) -> Event:
        if self.phase is not _NEW:
            return self._fail(RemoteProtocolError("the MTA negotiated a second time"))
        self.phase = _NEGOTIATING
        return message

    def agree(self, agreement: Agreement) -> None:
        """Answer the offer with ``agreement``."""
        self.agreement = agreement
        self._answered = agreement.answered
        self.shows_rejected = agreement.rejected_recipients
        self.phase = _OPEN
        self._decoder.max_data = agreement.max_data
        self.out.append(agreement.packet)

    def refuse(self, error: FastmilterError) -> None:
        """End the connection without an answer to the offer, since ``error``."""
        self.error = error
        self._eof = True

    def _connect(self, message: Connect) -> Event | None:
        self.stages = cleared(self.stages, _HELO_STAGE)
        if self.phase is not _OPEN or self.extent is not None:
            return self._out_of_order(CONNECT)
        self.phase = _CONNECTED
        self.step = CONNECT
        return message

    def _helo(self, message: Helo) -> Event | None:
        if self.extent is not None:  # Postfix after a second EHLO; its ABORT comes later
            self._pushed = message
            return self._drop()
        self.stages = cleared(self.stages, _MAIL_STAGE)
        self.step = HELO
        if self.kept_for_connection is not None:
            self._deliver_for_connection(HELO)
            return None
        return message

    def _mail(self, message: MailFrom) -> Event | None:
        if self.extent is not None:  # Sendmail sends no ABORT after RSET if MAIL is unanswered
            self._pushed = message
            return self._drop()
        self.stages = for_message(self.stages)
        self.step = MAIL
        self.kept = None
        self._carried = False
        self.over = None
        refused = self.kept_for_connection
        leaves = self.is_held_up or (self.drain and self._is_answered(MAIL))
        if leaves and (refused is None or not refused.is_refusal):
            refused = LEAVING
        if refused is not None:
            self.over = refused
            self._delivered = False
            self._answer_over(MAIL)
            return None
        self.extent = Extent(self.limits)
        return message

    def _recipient(self, message: RcptTo) -> Event | None:
        extent = self.extent
        if extent is None or not extent.recipient_is_beyond() or self.kept not in (None, TOO_MANY_RECIPIENTS):
            return self._envelope_step(RCPT, message)
        self.step = RCPT
        if self._is_answered(RCPT):
            self.out.append(TOO_MANY_RECIPIENTS.packet)
        else:
            self.kept = TOO_MANY_RECIPIENTS
        return extent.beyond_recipients()

    def _header(self, message: Header) -> Event | None:
        extent, size = self.extent, len(message.name) + len(message.value)
        if extent is None or not extent.field_is_beyond(size) or self.kept not in (None, HEADER_TOO_LARGE):
            return self._message_step(HEADER, message)
        self.step = HEADER
        if self._is_answered(HEADER):
            self.out.append(_CONTINUE_PACKET)
        return self._refuse_header(extent) if self.kept is None else None

    def _refuse_header(self, extent: Extent) -> BeyondLimit:
        self.kept = HEADER_TOO_LARGE
        self._carried = True
        return extent.beyond_fields()

    def _envelope_step(self, step: int, message: Event) -> Event | None:
        if self.extent is not None and self.drain > 1 and self._is_answered(step):
            self.out.append(LEAVING.packet)  # the MTA ends the SMTP session and drops the message itself
            return None
        return self._message_step(step, message)

    def _message_step(self, step: int, message: Event) -> Event | None:
        if self.extent is not None:
            self.step = step
            return message
        if self.over is None:
            return self._out_of_order(step)
        self._answer_over(step)
        return None

    def _unknown(self, message: Unknown) -> Event | None:
        self.step = UNKNOWN
        if self.kept_for_connection is not None:
            self._deliver_for_connection(UNKNOWN)
            return None
        return message

    def _abort(self) -> Event | None:
        if self.extent is not None:
            return self._drop()
        self.over = None
        return None

    def _quit(self, message: Quit) -> Event:
        if self.extent is not None:
            self._pushed = message
            return self._drop()
        self.phase = _CLOSED
        return CLOSED

    def _quit_new_connection(self, message: QuitNewConnection) -> Event:
        if self.extent is not None:
            self._pushed = message
            return self._drop()
        self._pushed = _BEGIN_AGAIN  # after CLOSED: until then the connection is readable
        return CLOSED

    def _begin_again(self) -> None:
        self.phase = _OPEN
        self.stages = NO_STAGES
        self.kept_for_connection = None
        self.over = None

    # -- steps that the filter does not see ----------------------------------------------------------------------

    def _out_of_order(self, step: int) -> Event:
        if self._is_answered(step):
            self.out.append(TEMPFAIL.packet)
        return OutOfOrder(STEP_NAMES[step])

    def _answer_over(self, step: int) -> None:
        """Answer a step of a message whose verdict is known."""
        if not self._is_answered(step):
            return
        over = self.over
        assert over is not None
        once = over.kind in _ONCE
        # A peer that goes on after DISCARD must not get the message delivered by our CONTINUE at its end.
        if once and self._delivered and not (over.kind is DISCARD.kind and step == END_OF_MESSAGE):
            over = CONTINUE
        self._delivered = True
        self.out.append(over.packet)

    def _deliver_for_connection(self, step: int) -> None:
        verdict = self.kept_for_connection
        assert verdict is not None
        if self._is_answered(step):
            self.out.append((verdict if verdict.kind in ADMISSIBLE[step] else CONTINUE).packet)

    # -- verdicts in ---------------------------------------------------------------------------------------------

    def _is_answered(self, step: int) -> bool:
        return bool(self._answered >> step & 1)

    @property
    def reply_due(self) -> bool:
        """Whether the step in work gets a reply."""
        return self._is_answered(self.step)

    def answer(self, verdict: Verdict) -> bool:
        """Take the verdict of the step in work, which must be admissible; return whether it ended the message.

        Where no reply is due the verdict is kept. The end of the message is answered by ``finish``.
        """
        if self._is_answered(self.step):
            return self._deliver(verdict)
        if verdict is not CONTINUE and verdict.kind not in _GO_ON:
            self._keep(verdict)
        return False

    def _keep(self, verdict: Verdict) -> None:
        if self.step <= HELO:
            self.kept_for_connection = verdict
        elif self.step != UNKNOWN:
            self.kept = verdict
            self._carried = self.step >= DATA

    def carry(self, verdict: Verdict) -> None:
        """Keep ``verdict`` for the end of the message, and go on until then."""
        self.kept = verdict
        self._carried = True
        if self._is_answered(self.step):
            self.out.append(_CONTINUE_PACKET)

    def spare(self) -> bool:
        """Answer the step in work without asking the filter; return whether that ended the message.

        The kept verdict is delivered if its place is here; otherwise the session goes on.
        """
        if not self._is_answered(self.step):
            return False
        if self.kept is None or self._carried or self.step == UNKNOWN:
            self.out.append(_CONTINUE_PACKET)
            return False
        return self._deliver(self.kept)

    def _deliver(self, verdict: Verdict) -> bool:
        if verdict is CONTINUE:
            self.out.append(_CONTINUE_PACKET)
            return False
        step = self.step
        kind = verdict.kind
        if kind is _SKIP:
            # On Sendmail, SKIP anywhere but in the body switches the filter off; there the caller spares callbacks.
            skip = step == BODY and self.agreement.skip
            self.out.append(SKIP.packet if skip else CONTINUE.packet)
            return False
        self.out.append(verdict.packet)
        if kind is _CONTINUE or step == UNKNOWN:
            return False
        if step <= HELO:
            self.kept_for_connection = verdict
            return False
        if step in (RCPT, DATA) and verdict.is_refusal:
            return False  # one recipient; after a refused DATA the transaction stays open
        self._end(verdict)
        return True

    def abandon(self) -> None:
        """Give up the message in work, which the MTA drops further on; the caller tells the filter.

        What still comes of it is answered with TEMPFAIL, and so is the step in work if its answer is due.
        """
        if self._is_answered(self.step):
            self.out.append(TEMPFAIL.packet)
        self._end(TEMPFAIL)

    def _end(self, verdict: Verdict) -> None:
        self.extent = None
        self.over = verdict
        self._delivered = True
        self.kept = None

    def finish(self, verdict: Verdict, edits: Iterable[bytes] = (), tail: Iterator[bytes] | None = None) -> None:
        """Answer the end of the message: ``edits``, then what ``tail`` yields, then ``verdict``.

        ``tail`` is for what is too large to be held (a replaced body); its last bytes must be the verdict's own.
        """
        self.out.extend(edits)
        if tail is None:
            goes_on = verdict is CONTINUE or verdict.kind is _SKIP
            self.out.append(_CONTINUE_PACKET if goes_on else verdict.packet)
        self.tail = tail
        self._end(verdict)
        # What they describe is over; the message keeps its own list.
        self.stages = cleared(self.stages, _RCPT_STAGE)
        self.over = None  # the MTA has nothing more to say of it: what comes without a new MAIL is out of order

    def progress(self, mta_is_postfix: bool) -> bool:
        """Write PROGRESS if the next reply that the MTA reads is the one to the end of the message.

        Postfix takes it at every answered step; Sendmail drops the filter if it comes before another answer.
        Returns whether one is written, now or before.
        """
        step = self.step
        allowed = step == END_OF_MESSAGE or (mta_is_postfix and self._is_answered(step))
        if not allowed:
            # Once the content comes, nothing but the end of the message is answered; after DATA another filter may
            # still refuse it, and the next answer that the MTA reads would be the one to a new MAIL.
            answered = self._answered & ~self.agreement.suppressed & _CONTENT
            allowed = self.in_message and HEADER <= step < END_OF_MESSAGE and not answered >> step
        if allowed and (not self.out or self.out[-1] is not _PROGRESS):  # one that still waits says it all
            self.out.append(_PROGRESS)
        return allowed


_CONTENT: Final = (1 << END_OF_MESSAGE) - 1  # all steps before the end of the message
_PROGRESS: Final = encode(Progress())
_CONTINUE_PACKET: Final = CONTINUE.packet
# A look into an enumeration costs as much as a callback.
_CONTINUE, _SKIP = VerdictKind.CONTINUE, VerdictKind.SKIP
_GO_ON: Final = frozenset({_CONTINUE, _SKIP})
_ONCE: Final = frozenset({VerdictKind.ACCEPT, VerdictKind.DISCARD, _CONTINUE})
