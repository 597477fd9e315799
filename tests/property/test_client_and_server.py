"""Client and server against each other: what the client reports is what the filter did, for any message and filter.

The filter is ``Scripted``: it plays a plan, and keeps what it was shown and what it answered. What should become of the
message is worked out here, on a list of fields, without a packet: by the rules that filter authors are told.
"""

import os
import socket
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastmilter import (
    ACCEPT,
    CONTINUE,
    DISCARD,
    REJECT,
    SKIP,
    TEMPFAIL,
    Filter,
    Verdict,
    early_verdict,
    no_reply,
    reply,
)
from fastmilter.client import Client, Outcome
from fastmilter.client.fields import split_message
from fastmilter.codec import encode
from fastmilter.testing import run
from tests.support.both_clients import BOTH, MakeClient
from tests.support.playing import Mta

ROUNDS = 10_000 if os.environ.get("CI") else 1_500
"""The whole run takes a minute or two; a tenth of it finds what is plainly wrong."""

# -- what may happen ---------------------------------------------------------------------------------------------------

NAMES = ["Subject", "subject", "X-A", "To", "Received"]
values = st.sampled_from(
    ["", "v", "two words", "caf\udce9 \u00fc", "a%b", "long " * 30, "folded\n\tvalue", "  spaces "]
)
texts = st.sampled_from(["no", "100%", "%s %n", "two\nlines", "caf\u00e9", "x" * 200, "5.7.1 in the text", "a\r\nb\0c"])
refusals = st.one_of(
    st.sampled_from([REJECT, TEMPFAIL]),
    st.builds(reply, st.sampled_from([550, 554, 571]), st.sampled_from([None, "5.7.1", "5.999.0"]), texts),
    st.builds(reply, st.sampled_from([450, 451, 421]), st.sampled_from([None, "4.7.1"]), texts),
)
verdicts = st.one_of(st.none(), st.none(), st.none(), st.sampled_from([CONTINUE, ACCEPT, SKIP, DISCARD]), refusals)
session_verdicts = st.one_of(*[st.none()] * 8, st.just(ACCEPT), refusals)
PEOPLE = ["b@rcpt.test", "c@rcpt.test", "d@rcpt.test", '"odd one"@rcpt.test']

# A few of them need more than one packet.
NEW_BODIES = [b"", *[b"new\r\n"] * 8, b"n" * 65534 + b"\r\n", b"x\r\n" * 22_000]
LARGE_BODIES = [b"y" * 65534 + b"\r\n" + b"z" * 10 + b"\r\n", b"line\r\n" * 11_000]

edits = st.one_of(
    st.tuples(st.just("add_header"), st.sampled_from(NAMES), values),
    st.tuples(st.just("insert_header"), st.sampled_from(NAMES), values, st.integers(0, 12)),
    st.tuples(st.just("change_header"), st.sampled_from(NAMES), values.filter(bool), st.integers(1, 3)),
    st.tuples(st.just("delete_header"), st.sampled_from(NAMES), st.integers(1, 3)),
    st.tuples(st.just("add_recipient"), st.sampled_from([*PEOPLE, "new@rcpt.test"])),
    st.tuples(st.just("delete_recipient"), st.sampled_from(PEOPLE)),
    st.tuples(st.just("change_sender"), st.sampled_from(["", "new@from.test"])),
    st.tuples(st.just("replace_body"), st.sampled_from(NEW_BODIES)),
    st.tuples(st.just("quarantine"), st.sampled_from(["odd", "very odd"])),
)
Edit = tuple[Any, ...]
Act = tuple[list[Edit], Verdict | None]
acts = st.tuples(st.lists(edits, max_size=3), verdicts)
CALLBACKS = ["mail", "rcpt", "data", "header", "end_of_headers", "body", "end_of_message"]
plans = st.fixed_dictionaries(
    {},
    optional={
        "connect": st.tuples(st.just([]), session_verdicts),
        "helo": st.tuples(st.just([]), session_verdicts),
        **{name: st.lists(acts, min_size=1, max_size=2) for name in CALLBACKS},
    },
)

