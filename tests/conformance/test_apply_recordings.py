"""``apply_modifications`` against what Postfix and Sendmail really delivered, over every recording with modifications.

The original is the message as the MTA showed it to the filter; the result has to be what came out at the other end,
header field for header field and byte for byte of the body. Apart from that stand the fields that the MTA writes by
itself, and what a recording does not hold: the space behind the colon of a field that was shown, parts of a body that
the filter did not want, and the end of what is long (texts of which the recording says "...[n bytes]").
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from fastmilter import codec
from fastmilter.addresses import Recipient
from fastmilter.client.apply import Applied, apply_modifications
from fastmilter.client.fields import Field, join_message, split_message
from fastmilter.codec import CommandDecoder, ResponseDecoder
from fastmilter.constants import STEPS, ProtocolFlag
from fastmilter.replies import Verdict, verdict_of
from tests.support import recordings

NOT_MATCHED: dict[str, str] = {}
"""Recordings whose result differs, each with the reason; one that matches must not stand here."""

FACTS = {facts.letter.value: facts for facts in STEPS.values()}


@dataclass
class Transaction:
    """One message as the filter saw it, and what it answered at the end."""

    sender: bytes = b""
    recipients: list[Recipient] = field(default_factory=list)
    fields: list[Field] = field(default_factory=list)
    body: list[bytes] = field(default_factory=list)
    modifications: list[codec.Modification] = field(default_factory=list)
    verdict: Verdict | None = None
    body_shown: bool = True
    leading_space: bool = False


class Reader:
    """Reads one connection: which message saw what, and which answer belongs to which command."""

    def __init__(self, conversation: recordings.Conversation) -> None:
        self.conversation = conversation
        self.waiting: list[codec.Command] = []
        self.protocol = 0
        self.current = Transaction()

    def transactions(self) -> Iterator[Transaction]:
        commands, responses = CommandDecoder(1048575), ResponseDecoder()
        for direction, data in self.conversation.exchanges():
            if direction == "mta>filter":
                commands.feed(data)
                for command in commands:
                    self.asked(command)
                continue
            responses.feed(data)
            for response in responses:
                if isinstance(response, codec.Negotiate):
                    self.protocol = response.protocol
                elif isinstance(response, codec.Modification):
                    self.current.modifications.append(response)
                elif not isinstance(response, codec.Progress):
                    yield from self.answered(self.waiting.pop(0), verdict_of(response))

    def asked(self, command: codec.Command) -> None:
        leading_space = bool(self.protocol & ProtocolFlag.LEADING_SPACE)
        match command:
            case codec.MailFrom(sender):
                self.current = Transaction(sender, leading_space=leading_space)
            case codec.Header(name, value):
                self.current.fields.append(Field(name, value if leading_space else b" " + value))
            case codec.Body(chunk):
                self.current.body.append(chunk)
        facts = FACTS.get(codec.encode(command, 1048575)[4:5])
        if facts is not None and not self.protocol & facts.no_reply:
            self.waiting.append(command)
        elif isinstance(command, codec.RcptTo):
            self.current.recipients.append(Recipient(command.recipient))

    def answered(self, command: codec.Command, verdict: Verdict) -> Iterator[Transaction]:
        one = self.current
        if isinstance(command, codec.RcptTo) and not verdict.is_refusal:
            one.recipients.append(Recipient(command.recipient))
        elif isinstance(command, codec.Body):
            one.body_shown = verdict.kind != "skip"
        elif isinstance(command, codec.EndOfMessage):
            one.verdict = verdict
            one.body_shown = one.body_shown and not self.protocol & ProtocolFlag.NO_BODY
            yield one
            self.current = Transaction()


def envelope_of_dialogue(one: Transaction, dialogue: list[list[str]]) -> None:
    """Take the envelope from the SMTP session where the filter did not want to see it."""
    for said, answer in dialogue:
        command = re.fullmatch(r"(MAIL FROM|RCPT TO):(<.*?>).*", said)
        if command and answer.startswith("250"):
            path = command[2].encode()
            if command[1] == "MAIL FROM":
                one.sender = path
            else:
                one.recipients.append(Recipient(path))


def merged(delivered: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the deliveries of one message together: an MTA sends many recipients in several goes."""
    whole: list[dict[str, Any]] = []
    for one in delivered:
        if whole and whole[-1]["headers"] == one["headers"]:
            whole[-1] = {**whole[-1], "rcpts": whole[-1]["rcpts"] + one["rcpts"]}
        else:
            whole.append(one)
    return whole


def text_of(data: bytes) -> str:
    """Return bytes as the recordings spell them."""
    return data.decode("utf-8", "backslashreplace")


def same_text(recorded: str, data: bytes) -> bool:
    """Compare with a recorded text, of which long ones are cut with a note of their length."""
    text = text_of(data)
    start, cut, note = recorded.rpartition("...[")
    return recorded == text or (bool(cut) and note == f"{len(data)} bytes]" and text.startswith(start))


def as_sent(mta: str, name: bytes, value: bytes) -> bytes:
    """Return a value as the MTA's SMTP client writes it: both cut lines that are too long for SMTP."""
    limit, mark = (998, b"") if mta == "postfix" else (2040, b"!")
    lines = []
    for line in (name + b":" + value).split(b"\n"):
        while len(line) > limit:
            room = limit - len(mark)
            lines.append(line[:room] + mark)
            line = b" " + line[room:]
        lines.append(line)
    return b"\r\n".join(lines)[len(name) + 1 :]


