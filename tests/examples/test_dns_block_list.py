"""The DNS block list example, with a DNS server that the test runs."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from fastmilter import ConfigError, codec
from fastmilter.server.load import load_filter, parse_target
from fastmilter.testing import run
from tests.process.harness import wait_until

from .support import EXAMPLES, Session, load

NAME = "dns_block_list.py:DnsBlockList"
ZONE = "bl.example.org"
REFUSED = codec.ReplyCode(b"550 5.7.1 192.0.2.99 is listed at bl.example.org")
V6 = ".".join(reversed("20010db8" + "0" * 22 + "99"))
LISTED = {
    f"99.2.0.192.{ZONE}.": "127.0.0.2",
    f"{V6}.{ZONE}.": "127.0.0.4",
    f"66.2.0.192.{ZONE}.": "127.255.255.254",
    f"77.2.0.192.{ZONE}.": "203.0.113.1",
}


class Resolver:
    """A resolver on a UDP port. ``mode``: ``ok``, ``silent``, ``servfail`` or ``garbage``."""

    def __init__(self) -> None:
        self.mode = "ok"
        self.asked: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> "Resolver":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
            end.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join(30)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            query, client = self._socket.recvfrom(4096)
            if not query:
                return
            with contextlib.suppress(OSError):  # who asked may be gone
                for answer in self._answers(dns.message.from_wire(query)):
                    self._socket.sendto(answer, client)

    def _answers(self, query: dns.message.Message) -> Iterator[bytes]:
        (question,) = query.question
        name = question.name.to_text()
        self.asked.append(name)
        if self.mode == "garbage":
            yield b"\xff" * 40
        elif self.mode != "silent":
            answer = dns.message.make_response(query)
            answer.flags |= dns.flags.RA
            if self.mode == "servfail":
                answer.set_rcode(dns.rcode.SERVFAIL)
            elif name in LISTED:
                answer.answer.append(dns.rrset.from_text(name, 300, "IN", "A", LISTED[name]))
            else:
                answer.set_rcode(dns.rcode.NXDOMAIN)
            yield answer.to_wire()


@pytest.fixture
def resolver() -> Iterator[Resolver]:
    with Resolver() as running:
        yield running


def session(resolver: Resolver, **options: Any) -> Session:
    return Session(NAME, zone=ZONE, resolvers=["127.0.0.1"], port=resolver.port, **options)


def connect(talk: Session, address: bytes, family: bytes = b"4") -> list[codec.Response]:
    """What a new connection from that client is answered with, at CONNECT and HELO."""
    return talk.another().connect(address, family)


def test_listed_and_not_listed(resolver: Resolver) -> None:
    with session(resolver) as talk:
        assert connect(talk, b"192.0.2.99")[0] == REFUSED
        assert connect(talk, b"192.0.2.1")[0] == codec.Continue()
        (six, *_) = connect(talk, b"IPv6:2001:db8::99", b"6")
        assert six == codec.ReplyCode(b"550 5.7.1 2001:db8::99 is listed at bl.example.org")
        assert connect(talk, b"IPv6:2001:db8::9", b"6")[0] == codec.Continue()
        assert len(resolver.asked) == 4
        assert connect(talk, b"192.0.2.99")[0] == REFUSED
        assert len(resolver.asked) == 4, "the answer was kept"
        assert talk.filter_class.guard.statistics()[2:6] == (0, 5, 0, 0)


def test_a_message_from_a_listed_client(resolver: Resolver) -> None:
    options = {"zone": ZONE, "resolvers": ["127.0.0.1"], "port": resolver.port, "text": "see https://{zone}/?{address}"}
    listing = load_filter(parse_target(f"{EXAMPLES}/{NAME}"))
    outcome = run(listing, b"Subject: x\r\n\r\n", address="192.0.2.99", options=options)
    assert (outcome.verdict.code, outcome.verdict.text) == (550, "see https://bl.example.org/?192.0.2.99")
    assert outcome.steps[-1].step == "connect"


def test_who_is_not_asked_about(resolver: Resolver) -> None:
    with session(resolver, trusted=["192.0.2.96/27", "2001:db8::/32"]) as talk:
        for address, family in ((b"192.0.2.99", b"4"), (b"127.0.0.1", b"4"), (b"IPv6:2001:db8::99", b"6")):
            assert connect(talk, address, family)[0] == codec.Continue()
        assert connect(talk, b"/run/socket", b"L")[0] == codec.Continue()
    assert not resolver.asked


@pytest.mark.parametrize("address", [b"192.0.2.66", b"192.0.2.77"])
def test_answers_that_are_no_listing(resolver: Resolver, address: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with session(resolver) as talk:
        assert connect(talk, address)[0] == codec.Continue()
    assert any("bl.example.org refuses to be asked, or is gone: it answers" in text for text in caplog.messages)


@pytest.mark.parametrize(("unavailable", "answer"), [("tempfail", codec.TempFail()), ("continue", codec.Continue())])
@pytest.mark.parametrize("mode", ["silent", "servfail", "garbage"])
def test_without_an_answer(resolver: Resolver, mode: str, unavailable: str, answer: codec.Response) -> None:
    with session(resolver, seconds=0.2, failures=2, recovery=0.05, unavailable=unavailable) as talk:
        guard = talk.filter_class.guard
        resolver.mode = mode
        assert connect(talk, b"192.0.2.99")[0] == answer
        assert guard.state == "closed"
        assert connect(talk, b"192.0.2.99")[0] == answer
        assert guard.state == "open"
        resolver.mode = "ok"
        talk.filter_class.resolver.lifetime = 10
        wait_until(lambda: connect(talk, b"192.0.2.99")[0] == REFUSED, "the list is asked again")
        assert guard.state == "closed"


def test_an_open_guard_asks_nothing(resolver: Resolver) -> None:
    with session(resolver, seconds=0.2, failures=1, recovery=3600) as talk:
        resolver.mode = "silent"
        connect(talk, b"192.0.2.99")
        asked = len(resolver.asked)
        for _ in range(5):
            assert connect(talk, b"192.0.2.99")[0] == codec.Continue()
        assert talk.filter_class.guard.statistics().refused == 5
    assert len(resolver.asked) == asked


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"zone": "a..b"},
        {"zone": "x" * 64},
        {"zone": ZONE, "resolvers": ["localhost"]},
        {"zone": ZONE, "trusted": ["192.0.2.1/24"]},
        {"zone": ZONE, "unavailable": "reject"},
        {"zone": ZONE, "seconds": 0},
        {"zone": ZONE, "text": ""},
        {"zone": ZONE, "at_once": 0},
    ],
    ids=str,
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        load(NAME, **options)
