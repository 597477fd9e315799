"""What each MTA makes of a filter's modifications: the rules of both, one by one."""

import io
import re
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import compat32, default

import pytest

from fastmilter.addresses import Params, Recipient
from fastmilter.client.apply import Applied, apply_modifications
from fastmilter.client.fields import Field, crlf, join_message, message_bytes, split_message
from fastmilter.codec import (
    AddHeader,
    AddRecipient,
    ChangeHeader,
    ChangeSender,
    DeleteRecipient,
    InsertHeader,
    Modification,
    Quarantine,
    ReplaceBody,
)
from fastmilter.errors import ConfigError
from fastmilter.replies import ACCEPT, CONTINUE, DISCARD, REJECT, TEMPFAIL, Verdict, reply

MESSAGE = b"Received: r1\r\nFrom: a@b\r\nX: 1\r\nX: 2\r\nSubject: hi\r\nX: 3\r\n\r\nbody\r\n"
MTAS = ("postfix", "sendmail")


def applied(mta: str, *edits: Modification, message: bytes = MESSAGE, verdict: Verdict = ACCEPT) -> Applied:
    return apply_modifications(message, "a@b", ["c@d", "<E@F>"], edits, mta=mta, verdict=verdict)


def section(mta: str, *edits: Modification, message: bytes = MESSAGE) -> list[str]:
    """The header section as text."""
    head = applied(mta, *edits, message=message).message.partition(b"\r\n\r\n")[0]
    return [line for line in head.decode().split("\r\n") if line]


PLAIN = ["Received: r1", "From: a@b", "X: 1", "X: 2", "Subject: hi", "X: 3"]


@pytest.mark.parametrize("mta", MTAS)
def test_nothing_changes_nothing(mta: str) -> None:
    result = applied(mta)
    assert result == Applied(result.sender, Params(), (Recipient(b"c@d"), Recipient(b"<E@F>")), MESSAGE)
    assert (result.sender, result.recipients, result.delivered) == ("a@b", ("c@d", "E@F"), True)


@pytest.mark.parametrize(
    ("edit", "postfix", "sendmail"),
    [
        # A new name goes to the end on both; a known one to the end, or before the first.
        (AddHeader(b"New", b"v"), [*PLAIN, "New: v"], [*PLAIN, "New: v"]),
        (AddHeader(b"x", b"0"), [*PLAIN, "x: 0"], ["Received: r1", "From: a@b", "x: 0", *PLAIN[2:]]),
        (AddHeader(b"Empty", b""), [*PLAIN, "Empty: "], [*PLAIN, "Empty: "]),
        # Sendmail fills in the field that it would add itself, which stands above those of the message.
        (AddHeader(b"Date", b"now"), [*PLAIN, "Date: now"], ["Date: now", *PLAIN]),
        (AddHeader(b"Received", b"me"), [*PLAIN, "Received: me"], ["Received: me", *PLAIN]),
        # Where a field goes by its index: Sendmail's own nine count there.
        (InsertHeader(0, b"New", b"v"), ["New: v", *PLAIN], ["New: v", *PLAIN]),
        (InsertHeader(1, b"New", b"v"), ["New: v", *PLAIN], ["New: v", *PLAIN]),
        (InsertHeader(3, b"New", b"v"), [*PLAIN[:2], "New: v", *PLAIN[2:]], ["New: v", *PLAIN]),
        (InsertHeader(9, b"New", b"v"), [*PLAIN, "New: v"], ["Received: r1", "New: v", *PLAIN[1:]]),
        (InsertHeader(99, b"New", b"v"), [*PLAIN, "New: v"], [*PLAIN, "New: v"]),
        (InsertHeader(0xFFFFFFFF, b"New", b"v"), [*PLAIN, "New: v"], ["New: v", *PLAIN]),
        # Changes count the fields of that name, in any case, 0 being 1; Postfix takes the filter's spelling.
        (ChangeHeader(1, b"x", b"n"), [*PLAIN[:2], "x: n", *PLAIN[3:]], [*PLAIN[:2], "X: n", *PLAIN[3:]]),
        (ChangeHeader(0, b"X", b"n"), [*PLAIN[:2], "X: n", *PLAIN[3:]], [*PLAIN[:2], "X: n", *PLAIN[3:]]),
        (ChangeHeader(3, b"X", b"n"), [*PLAIN[:5], "X: n"], [*PLAIN[:5], "X: n"]),
        (ChangeHeader(1, b"Received", b"n"), ["Received: n", *PLAIN[1:]], ["Received: n", *PLAIN[1:]]),
        (ChangeHeader(4, b"X", b"n"), [*PLAIN, "X: n"], [*PLAIN[:2], "X: n", *PLAIN[2:]]),
        (ChangeHeader(1, b"New", b"n"), [*PLAIN, "New: n"], [*PLAIN, "New: n"]),
        (ChangeHeader(2, b"From", b"n"), [*PLAIN, "From: n"], ["From: n", *PLAIN]),
        # Deletions.
        (ChangeHeader(2, b"X", b""), [*PLAIN[:3], *PLAIN[4:]], [*PLAIN[:3], *PLAIN[4:]]),
        (ChangeHeader(4, b"X", b""), PLAIN, PLAIN),
        (ChangeHeader(1, b"None", b""), PLAIN, PLAIN),
        # Folding: what is no continuation is made one.
        (AddHeader(b"New", b"a\n b"), [*PLAIN, "New: a", " b"], [*PLAIN, "New: a", " b"]),
        (AddHeader(b"New", b"a\nb"), [*PLAIN, "New: a", "\tb"], [*PLAIN, "New: a", " b"]),
    ],
)
def test_one_header_edit(edit: Modification, postfix: list[str], sendmail: list[str]) -> None:
    assert section("postfix", edit) == postfix
    assert section("sendmail", edit) == sendmail


