"""Several milters in a row, as an MTA with a list of them plays a message.

Up to DATA an event goes from milter to milter; a refusal or a DISCARD keeps it from those behind. A recipient that one
of them refuses is refused, and the later ones never hear of it. Of the message itself each milter sees everything, up
to its verdict, before the next one sees anything: the message as the former ones left it. The envelope that a milter
changes is not told again. A milter that accepts the message is asked nothing more about it, the others are.

A milter that fails (no connection, no answer in time, a broken answer, a lost connection) is out for the rest of the
SMTP session, and its default action holds instead of its verdicts: Postfix's ``milter_default_action``, Sendmail's
``F=``.

Sources: Postfix ``src/milter/milter.c`` (milter_rcpt_event, milter_message), ``src/milter/milter8.c``
(milter8_comm_error); Sendmail ``sendmail/milter.c`` (milter_command, milter_data); Postfix 3.7.11 with two milters.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Final, Self, TypeAlias

from fastmilter.addresses import Recipient, SocketAddress
from fastmilter.client.apply import Applied, apply_modifications
from fastmilter.client.base import POSTFIX_TIMEOUTS
from fastmilter.client.connection import Client, Stream
from fastmilter.client.exchange import Flow, Timeouts
from fastmilter.client.fields import MessageSource
from fastmilter.client.message import Letter, MacrosByStep, Outcome, Over, PlayedStep, Player, Visitor
from fastmilter.constants import ALL_ACTIONS, PROTOCOL_VERSION
from fastmilter.endpoints import Endpoint
from fastmilter.errors import (
    ConfigError,
    ConnectFailed,
    ConnectionLost,
    LocalProtocolError,
    ProtocolBroken,
    TimedOut,
)
from fastmilter.mta import Mta, Text, mta_named
from fastmilter.replies import CONTINUE, Verdict, VerdictKind

Failure: TypeAlias = ConnectFailed | TimedOut | ProtocolBroken | ConnectionLost
"""What ends a milter's part in a session."""

_FAILURES: Final = (ConnectFailed, TimedOut, ProtocolBroken, ConnectionLost)


@dataclass(frozen=True)
class MilterOutcome(Outcome):
    """What one milter of a chain made of a message.

    ``message`` is what it was shown. ``verdict`` is ``CONTINUE`` as long as it has said nothing else: also where a
    verdict of another one ended the message. If it failed, ``error`` says how, and ``verdict`` is that of its
    ``default_action``.
    """

    address: str = ""
    default_action: str = ""
    error: Failure | None = None


@dataclass(frozen=True)
class ChainOutcome(Outcome):
    """What the whole chain made of a message; ``milters``: what each of them did, in order.

    ``steps`` and ``modifications`` are those of all milters, in the order in which they were played and asked for.
    """

    milters: tuple[MilterOutcome, ...] = ()
    applied: Applied | None = field(default=None, repr=False)

    def apply(self) -> Applied:
        """Return envelope and message as they leave the last milter."""
        assert self.applied is not None  # a chain always says what became of the message
        return self.applied


