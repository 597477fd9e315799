"""The MTA's side of a milter connection without a socket: steps in, bytes out, answers back.

A step method (``connect``, ``helo``, ``mail`` ...) queues the macros and the command and says whether an answer is due.
A driver then sends ``take_output()``, gives what it receives to ``feed()`` and asks ``take_answer()`` until that is
not ``None``. What gets no reply stays queued and travels with the next command that does, as from a real MTA.

It keeps the negotiation: a step that the filter does not want is not sent, one without a reply is not waited for, a
SKIP ends what it skips. It keeps the order of an SMTP session too: a step that no MTA would send now (RCPT without
MAIL, anything after a verdict that ended the message) is a ``LocalProtocolError`` and leaves no trace, because a filter
on libmilter would leave it unanswered. Level 2 (``queue``, ``next_message``) does none of this.

Errors: ``LocalProtocolError`` and ``InvalidMessage`` for the caller's faults, ``RemoteProtocolError`` for the filter's;
after the latter the connection is of no use any more.

Sources: Postfix ``src/milter/milter8.c``, ``src/smtpd/smtpd.c``; Sendmail ``sendmail/milter.c``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from fastmilter import codec
from fastmilter._text import to_text
from fastmilter.constants import (
    ALL_ACTIONS,
    MAX_DATA_BYTES,
    PROTOCOL_OF_VERSION,
    PROTOCOL_VERSION,
    STEPS,
    Action,
    MacroStage,
    ProtocolFlag,
    Step,
)
from fastmilter.errors import LocalProtocolError, RemoteProtocolError
from fastmilter.mta import MacroBook, Mta, Requests, Text, as_bytes, mta_named
from fastmilter.negotiation import max_data_of
from fastmilter.replies import ACCEPT, SKIP, Verdict, VerdictKind, verdict_of

MAX_ANSWER_BYTES: Final = 256 * 1024 * 1024
"""Most bytes taken in one answer, modifications included: a filter that never ends must not fill our memory."""


@dataclass(frozen=True)
class Agreed:
    """What the filter answered to our offer, taken apart once."""

    version: int
    actions: Action
    protocol: ProtocolFlag
    macros: Requests
    suppressed: frozenset[Step]
    """Steps that the filter does not want to be sent."""
    unanswered: frozenset[Step]
    """Steps that get no reply."""
    leading_space: bool
    rejected_recipients: bool
    max_data: int
    """Most bytes of data in a packet, which is also the size of the pieces of a body."""


def agree(offer: codec.Negotiate, answer: codec.Negotiate, mta: Mta) -> Agreed:
    """Check the filter's ``answer`` to ``offer`` as ``mta`` would; ``RemoteProtocolError`` where it would not go on."""
    if not mta.oldest_version <= answer.version <= offer.version:
        raise RemoteProtocolError(
            f"the filter answers with milter protocol version {answer.version}; "
            f"{mta.oldest_version} to {offer.version} is possible"
        )
    if answer.actions & ~offer.actions:
        raise RemoteProtocolError(
            f"the filter wants actions that were not offered: {answer.actions & ~offer.actions:#x}"
        )
    surplus = answer.protocol & ~offer.protocol
    if surplus and mta.strict_bits:
        raise RemoteProtocolError(f"the filter wants protocol bits that were not offered: {surplus:#x}")
    protocol = ProtocolFlag(answer.protocol)
    # Masks decide, but DATA and UNKNOWN are younger than these versions and are not sent to them.
    younger = {2: ProtocolFlag.NO_UNKNOWN | ProtocolFlag.NO_DATA, 3: ProtocolFlag.NO_DATA}
    missing = younger.get(answer.version, ProtocolFlag(0))
    return Agreed(
        version=answer.version,
        actions=Action(answer.actions),
        protocol=protocol,
        macros=_requests(answer.macros),
        suppressed=frozenset(step for step, facts in STEPS.items() if facts.suppress & (protocol | missing)),
        unanswered=frozenset(step for step, facts in STEPS.items() if facts.no_reply & protocol),
        leading_space=bool(protocol & ProtocolFlag.LEADING_SPACE),
        rejected_recipients=bool(protocol & ProtocolFlag.REJECTED_RCPT),
        max_data=max_data_of(offer.protocol & protocol),
    )


def _requests(macros: Sequence[tuple[int, bytes]]) -> Requests:
    """Read the lists as both MTAs do: names between spaces or commas, the last list of a stage counts."""
    stages = {facts.macro_stage: step for step, facts in STEPS.items() if facts.macro_stage is not None}
    known = set(MacroStage)
    return {
        stages[MacroStage(stage)]: tuple(to_text(names).replace(",", " ").split())
        for stage, names in macros
        if stage in known
    }