def test_a_deletion_renumbers_on_postfix_only() -> None:
    edits: list[Modification] = [ChangeHeader(1, b"X", b""), ChangeHeader(2, b"X", b"")]
    assert section("postfix", *edits) == ["Received: r1", "From: a@b", "X: 2", "Subject: hi"]
    assert section("sendmail", *edits) == ["Received: r1", "From: a@b", "Subject: hi", "X: 3"]
    twice: list[Modification] = [ChangeHeader(1, b"X", b""), ChangeHeader(1, b"X", b"")]
    assert section("postfix", *twice) == ["Received: r1", "From: a@b", "Subject: hi", "X: 3"]
    assert section("sendmail", *twice) == ["Received: r1", "From: a@b", "X: 2", "Subject: hi", "X: 3"]


@pytest.mark.parametrize("mta", MTAS)
def test_highest_index_first_deletes_all_on_both(mta: str) -> None:
    edits: list[Modification] = [ChangeHeader(index, b"X", b"") for index in (3, 2, 1)]
    assert section(mta, *edits) == ["Received: r1", "From: a@b", "Subject: hi"]


def test_several_additions_come_out_in_order_or_reversed() -> None:
    edits: list[Modification] = [AddHeader(b"N", b"1"), AddHeader(b"N", b"2"), AddHeader(b"N", b"3")]
    assert section("postfix", *edits)[6:] == ["N: 1", "N: 2", "N: 3"]
    assert section("sendmail", *edits)[6:] == ["N: 3", "N: 2", "N: 1"]


def test_insertions_see_those_before_them() -> None:
    edits: list[Modification] = [InsertHeader(index, b"N%d" % index, b"v") for index in (0, 1, 2)]
    assert section("postfix", *edits) == ["N0: v", "N1: v", "N2: v", *PLAIN]
    assert section("sendmail", *edits) == ["N0: v", "N1: v", "N2: v", *PLAIN]
    below: list[Modification] = [InsertHeader(index, b"N%d" % index, b"v") for index in (1, 2)]
    assert section("postfix", *below) == ["N1: v", "N2: v", *PLAIN]


def test_on_postfix_its_own_received_can_be_reached_once_something_is_above_it() -> None:
    edits: list[Modification] = [InsertHeader(0, b"Top", b"v"), ChangeHeader(1, b"Received", b"mine")]
    assert section("postfix", *edits) == ["Top: v", "Received: mine", *PLAIN]
    # The topmost field itself is out of reach then.
    edits = [InsertHeader(0, b"Top", b"v"), ChangeHeader(1, b"Top", b"w")]
    assert section("postfix", *edits) == ["Top: v", *PLAIN, "Top: w"]


def test_on_sendmail_an_addition_takes_the_place_of_a_deleted_field() -> None:
    edits: list[Modification] = [ChangeHeader(1, b"Subject", b""), AddHeader(b"Subject", b"new")]
    assert section("sendmail", *edits) == [*PLAIN[:4], "Subject: new", "X: 3"]
    assert section("postfix", *edits) == [*PLAIN[:4], "X: 3", "Subject: new"]


@pytest.mark.parametrize("mta", MTAS)
def test_values_as_they_are_where_agreed(mta: str) -> None:
    result = apply_modifications(
        MESSAGE, "a@b", ["c@d"], [AddHeader(b"N", b"v"), ChangeHeader(1, b"X", b"  w")], mta=mta, leading_space=True
    )
    assert b"\r\nN:v\r\n" in result.message
    assert b"\r\nX:  w\r\n" in result.message


