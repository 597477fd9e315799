"""The laboratory itself: mail goes in, a milter that has nothing of fastmilter changes it, it comes out."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import need
from .lab import KINDS, UNKNOWN_RECIPIENT, ClosedByServer, Delivery, LabError, Mta, Sink, SmtpClient, new_directory
from .lab.rawmilter import RawMilter
from .lab.served import Stage

MESSAGE = b"Subject: h\xe9llo\r\nX-Folded: one\r\n\ttwo\r\n\r\n.leading dot\r\nlast line\r\n"
ADDED = [(b"h", b"X-Raw\0was here\0")]


def to(recipient: str) -> Callable[[Delivery], bool]:
    return lambda delivery: recipient in delivery.recipients


@pytest.fixture(autouse=True)
def _nothing_at_the_milter_port(stage: Stage) -> None:
    stage.clear()


@pytest.fixture
def recipient() -> str:
    return f"{uuid.uuid4().hex}@rcpt.test"


def test_a_milter_on_tcp_adds_a_header(mta: Mta, sink: Sink, milter_port: int, recipient: str) -> None:
    with RawMilter(f"inet:{milter_port}@127.0.0.1", ADDED) as milter, mta.client() as client:
        client.ehlo()
        reply = client.send(MESSAGE, "a@from.test", [recipient])
        client.quit()
    assert reply.code == 250
    delivery = sink.wait(to(recipient))[0]
    assert delivery.sender == "a@from.test"
    assert delivery.values("X-Raw") == [b"was here"]
    assert delivery.values("Subject") == [b"h\xe9llo"]
    assert delivery.values("X-Folded") == [b"one\r\n\ttwo"]
    assert delivery.body == b".leading dot\r\nlast line\r\n"
    assert b"".join(milter.commands).replace(b"D", b"").startswith(b"OCHMRT")


@pytest.mark.parametrize("kind", KINDS)
def test_a_milter_on_a_unix_socket(kind: str, sink: Sink, recipient: str) -> None:
    need(kind)
    directory: Path = new_directory("socket")
    address = f"unix:{directory}/milter"
    # Postfix's daemons that ask the milter run as another user than the one who made the socket.
    with RawMilter(address, ADDED), KINDS[kind](sink, [address]) as mta:
        (directory / "milter").chmod(0o666 if kind == "postfix" else 0o600)
        with mta.client() as client:
            client.ehlo()
            assert client.send(MESSAGE, "a@from.test", [recipient]).code == 250
        assert sink.wait(to(recipient))[0].values("X-Raw") == [b"was here"]
    (directory / "milter").unlink()
    directory.rmdir()


def test_local_submission_passes_the_milter(mta: Mta, sink: Sink, milter_port: int, recipient: str) -> None:
    with RawMilter(f"inet:{milter_port}@127.0.0.1", ADDED):
        done = mta.submit(b"Subject: local\n\nbody\n", "a@from.test", [recipient])
        assert done.returncode == 0, done.stderr
        assert sink.wait(to(recipient))[0].values("X-Raw") == [b"was here"]


def test_smtp_on_stdin_passes_the_milter(mta: Mta, sink: Sink, milter_port: int, recipient: str) -> None:
    with RawMilter(f"inet:{milter_port}@127.0.0.1", ADDED):
        with mta.smtp_on_stdin() as client:
            client.ehlo()
            assert client.send(MESSAGE, "a@from.test", [recipient]).code == 250
            client.quit()
        assert sink.wait(to(recipient))[0].values("X-Raw") == [b"was here"]


def test_without_a_filter_mail_is_put_off(mta: Mta, sink: Sink, recipient: str) -> None:
    with mta.client() as client:
        client.ehlo()
        assert client.command("MAIL FROM:<a@from.test>").code == 451
        client.quit()
    mta.settle()
    assert sink.matching(to(recipient)) == []
    assert "ilter" in mta.log()


def test_the_mta_itself_refuses_one_recipient(mta: Mta, milter_port: int) -> None:
    with RawMilter(f"inet:{milter_port}@127.0.0.1", []), mta.client() as client:
        client.ehlo()
        replies = client.pipeline(["MAIL FROM:<a@from.test>", f"RCPT TO:<{UNKNOWN_RECIPIENT}>", "RSET"])
        assert [reply.code for reply in replies][::2] == [250, 250]
        assert replies[1].code in (550, 554)
        assert "ser unknown" in replies[1].text


def test_the_client_notices_a_closed_connection(sink: Sink) -> None:
    with SmtpClient.over_tcp(sink.port) as client:
        client.expect(221, "QUIT")
        assert client.at_end()
        with pytest.raises((ClosedByServer, BrokenPipeError, ConnectionResetError)):
            client.command("NOOP")


def test_waiting_for_what_never_comes_is_an_error(sink: Sink) -> None:
    with pytest.raises(LabError, match="0 of 1 messages"):
        sink.wait(to("nobody@nowhere.test"), seconds=0.05)
