"""The examples do what they say: on bytes, then in a served process."""

import base64
import email
import email.policy
import itertools
import quopri
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastmilter import codec
from fastmilter.client import Client
from fastmilter.constants import Action
from fastmilter.plan import CALLBACKS

from .support import EXAMPLES, ROOT, Talk, environment, load, served

TEXT = [(b"From", b"jiri@orchard.example"), (b"Subject", b"Apples")]
RAW_SUBJECT = "Äpfel".encode() + b"\xff\xfe caf\xe9\n\tfolded"


def edits(responses: list[codec.Response]) -> list[codec.Response]:
    """Everything but the verdict, which comes last and lets the message through."""
    assert responses
    assert isinstance(responses[-1], codec.Continue | codec.Accept)
    return responses[:-1]


def talk(name: str, **options: object) -> Talk:
    made = Talk(load(name, **options))
    made.connect()
    return made


# -- Tagger --------------------------------------------------------------------------------------------------------


def test_tagger_prefixes_the_subject_and_adds_fields() -> None:
    responses = edits(talk("tagger.py:Tagger").message(TEXT, b"twelve boxes\r\n"))
    assert responses[0] == codec.ChangeHeader(1, b"Subject", b"[external] Apples")
    added = {edit.name: edit.value for edit in responses[1:] if isinstance(edit, codec.AddHeader | codec.InsertHeader)}
    assert added == {b"X-Tagged-By": b"fastmilter", b"X-Client": b"mail.orchard.example (192.0.2.25:40522)"}


def test_tagger_loses_no_byte_of_a_subject() -> None:
    responses = edits(talk("tagger.py:Tagger").message([(b"SUBJECT", RAW_SUBJECT)]))
    assert responses[0] == codec.ChangeHeader(1, b"SUBJECT", b"[external] " + RAW_SUBJECT)


def test_tagger_leaves_a_subject_alone_that_has_the_prefix() -> None:
    responses = edits(talk("tagger.py:Tagger").message([(b"Subject", b"Re: [external] Apples")]))
    assert not any(isinstance(edit, codec.ChangeHeader) for edit in responses)


def test_tagger_changes_the_first_of_two_subjects_and_adds_a_missing_one() -> None:
    conversation = talk("tagger.py:Tagger", prefix="[x]")
    two = edits(conversation.message([(b"Subject", b"one"), (b"Subject", b"two")]))
    assert [edit for edit in two if isinstance(edit, codec.ChangeHeader)] == [
        codec.ChangeHeader(1, b"Subject", b"[x] one")
    ]
    none = edits(conversation.message([(b"From", b"a@b")]))
    assert b"[x]" in [getattr(edit, "value", b"") for edit in none if getattr(edit, "name", b"") == b"Subject"]


def test_tagger_over_the_wire() -> None:
    message = (EXAMPLES / "message.eml").read_bytes()
    with served("examples/tagger.py:Tagger") as server, Client(server.address) as client:
        outcome = client.send_message(message, "jiri@orchard.example", ["anna@harbour.example"])
        # Another message on the same connection has nothing of the first.
        plain = client.send_message(b"Subject: [external] x\r\n\r\n", "a@b.example", ["anna@harbour.example"])
    after = outcome.apply().message.replace(b"\r\n", b"\n")
    before = message.replace(b"\r\n", b"\n")
    assert "Subject: [external] Äpfel für die Kantine".encode() in after
    assert after.replace(b"Subject: [external] ", b"Subject: ").partition(b"X-Tagged-By")[0] in before
    assert after.partition(b"\n\n")[2] == before.partition(b"\n\n")[2]
    assert [edit.name for edit in plain.modifications if isinstance(edit, codec.AddHeader)] == [
        b"X-Tagged-By",
        b"X-Client",
    ]
    assert server.status == 0


# -- RecipientPolicy -----------------------------------------------------------------------------------------------


def test_policy_refuses_some_recipients_and_accepts_the_rest() -> None:
    conversation = talk("recipient_policy.py:RecipientPolicy", refuse=["Former@Harbour.example", "@old.example"])
    conversation.tell(codec.MailFrom(b"<jiri@orchard.example>"))
    refused = codec.ReplyCode(b"550 5.1.1 this mailbox is closed")
    for recipient, answer in {
        b"<FORMER@harbour.EXAMPLE>": refused,
        b"<anna@harbour.example>": codec.Continue(),
        b"<anyone@old.example>": refused,
        b"<anyone@very.old.example>": codec.Continue(),
        b"<postmaster>": codec.Continue(),
    }.items():
        assert conversation.tell(codec.RcptTo(recipient)) == [answer], recipient
    assert conversation.conversation.message is not None
    assert conversation.conversation.message.recipients == (
        "anna@harbour.example",
        "anyone@very.old.example",
        "postmaster",
    )


