"""What becomes of a message when an MTA carries out a filter's modifications.

Header modifications are where the two MTAs differ. **Postfix** edits the visible list, topmost its own Received field:
positions are exact, a deletion renumbers what follows, an addition goes to the end. **Sendmail** edits its internal
list, in which the fields that it may add itself come first, shown or not: a deletion keeps the place, an addition goes
in front of the first field of that name or brings a field of its own to life. Both are played here on their own list,
and the fields that only the MTA knows (its Received, Date, Message-Id) are left out of the result.

Not modelled: what an MTA does to every message (rewriting of addresses, folding or cutting of long lines).

Sources: Postfix ``src/cleanup/cleanup_milter.c`` and ``src/milter/milter8.c``; Sendmail ``sendmail/milter.c`` and
``sendmail/headers.c``; recordings of both.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from fastmilter import codec
from fastmilter._text import to_text
from fastmilter.addresses import Address, Params, Recipient
from fastmilter.client.fields import Field, MessageSource, crlf, join_message, message_bytes, split_message
from fastmilter.constants import MAX_HEADER_INDEX
from fastmilter.mta import Mta, Text, as_bytes, mta_named
from fastmilter.replies import ACCEPT, Verdict, VerdictKind


@dataclass(frozen=True)
class Applied:
    """A message as the MTA has it after the filter.

    If ``delivered`` is false, nobody gets the message: it was refused or discarded, held (``quarantined``), or has no
    recipient left. A refusal or a discard also voids the modifications. ``problems`` says what the MTA ignored or took
    for a mistake.
    """

    sender: Address
    sender_params: Params
    recipients: tuple[Recipient, ...]
    message: bytes
    quarantined: bool = False
    quarantine_reason: str = ""
    delivered: bool = True
    problems: tuple[str, ...] = ()


def apply_modifications(
    message: MessageSource,
    sender: Text,
    recipients: Iterable[Text],
    modifications: Iterable[codec.Modification],
    *,
    mta: str | Mta = "postfix",
    sender_params: Iterable[str] = (),
    verdict: Verdict = ACCEPT,
    leading_space: bool = False,
) -> Applied:
    """Carry out ``modifications`` in their order as ``mta`` (``"postfix"`` or ``"sendmail"``) does.

    ``message``: bytes, a binary file or an ``EmailMessage``; addresses with or without angle brackets (a ``Recipient``
    keeps its parameters). ``verdict``: the filter's at the end of the message; ``leading_space``: whether it asked for
    header values as they are. Indices of header fields count those in ``message``. Raises ``ConfigError`` for another
    ``mta``.
    """
    table = mta_named(mta)
    rules = _RULES[mta_named(table.name).name]
    fields, body = split_message(message_bytes(message), table.mailbox_line)
    envelope = (_address(sender), Params(sender_params), tuple(map(_recipient, recipients)))
    if verdict.is_refusal or verdict.kind is VerdictKind.DISCARD:
        return Applied(*envelope, join_message(fields, body), delivered=False)
    play = rules(*envelope, fields, body, leading_space)
    for modification in modifications:
        play.carry_out(modification)
    if play.failed:
        return Applied(*envelope, join_message(fields, body), delivered=False, problems=tuple(play.problems))
    return play.result()


def _address(address: Text) -> Address:
    return address if isinstance(address, Address) else Address(as_bytes(address))


def _recipient(address: Text) -> Recipient:
    return address if isinstance(address, Recipient) else Recipient(_address(address).raw)


class _Play(ABC):
    """A message under modification; the subclasses are the MTAs."""

    fold = b" "
    """What keeps a line of a value, which has no white space of its own, from being a field of its own."""

    def __init__(
        self,
        sender: Address,
        sender_params: Params,
        recipients: Sequence[Recipient],
        fields: Sequence[Field],
        body: bytes,
        leading_space: bool,
    ) -> None:
        self.sender = sender
        self.sender_params = sender_params
        self.recipients = list(recipients)
        self.body = body
        self.new_body: list[bytes] | None = None
        self.quarantine: str | None = None
        self.problems: list[str] = []
        self.failed = False
        self.space = b"" if leading_space else b" "
        self.take_fields(fields)

    def carry_out(self, modification: codec.Modification) -> None:
        """Do one modification."""
        match modification:
            case codec.AddHeader(name, value):
                self.add(name, self.value(value))
            case codec.InsertHeader(index, name, value):
                self.insert(index, name, self.value(value))
            case codec.ChangeHeader(index, name, value):
                self.change(max(index, 1), name, self.value(value) if value else None)
            case codec.AddRecipient(recipient, params):
                self.add_recipient(Recipient(recipient, Params(map(to_text, params))))
            case codec.DeleteRecipient(recipient):
                self.delete_recipient(Address(recipient))
            case codec.ChangeSender(sender, params):
                self.change_sender(Address(sender), Params(map(to_text, params)))
            case codec.ReplaceBody(chunk):
                self.new_body = [] if self.new_body is None else self.new_body
                self.new_body.append(chunk)
            case codec.Quarantine(reason):
                self.quarantine = to_text(reason)

    def value(self, value: bytes) -> bytes:
        """Return a value of the filter as it stands behind the colon."""
        return self.space + re.sub(rb"\n(?![ \t])", b"\n" + self.fold, value)

    def delete_recipient(self, gone: Address) -> None:
        """SMFIR_DELRCPT. Both compare letter by letter: B.Case@x is not b.case@x."""
        self.recipients = [kept for kept in self.recipients if str(kept) != str(gone)]

    def result(self) -> Applied:
        body = self.body if self.new_body is None else crlf(b"".join(self.new_body))
        return Applied(
            self.sender,
            self.sender_params,
            tuple(self.recipients),
            join_message(self.fields(), body),
            quarantined=self.quarantine is not None,
            quarantine_reason=self.quarantine or "",
            delivered=self.quarantine is None and bool(self.recipients),
            problems=tuple(self.problems),
        )

    @abstractmethod
    def take_fields(self, fields: Sequence[Field]) -> None:
        """Begin with these fields."""

    @abstractmethod
    def fields(self) -> list[Field]:
        """Return the fields as they are now, without those of the MTA."""

    @abstractmethod
    def add(self, name: bytes, value: bytes) -> None:
        """SMFIR_ADDHEADER."""

    @abstractmethod
    def insert(self, index: int, name: bytes, value: bytes) -> None:
        """SMFIR_INSHEADER."""

    @abstractmethod
    def change(self, index: int, name: bytes, value: bytes | None) -> None:
        """SMFIR_CHGHEADER; ``None``: delete."""

    @abstractmethod
    def add_recipient(self, recipient: Recipient) -> None:
        """SMFIR_ADDRCPT, SMFIR_ADDRCPT_PAR."""

    @abstractmethod
    def change_sender(self, sender: Address, params: Params) -> None:
        """SMFIR_CHGFROM."""


def _keyword(param: str) -> str:
    return param.partition("=")[0].upper()


_RCPT_PARAMS: Final = frozenset({"NOTIFY", "ORCPT"})
_OWN_RECEIVED: Final = Field(b"Received", b" (by the MTA itself)")


class _Postfix(_Play):
    fold = b"\t"

    def take_fields(self, fields: Sequence[Field]) -> None:
        self.list = [_OWN_RECEIVED, *fields]
        self.added: set[tuple[str, Params]] = set()
        self.body_is_closed = False

    def fields(self) -> list[Field]:
        return [field for field in self.list if field is not _OWN_RECEIVED]

    def carry_out(self, modification: codec.Modification) -> None:
        if self.failed:
            return
        if not isinstance(modification, codec.ReplaceBody):
            self.body_is_closed = self.new_body is not None
        elif self.body_is_closed:
            # milter8.c: once something else came, the body can be edited no more.
            self.problems.append("the body is replaced in two runs; Postfix answers 451 4.3.5")
            self.failed = True
            return
        super().carry_out(modification)

    def add(self, name: bytes, value: bytes) -> None:
        self.list.append(Field(name, value))

    def insert(self, index: int, name: bytes, value: bytes) -> None:
        self.list.insert(index, Field(name, value))

    def change(self, index: int, name: bytes, value: bytes | None) -> None:
        # The topmost field is passed over, for it is Postfix's own Received unless a filter put another above it.
        seen = 0
        for position in range(1, len(self.list)):
            seen += self.list[position].name.lower() == name.lower()
            if seen == index:
                if value is None:
                    del self.list[position]
                else:
                    self.list[position] = Field(name, value)
                return
        if value is not None:
            self.add(name, value)

    def add_recipient(self, recipient: Recipient) -> None:
        kept = Params(param for param in recipient.params if _keyword(param) in _RCPT_PARAMS)
        if kept != recipient.params:
            self.problems.append(f"parameters of {str(recipient)!r} that Postfix ignores")
        if not recipient:
            self.problems.append("Postfix does not add an empty recipient")
            return
        # The filter for duplicates sees other parameters at recipients from SMTP: those are not taken for the same.
        key = (recipient.casefold(), kept)
        if key not in self.added:
            self.added.add(key)
            self.recipients.append(Recipient(recipient.raw, kept))

    def delete_recipient(self, gone: Address) -> None:
        super().delete_recipient(gone)
        # It can be added again: a deletion takes it out of the filter for duplicates too.
        self.added = {(name, params) for name, params in self.added if name != gone.casefold()}

    def change_sender(self, sender: Address, params: Params) -> None:
        self.sender = sender
        known = [param for param in params if _keyword(param) in ("RET", "ENVID")]
        if len(known) != len(params):
            self.problems.append(f"parameters of the sender {str(sender)!r} that Postfix ignores")
        replaced = {_keyword(param) for param in known}
        self.sender_params = Params([param for param in self.sender_params if _keyword(param) not in replaced] + known)


@dataclass
class _Node:
    """A field in Sendmail's list; ``value`` is ``None`` while it is not sent."""

    name: bytes
    value: bytes | None
    user: bool = False
    trace: bool = False

    def is_named(self, name: bytes) -> bool:
        return self.name.lower() == name.lower()