@pytest.mark.parametrize("mta", MTAS)
@pytest.mark.parametrize(
    ("chunks", "body"),
    [
        ([b""], b""),
        ([b"new\r\n"], b"new\r\n"),
        ([b"one\n", b"two"], b"one\r\ntwo\r\n"),
        ([b"split\r", b"\nhere\r\n"], b"split\r\nhere\r\n"),
        ([b"bare\rcr\r\n"], b"bare\rcr\r\n"),
        ([b".\r\n"], b".\r\n"),
    ],
)
def test_bodies(mta: str, chunks: list[bytes], body: bytes) -> None:
    result = applied(mta, *map(ReplaceBody, chunks))
    assert result.message.partition(b"\r\n\r\n")[2] == body


def test_a_body_in_two_runs() -> None:
    edits: list[Modification] = [ReplaceBody(b"one\r\n"), AddHeader(b"N", b"v"), ReplaceBody(b"two\r\n")]
    failed = applied("postfix", *edits)
    assert not failed.delivered
    assert failed.message == MESSAGE
    assert "451 4.3.5" in failed.problems[0]
    fine = applied("sendmail", *edits)
    assert fine.delivered
    assert fine.message.endswith(b"\r\n\r\none\r\ntwo\r\n")


@pytest.mark.parametrize("mta", MTAS)
def test_recipients(mta: str) -> None:
    result = applied(mta, AddRecipient(b"new@x"), AddRecipient(b"<new@y>"), DeleteRecipient(b"c@d"))
    assert result.recipients == ("E@F", "new@x", "new@y")
    result = applied(mta, DeleteRecipient(b"<e@f>"), DeleteRecipient(b"unknown@x"))
    assert result.recipients == ("c@d", "E@F")
    result = applied(mta, DeleteRecipient(b"<c@d>"), DeleteRecipient(b"E@F"))
    assert result.recipients == ()
    assert not result.delivered


def test_a_recipient_who_is_there_already() -> None:
    edits: list[Modification] = [AddRecipient(b"c@d"), AddRecipient(b"new@x"), AddRecipient(b"NEW@x")]
    assert applied("postfix", *edits).recipients == ("c@d", "E@F", "c@d", "new@x")
    assert applied("sendmail", *edits[:2]).recipients == ("c@d", "E@F", "new@x")
    assert applied("postfix", AddRecipient(b"<>")).recipients == ("c@d", "E@F")


def test_parameters_of_recipients() -> None:
    edit = AddRecipient(b"<n@x>", (b"NOTIFY=NEVER", b"SIZE=1"))
    postfix = applied("postfix", edit)
    assert postfix.recipients[2].params == ("NOTIFY=NEVER",)
    assert postfix.problems
    sendmail = applied("sendmail", edit)
    assert sendmail.recipients == ("c@d", "E@F")
    assert "knows only NOTIFY and ORCPT" in sendmail.problems[0]
    fine = applied("sendmail", AddRecipient(b"<n@x>", (b"NOTIFY=NEVER",)))
    assert fine.recipients[2].params == ("NOTIFY=NEVER",)
    kept = apply_modifications(MESSAGE, "a@b", [Recipient(b"<c@d>", Params(["ORCPT=x"]))], [])
    assert kept.recipients[0].params == ("ORCPT=x",)


def test_senders() -> None:
    for mta in MTAS:
        assert applied(mta, ChangeSender(b"new@x")).sender == "new@x"
        assert applied(mta, ChangeSender(b"<>")).sender == ""
    assert applied("postfix", ChangeSender(b"")).sender == ""
    ignored = applied("sendmail", ChangeSender(b""))
    assert (ignored.sender, len(ignored.problems)) == ("a@b", 1)


def test_parameters_of_senders() -> None:
    edit = ChangeSender(b"<n@x>", (b"RET=HDRS", b"SIZE=10"))

    def params(mta: str) -> tuple[str, ...]:
        result = apply_modifications(MESSAGE, "a@b", ["c@d"], [edit], mta=mta, sender_params=["RET=FULL", "ENVID=1"])
        return result.sender_params

    assert params("postfix") == ("ENVID=1", "RET=HDRS")
    assert params("sendmail") == ("RET=HDRS", "SIZE=10")


@pytest.mark.parametrize("mta", MTAS)
def test_quarantine(mta: str) -> None:
    result = applied(mta, Quarantine(b"odd"), AddHeader(b"N", b"v"))
    assert (result.quarantined, result.quarantine_reason, result.delivered) == (True, "odd", False)
    assert b"N: v" in result.message