@pytest.mark.parametrize("options", ['refuse = ["harbour.example"]', 'refuse = "a@b"', "refuse = [1]", 'text = ""'])
def test_policy_says_what_is_wrong_with_its_options(tmp_path: Path, options: str) -> None:
    config = tmp_path / "policy.toml"
    config.write_text(f"[filter]\n{options}\n")
    target = "examples/recipient_policy.py:RecipientPolicy"
    command = [sys.executable, "-m", "fastmilter", "serve", target, "--config", str(config), "--check-config"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 78, done
    assert "RecipientPolicy" in done.stderr


def test_policy_over_the_wire(tmp_path: Path) -> None:
    config = tmp_path / "policy.toml"
    config.write_text('[filter]\nrefuse = ["@old.example"]\ntext = "100% closed"\n')
    target = "examples/recipient_policy.py:RecipientPolicy"
    with served(target, "--config", str(config)) as server, Client(server.address) as client:
        outcome = client.send_message(
            b"Subject: x\r\n\r\nbody\r\n", "a@b.example", ["anna@harbour.example", "anna@old.example"]
        )
    assert list(outcome.recipients) == ["anna@harbour.example"]
    assert {str(who): (verdict.code, verdict.text) for who, verdict in outcome.refused.items()} == {
        "anna@old.example": (550, "100% closed")
    }
    assert outcome.apply().delivered


# -- Disclaimer ----------------------------------------------------------------------------------------------------

TYPE, ENCODING, DISPOSITION = b"Content-Type", b"Content-Transfer-Encoding", b"Content-Disposition"
RULE = b"_" * 40


def new_body(responses: list[codec.Response]) -> bytes | None:
    """The new body, or None if it stays."""
    parts = edits(responses)
    assert all(isinstance(part, codec.ReplaceBody) for part in parts)
    return b"".join(part.chunk for part in parts if isinstance(part, codec.ReplaceBody)) if parts else None


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(TYPE, b"text/plain")],
        [(TYPE, b'Text/Plain;\n charset="UTF-8"; format=flowed'), (ENCODING, b"8BIT")],
        [(TYPE, b"text/plain; charset=iso-2022-jp"), (DISPOSITION, b"inline")],
    ],
)
@pytest.mark.parametrize("end", [b"\r\n", b""])
def test_disclaimer_stands_at_the_end_of_plain_text(fields: list[tuple[bytes, bytes]], end: bytes) -> None:
    body = new_body(talk("disclaimer.py:Disclaimer", text="one\ntwo").message(fields, b"twelve ", b"b\xf6xes" + end))
    assert body == b"twelve b\xf6xes\r\n\r\n" + RULE + b"\r\none\r\ntwo\r\n"


def test_disclaimer_in_quoted_printable_reads_as_it_was_written() -> None:
    text = "a = b, and a line that is far longer than the seventy-six characters that quoted-printable admits in one"
    fields = [(TYPE, b"text/plain; charset=utf-8"), (ENCODING, b"quoted-printable")]
    body = new_body(talk("disclaimer.py:Disclaimer", text=text).message(fields, b"M=C3=B6we=\r\n"))
    assert body is not None
    assert max(map(len, body.splitlines())) <= 76
    assert quopri.decodestring(body).replace(b"\r\n", b"\n").endswith(RULE + b"\n" + text.encode() + b"\n")


@pytest.mark.parametrize(
    "fields",
    [
        [(TYPE, b"multipart/alternative; boundary=x")],
        [(TYPE, b"text/html")],
        [(TYPE, b"no type at all")],
        [(TYPE, b"text/plain"), (ENCODING, b"base64")],
        [(TYPE, b"text/plain"), (ENCODING, b"x-unknown")],
        [(TYPE, b"text/plain; charset=utf-16")],
        [(TYPE, b"text/plain; charset=\xff\xfe")],
        [(TYPE, b"text/plain; charset=rot13")],
        [(TYPE, b"text/plain"), (DISPOSITION, b"attachment; filename=list.txt")],
        [(TYPE, b"text/plain"), (TYPE, b"multipart/mixed; boundary=x")],
    ],
)
def test_disclaimer_leaves_alone_what_it_would_spoil(fields: list[tuple[bytes, bytes]]) -> None:
    assert new_body(talk("disclaimer.py:Disclaimer").message(fields, b"twelve boxes\r\n")) is None


