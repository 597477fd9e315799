"""Play a whole message through a milter as an MTA does, and say what came of it.

A refused recipient does not stop the others; a verdict on the whole message, on the sender or on the session does, and
the steps behind it are not played.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Self, TypeAlias

from fastmilter import codec
from fastmilter.addresses import Address, Params, Recipient, SocketAddress
from fastmilter.client.apply import Applied, apply_modifications
from fastmilter.client.exchange import Exchange, Flow
from fastmilter.client.fields import MessageSource, message_bytes, split_message
from fastmilter.constants import Step
from fastmilter.errors import LocalProtocolError
from fastmilter.mta import POSTFIX, Mta, Text, connect_message, wire_path
from fastmilter.replies import Verdict

MacrosByStep: TypeAlias = Mapping[Step, Mapping[str, Text]] | Mapping[str, Mapping[str, Text]]
"""Macros to tell, by step: ``{"mail": {"{auth_authen}": "ann"}}``."""


_DEFAULT_CLIENT: Final = codec.Connect(b"localhost", b"4", 25, b"127.0.0.1")


class Visitor(NamedTuple):
    """The SMTP client that brings a message. ``helo``: the name it gave, or ``None``."""

    hostname: Text = "localhost"
    address: str | SocketAddress | None = "127.0.0.1"
    port: int = 25
    helo: Text | None = "localhost"


class Letter(NamedTuple):
    """A message with its envelope, and the macros to tell on its way."""

    message: bytes
    sender: Address
    sender_params: Params
    recipients: tuple[Recipient, ...]
    macros: dict[Step, Mapping[str, Text]]

    @classmethod
    def of(
        cls,
        message: MessageSource,
        sender: Text,
        recipients: Iterable[Text],
        sender_params: Iterable[str],
        macros: MacrosByStep | None,
    ) -> Self:
        """Read what a caller gave; ``LocalProtocolError`` without recipients, ``ValueError`` for a wrong step."""
        everybody = tuple(map(_recipient, recipients))
        if not everybody:
            raise LocalProtocolError("no MTA sends a message without recipients")
        said = {Step(step): values for step, values in (macros or {}).items()}
        return cls(message_bytes(message), Address(wire_path(sender)), Params(sender_params), everybody, said)


class PlayedStep(NamedTuple):
    """One step of a message: ``verdict`` is ``None`` if there was no reply, ``milliseconds`` is what the step took.

    The body is one step, in however many pieces it went.
    """

    step: Step
    verdict: Verdict | None
    milliseconds: float


@dataclass(frozen=True)
class Outcome:
    """What a milter made of one message.

    ``verdict``: what holds for the message in the end; ``CONTINUE`` and ``ACCEPT``: it goes through. ``steps``: what
    was played, in order. ``recipients``: those that the milter did not refuse; ``refused``: the others, with the
    verdict on each. ``modifications``: what it asked for; ``apply()`` carries it out.
    """

    verdict: Verdict
    steps: tuple[PlayedStep, ...]
    recipients: tuple[Recipient, ...]
    refused: dict[Recipient, Verdict]
    modifications: tuple[codec.Modification, ...]
    message: bytes = field(repr=False)
    """The message as it was given."""
    sender: Address
    sender_params: Params = Params()  # noqa: RUF009 - immutable
    mta: Mta = field(default=POSTFIX, repr=False)
    leading_space: bool = False

    def apply(self) -> Applied:
        """Return envelope and message as the MTA would hand them on, by the rules of the client's ``mta``."""
        return apply_modifications(
            self.message,
            self.sender,
            self.recipients,
            self.modifications,
            mta=self.mta,
            sender_params=self.sender_params,
            verdict=self.verdict,
            leading_space=self.leading_space,
        )


class Over(Exception):
    """A verdict ended the message."""

    def __init__(self, verdict: Verdict) -> None:
        """Keep the verdict."""
        super().__init__(verdict)
        self.verdict = verdict


