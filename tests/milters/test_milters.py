"""The client against milters that others wrote: what they answer, and what becomes of the message."""

from __future__ import annotations

import asyncio
from typing import Any

import dkim  # type: ignore[import-untyped]
import pytest

from fastmilter import (
    ACCEPT,
    CONTINUE,
    DISCARD,
    TEMPFAIL,
    Action,
    AsyncClient,
    Chain,
    Client,
    ProtocolFlag,
    Step,
    codec,
)
from fastmilter.client import Outcome, Timeouts

from .conftest import Start
from .running import AUTHSERV, DKIM_DOMAIN, DKIM_SELECTOR, DMARC_DOMAIN, Milters

SIMPLE = (
    b"From: Ann <ann@signed.test>\r\nTo: bob@to.test\r\nSubject: =?utf-8?q?=C3=84pfel?=\r\n"
    b"X-Folded: one\r\n\ttwo\r\nDate: Mon, 01 Jan 2024 00:00:00 +0000\r\nMessage-Id: <1@signed.test>\r\n\r\n"
)
BODIES = [b"", b"one line\r\n", b"  spaces \t \r\n\r\n.\r\nno end", b"0123456789abcdef\r\n" * 15000]
BOTH = pytest.mark.parametrize("mta", ["postfix", "sendmail"])
PATIENT = Timeouts(connect=20, command=30, content=60)


def signatures(message: bytes) -> list[bytes]:
    head = message.partition(b"\r\n\r\n")[0]
    return [line for line in head.split(b"\r\n") if line.lower().startswith(b"dkim-signature:")]


# -- OpenDKIM --------------------------------------------------------------------------------------------------------


def verifies(message: bytes, record: str) -> bool:
    def answer(name: bytes, timeout: float = 0) -> bytes:
        assert name == f"{DKIM_SELECTOR}._domainkey.{DKIM_DOMAIN}.".encode()
        return record.encode()

    return bool(dkim.verify(message, dnsfunc=answer))


@BOTH
def test_opendkim_signs_and_the_signature_verifies(start: Start, milters: Milters, mta: str) -> None:
    record = milters.dkim_record
    signed: list[bytes] = []
    with Client(start("opendkim"), mta=mta, timeouts=PATIENT) as client:
        assert client.agreed.actions & Action.ADD_HEADERS
        for number, body in enumerate(BODIES):
            outcome = client.send_message(
                SIMPLE + body, f"ann{number}@signed.test", ["bob@to.test"], hostname="in.test", address="192.0.2.1"
            )
            assert outcome.verdict in (ACCEPT, CONTINUE)
            assert outcome.modifications
            applied = outcome.apply()
            assert applied.delivered
            assert len(signatures(applied.message)) == 1
            signed.append(applied.message)
    assert [verifies(message, record) for message in signed] == [True] * len(BODIES)
    assert not verifies(signed[1].replace(b"one line", b"one lime"), record)

    # OpenDKIM itself says the same of what was applied.
    with Client(start("opendkim-verify"), mta=mta, timeouts=PATIENT) as client:
        for message, result in [*((message, b"pass") for message in signed), (signed[0] + b"more\r\n", b"fail")]:
            outcome = client.send_message(message, "ann@signed.test", ["bob@to.test"])
            (said,) = outcome.modifications
            assert isinstance(said, codec.InsertHeader)
            assert said.name == b"Authentication-Results"
            assert said.value.strip().startswith(f"{AUTHSERV};\n\tdkim=".encode() + result)
            assert outcome.apply().message.startswith(f"Authentication-Results: {AUTHSERV};\r\n\tdkim=".encode())


def test_opendkim_leaves_others_alone(start: Start) -> None:
    with Client(start("opendkim"), timeouts=PATIENT) as client:
        outcome = client.send_message(
            SIMPLE.replace(b"signed.test", b"other.test"), "a@other.test", ["b@to.test"], address="192.0.2.1"
        )
        assert not outcome.modifications
    with Client(start("opendkim"), timeouts=PATIENT) as client:  # from outside
        assert not client.send_message(SIMPLE, "a@signed.test", ["b@to.test"], address="203.0.113.1").modifications


