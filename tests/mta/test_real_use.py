"""As administrators use it: the examples, unix sockets, two filters in a row, addresses in both spellings."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from .case import MESSAGE, Case, act, edit, own_fields
from .conftest import need
from .lab import KINDS, Mta, Sink, free_port, new_directory
from .lab.served import Served

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
HEAD = MESSAGE.partition(b"\r\n\r\n")[0] + b"\r\n"


def example(own_server: list[Served], port: int, target: str, table: dict[str, str | list[str]]) -> Served:
    served = Served(f"{EXAMPLES}/{target}", port, table=table)
    own_server.append(served)
    return served.__enter__()


def test_tagger(mta: Mta, own_server: list[Served], milter_port: int) -> None:
    case = Case(mta, example(own_server, milter_port, "tagger.py:Tagger", {"prefix": "[out]"}))
    with case.client() as client:
        client.ehlo()
        assert case.send(client, MESSAGE.replace(b"hello", b"caf\xe9\r\n\t\xff"), number=1) == 250
        assert case.send(client, MESSAGE.replace(b"Subject: hello", b"Subject: Re: [out] hello"), number=2) == 250
        assert case.send(client, MESSAGE.replace(b"Subject: hello\r\n", b""), number=3) == 250
        client.quit()
    first, second, third = case.delivered(3)
    added = [("X-Tagged-By", b"fastmilter")]
    assert own_fields(first)[3:5] == [("Subject", b"[out] caf\xe9\r\n\t\xff"), *added]
    assert own_fields(second)[3:5] == [("Subject", b"Re: [out] hello"), *added]
    assert own_fields(third)[3:5] == [("Subject", b"[out]"), *added]
    assert all(case.address.encode() in delivery.values("X-Client")[0] for delivery in (first, second, third))
    assert case.filter_failed() == []


def test_recipient_policy(mta: Mta, own_server: list[Served], milter_port: int) -> None:
    table: dict[str, str | list[str]] = {
        "refuse": ["gone@here.test", "@old.test"],
        "text": "this mailbox is 100% closed",
    }
    case = Case(mta, example(own_server, milter_port, "recipient_policy.py:RecipientPolicy", table))
    with case.client() as client:
        client.ehlo()
        client.expect(250, "MAIL FROM:<m1@from.test>")
        for refused in ("Gone@here.test", "anybody@OLD.test"):
            reply = client.command(f"RCPT TO:<{refused}>")
            assert (reply.code, reply.text.startswith("5.1.1 ")) == (550, True)
            assert reply.text.endswith("this mailbox is 100% closed")
        client.expect(250, f"RCPT TO:<{case.to('b')[0]}>")
        assert client.data(MESSAGE).code == 250
        client.quit()
    assert case.delivered(1)[0].recipients == (f"b@{case.domain}",)


def test_disclaimer(mta: Mta, own_server: list[Served], milter_port: int) -> None:
    case = Case(mta, example(own_server, milter_port, "disclaimer.py:Disclaimer", {"text": "Keep it."}))
    large = b"0123456789abcdef" * 4 + b"\r\n"
    with case.client() as client:
        client.ehlo()
        assert case.send(client, number=1) == 250
        assert case.send(client, HEAD + b"Content-Type: text/html\r\n\r\n<p>body\r\n", number=2) == 250
        assert case.send(client, HEAD + b"\r\n" + large * 3000, number=3) == 250
        client.quit()
    plain, html, long = case.delivered(3)
    addition = b"\r\n" + b"_" * 40 + b"\r\nKeep it.\r\n"
    assert plain.body == b"body\r\n" + addition
    assert html.body == b"<p>body\r\n"
    assert long.body == large * 3000 + addition
    assert case.filter_failed() == []


def test_log_everything(mta: Mta, own_server: list[Served], milter_port: int) -> None:
    case = Case(mta, example(own_server, milter_port, "log_everything.py:LogEverything", {}))
    delivery = case.deliver()
    assert own_fields(delivery)[4:] == []
    assert delivery.body == b"body\r\n"
    log = case.served.log()
    for step in ("connect", "helo", "mail", "rcpt", "data", "header", "end_of_headers", "body", "end_of_message"):
        assert f"log_everything: {step} " in log, log


@pytest.fixture(params=["postfix", "sendmail"])
def two_filters(request: pytest.FixtureRequest, sink: Sink) -> Iterator[tuple[Mta, Served, Served, Path]]:
    """An MTA that asks two servers, the first one at a unix socket as the reference of the MTA recommends."""
    kind = KINDS[request.param]
    need(request.param)
    directory = new_directory("socket")
    path = directory / "milter"
    access = "?mode=0660&group=postfix" if kind.name == "postfix" else "?mode=0600"
    with (
        Served("planned.py:Default", free_port(), listen=[f"unix:{path}{access}"]) as first,
        Served("planned.py:Default", free_port()) as second,
        kind(sink, [f"unix:{path}", f"inet:{second.port}@127.0.0.1"]) as mta,
    ):
        yield mta, first, second, path
    assert not path.exists()
    directory.rmdir()


def test_two_filters_in_a_row(two_filters: tuple[Mta, Served, Served, Path]) -> None:
    mta, first, second, path = two_filters
    assert stat.S_IMODE(path.stat().st_mode) == (0o660 if mta.name == "postfix" else 0o600)
    case, later = Case(mta, first), Case(mta, second)
    later.address, later.domain = case.address, case.domain
    case.plan(
        act(
            "end_of_message",
            edit("add_header", "X-First", "1"),
            edit("change_header", "Subject", "first"),
            edit("replace_body", b"first\r\n"),
        )
    )
    later.plan(act("end_of_message", edit("change_header", "X-First", "2"), edit("add_header", "X-Second", "2")))
    delivery = case.deliver()
    fields = dict(own_fields(delivery))
    assert (fields["Subject"], fields["X-First"], fields["X-Second"]) == (b"first", b"2", b"2")
    assert delivery.body == b"first\r\n"
    shown = {event["data"][0]: event["data"][1] for event in later.first_connection() if event["event"] == "header"}
    assert (shown["Subject"], shown["X-First"]) == ("first", "1")
    assert case.filter_failed() == []
