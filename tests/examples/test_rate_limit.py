"""The rate limit example, with a real Redis (or Valkey) server."""

import asyncio
import doctest
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from fastmilter import ConfigError, codec
from tests.process.harness import wait_until

from .backends import redis as redis_server
from .backends import short_directory
from .support import Session, load

NAME = "rate_limit.py:RateLimit"
TOO_MANY = codec.ReplyCode(b"451 4.7.1 too many messages from 192.0.2.25, please try again later")
MAIL = codec.MailFrom(b"<jiri@orchard.example>")


@pytest.fixture(scope="module")
def path() -> Iterator[Path]:
    with short_directory() as directory, redis_server(directory) as socket_path:
        yield socket_path


@pytest.fixture
def server(path: Path) -> Iterator[redis.Redis]:
    """The server, as another program sees it; empty."""
    with redis.Redis(unix_socket_path=str(path)) as client:
        client.flushall()
        yield client


def session(path: Path, **options: Any) -> Session:
    made = Session(NAME, server=f"unix://{path}", **options)
    made.connect()
    return made


def mails(talk: Any, count: int) -> list[codec.Response]:
    """What that many messages are answered with at MAIL."""
    answers = []
    for _ in range(count):
        answers += talk.tell(MAIL)
        talk.tell(codec.Abort())
    return answers


def test_more_than_the_limit_is_refused(path: Path, server: redis.Redis) -> None:
    with session(path, messages=3, seconds=3600) as talk:
        assert mails(talk, 5) == [codec.Continue()] * 3 + [TOO_MANY] * 2
        other = talk.another()
        other.connect(b"192.0.2.26")
        assert mails(other, 1) == [codec.Continue()], "another client has a count of its own"
        assert talk.filter_class.guard.statistics()[2:6] == (0, 6, 0, 0)
    assert set(server.keys()) == {b"fastmilter:rate:192.0.2.25", b"fastmilter:rate:192.0.2.26"}
    assert all(0 < server.pttl(key) <= 3_600_000 for key in server.scan_iter())


def test_the_count_is_shared_and_ends(path: Path, server: redis.Redis) -> None:
    with session(path, messages=3, seconds=3600) as one:
        mails(one, 2)
    with session(path, messages=3, seconds=3600) as two:
        assert mails(two, 2) == [codec.Continue(), TOO_MANY]
        server.pexpire("fastmilter:rate:192.0.2.25", 1)
        wait_until(lambda: not server.keys(), "the count ends")
        assert mails(two, 1) == [codec.Continue()]


def test_at_once(path: Path, server: redis.Redis) -> None:
    """Many sessions of one worker, and two workers' worth of connections, lose no message of the count."""
    with session(path, at_once=5, patience=30) as talk:

        async def all_of_them() -> list[int]:
            example = talk.filter_class()
            counts: list[int] = await asyncio.gather(*(example.count("192.0.2.25") for _ in range(200)))
            return counts

        assert sorted(talk._await(all_of_them())) == list(range(1, 201))
        assert talk.filter_class.guard.statistics()[2:6] == (0, 200, 0, 0)
    assert server.get("fastmilter:rate:192.0.2.25") == b"200"


def test_ipv6_clients_and_those_not_counted(path: Path, server: redis.Redis) -> None:
    with session(path, messages=1, trusted=["198.51.100.0/24"]) as talk:
        for address in (b"IPv6:2001:db8::1", b"IPv6:2001:db8::2:0:0:1"):
            client = talk.another()
            client.connect(address, b"6")
            answers = mails(client, 1)
        assert answers == [codec.ReplyCode(b"451 4.7.1 too many messages from 2001:db8::/64, please try again later")]
        for address in (b"198.51.100.7", b"127.0.0.1"):
            client = talk.another()
            client.connect(address)
            assert mails(client, 3) == [codec.Continue()] * 3
    assert server.keys() == [b"fastmilter:rate:2001:db8::/64"]


@pytest.mark.parametrize(("unavailable", "answer"), [("tempfail", codec.TempFail()), ("continue", codec.Continue())])
def test_a_server_that_hangs(unavailable: str, answer: codec.Response) -> None:
    options = {"failures": 2, "recovery": 0.05, "messages": 1, "unavailable": unavailable}
    with short_directory() as directory, redis_server(directory) as path, session(path, **options) as talk:
        guard = talk.filter_class.guard
        assert mails(talk, 2) == [codec.Continue(), TOO_MANY]
        talk.filter_class.options.patience = 0.2
        (pid,) = (child.pid for child in psutil.Process().children() if str(directory) in str(child.cmdline()))
        os.kill(pid, signal.SIGSTOP)
        try:
            assert mails(talk, 2) == [answer] * 2
            assert guard.state == "open"
        finally:
            os.kill(pid, signal.SIGCONT)
        talk.filter_class.options.patience = 10
        wait_until(lambda: mails(talk, 1) == [TOO_MANY], "the server is asked again")
        assert guard.state == "closed"


def test_a_server_that_is_gone_and_comes_back() -> None:
    with short_directory() as directory:
        with redis_server(directory) as path:
            talk = session(path, failures=1, recovery=0.05, messages=1, unavailable="tempfail")
            assert mails(talk, 2) == [codec.Continue(), TOO_MANY]
        with talk:
            assert mails(talk, 1) == [codec.TempFail()]
            assert talk.filter_class.guard.state == "open"
            with redis_server(directory):
                wait_until(lambda: mails(talk, 1) == [codec.Continue()], "the server is asked again")
                assert mails(talk, 1) == [TOO_MANY]


@pytest.mark.parametrize(
    "options",
    [
        {"server": "127.0.0.1:6379"},
        {"messages": 0},
        {"seconds": 0},
        {"patience": 0},
        {"trusted": ["localhost"]},
        {"unavailable": "reject"},
        {"text": ""},
    ],
    ids=str,
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        load(NAME, **options)


def test_the_docstring() -> None:
    import examples.rate_limit

    failed, attempted = doctest.testmod(examples.rate_limit)
    assert (failed, attempted) == (0, 1)