def without_trace(mta: str, one: Transaction, fields: list[Field], headers: list[list[str]]) -> list[list[str]]:
    """Return the recorded fields without those that the MTA wrote by itself, unseen by the filter."""
    received = {text_of(b" " + have.value.replace(b"\n", b"\r\n").strip()) for have in one.fields}
    names = {have.name.lower() for have in fields}
    own = {"date", "message-id", "from"} if mta == "sendmail" else set()
    kept = []
    for name, value in headers:
        if name == "Received" and "by mx.lab.test (" in value and value not in received:
            continue
        if (name.lower() in own and name.lower().encode() not in names) or not name:
            # The sink notes an empty field for a message that ends with its headers.
            continue
        kept.append([name, value])
    return kept


def difference(mta: str, one: Transaction, applied: Applied, delivered: dict[str, Any]) -> str:
    """Return what differs first, or ``""``."""
    fields, body = split_message(applied.message)
    recorded = without_trace(mta, one, fields, delivered["headers"])
    cut = len(delivered["headers"]) < delivered["header_count"]
    edited = {edit.name.lower() for edit in one.modifications if isinstance(edit, codec.AddHeader | codec.ChangeHeader)}
    for (name, value), have in zip(recorded, fields, strict=False):
        sent = as_sent(mta, *have)
        untouched = have in one.fields and have.name.lower() not in edited
        if name.encode() != have.name or not (same_text(value, sent) or (untouched and same_text(value, sent[1:]))):
            return f"field {name}:{value!r}, not {have}"
    if len(recorded) != len(fields) and not (cut and len(recorded) < len(fields)):
        return f"{len(recorded)} fields, not {len(fields)}"
    replaced = any(isinstance(edit, codec.ReplaceBody) for edit in one.modifications)
    if (replaced or one.body_shown) and not same_text(delivered["body"], body):
        return f"body {delivered['body'][:80]!r}, not {body[:80]!r}"
    if delivered["mail_from"].strip("<>") != applied.sender:
        return f"sender {delivered['mail_from']}, not {applied.sender}"
    recipients = sorted(recipient.strip("<>") for recipient, _ in delivered["rcpts"])
    if recipients != sorted(applied.recipients):
        return f"recipients {recipients}, not {applied.recipients}"
    return ""


def compare(name: str, rules: str) -> tuple[int, list[str]]:
    """Return how many messages of a recording were compared, and what differs."""
    compared, wrong = 0, []
    for conversation, result in zip(recordings.load(name), recordings.result(name)["results"], strict=False):
        delivered = merged(result["delivered"])
        messages = list(Reader(conversation).transactions())
        if not any(one.modifications for one in messages):
            continue
        for one in messages:
            if not one.recipients:
                envelope_of_dialogue(one, result["dialogue"])
            assert one.verdict is not None
            applied = apply_modifications(
                join_message(one.fields, b"".join(one.body)),
                one.sender,
                one.recipients,
                one.modifications,
                mta=rules,
                verdict=one.verdict,
                leading_space=one.leading_space,
            )
            compared += 1
            if applied.quarantined and "hold" not in str(result["queue"]):
                wrong.append(f"held, but the queue has {result['queue']}")
            if applied.delivered:
                problem = difference(name.partition("/")[0], one, applied, delivered.pop(0)) if delivered else "missing"
                wrong += [problem] if problem else []
        wrong += [f"{len(delivered)} messages too many"] if delivered else []
    return compared, wrong


def with_modifications() -> list[str]:
    """The recordings in which a filter modified anything."""
    return [
        name
        for name in recordings.names()
        if any(packet[:1] in b"hime+2-bq" for each in recordings.load(name) for packet in each.packets("filter>mta"))
    ]


def verdict_on(name: str) -> tuple[str, int]:
    """Return what the table says of a recording, and how many messages were compared."""
    compared, wrong = compare(name, name.partition("/")[0])
    if not wrong:
        return "matched", compared
    return f"not matched: {NOT_MATCHED.get(name, '; '.join(wrong))}", compared


@pytest.mark.parametrize("name", with_modifications())
def test_the_result_is_what_was_delivered(name: str) -> None:
    compared, wrong = compare(name, name.partition("/")[0])
    assert compared
    assert bool(wrong) == (name in NOT_MATCHED), wrong


def test_table() -> None:
    """Prints the table (``pytest -s``); enough of each MTA must be in it for the table to mean anything."""
    rows = [(name, *verdict_on(name)) for name in with_modifications()]
    for name, verdict, compared in rows:
        print(f"{name:32} {compared:3} {verdict}")
    matched = [name for name, verdict, _ in rows if verdict == "matched"]
    print(f"{len(matched)} of {len(rows)} recordings matched, {sum(row[2] for row in rows)} messages")
    for mta in ("postfix/", "sendmail/"):
        assert sum(name.startswith(mta) for name in matched) >= 40


def test_the_rules_of_the_other_mta_do_not_fit() -> None:
    """The comparison can fail: with the rules exchanged, it does wherever the two differ."""
    other = {"postfix": "sendmail", "sendmail": "postfix"}
    for name in ("postfix/auth", "postfix/mod-body", "postfix/mod-own-headers", "sendmail/auth", "sendmail/mod-body"):
        assert compare(name, other[name.partition("/")[0]])[1], name
