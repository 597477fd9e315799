"""The HTTP policy example, with a real HTTP server on the loopback interface."""

import http.server
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest

from fastmilter import ConfigError, codec
from tests.process.harness import wait_until

from .support import Session, Talk, load

NAME = "http_policy.py:HttpPolicy"
PATIENCE_S = 30.0
REFUSED = codec.ReplyCode(b"550 5.7.1 no such office")
LATER = codec.TempFail()


class Policy(http.server.ThreadingHTTPServer):
    """A policy service. ``mode``: ``ok``, one of ``BROKEN``, ``silent`` or ``close``.

    ``connections``: how many there were. ``questions``: what was asked.
    """

    BROKEN: ClassVar = {
        "no json": b"<html>",
        "deep": b"[" * 9000,
        "no object": b'"continue"',
        "another action": b'{"action": "accept"}',
        "long": b" " * 20_000,
        "status": b'{"action": "continue"}',
    }

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/policy?for=mail"
        self.mode = "ok"
        self.connections = 0
        self.questions: list[Any] = []
        self.stopped = threading.Event()
        self.answers: dict[str, Any] = {}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Policy

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        mode = self.server.mode
        self.server.questions.append((self.path, question))
        if mode == "silent":
            self.server.stopped.wait(PATIENCE_S)
        if mode in ("silent", "close"):
            self.close_connection = True
            return
        found = self.server.answers.get(question["recipient"], {"action": "continue"})
        body = Policy.BROKEN.get(mode, json.dumps(found).encode())
        self.send_response(500 if mode == "status" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        if mode == "last":
            self.close_connection = True  # without having said so

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def policy() -> Iterator[Policy]:
    with Policy() as service:
        thread = threading.Thread(target=service.serve_forever, args=(0.02,))
        thread.start()
        yield service
        service.stopped.set()
        service.shutdown()
        thread.join(PATIENCE_S)


def session(policy: Policy, **options: Any) -> Session:
    made = Session(NAME, url=policy.url, **options)
    begin(made)
    return made


def begin(talk: Talk) -> None:
    talk.connect()
    talk.tell(codec.MailFrom(b"<jiri@orchard.example>"))


def rcpt(talk: Talk, recipient: bytes = b"anna@harbour.example") -> codec.Response:
    (answer,) = talk.tell(codec.RcptTo(b"<%s>" % recipient))
    return answer


def test_what_is_asked_and_answered(policy: Policy) -> None:
    policy.answers = {
        "a@x": {"action": "reject", "text": "no such\r\noffice"},
        "b@x": {"action": "tempfail", "text": "later \ud800"},
        "c@x": {"action": "reject"},
        "d@x": {"action": "reject", "text": ["no"]},
        "e@x": {"action": "reject", "text": "\n" * 600},
    }
    with session(policy) as talk:
        assert rcpt(talk) == codec.Continue()
        assert rcpt(talk, b"a@x") == REFUSED
        assert rcpt(talk, b"b@x") == codec.ReplyCode(b"451 4.7.1 later ?")
        for name in (b"c@x", b"e@x"):
            assert rcpt(talk, name) == codec.ReplyCode(b"550 5.7.1 refused by local policy")
        assert rcpt(talk, b"caf\xe9@x") == codec.Continue()
        assert talk.filter_class.guard.statistics()[2:6] == (0, 6, 0, 0)
    path, question = policy.questions[0]
    assert path == "/policy?for=mail"
    assert question == {
        "client": "192.0.2.25",
        "helo": "mail.orchard.example",
        "sender": "jiri@orchard.example",
        "recipient": "anna@harbour.example",
    }
    assert policy.connections == 1, "it stays open"


def test_a_connection_that_was_closed_meanwhile(policy: Policy) -> None:
    with session(policy, failures=1) as talk:
        policy.mode = "last"
        for _ in range(3):
            assert rcpt(talk) == codec.Continue()
        assert talk.filter_class.guard.statistics().failures == 0
    assert policy.connections == 3


@pytest.mark.parametrize(("unavailable", "answer"), [("tempfail", LATER), ("continue", codec.Continue())])
@pytest.mark.parametrize("mode", [*Policy.BROKEN, "silent", "close"])
def test_without_an_answer(policy: Policy, mode: str, unavailable: str, answer: codec.Response) -> None:
    policy.answers = {"a@x": {"action": "reject", "text": "no such office"}}
    with session(policy, seconds=0.2, failures=2, recovery=0.05, unavailable=unavailable) as talk:
        guard = talk.filter_class.guard
        policy.mode = mode
        for state in ("closed", "open"):
            assert rcpt(talk, b"a@x") == answer
            assert guard.state == state
        policy.mode = "ok"
        wait_until(lambda: rcpt(talk, b"a@x") == REFUSED, "the service is asked again")
        assert guard.state == "closed"


def test_an_open_guard_asks_nothing(policy: Policy) -> None:
    with session(policy, failures=1, recovery=3600) as talk:
        policy.mode = "close"
        for _ in range(5):
            assert rcpt(talk) == LATER
        assert talk.filter_class.guard.statistics()[3:] == (1, 1, 4, 1)
    assert len(policy.questions) == 1


def test_threads_do_not_share_a_connection_at_a_time(policy: Policy) -> None:
    with session(policy, at_once=4, seconds=30) as talk, ThreadPoolExecutor(8) as pool:
        connections = [talk.another() for _ in range(8)]
        for connection in connections:
            begin(connection)

        def work(connection: Talk) -> set[type]:
            return {type(rcpt(connection, b"a%d@x" % number)) for number in range(10)}

        assert {kind for kinds in pool.map(work, connections) for kind in kinds} == {codec.Continue}
        assert talk.filter_class.guard.statistics()[2:6] == (0, 80, 0, 0)
    assert len(policy.questions) == 80
    assert policy.connections <= 4


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"url": "127.0.0.1:8080"},
        {"url": "ftp://127.0.0.1/"},
        {"url": "http://"},
        {"url": "http://127.0.0.1/", "unavailable": "reject"},
        {"url": "http://127.0.0.1/", "seconds": 0},
        {"url": "http://127.0.0.1/", "at_once": 0},
    ],
    ids=str,
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        load(NAME, **options)