lines = st.sampled_from([b"", b"body", b".", b"..", b"8bit \xff", b"bare\rCR", b"x" * 300])
small_bodies = st.lists(lines, max_size=4).map(lambda some: b"".join(line + b"\r\n" for line in some))
bodies = st.one_of(*[small_bodies] * 15, st.sampled_from(LARGE_BODIES))
header_fields = st.tuples(
    st.sampled_from([name.encode() for name in NAMES]),
    st.sampled_from([b" v", b"", b"  two", b"\ttab", b" folded\n\tvalue", b" 8bit \xff\xc3\xbc", b"none"]),
)


@dataclass(frozen=True)
class Letter:
    """A message and its envelope."""

    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes
    recipients: tuple[str, ...]
    sender: str

    @property
    def raw(self) -> bytes:
        head = b"".join(b"%s:%s\r\n" % (name, value.replace(b"\n", b"\r\n")) for name, value in self.fields)
        return head + b"\r\n" + self.body


letters = st.builds(
    Letter,
    st.lists(header_fields, max_size=5).map(tuple),
    bodies,
    st.lists(st.sampled_from(PEOPLE), min_size=1, max_size=3, unique=True).map(tuple),
    st.sampled_from(["a@from.test", "", "<a@from.test>"]),
)


# -- the filter --------------------------------------------------------------------------------------------------------


@dataclass
class Record:
    """What a filter was shown and what it did."""

    plan: dict[str, Any]
    shown: list[tuple[str, Any]] = field(default_factory=list)
    said: list[tuple[str, Any, Verdict]] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    ended: list[Verdict | None] = field(default_factory=list)


class Scripted(Filter):
    """Plays the plan of ``record``. Subclasses mark callbacks."""

    record: ClassVar[Record]
    fields: ClassVar[tuple[tuple[bytes, bytes], ...]] = ()

    def play(self, name: str, argument: Any) -> Verdict | None:
        record = type(self).record
        number = sum(at == name for at, _ in record.shown)
        record.shown.append((name, argument))
        planned = record.plan.get(name)
        if planned is None:
            return None
        made, verdict = planned[number % len(planned)] if isinstance(planned, list) else planned
        for edit in made:
            self.edit(record, edit)
        if verdict is not None:
            record.said.append((name, argument, verdict))
        return verdict if verdict is None or possible(name, verdict) else None

    def edit(self, record: Record, edit: Edit) -> None:
        method, *arguments = edit
        there = Counter(name.lower() for name, _ in type(self).fields)
        if method in ("change_header", "delete_header") and arguments[-1] > there[arguments[0].lower().encode()]:
            return  # what is not there has rules of its own, and tests of its own
        keywords = {"index": arguments.pop()} if method in ("insert_header", "change_header", "delete_header") else {}
        getattr(self.message, method)(*arguments, **keywords)
        record.edits.append(edit)

    def on_connect(self, hostname: str, address: Any) -> Verdict | None:
        return self.play("connect", (hostname, str(address.host)))

    def on_helo(self, name: str) -> Verdict | None:
        return self.play("helo", name)

    def on_mail(self, sender: Any, params: Any) -> Verdict | None:
        return self.play("mail", str(sender))

    def on_rcpt(self, recipient: Any, params: Any) -> Verdict | None:
        return self.play("rcpt", str(recipient))

    def on_data(self) -> Verdict | None:
        return self.play("data", None)

    def on_header(self, name: str, value: str) -> Verdict | None:
        return self.play("header", (name, value))

    def on_end_of_headers(self) -> Verdict | None:
        return self.play("end_of_headers", None)

    def on_body(self, chunk: bytes) -> Verdict | None:
        return self.play("body", chunk)

    def on_end_of_message(self) -> Verdict | None:
        return self.play("end_of_message", None)

    def on_message_end(self, verdict: Verdict | None) -> None:
        type(self).record.ended.append(verdict)


class Early(Scripted):
    """Everything is answered where it is asked."""

    on_header = early_verdict(Scripted.on_header)
    on_end_of_headers = early_verdict(Scripted.on_end_of_headers)
    on_body = early_verdict(Scripted.on_body)