@pytest.mark.parametrize("mta", MTAS)
@pytest.mark.parametrize("verdict", [REJECT, TEMPFAIL, DISCARD, reply(550, None, "no")])
def test_a_refusal_voids_everything(mta: str, verdict: Verdict) -> None:
    result = applied(mta, AddHeader(b"N", b"v"), Quarantine(b"odd"), DeleteRecipient(b"c@d"), verdict=verdict)
    assert result.message == MESSAGE
    assert result.recipients == ("c@d", "E@F")
    assert (result.delivered, result.quarantined) == (False, False)


def test_continue_delivers() -> None:
    assert applied("postfix", AddHeader(b"N", b"v"), verdict=CONTINUE).delivered


def test_unknown_mta() -> None:
    with pytest.raises(ConfigError, match="'exim' is not one of postfix, sendmail"):
        applied("exim")


@pytest.mark.parametrize(
    ("raw", "fields", "body"),
    [
        (b"", [], b""),
        (b"\r\n", [], b""),
        (b"\r\nbody", [], b"body\r\n"),
        (b"A: 1", [Field(b"A", b" 1")], b""),
        (b"A: 1\r\n", [Field(b"A", b" 1")], b""),
        (b"A: 1\r\n\r\n", [Field(b"A", b" 1")], b""),
        (b"A:1\nB:\n\nx\n\ny\n", [Field(b"A", b"1"), Field(b"B", b"")], b"x\r\n\r\ny\r\n"),
        (b"A: \r\n 1\r\n\t\r\n\r\n", [Field(b"A", b" \n 1\n\t")], b""),
        (b"A : 1\r\n", [Field(b"A", b" 1")], b""),
        (b"A: caf\xe9 \xff\r\n", [Field(b"A", b" caf\xe9 \xff")], b""),
        (b"A: 1\r\nno field\r\nB: 2\r\n", [Field(b"A", b" 1")], b"no field\r\nB: 2\r\n"),
        (b" A: 1\r\n", [], b" A: 1\r\n"),
        (b": 1\r\n", [], b": 1\r\n"),
        (b"A: 1\r\r\n\r\n", [Field(b"A", b" 1\r")], b""),
        (b"A: 1\r\n\r\nx\ry\r\n", [Field(b"A", b" 1")], b"x\ry\r\n"),
    ],
)
def test_messages_are_taken_apart(raw: bytes, fields: list[Field], body: bytes) -> None:
    assert split_message(raw) == (fields, body)
    # Put together, they are what they were.
    assert split_message(join_message(fields, body)) == (fields, body)


def test_a_mailbox_line_as_each_mta_takes_it() -> None:
    raw = b"From a@b Sun Nov 22 2026\nA: 1\n\nFrom here\n"
    assert section("postfix", message=raw) == ["X-Mailbox-Line: From a@b Sun Nov 22 2026", "A: 1"]
    assert section("sendmail", message=raw) == ["A: 1"]


def test_line_ends() -> None:
    assert crlf(b"") == b""
    assert crlf(b"a\r\r\nb\n\nc") == b"a\r\r\nb\r\n\r\nc\r\n"


def test_sources_of_messages() -> None:
    assert message_bytes(MESSAGE) == MESSAGE
    assert message_bytes(io.BytesIO(MESSAGE)) == MESSAGE
    with pytest.raises(TypeError, match="a message is bytes, a binary file or an EmailMessage, not str"):
        message_bytes(io.StringIO("A: 1"))  # type: ignore[arg-type]
    made = EmailMessage()
    made["Subject"] = "caffè " * 30
    made.set_content("text\n")
    raw = message_bytes(made)
    assert re.search(rb"\r\n\r\ntext\r\n$", raw)
    assert b"\n" not in raw.replace(b"\r\n", b"")


@pytest.mark.parametrize("policy", [default, compat32])
def test_a_parsed_message_is_not_folded_anew(policy: object) -> None:
    raw = b"Subject: " + b"long " * 40 + b"\r\nX: a\r\n  b\r\n\r\nbody\r\n"
    parsed = BytesParser(policy=policy).parsebytes(raw)  # type: ignore[call-overload]
    assert message_bytes(parsed) == raw


@pytest.mark.parametrize("mta", MTAS)
def test_a_recipient_can_come_and_go(mta: str) -> None:
    """Seen on Postfix 3.7.11: what was deleted can be added again, however often."""
    add, delete = AddRecipient(b"<c@d>"), DeleteRecipient(b"<c@d>")
    assert applied(mta, delete, add, delete, add).recipients == ("E@F", "c@d")
    assert applied(mta, delete, add, delete).recipients == ("E@F",)