# -- OpenDMARC -------------------------------------------------------------------------------------------------------


def dmarc(client: Client, domain: str, result: str) -> Outcome:
    message = (
        f"Authentication-Results: {AUTHSERV}; {result}\r\nFrom: a@{domain}\r\nTo: b@to.test\r\n"
        "Date: Mon, 01 Jan 2024 00:00:00 +0000\r\nSubject: x\r\n\r\nbody\r\n"
    ).encode()
    return client.send_message(message, f"a@{domain}", ["b@to.test"], hostname="out.test", address="192.0.2.1")


@BOTH
def test_opendmarc_judges_each_message_on_its_own(start: Start, mta: str) -> None:
    aligned = f"dkim=pass header.d={DMARC_DOMAIN}"
    with Client(start("opendmarc"), mta=mta, timeouts=PATIENT) as client:
        for _ in range(3):
            refused = dmarc(client, DMARC_DOMAIN, "dkim=fail header.d=elsewhere.test")
            assert (refused.verdict.code, refused.verdict.enhanced) == (550, "5.7.1")
            assert DMARC_DOMAIN in str(refused.verdict)
            assert not refused.apply().delivered
            passed = dmarc(client, DMARC_DOMAIN, aligned)
            assert passed.verdict in (ACCEPT, CONTINUE)
            assert f"dmarc=pass (p=reject dis=none) header.from={DMARC_DOMAIN}".encode() in passed.apply().message
    assert client.session_verdict is None


# -- the standard filter, three times --------------------------------------------------------------------------------

LETTER = b"Subject: %s\r\nX-Old: 1\r\nX-Folded: a\r\n b\r\nx-old: 2\r\nTo: all\r\n\r\n"
LARGE = b"a line of the body\r\n" * 12000
"""More than three packets."""
RECIPIENTS = ["b@to.test", "gone@to.test"]


def expected(subject: bytes, body: bytes) -> bytes:
    return (
        b"X-First: 1\r\nSubject: [seen] " + subject + b"\r\nX-Old: 1\r\nX-Folded: a\r\n b\r\nTo: all\r\n"
        b"X-Seen: helo=client.test fields=5 auth=ann\r\n\tclient=192.0.2.7\r\n\r\n" + body.upper()
    )


def send(client: Client, subject: bytes, body: bytes = b"body\r\n", **arguments: Any) -> Outcome:
    told = {"sender": "a@from.test", "recipients": RECIPIENTS, **arguments}
    return client.send_message(
        LETTER % subject + body,
        hostname="client.test",
        address="192.0.2.7",
        helo="client.test",
        macros={"mail": {"{auth_authen}": "ann"}},
        **told,
    )


@pytest.fixture(params=["c", "pymilter", "fastmilter"])
def standard(request: pytest.FixtureRequest, start: Start) -> str:
    return start(request.param)


@BOTH
def test_everything_is_changed(standard: str, mta: str) -> None:
    with Client(standard, mta=mta, timeouts=PATIENT) as client:
        for subject, body in ((b"one", b"body\r\n"), (b"two", LARGE), (b"three", b"last\r\n")):
            outcome = send(client, subject, body)
            assert outcome.verdict == CONTINUE
            applied = outcome.apply()
            assert applied.message == expected(subject, body)
            assert applied.sender == "bounce@from.test"
            assert applied.recipients == ("b@to.test", "extra@to.test")
            assert applied.delivered
            assert not applied.quarantined
            assert not applied.problems