def test_disclaimer_leaves_a_very_large_message_alone_and_serves_the_next() -> None:
    conversation = talk("disclaimer.py:Disclaimer")
    large = itertools.repeat(b"x" * 65000 + b"\r\n", 170)
    assert new_body(conversation.message([], *large)) is None
    body = new_body(conversation.message([], b"y" * 60000 + b"\r\n", *itertools.repeat(b"z" * 60000, 40)))
    assert body is not None
    assert body.startswith(b"y" * 60000 + b"\r\nz")
    assert body.endswith(b"delete it.\r\n")


def test_disclaimer_over_the_wire() -> None:
    content = email.message.EmailMessage(policy=email.policy.SMTP)
    content["Subject"] = "Äpfel"
    content.set_content("zwölf Kisten\n", cte="quoted-printable")
    attached = email.message.EmailMessage(policy=email.policy.SMTP)
    attached.set_content("zwölf Kisten\n", cte="base64")
    with served("examples/disclaimer.py:Disclaimer") as server, Client(server.address) as client:
        outcome = client.send_message(content.as_bytes(), "a@b.example", ["c@d.example"])
        untouched = client.send_message(attached.as_bytes(), "a@b.example", ["c@d.example"])
    after = email.message_from_bytes(outcome.apply().message, policy=email.policy.default)
    assert after["Subject"] == "Äpfel"
    text = after.get_content().replace("\r\n", "\n")
    assert text.startswith("zwölf Kisten\n\n" + "_" * 40 + "\nThis message is meant")
    assert not untouched.modifications
    assert base64.b64encode("zwölf".encode())[:4] in untouched.apply().message


def test_disclaimer_is_not_served_where_the_body_cannot_be_changed() -> None:
    filter_class = load("disclaimer.py:Disclaimer")
    with pytest.raises(ValueError, match="not enough values"):  # no answer: the connection ends, the MTA tempfails
        Talk(filter_class, actions=int(Action.ADD_HEADERS))


# -- LogEverything -------------------------------------------------------------------------------------------------


def test_log_everything_overrides_every_callback() -> None:
    source = (EXAMPLES / "log_everything.py").read_text()
    told = set(re.findall(r"def (on_\w+)", source))
    assert told == set(CALLBACKS) - {"on_error", "on_timeout"}


def test_log_everything_over_the_wire() -> None:
    with served("examples/log_everything.py:LogEverything") as server, Client(server.address) as client:
        outcome = client.send_message(
            b"Subject: caf\xe9\r\n\r\nsecret\r\n", "a@b.example", ["c@d.example"], hostname="evil\nhost"
        )
        client.unknown("ETRN")
        client.mail("a@b.example")
        client.abort()
    assert not outcome.modifications
    assert outcome.apply().delivered
    said = [line.partition(" log_everything: ")[2] for line in server.log if " log_everything: " in line]
    steps = [line.partition(" ")[0] for line in said]
    assert steps == [
        *("negotiate", "connect", "helo", "mail", "rcpt", "data", "header", "end_of_headers", "body"),
        *("end_of_message", "message_end", "unknown", "mail", "abort", "message_end", "close"),
    ]
    assert r"hostname='evil\nhost'" in said[1]
    assert r"caf\udce9" in "".join(said)
    assert "secret" not in "".join(server.log)


# -- all of them ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_the_commands_in_an_example_name_what_is_there(path: Path) -> None:
    source = path.read_text()
    for target in re.findall(r"examples/\w+\.py(?::\w+)?", source):
        file, _, name = target.partition(":")
        assert (ROOT / file).is_file(), target
        assert f"class {name}" in (ROOT / file).read_text()


# -- make demo -----------------------------------------------------------------------------------------------------


def demo(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "examples/demo.py", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment(LC_ALL="C.UTF-8"), capture_output=True, text=True, timeout=120, check=False
    )


def test_demo_shows_every_step_and_the_change() -> None:
    done = demo()
    assert done.returncode == 0, done.stderr
    for step in ("connect", "helo", "mail", "rcpt", "header", "end_of_message"):
        assert re.search(rf"^  {step} ", done.stdout, re.MULTILINE), step
    assert "  verdict        continue" in done.stdout
    assert "\n  -Subject: Äpfel" in done.stdout
    assert "\n  +Subject: [external] Äpfel" in done.stdout
    assert "\n  +X-Tagged-By: fastmilter" in done.stdout
    assert "  exit status 0" in done.stdout


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("examples/log_everything.py:LogEverything", "came back unchanged"),
        ("examples/log_everything.py:NoSuchFilter", "did not start (exit status 78)"),
    ],
)
def test_demo_fails_when_something_did_not_work(target: str, why: str) -> None:
    done = demo(target)
    assert done.returncode == 1
    assert why in done.stderr