class Silent(Scripted):
    """Only MAIL and the end of the message are answered."""

    on_connect = no_reply(Scripted.on_connect)
    on_helo = no_reply(Scripted.on_helo)
    on_data = no_reply(Scripted.on_data)


KINDS: list[type[Scripted]] = [Scripted, Early, Silent]


def possible(name: str, verdict: Verdict) -> bool:
    """The others are an author's mistake, answered with TEMPFAIL, which has tests of its own."""
    return name not in ("connect", "helo") or verdict not in (SKIP, DISCARD)


# -- what should come of it --------------------------------------------------------------------------------------------


def expected_verdict(record: Record, letter: Letter) -> tuple[Verdict, dict[str, Verdict]]:
    """The first thing the filter said that counts, and the refused recipients."""
    refused: dict[str, Verdict] = {}
    for name, argument, verdict in record.said:
        if verdict in (CONTINUE, SKIP):
            continue
        if name == "rcpt" and verdict.is_refusal and verdict.code != 421:
            refused[argument] = verdict
            if len(refused) == len(letter.recipients):
                return verdict, refused
            continue
        if name == "rcpt" and verdict.is_refusal:
            refused[argument] = verdict
        return verdict, refused
    return CONTINUE, refused


def expected_message(record: Record, letter: Letter) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Fields and body with the filter's edits: indices count what it was shown, changes come before additions."""
    shown: list[tuple[bytes, bytes] | None] = list(letter.fields)
    added: list[tuple[int | None, tuple[bytes, bytes]]] = []
    body = letter.body
    for method, *arguments in record.edits:
        if method == "replace_body":
            body = arguments[0]
        if not method.endswith("_header"):
            continue
        name = arguments[0].encode()
        places = [place for place, (other, _) in enumerate(letter.fields) if other.lower() == name.lower()]
        if method == "delete_header":
            shown[places[arguments[1] - 1]] = None
            continue
        new = name, b" " + arguments[1].encode("utf-8", "surrogateescape")
        if method == "change_header":
            shown[places[arguments[2] - 1]] = new
        else:
            added.append((arguments[2] if method == "insert_header" else None, new))
    # Postfix counts its own Received, which is on top until something is put above it.
    own = (b"", b"")
    whole = [own, *(kept for kept in shown if kept is not None)]
    for place, new in added:
        whole.insert(len(whole) if place is None else place, new)
    return [kept for kept in whole if kept is not own], body


def expected_envelope(record: Record, letter: Letter, refused: dict[str, Verdict]) -> tuple[str, list[str], str | None]:
    sender = letter.sender.strip("<>")
    people = [person for person in letter.recipients if person not in refused]
    quarantine = None
    for method, *arguments in record.edits:
        if method == "add_recipient" and arguments[0] not in people:
            people.append(arguments[0])
        elif method == "delete_recipient" and arguments[0] in people:
            people.remove(arguments[0])
        elif method == "change_sender":
            sender = arguments[0]
        elif method == "quarantine":
            quarantine = arguments[0]
    return sender, people, quarantine


def plain(verdict: Verdict) -> tuple[Any, ...]:
    """A verdict to compare: where there is no enhanced code, the server guards a digit in front by a space."""
    return verdict.kind, verdict.code, verdict.enhanced, [line.strip() for line in (verdict.text or "").split("\n")]