@BOTH
def test_verdicts_in_turn_on_one_connection(standard: str, mta: str) -> None:
    with Client(standard, mta=mta, timeouts=PATIENT) as client:
        for _ in range(2):
            later = send(client, b"x", sender="later@from.test")
            assert later.verdict == TEMPFAIL
            assert later.steps[-1].step is Step.MAIL
            some = send(client, b"some", recipients=["refused@to.test", *RECIPIENTS])
            assert [str(verdict) for verdict in some.refused.values()] == ["550 5.7.1 no such user"]
            assert some.apply().message == expected(b"some", b"body\r\n")
            nobody = send(client, b"x", recipients=["refused@to.test"])
            assert nobody.verdict.code == 550
            assert nobody.steps[-1].step is Step.RCPT
            assert send(client, b"discard").verdict == DISCARD
            held = send(client, b"hold").apply()
            assert held.quarantined
            assert held.quarantine_reason == "held for a test"
            assert not held.delivered
            assert send(client, b"after").apply().message == expected(b"after", b"body\r\n")


@pytest.mark.parametrize("version", [2, 6])
def test_step_by_step(standard: str, version: int) -> None:
    with Client(standard, version=version, protocol=0x7F if version == 2 else None, timeouts=PATIENT) as client:
        assert client.agreed.version == version
        assert client.connect("client.test", "192.0.2.7", 4000) in (CONTINUE, None)
        assert client.helo("client.test") in (CONTINUE, None)
        client.mail("dropped@from.test")
        client.rcpt("b@to.test")
        client.abort()
        assert client.mail("a@from.test") == CONTINUE
        refused = client.rcpt("refused@to.test")
        assert refused is not None
        assert refused.code == 550
        assert client.rcpt("b@to.test") == CONTINUE
        client.data()
        assert (client.header("Subject", " x") is None) == bool(client.agreed.protocol & ProtocolFlag.NR_HEADER)
        client.end_of_headers()
        client.body(LARGE)
        verdict, modifications = client.end_of_message()
        assert verdict == CONTINUE
        body = b"".join(part.chunk for part in modifications if isinstance(part, codec.ReplaceBody))
        assert body == LARGE.upper()
        assert codec.AddRecipient(b"<extra@to.test>") in modifications


def test_two_connections_at_once(standard: str) -> None:
    with Client(standard, timeouts=PATIENT) as one, Client(standard, timeouts=PATIENT) as two:
        for client in (one, two, two, one):
            assert send(client, b"x").apply().message == expected(b"x", b"body\r\n")


def test_many_at_once_on_an_event_loop(start: Start) -> None:
    address, verifier = start("opendkim"), start("opendkim-verify")

    async def signed_and_verified(number: int) -> list[str]:
        said = []
        sender = f"ann{number}@signed.test"
        async with AsyncClient(address, timeouts=PATIENT) as signer, AsyncClient(verifier, timeouts=PATIENT) as checker:
            for body in BODIES[:3]:
                signed = await signer.send_message(SIMPLE + body, sender, ["bob@to.test"], address="192.0.2.1")
                outcome = await checker.send_message(signed.apply().message, sender, ["bob@to.test"])
                said.append(outcome.apply().message.partition(b"dkim=")[2][:4].decode())
        return said

    async def everybody() -> list[list[str]]:
        return await asyncio.gather(*map(signed_and_verified, range(5)))

    assert asyncio.run(everybody()) == [["pass"] * 3] * 5


@BOTH
def test_a_chain_signs_what_the_former_one_made_of_it(start: Start, milters: Milters, mta: str) -> None:
    first, signer, verifier = start("c"), start("opendkim"), start("opendkim-verify")
    with Chain([(first, "tempfail"), (signer, "tempfail"), (verifier, "accept")], mta=mta, timeouts=PATIENT) as chain:
        for body in BODIES[1:]:
            outcome = chain.send_message(
                SIMPLE + body, "ann@signed.test", ["bob@to.test", "refused@to.test"], address="192.0.2.1"
            )
            assert [milter.error for milter in outcome.milters] == [None] * 3
            assert list(map(str, outcome.refused)) == ["refused@to.test"]
            applied = outcome.apply()
            assert applied.recipients == ("bob@to.test", "extra@to.test")
            results, _, signed = applied.message.partition(b"DKIM-Signature:")
            assert b"dkim=pass" in results
            assert b"Subject: [seen] =?utf-8?q?=C3=84pfel?=\r\n" in signed
            assert verifies(b"DKIM-Signature:" + signed, milters.dkim_record)
