"""Play a whole message through a milter as an MTA does, and say what came of it.

A refused recipient does not stop the others; a verdict on the whole message, on the sender or on the session does, and
the steps behind it are not played.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from fastmilter import codec
from fastmilter.addresses import Address, Params, Recipient
from fastmilter.client.apply import Applied, apply_modifications
from fastmilter.client.fields import MessageSource, message_bytes, split_message
from fastmilter.constants import Step
from fastmilter.errors import LocalProtocolError
from fastmilter.mta import POSTFIX, Mta, Text, wire_path
from fastmilter.replies import Verdict

if TYPE_CHECKING:
    from fastmilter.client.connection import Client

MacrosByStep: TypeAlias = Mapping[Step, Mapping[str, Text]] | Mapping[str, Mapping[str, Text]]
"""Macros to tell, by step: ``{"mail": {"{auth_authen}": "ann"}}``."""


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


class _Over(Exception):
    """A verdict ended the message."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict)
        self.verdict = verdict


class Player:
    """Plays one message on a connection, and keeps what came of it."""

    def __init__(self, client: "Client", macros: MacrosByStep | None) -> None:
        """Prepare to play with these macros; ``ValueError`` for a step that is none."""
        self.client = client
        self.macros = {Step(step): values for step, values in (macros or {}).items()}
        self.steps: list[PlayedStep] = []
        self.recipients: list[Recipient] = []
        self.refused: dict[Recipient, Verdict] = {}
        self.modifications: list[codec.Modification] = []

    def step(self, step: Step, act: Callable[[], Verdict | None]) -> Verdict | None:
        """Play one step and note it; raises ``_Over`` if its verdict ended the message or the session."""
        if step in self.macros:
            self.client.macros(step, self.macros[step])
        start = time.monotonic()
        verdict = act()
        self.steps.append(PlayedStep(step, verdict, (time.monotonic() - start) * 1000))
        if self.client.session_verdict is not None:
            raise _Over(self.client.session_verdict)
        if verdict is not None and step not in (Step.CONNECT, Step.HELO) and not self.client.in_message:
            raise _Over(verdict)
        return verdict

    def envelope(self, sender: Address, params: Params, recipients: Iterable[Recipient]) -> None:
        """Play MAIL, the recipients and DATA."""
        self.step(Step.MAIL, lambda: self.client.mail(sender, params))
        refusal: Verdict | None = None
        for recipient in recipients:
            verdict = self._recipient(recipient)
            if verdict is not None and verdict.is_refusal:
                self.refused[recipient] = refusal = verdict
            else:
                self.recipients.append(recipient)
        if refusal is not None and not self.recipients:
            # The MTA itself answers DATA with "no valid recipients" now, and asks no filter.
            raise _Over(refusal)
        verdict = self.step(Step.DATA, self.client.data)
        if verdict is not None and verdict.is_refusal:
            raise _Over(verdict)

    def _recipient(self, recipient: Recipient) -> Verdict | None:
        try:
            return self.step(Step.RCPT, lambda: self.client.rcpt(recipient, recipient.params))
        except _Over as over:
            if over.verdict.is_refusal:
                self.refused[recipient] = over.verdict
            raise

    def content(self, message: bytes) -> None:
        """Play the message itself. The verdict on it ends it, so this always raises ``_Over``."""
        fields, body = split_message(message, self.client.mta.mailbox_line)
        for name, value in fields:
            self._field(name, value)
        self.step(Step.END_OF_HEADERS, self.client.end_of_headers)
        if body:
            self.step(Step.BODY, lambda: self.client.body(body))
        self.step(Step.END_OF_MESSAGE, self._end)

    def _field(self, name: bytes, value: bytes) -> None:
        self.step(Step.HEADER, lambda: self.client.header(name, value))

    def _end(self) -> Verdict:
        verdict, self.modifications = self.client.end_of_message()
        return verdict


def play(
    client: "Client",
    message: MessageSource,
    sender: Text,
    recipients: Iterable[Text],
    *,
    sender_params: Iterable[str],
    introduce: Callable[[Player], None],
    macros: MacrosByStep | None,
) -> Outcome:
    """Play a message; ``introduce`` plays CONNECT and HELO where that is still to be done."""
    raw = message_bytes(message)
    path = Address(wire_path(sender))
    params = Params(sender_params)
    everybody = [_recipient(recipient) for recipient in recipients]
    if client.in_message:
        raise LocalProtocolError("a message is open: end it or abort it first")
    if not everybody:
        raise LocalProtocolError("no MTA sends a message without recipients")
    player = Player(client, macros)
    verdict = client.session_verdict
    if verdict is None or verdict.code == 421:
        # After 421 there is no SMTP session any more: the first step says so.
        try:
            introduce(player)
            player.envelope(path, params, everybody)
            player.content(raw)
        except _Over as over:
            verdict = over.verdict
        finally:
            # After a refusal of all recipients or of DATA, and where the message proves to be one that cannot be sent.
            if client.in_message and client.is_open:
                client.abort()
    assert verdict is not None  # the end of a message always has a verdict
    if not verdict.is_refusal:
        # Nobody was asked about those behind a verdict on the whole message.
        player.recipients = [recipient for recipient in everybody if recipient not in player.refused]
    return Outcome(
        verdict=verdict,
        steps=tuple(player.steps),
        recipients=tuple(player.recipients),
        refused=player.refused,
        modifications=tuple(player.modifications),
        message=raw,
        sender=path,
        sender_params=params,
        mta=client.mta,
        leading_space=client.agreed.leading_space,
    )


def _recipient(address: Text) -> Recipient:
    return address if isinstance(address, Recipient) else Recipient(wire_path(address))