_SENDMAILS_OWN: Final = (
    b"Return-Path",
    b"Received",
    b"Resent-Date",
    b"Date",
    b"Resent-From",
    b"From",
    b"Full-Name",
    b"Resent-Message-Id",
    b"Message-Id",
)
"""The ``H`` lines of sendmail.cf in their order: they come first in the list of every message, shown or not."""


class _Sendmail(_Play):
    def take_fields(self, fields: Sequence[Field]) -> None:
        own = [_Node(name, None, trace=name == b"Received") for name in _SENDMAILS_OWN]
        self.list = own + [_Node(name, value, user=True) for name, value in fields]

    def fields(self) -> list[Field]:
        return [Field(node.name, node.value) for node in self.list if node.value is not None]

    def add(self, name: bytes, value: bytes) -> None:
        for node in self.list:
            if node.is_named(name) and not node.user and not node.trace:
                node.value, node.user = value, True
                return
        self._add_before(name, value)

    def _add_before(self, name: bytes, value: bytes) -> None:
        """Put a field in front of the first of its name, deleted ones and Sendmail's own included; else at the end."""
        places = [position for position, node in enumerate(self.list) if node.is_named(name)]
        self.list.insert(places[0] if places else len(self.list), _Node(name, value, user=True))

    def insert(self, index: int, name: bytes, value: bytes) -> None:
        # The index is a signed number there, and the new field comes behind the one at it.
        signed = 0 if index > MAX_HEADER_INDEX else index
        self.list.insert(signed + 1, _Node(name, value, user=True))

    def change(self, index: int, name: bytes, value: bytes | None) -> None:
        found = None
        for node in self.list:
            if not node.is_named(name):
                continue
            if node.user:
                index -= 1
                if index <= 0:
                    found = node
                    break
            elif not node.trace:
                found = node
        if found is not None:
            found.user = found.user or value is not None
            found.value = value
        elif value is not None:
            self._add_before(name, value)

    def add_recipient(self, recipient: Recipient) -> None:
        if any(_keyword(param) not in _RCPT_PARAMS for param in recipient.params):
            self.problems.append(f"Sendmail does not add {str(recipient)!r}: it knows only NOTIFY and ORCPT")
        elif str(recipient) not in map(str, self.recipients):
            self.recipients.append(recipient)

    def change_sender(self, sender: Address, params: Params) -> None:
        if not sender.raw:
            self.problems.append("Sendmail ignores an empty sender; the null reverse-path is <>")
            return
        self.sender = sender
        if params:
            self.sender_params = params


_RULES: Final[dict[str, type[_Play]]] = {"postfix": _Postfix, "sendmail": _Sendmail}