def check(record: Record, letter: Letter, outcome: Outcome, mta: str) -> None:
    verdict, refused = expected_verdict(record, letter)
    assert plain(outcome.verdict) == plain(verdict)
    assert {str(to): plain(why) for to, why in outcome.refused.items()} == {
        to: plain(why) for to, why in refused.items()
    }
    check_shown(record, letter, mta)
    applied = outcome.apply()
    if verdict.is_refusal or verdict == DISCARD:
        assert not applied.delivered
        assert split_message(applied.message) == (list(letter.fields), letter.body)
        return
    fields, body = expected_message(record, letter)
    got_fields, got_body = split_message(applied.message)
    assert got_body == body
    if mta == "postfix":
        assert got_fields == fields
    else:  # the places are Sendmail's, and so is the name of a field that was changed
        assert Counter((n.lower(), v) for n, v in got_fields) == Counter((n.lower(), v) for n, v in fields)
    sender, people, quarantine = expected_envelope(record, letter, refused)
    assert (applied.sender, list(map(str, applied.recipients))) == (sender, people)
    assert (applied.quarantined, applied.quarantine_reason) == (quarantine is not None, quarantine or "")
    assert applied.delivered is (quarantine is None and bool(people))
    assert applied.problems == ()


def check_shown(record: Record, letter: Letter, mta: str) -> None:
    """The filter saw the message, in order, without gaps, up to its own verdict."""
    headers = [argument for name, argument in record.shown if name == "header"]
    told = [
        (name.decode(), (value[1:] if value[:1] == b" " else value).decode("utf-8", "surrogateescape"))
        for name, value in letter.fields
    ]
    assert headers == told[: len(headers)]
    body = b"".join(argument for name, argument in record.shown if name == "body")
    assert letter.body.startswith(body)
    people = [argument for name, argument in record.shown if name == "rcpt"]
    assert people == list(letter.recipients)[: len(people)]
    if not record.said:
        assert (len(headers), body, len(people)) == (len(told), letter.body, len(letter.recipients))
    began = any(name == "mail" for name, _ in record.shown)
    assert len(record.ended) == began


# -- the tests ---------------------------------------------------------------------------------------------------------

many = settings(max_examples=ROUNDS, deadline=None, suppress_health_check=list(HealthCheck))
few = settings(many, max_examples=ROUNDS // 50)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """A refusal with a quarantine pending is worth a warning to an author."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def prepared(kind: type[Scripted], plan: dict[str, Any], letter: Letter) -> Record:
    kind.record = Record(plan)
    kind.fields = letter.fields
    return kind.record


@many
@given(plans, letters, st.sampled_from(KINDS), st.sampled_from(["postfix", "sendmail"]))
def test_what_the_client_reports_is_what_the_filter_did(
    plan: dict[str, Any], letter: Letter, kind: type[Scripted], mta: str
) -> None:
    record = prepared(kind, plan, letter)
    outcome = run(kind, letter.raw, sender=letter.sender, recipients=letter.recipients, mta=mta)
    check(record, letter, outcome, mta)


def pump(server: Mta, connection: socket.socket, sizes: list[int]) -> None:
    """Carry bytes between a socket and a conversation, in pieces of these sizes."""
    count = 0
    with connection:
        while data := connection.recv(sizes[count % len(sizes)]):
            count += 1
            if out := b"".join(encode(response, 1 << 20) for response in server.feed(data)):
                connection.sendall(out)
    server.eof()


@pytest.mark.parametrize("make_client", BOTH)
@few
@given(
    plans,
    letters,
    st.sampled_from(KINDS),
    st.sampled_from(["postfix", "sendmail"]),
    st.lists(st.sampled_from([1, 2, 5, 100, 65536]), min_size=1, max_size=4).filter(lambda sizes: max(sizes) > 5),
)
def test_over_a_socket_it_is_the_same(
    make_client: MakeClient, plan: dict[str, Any], letter: Letter, kind: type[Scripted], mta: str, sizes: list[int]
) -> None:
    record = prepared(kind, plan, letter)
    ours, theirs = socket.socketpair()
    server = Mta(kind, None)
    thread = threading.Thread(target=pump, args=(server, theirs, sizes), daemon=True)
    thread.start()
    with make_client(ours, mta=mta) as client:
        outcome = client.send_message(letter.raw, letter.sender, letter.recipients)
    thread.join(20)
    assert not thread.is_alive()
    assert server.failures == []
    check(record, letter, outcome, mta)


def test_the_client_in_memory_is_the_real_one() -> None:
    """``run`` plays with ``Client``; were it another one, the first test would be about that."""
    assert run.__globals__["Client"] is Client