class Chain:
    """Several milters in a row: pairs of an address (as for ``Client``) and a default action.

    Default actions: ``"accept"`` (go on as if it were not there), ``"reject"``, ``"tempfail"``, ``"quarantine"`` (hold
    the message; Postfix asks the milters behind nothing more, and only Postfix has it), ``"shutdown"`` (421). The other
    arguments are those of ``Client``. Raises ``ConfigError`` for a wrong address or action.

    ``send_message`` is one SMTP session. As a context manager a chain is one session for all messages of the block.

    >>> chain = Chain([("unix:/nonexistent/a.sock", "accept"), ("unix:/nonexistent/b.sock", "tempfail")])
    >>> outcome = chain.send_message(b"Subject: hi\\r\\n\\r\\n", "a@example.org", ["b@example.net"])
    >>> str(outcome.verdict)
    '451 4.7.1 Service unavailable - try again later'
    >>> [str(milter.verdict) for milter in outcome.milters]
    ['accept', '451 4.7.1 Service unavailable - try again later']
    """

    def __init__(
        self,
        milters: Iterable[tuple[str | Endpoint | Stream, str]],
        *,
        mta: str | Mta = "postfix",
        version: int = PROTOCOL_VERSION,
        actions: int = ALL_ACTIONS,
        protocol: int | None = None,
        timeouts: Timeouts = POSTFIX_TIMEOUTS,
    ) -> None:
        """Prepare the clients; they connect when the first message comes by."""
        self.mta: Final = mta_named(mta)
        self._links = [
            _Link(
                Client(address, mta=self.mta, version=version, actions=actions, protocol=protocol, timeouts=timeouts),
                action,
            )
            for address, action in milters
        ]
        self._is_session = False

    def __enter__(self) -> Self:
        """Begin an SMTP session."""
        if self._is_session:
            raise LocalProtocolError("the session of this chain is not over yet")
        self._is_session = True
        for link in self._links:
            link.error = None
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the session: QUIT to all; just close if the block failed."""
        self._is_session = False
        for number, link in enumerate(self._links):
            try:
                (link.client.quit if kind is None else link.client.close)()
            except BaseException:
                for other in self._links[number:]:
                    other.client.close()
                raise

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
    ) -> ChainOutcome:
        """Play a whole message through all milters; arguments and errors are those of ``Client.send_message``."""
        visitor = Visitor(hostname, address, port, helo)
        letter = Letter.of(message, sender, recipients, sender_params, macros)
        if self._is_session:
            return _Passage(self._links, letter, visitor, self.mta).outcome()
        with self:
            return _Passage(self._links, letter, visitor, self.mta).outcome()


class _Stop(Enum):
    """What keeps an event from the milters behind without ending the message."""

    HOLD = "hold"


class _Link:
    """One milter of a chain: its connection for the session, and its part in the present message."""

    def __init__(self, client: Client, action: str) -> None:
        """Take a client that is not open yet."""
        known = client.mta.default_actions
        if action not in known:
            raise ConfigError(f"default action {action!r} of {client.mta.name} is not one of {', '.join(known)}")
        self.client = client
        self.action = action
        self.error: Failure | None = None
        self.player: Player
        self.verdict: Verdict | None = None

    @property
    def session_verdict(self) -> Verdict | None:
        """The verdict on this SMTP session, if there was one."""
        return self.client.session_verdict if self.client.is_open else None

    def begin(self, letter: Letter) -> None:
        """Begin a message; ``LocalProtocolError`` if the session is over."""
        said = self.session_verdict
        if said is not None and said.code == 421:
            raise LocalProtocolError(f"the SMTP session is over: the milter at {self.client.endpoint} answered {said}")
        self.player = Player(self.client._exchange, letter)
        self.verdict = None

    def ask(self, event: Callable[[Player], Flow[Any]]) -> Verdict | _Stop | None:
        """Play an event; return what keeps it from the milters behind."""
        if self.error is not None:
            return self._default()
        if self.session_verdict is not None:
            return self.session_verdict if self.session_verdict.is_refusal else None
        if self.verdict is not None:
            return None
        try:
            if not self.client.is_open:
                self.client.open()
            verdict = self.client._run(event(self.player))
        except Over as over:
            self.verdict = over.verdict
            is_final = over.verdict.is_refusal or over.verdict.kind is VerdictKind.DISCARD
            return over.verdict if is_final else None
        except _FAILURES as error:
            self.error = error
            return self._default()
        return verdict if isinstance(verdict, Verdict) and verdict.is_refusal else None

    def _default(self) -> Verdict | _Stop | None:
        """Return what the default action does to an event."""
        verdict = self.client.mta.default_actions[self.action]
        if verdict.is_refusal:
            return verdict
        return _Stop.HOLD if self.action == "quarantine" else None

    def drop(self) -> None:
        """Abort what is left of the message."""
        try:
            self.client._run(self.player.drop())
        except _FAILURES as error:
            self.error = error

    def outcome(self) -> MilterOutcome:
        """Return what this milter made of the message."""
        verdict = self.verdict or self.session_verdict or CONTINUE
        if self.error is not None:
            verdict = self.client.mta.default_actions[self.action]
        plain = self.player.outcome(verdict)
        return MilterOutcome(
            **vars(plain), address=str(self.client.endpoint or ""), default_action=self.action, error=self.error
        )


class _Passage:
    """One message on its way through a chain."""

    def __init__(self, links: Sequence[_Link], letter: Letter, visitor: Visitor, mta: Mta) -> None:
        """Begin the message."""
        self.links = links
        self.letter = letter
        self.visitor = visitor
        self.mta = mta
        self.steps: list[PlayedStep] = []
        self.recipients: list[Recipient] = []
        self.refused: dict[Recipient, Verdict] = {}
        self.held_by: _Link | None = None
        for link in links:
            link.begin(letter)

    def outcome(self) -> ChainOutcome:
        """Play the message and return what came of it."""
        letter = self.letter
        try:
            self._event(lambda player: player.connect(self.visitor))
            self._event(lambda player: player.helo(self.visitor))
            self._event(lambda player: player.mail())
            self._envelope()
            verdict = self._content()
        except Over as over:
            verdict = over.verdict
        finally:
            for link in self.links:
                link.drop()
        accepted = self.recipients if verdict.is_refusal else [to for to in letter.recipients if to not in self.refused]
        milters = tuple(link.outcome() for link in self.links)
        return ChainOutcome(
            verdict=verdict,
            steps=tuple(self.steps),
            recipients=tuple(accepted),
            refused=self.refused,
            modifications=tuple(edit for milter in milters for edit in milter.modifications),
            message=letter.message,
            sender=letter.sender,
            sender_params=letter.sender_params,
            mta=self.mta,
            milters=milters,
            applied=self._applied(verdict, accepted),
        )

    def _ask(self, link: _Link, event: Callable[[Player], Flow[Any]]) -> Verdict | _Stop | None:
        before = len(link.player.steps)
        stop = link.ask(event)
        self.steps += link.player.steps[before:]
        if stop is _Stop.HOLD:
            self.held_by = self.held_by or link
        return stop

    def _all(self, event: Callable[[Player], Flow[Any]]) -> Verdict | None:
        """Play an event from milter to milter; return the refusal or DISCARD that stopped it."""
        for link in self.links:
            stop = self._ask(link, event)
            if stop is not None:
                return stop if isinstance(stop, Verdict) else None
        return None

    def _event(self, event: Callable[[Player], Flow[Any]]) -> None:
        """Play an event whose refusal ends the message."""
        verdict = self._all(event)
        if verdict is not None:
            raise Over(verdict)

    def _envelope(self) -> None:
        refusal: Verdict | None = None
        for recipient in self.letter.recipients:
            verdict = self._all(lambda player, to=recipient: player.rcpt(to))  # type: ignore[misc]
            if verdict is None:
                self.recipients.append(recipient)
                continue
            if verdict.is_refusal:
                self.refused[recipient] = refusal = verdict
            if verdict.code == 421 or not verdict.is_refusal:
                raise Over(verdict)
        if refusal is not None and not self.recipients:
            raise Over(refusal)
        self._event(lambda player: player.data())

    def _content(self) -> Verdict:
        """Play the message itself, to one milter after the other."""
        verdict = CONTINUE
        self.now = self._as_given(verdict, self.recipients)
        for link in self.links:
            link.player.letter = self.letter._replace(message=self.now.message)
            stop = self._ask(link, lambda player: player.content(player.letter.message))
            if isinstance(stop, Verdict):
                raise Over(stop)
            if stop is not None:
                break
            verdict = link.verdict or verdict
            if not self._carry_out(link):
                break
        return verdict

    def _carry_out(self, link: _Link) -> bool:
        """Take the modifications of a milter over into what the next one sees; return whether the MTA goes on."""
        edits, former = link.player.modifications, self.now
        if not edits:
            return True
        now = apply_modifications(
            former.message,
            former.sender,
            former.recipients,
            edits,
            mta=self.mta,
            sender_params=former.sender_params,
            leading_space=link.client.agreed.leading_space,
        )
        is_whole = now.delivered or now.quarantined or not now.recipients
        self.now = replace(
            now,
            quarantined=now.quarantined or former.quarantined,
            quarantine_reason=now.quarantine_reason or former.quarantine_reason,
            delivered=now.delivered and not former.quarantined,
            problems=former.problems + now.problems,
        )
        return is_whole

    def _applied(self, verdict: Verdict, recipients: Sequence[Recipient]) -> Applied:
        if verdict.is_refusal or verdict.kind is VerdictKind.DISCARD:
            return self._as_given(verdict, recipients)
        if self.held_by is None:
            return self.now
        reason = self.now.quarantine_reason or str(self.held_by.error)
        return replace(self.now, quarantined=True, quarantine_reason=reason, delivered=False)

    def _as_given(self, verdict: Verdict, recipients: Sequence[Recipient]) -> Applied:
        given = self.letter
        return apply_modifications(
            given.message,
            given.sender,
            recipients,
            (),
            mta=self.mta,
            sender_params=given.sender_params,
            verdict=verdict,
        )