class Phase(IntEnum):
    """How far a conversation is; a message is open from MAIL to BODY."""

    NEW = 0
    NEGOTIATED = 1
    CONNECTED = 2
    MAIL = 3
    HEADERS = 4
    END_OF_HEADERS = 5
    BODY = 6
    OVER = 7
    """The filter ended the session, or we did: only ``quit`` is left."""


_ORDER: Final[dict[Step, tuple[Phase, Phase, Phase | None]]] = {
    Step.CONNECT: (Phase.NEGOTIATED, Phase.NEGOTIATED, Phase.CONNECTED),
    Step.HELO: (Phase.CONNECTED, Phase.MAIL, Phase.CONNECTED),
    Step.MAIL: (Phase.CONNECTED, Phase.CONNECTED, Phase.MAIL),
    Step.RCPT: (Phase.MAIL, Phase.MAIL, None),
    Step.DATA: (Phase.MAIL, Phase.MAIL, None),
    Step.HEADER: (Phase.MAIL, Phase.HEADERS, Phase.HEADERS),
    Step.END_OF_HEADERS: (Phase.MAIL, Phase.HEADERS, Phase.END_OF_HEADERS),
    Step.BODY: (Phase.MAIL, Phase.BODY, Phase.BODY),
    Step.END_OF_MESSAGE: (Phase.MAIL, Phase.BODY, Phase.BODY),
    Step.UNKNOWN: (Phase.NEGOTIATED, Phase.MAIL, None),
}
"""For each step: the first and the last phase in which it may come, and the phase it begins (``None``: the same)."""

_WHERE: Final[dict[Phase, str]] = {
    Phase.NEW: "the connection is not negotiated",
    Phase.NEGOTIATED: "CONNECT comes first",
    Phase.CONNECTED: "no message is open",
    Phase.MAIL: "a message is open",
    Phase.HEADERS: "the headers of a message have begun",
    Phase.END_OF_HEADERS: "the headers of the message are over",
    Phase.BODY: "the body of a message has begun",
    Phase.OVER: "the connection is over",
}

_MACROS_THOUGH_SUPPRESSED: Final = frozenset({Step.CONNECT, Step.HELO, Step.MAIL, Step.RCPT, Step.DATA})
"""Steps whose macros both MTAs send even where the step itself is not wanted."""

_REFUSALS: Final = frozenset({VerdictKind.REJECT, VerdictKind.TEMPFAIL, VerdictKind.REPLY})


def _ends(step: Step, kind: VerdictKind) -> bool:
    """Return whether a verdict ends what it was asked about: the session at CONNECT and HELO, else the message."""
    if step is Step.UNKNOWN:
        return False
    if step is Step.END_OF_MESSAGE or kind is VerdictKind.ACCEPT:
        return True
    if kind is VerdictKind.DISCARD:
        return step not in (Step.CONNECT, Step.HELO)
    # A refusal at RCPT concerns that recipient, and after one at DATA the transaction is still open.
    return kind in _REFUSALS and step not in (Step.RCPT, Step.DATA)