class Player:
    """Plays the steps of one message on a connection, and keeps what came of it."""

    def __init__(self, exchange: Exchange, letter: Letter) -> None:
        """Prepare to play ``letter``."""
        self.exchange = exchange
        self.letter = letter
        self.steps: list[PlayedStep] = []
        self.recipients: list[Recipient] = []
        self.refused: dict[Recipient, Verdict] = {}
        self.modifications: list[codec.Modification] = []

    def step(self, step: Step, flow: Flow[Verdict | None]) -> Flow[Verdict | None]:
        """Play one step and note it; raises ``Over`` if its verdict ended the message or the session."""
        exchange = self.exchange
        if step in self.letter.macros:
            exchange.macros(step, self.letter.macros[step])
        start = time.monotonic()
        verdict = yield from flow
        self.steps.append(PlayedStep(step, verdict, (time.monotonic() - start) * 1000))
        if exchange.session.session_verdict is not None:
            raise Over(exchange.session.session_verdict)
        if verdict is not None and step not in (Step.CONNECT, Step.HELO) and not exchange.session.in_message:
            raise Over(verdict)
        return verdict

    def connect(self, visitor: Visitor) -> Flow[Verdict | None]:
        """Play CONNECT, unless this SMTP client was told already."""
        hostname, address, port, _ = visitor
        told = connect_message(hostname, address, port, self.exchange.session.mta)
        if self.exchange.smtp_client is None:
            return (yield from self.step(Step.CONNECT, self.exchange.connect(hostname, address, port)))
        if told not in (self.exchange.smtp_client, _DEFAULT_CLIENT):
            raise LocalProtocolError("a connection is one SMTP session: another SMTP client needs another Client")
        return None

    def helo(self, visitor: Visitor) -> Flow[Verdict | None]:
        """Play HELO, unless this name was told already."""
        name, told = visitor.helo, self.exchange.helo_name
        if name is not None and (told is None or name not in (told, "localhost")):
            return (yield from self.step(Step.HELO, self.exchange.helo(name)))
        return None

    def mail(self) -> Flow[Verdict | None]:
        """Play MAIL."""
        return (yield from self.step(Step.MAIL, self.exchange.mail(self.letter.sender, self.letter.sender_params)))

    def rcpt(self, recipient: Recipient) -> Flow[Verdict | None]:
        """Play one recipient, and note whether it is refused."""
        try:
            verdict = yield from self.step(Step.RCPT, self.exchange.rcpt(recipient, recipient.params))
        except Over as over:
            if over.verdict.is_refusal:
                self.refused[recipient] = over.verdict
            raise
        if verdict is not None and verdict.is_refusal:
            self.refused[recipient] = verdict
        else:
            self.recipients.append(recipient)
        return verdict

    def data(self) -> Flow[Verdict | None]:
        """Play DATA; raises ``Over`` if it is refused."""
        verdict = yield from self.step(Step.DATA, self.exchange.data())
        if verdict is not None and verdict.is_refusal:
            raise Over(verdict)
        return verdict

    def envelope(self) -> Flow[None]:
        """Play MAIL, the recipients and DATA."""
        yield from self.mail()
        verdict: Verdict | None = None
        for recipient in self.letter.recipients:
            verdict = yield from self.rcpt(recipient)
        if not self.recipients:
            # The MTA itself answers DATA with "no valid recipients" now, and asks no filter.
            assert verdict is not None  # all of them were refused
            raise Over(verdict)
        yield from self.data()

    def content(self, message: bytes) -> Flow[None]:
        """Play the message itself. The verdict on it ends it, so this always raises ``Over``."""
        exchange = self.exchange
        fields, body = split_message(message, exchange.session.mta.mailbox_line)
        for name, value in fields:
            yield from self.step(Step.HEADER, exchange.header(name, value))
        yield from self.step(Step.END_OF_HEADERS, exchange.end_of_headers())
        if body:
            yield from self.step(Step.BODY, exchange.body(body))
        yield from self.step(Step.END_OF_MESSAGE, self._end())

    def _end(self) -> Flow[Verdict]:
        verdict, self.modifications = yield from self.exchange.end_of_message()
        return verdict

    def drop(self) -> Flow[None]:
        """Abort the message if it is still open: after a refusal that left it so, or where it cannot be sent."""
        if self.exchange.session.in_message and self.exchange.is_open:
            yield from self.exchange.abort()

    def outcome(self, verdict: Verdict) -> Outcome:
        """Return what came of the message."""
        letter = self.letter
        agreed = self.exchange.session.agreed
        # Behind a verdict that lets the whole message pass, nobody was asked about the other recipients.
        accepted = self.recipients if verdict.is_refusal else [to for to in letter.recipients if to not in self.refused]
        return Outcome(
            verdict=verdict,
            steps=tuple(self.steps),
            recipients=tuple(accepted),
            refused=self.refused,
            modifications=tuple(self.modifications),
            message=letter.message,
            sender=letter.sender,
            sender_params=letter.sender_params,
            mta=self.exchange.session.mta,
            leading_space=agreed is not None and agreed.leading_space,
        )


def play(exchange: Exchange, letter: Letter, visitor: Visitor) -> Flow[Outcome]:
    """Play a message, and the SMTP client where it was not told yet."""
    if exchange.session.in_message:
        raise LocalProtocolError("a message is open: end it or abort it first")
    player = Player(exchange, letter)
    verdict = exchange.session.session_verdict
    if verdict is None or verdict.code == 421:
        # After 421 there is no SMTP session any more: the first step says so.
        try:
            yield from player.connect(visitor)
            yield from player.helo(visitor)
            yield from player.envelope()
            yield from player.content(letter.message)
        except Over as over:
            verdict = over.verdict
        finally:
            yield from player.drop()
    assert verdict is not None  # the end of a message always has a verdict
    return player.outcome(verdict)


def _recipient(address: Text) -> Recipient:
    return address if isinstance(address, Recipient) else Recipient(wire_path(address))