class ClientSession:
    """One milter connection, seen from the MTA.

    ``mta``: ``"postfix"``, ``"sendmail"`` or a table of habits; ``version``, ``actions``, ``protocol``: what is offered
    (``protocol=None``: all that the version knows); ``queue_prefix``: how the queue ids in macro ``i`` begin.
    """

    def __init__(
        self,
        *,
        mta: str | Mta = "postfix",
        version: int = PROTOCOL_VERSION,
        actions: int = ALL_ACTIONS,
        protocol: int | None = None,
        queue_prefix: str = "FA570",
    ) -> None:
        """Make the session; nothing is queued before ``negotiate``."""
        self.mta = mta_named(mta)
        known = PROTOCOL_OF_VERSION.get(version, PROTOCOL_OF_VERSION[PROTOCOL_VERSION])
        self.offer = codec.Negotiate(version, int(actions), int(known if protocol is None else protocol))
        self.agreed: Agreed | None = None
        self.phase = Phase.NEW
        self.modifications: list[codec.Modification] = []
        """The modifications of the last end of message."""
        self.progress = 0
        """How often PROGRESS came: each time the wait begins anew."""
        self._decoder = codec.ResponseDecoder()
        self._out = bytearray()
        self._book = MacroBook(self.mta, queue_prefix)
        self._awaiting: Step | None = None
        self._after_answer = b""
        self._early = ""
        self._taken = 0
        self._skipped: set[Step] = set()
        self._ended = ""
        self._mail_begun = self._mail_continued = self._helo_seen = self._leaves_silently = False
        self.session_verdict: Verdict | None = None
        """What the filter said of the whole session, if it ended that; ``ACCEPT``: it is out, the mail goes on."""

    # -- bytes ---------------------------------------------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """Bytes that wait to be sent."""
        return len(self._out)

    @property
    def in_message(self) -> bool:
        """Whether a message is open."""
        return Phase.MAIL <= self.phase <= Phase.BODY

    @property
    def awaiting(self) -> Step | None:
        """The step whose answer is due."""
        return self._awaiting

    def take_output(self) -> bytes:
        """Return what is to be sent now, and forget it."""
        out, self._out = bytes(self._out), bytearray()
        return out

    def feed(self, data: bytes) -> None:
        """Take what the filter sent."""
        self._taken += len(data)
        if self._taken > MAX_ANSWER_BYTES:
            raise RemoteProtocolError(f"the answer has more than {MAX_ANSWER_BYTES} bytes")
        self._decoder.feed(data)

    def queue(self, *messages: codec.Command) -> None:
        """Queue messages as they are, whatever the order: all of them or none (level 2)."""
        self._out += b"".join([codec.encode(message, self._max_data) for message in messages])

    def next_message(self) -> codec.Response | None:
        """Return the next response as it is, or ``None`` if it is not complete yet (level 2)."""
        message = next(self._decoder, None)
        if message is not None:
            self._taken = 0
        return message

    @property
    def _max_data(self) -> int:
        return MAX_DATA_BYTES if self.agreed is None else self.agreed.max_data

    # -- negotiation ---------------------------------------------------------------------------------------------------

    def negotiate(self) -> None:
        """Queue the offer (SMFIC_OPTNEG)."""
        if self.phase is not Phase.NEW:
            raise LocalProtocolError("the connection is already negotiated")
        self._out += codec.encode(self.offer)

    def take_agreement(self) -> Agreed | None:
        """Return what the filter agreed to, or ``None`` if its answer is not complete yet."""
        answer = self.next_message()
        if answer is None:
            return None
        if not isinstance(answer, codec.Negotiate):
            raise RemoteProtocolError(f"the filter answers {type(answer).__name__} to the option negotiation")
        self.agreed = agree(self.offer, answer, self.mta)
        self.phase = Phase.NEGOTIATED
        return self.agreed

    # -- steps ---------------------------------------------------------------------------------------------------------

    def macros(self, step: Step | str, values: Mapping[str, Text]) -> None:
        """Tell ``values`` before the next ``step``, besides what the MTA tells by itself. Braces are optional.

        If the filter asked for macros at that step, only those that it asked for are sent.
        """
        self._book.say(Step(step), values)

    def connect(self, message: codec.Connect) -> bool:
        """Queue CONNECT; return whether an answer is due."""
        self._check(Step.CONNECT)
        self._book.connect(message.hostname, message.address, message.port)
        return self._step(Step.CONNECT, message)

    def helo(self, name: Text) -> bool:
        """Queue HELO, ending an open transaction as the MTA does; return whether an answer is due."""
        self._check(Step.HELO)
        message = codec.Helo(as_bytes(name))
        codec.encode(message)  # before anything is dropped for it
        late = b""
        if self.mta.abort_at_reset:
            # Postfix tells the new name first; what it resets comes behind the answer, with the next command.
            late = codec.encode(codec.Abort()) * (self._mail_begun + self._helo_seen)
            self._mail_begun = False
        self._drop_transaction()
        due = self._step(Step.HELO, message)
        if due:
            self._after_answer = late
        else:
            self._out += late
        self._helo_seen = True
        return due

    def mail(self, sender: bytes, params: Sequence[bytes] = ()) -> bool:
        """Queue MAIL; return whether an answer is due. ``sender`` as it goes on the wire: ``b"<a@b>"``."""
        self._check(Step.MAIL)
        self._book.mail(sender)
        self._skipped.clear()
        self._ended = ""
        due = self._step(Step.MAIL, codec.MailFrom(sender, tuple(params)))
        self._mail_begun = True
        return due

    def rcpt(self, recipient: bytes, params: Sequence[bytes] = ()) -> bool:
        """Queue RCPT; return whether an answer is due."""
        self._check(Step.RCPT)
        self._book.rcpt(recipient)
        due = self._step(Step.RCPT, codec.RcptTo(recipient, tuple(params)))
        if not due:
            self._book.assign_queue_id()
        return due

    def rejected_rcpt(self, recipient: bytes, params: Sequence[bytes], enhanced: Text, reason: Text) -> bool:
        """Queue a recipient that the MTA itself refuses, if the filter wants to see those (SMFIP_RCPT_REJ)."""
        self._check(Step.RCPT)
        if self.agreed is None or not self.agreed.rejected_recipients:
            return False
        self._book.rejected_rcpt(as_bytes(enhanced), as_bytes(reason))
        return self._step(Step.RCPT, codec.RcptTo(recipient, tuple(params)))

    def data(self) -> bool:
        """Queue DATA; return whether an answer is due."""
        self._check(Step.DATA)
        return self._step(Step.DATA, codec.Data())

    def header(self, name: Text, value: Text) -> bool:
        """Queue a header field; return whether an answer is due.

        ``value`` is everything behind the colon. One leading space goes unless the filter asked for it; CRLF becomes
        LF; the end of the line is left out.
        """
        self._check(Step.HEADER)
        raw_name = as_bytes(name)
        raw = as_bytes(value).replace(b"\r\n", b"\n")
        raw = raw[:-1] if raw[-1:] == b"\n" else raw
        if self.agreed is not None and not self.agreed.leading_space and raw[:1] == b" ":
            raw = raw[1:]
        self._book.header(raw_name, raw)
        return self._step(Step.HEADER, codec.Header(raw_name, raw))

    def end_of_headers(self) -> bool:
        """Queue the end of the headers; return whether an answer is due."""
        self._check(Step.END_OF_HEADERS)
        return self._step(Step.END_OF_HEADERS, codec.EndOfHeaders())

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        """Cut ``chunk`` into the pieces that go into one packet each; nothing gives no piece."""
        size = self._max_data
        return (chunk[start : start + size] for start in range(0, len(chunk), size))

    def body(self, piece: bytes) -> bool:
        """Queue one of the ``pieces`` of the body; return whether an answer is due."""
        self._check(Step.BODY)
        return self._step(Step.BODY, codec.Body(piece))

    def end_of_message(self) -> bool:
        """Queue the end of the message, whose answer is always due; the modifications are collected meanwhile."""
        self._check(Step.END_OF_MESSAGE)
        self.modifications = []
        self._book.end_of_message()
        return self._step(Step.END_OF_MESSAGE, codec.EndOfMessage())

    def unknown(self, command: Text) -> bool:
        """Queue an SMTP command that the MTA does not know; return whether an answer is due."""
        self._check(Step.UNKNOWN)
        line = as_bytes(command)
        return self._step(Step.UNKNOWN, codec.Unknown(line if self.mta.unknown_whole_line else line.split(b" ", 1)[0]))

    def abort(self) -> None:
        """Drop the open transaction as the MTA does at RSET; whether and when ABORT goes out is the MTA's habit."""
        self._idle()
        if self.in_message:
            self._drop_transaction()

    def quit(self) -> bool:
        """Queue what the MTA sends at the end; return ``False`` if it just closes the connection."""
        self._idle()
        if self.agreed is None or self._leaves_silently:
            self._out.clear()
            return False
        if self.mta.abort_at_reset:
            self._out += codec.encode(codec.Abort()) * (self._mail_begun + self._helo_seen)
        self._out += codec.encode(codec.Quit())
        self.phase = Phase.OVER
        return True

    def quit_new_connection(self) -> None:
        """Queue QUIT_NC: the next step is a new CONNECT. No MTA sends it, and libmilter survives it only sometimes."""
        self._idle()
        if self.phase < Phase.NEGOTIATED:
            raise LocalProtocolError("the connection is not negotiated")
        self._out += codec.encode(codec.QuitNewConnection())
        self._book.forget_message()
        self._mail_begun = self._mail_continued = self._helo_seen = self._leaves_silently = False
        self.session_verdict = None
        self.phase = Phase.NEGOTIATED

    # -- answers -------------------------------------------------------------------------------------------------------

    def take_answer(self) -> Verdict | None:
        """Return the verdict on the step that was queued last, or ``None`` if it is not complete yet.

        PROGRESS and modifications are absorbed, into ``progress`` and ``modifications``.
        """
        step = self._awaiting
        if step is None:
            raise LocalProtocolError("no answer is due")
        if self._early:
            raise RemoteProtocolError(self._early)
        for response in self._decoder:
            if isinstance(response, codec.Progress):
                self._put_off(step)
            elif isinstance(response, codec.Modification):
                if step is not Step.END_OF_MESSAGE:
                    raise RemoteProtocolError(f"the filter sends {type(response).__name__} in answer to {step}")
                self.modifications.append(response)
            elif isinstance(response, codec.Negotiate | codec.Shutdown | codec.ConnectionFail):
                raise RemoteProtocolError(f"the filter answers {type(response).__name__} to {step}")
            else:
                return self._verdict(step, verdict_of(response))
        return None

    def _put_off(self, step: Step) -> None:
        if step is not Step.END_OF_MESSAGE and not self.mta.progress_anywhere:
            raise RemoteProtocolError(
                f"the filter sends Progress in answer to {step}; {self.mta.name} does not take it"
            )
        self.progress += 1

    def _verdict(self, step: Step, verdict: Verdict) -> Verdict:
        """Draw the consequences of a verdict, as the MTA does."""
        self._awaiting = None
        self._out += self._after_answer
        self._after_answer = b""
        kind = verdict.kind
        if kind is VerdictKind.SKIP:
            self._skip(step)
        if step is Step.MAIL:
            self._mail_continued = kind is VerdictKind.CONTINUE
        elif step is Step.RCPT and kind not in _REFUSALS:
            self._book.assign_queue_id()
        ends = _ends(step, kind)
        if step in (Step.CONNECT, Step.HELO):
            if ends or (kind is VerdictKind.DISCARD and step in self.mta.discard_ends_session):
                self._leaves_silently = not self.mta.quit_after_connection_verdict
                self._end_session(step, verdict)
        elif ends:
            if kind is VerdictKind.DISCARD and step in self.mta.discard_aborts:
                self._out += codec.encode(codec.Abort())
            self._ended = f"the filter answered {verdict} to {step}"
            self._end_message()
        if verdict.code == 421:
            self._end_session(step, verdict)
        return verdict

    def _skip(self, step: Step) -> None:
        if step in self.mta.skip_ends_session:
            self._end_session(step, SKIP)
        elif step in self.mta.skip_refused:
            raise RemoteProtocolError(f"the filter answers Skip to {step}; {self.mta.name} does not take it")
        elif step in self.mta.skips:
            self._skipped.add(self.mta.skips[step])

    def _end_session(self, step: Step, verdict: Verdict) -> None:
        # Neither DISCARD nor SKIP does here what it says: the MTA goes on without the filter.
        self.session_verdict = verdict if verdict.is_refusal else ACCEPT
        self._ended = f"the filter answered {verdict} to {step}, which ended the session"
        self.phase = Phase.OVER

    def _end_message(self) -> None:
        self._book.forget_message()
        self._mail_continued = False
        self.phase = Phase.CONNECTED
        if self.mta.abort_at_reset and self._mail_begun:
            self._out += codec.encode(codec.Abort())
        self._mail_begun = False

    def _drop_transaction(self) -> None:
        """End the open transaction without a verdict."""
        if not self.in_message:
            return
        if self._mail_continued and not self.mta.abort_at_reset:
            self._out += codec.encode(codec.Abort())
        self._ended = ""
        self._end_message()

    # -- queueing ------------------------------------------------------------------------------------------------------

    def _idle(self) -> None:
        if self._awaiting is not None:
            raise LocalProtocolError(f"the answer to {self._awaiting} is still due")

    def _check(self, step: Step) -> None:
        """Refuse a step that no MTA would send now, before anything has changed."""
        self._idle()
        first, last, _ = _ORDER[step]
        if first <= self.phase <= last:
            return
        said = self._ended if self.phase < first or self.phase is Phase.OVER else ""
        raise LocalProtocolError(f"no MTA sends {step} now: {said or _WHERE[self.phase]}")

    def _step(self, step: Step, message: codec.Command) -> bool:
        """Queue macros and command in one piece; return whether an answer is due."""
        agreed = self.agreed
        assert agreed is not None  # _check let nothing pass before the negotiation
        skipped = step in self._skipped
        wanted = step not in agreed.suppressed and not skipped
        packet = codec.encode(message, agreed.max_data) if wanted else b""
        if wanted or (step in _MACROS_THOUGH_SUPPRESSED and not skipped):
            macros = self._book.packet(step, agreed.macros)
            if macros is not None:
                packet = codec.encode(macros, agreed.max_data) + packet
        due = wanted and step not in agreed.unanswered
        if due:
            self._early = self._already_here(step)
            self._awaiting = step
            self._taken = 0
        self._out += packet
        begins = _ORDER[step][2]
        if begins is not None:
            self.phase = begins
        return due

    def _already_here(self, step: Step) -> str:
        """Say what is wrong if a verdict is here before it was asked for: it would pass for the answer to ``step``."""
        try:
            for response in self._decoder:
                if not isinstance(response, codec.Progress):
                    return f"the filter sent {type(response).__name__} before it was asked about {step}"
        except RemoteProtocolError as error:
            return str(error)
        return ""
