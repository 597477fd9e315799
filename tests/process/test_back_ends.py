"""Served filters that ask others, and what an MTA sees when those fail: the examples, real master and workers."""

import contextlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pytest

from fastmilter import CONTINUE, TEMPFAIL, Verdict, codec, reply
from fastmilter.client import Client
from fastmilter.client.exchange import Timeouts
from fastmilter.client.message import Outcome
from tests.examples.backends import redis as redis_server
from tests.examples.backends import short_directory
from tests.examples.test_dns_block_list import ZONE, Resolver
from tests.examples.test_http_policy import Policy
from tests.process.harness import ROOT, Server, begin, wait_until
from tests.support.clamd import MODES, VIRUS, Clamd

NO_TIME_S: Final = 0.3
"""For clamd to answer, where it will not."""

DEADLINE_S: Final = 20.0
"""In which every answer comes, whatever happened: it is far above what is configured, and far below what hangs."""

AT_ONCE: Final = 4
CLEAN: Final = (codec.AddHeader(b"X-Virus-Scanned", b"clean"),)
TOO_LATE: Final = reply(451, "4.3.0", "the scanner takes too long")

HASTY: Final = """
import sys
sys.path.insert(0, {examples!r})
import clamav
from fastmilter import reply

class Hasty(clamav.{kind}):
    deadline = {{"end_of_message": 1.0}}
    timeout_verdict = reply(451, "4.3.0", "the scanner takes too long")
"""


@pytest.fixture(params=["ClamAV", "AsyncClamAV"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def clamd() -> Iterator[Clamd]:
    with short_directory() as directory, Clamd(directory / "clamd") as running:
        yield running


def serve(server: Server, target: str, **options: Any) -> Server:
    """Start one worker for a filter with those options."""
    config = server.directory / "filter.toml"
    lines = [f"{name} = {json.dumps(value)}" for name, value in options.items()]
    config.write_text("\n".join(["[filter]", *lines]) + "\n")
    return server.start("--workers=1", f"--threads={AT_ONCE * 2}", f"--config={config}", target=target)


def scanner(kind: str) -> str:
    return f"{ROOT}/examples/clamav.py:{kind}"


def impatient(server: Server) -> Client:
    """An MTA that waits for no answer longer than ``DEADLINE_S``, PROGRESS or not."""
    limits = Timeouts(connect=DEADLINE_S, command=DEADLINE_S, content=DEADLINE_S, progress=DEADLINE_S)
    return Client(server.address(), timeouts=limits)


def send(client: Client, body: bytes = b"twelve boxes\r\n") -> Outcome:
    return client.send_message(b"Subject: apples\r\n\r\n" + body, "a@example.org", ["b@example.net"])


def is_scanned(server: Server) -> bool:
    """Whether a message on a new connection comes back as clean."""
    with impatient(server) as client:
        return send(client).modifications == CLEAN


# -- clamd fails ---------------------------------------------------------------------------------------------------


def test_clean_and_infected(server: Server, kind: str, clamd: Clamd) -> None:
    serve(server, scanner(kind), clamd=clamd.address)
    with impatient(server) as client:
        for _ in range(3):
            assert send(client).modifications == CLEAN
            assert send(client, b"x" * 300_000 + VIRUS).verdict.code == 550
    assert server.stop() == 0


@pytest.mark.parametrize(("unavailable", "verdict"), [("tempfail", TEMPFAIL), ("accept", CONTINUE)])
@pytest.mark.parametrize("mode", [*MODES, "killed"])
def test_the_breaker_opens_and_closes(
    server: Server, kind: str, clamd: Clamd, mode: str, unavailable: str, verdict: Verdict
) -> None:
    options = {"seconds": NO_TIME_S, "failures": 2, "recovery": 0.2, "unavailable": unavailable}
    serve(server, scanner(kind), clamd=clamd.address, **options)
    wait_until(lambda: is_scanned(server), "clamd is asked")
    if mode == "killed":
        clamd.kill()
    else:
        clamd.mode = mode
    with impatient(server) as client:
        for _ in range(3):
            outcome = send(client)
            assert (outcome.verdict, outcome.modifications) == (verdict, ())
        server.wait_log("guard clamd opens for 0.2 s: failures in a row: 2")
        clamd.mode = "ok"
        if mode == "killed":
            clamd.start()
        wait_until(lambda: send(client).modifications == CLEAN, "clamd is asked again")
    server.wait_log("guard clamd half-opens")
    server.wait_log("guard clamd closes")
    assert server.stop() == 0


def test_an_open_breaker_makes_nobody_wait(server: Server, kind: str, clamd: Clamd) -> None:
    serve(server, scanner(kind), clamd=clamd.address, seconds=NO_TIME_S, failures=1, recovery=3600)
    clamd.mode = "hang"
    with impatient(server) as client:
        assert send(client).verdict == TEMPFAIL
        server.wait_log("guard clamd opens")
        for _ in range(50):
            assert send(client).verdict == TEMPFAIL
    assert clamd.connections == 1


def test_many_messages_while_clamd_hangs(server: Server, kind: str, clamd: Clamd) -> None:
    """More of them than there are threads and slots: each gets its verdict, none waits for all others in turn."""
    options = {"seconds": 1.0, "failures": 3, "recovery": 0.2, "at_once": AT_ONCE}
    serve(server, scanner(kind), clamd=clamd.address, **options)
    clamd.mode = "hang"

    def play(_: int) -> set[Verdict]:
        with impatient(server) as client:
            return {send(client).verdict for _ in range(3)}

    with ThreadPoolExecutor(30) as pool:
        assert set().union(*pool.map(play, range(30))) == {TEMPFAIL}
    clamd.mode = "ok"
    wait_until(lambda: is_scanned(server), "clamd is asked again")
    server.wait_log("guard clamd closes")


def test_clients_that_hang_up_keep_no_slot(server: Server, kind: str, clamd: Clamd) -> None:
    serve(server, scanner(kind), clamd=clamd.address, seconds=NO_TIME_S, failures=1000, at_once=2)
    clamd.mode = "hang"
    for number in range(20):
        client = impatient(server)
        client.open()
        begin(client)
        client.rcpt("b@example.net")
        client.data()
        client.end_of_headers()
        client.send(codec.EndOfMessage())
        if number < 2:
            wait_until(lambda: clamd.connections > number, "the message is being scanned")  # noqa: B023 - called here
        client.close()
    clamd.mode = "ok"
    wait_until(lambda: is_scanned(server), "there is a slot again")
    assert server.stop() == 0


# -- the deadline --------------------------------------------------------------------------------------------------


@pytest.fixture
def hasty(server: Server, kind: str, clamd: Clamd) -> Server:
    """A filter whose deadline is far below the time that it gives clamd, which hangs."""
    (server.directory / "hasty.py").write_text(HASTY.format(examples=str(ROOT / "examples"), kind=kind))
    serve(server, "hasty.py:Hasty", clamd=clamd.address, seconds=3600, failures=1, recovery=0.2)
    clamd.mode = "hang"
    return server


def test_a_deadline_that_passes(hasty: Server, kind: str, clamd: Clamd) -> None:
    with impatient(hasty) as client:
        outcome = send(client)
        assert (outcome.verdict, outcome.modifications) == (TOO_LATE, ())
        hasty.wait_log("guard clamd opens")
        if kind == "AsyncClamAV":
            # The callback was cancelled, so the session goes on.
            clamd.mode = "ok"
            wait_until(lambda: send(client).modifications == CLEAN, "the next message is handled")
        else:
            # A thread cannot be cancelled: it is still at work for this connection.
            begun = client.mail("a@example.org")
            assert begun is not None
            assert (begun.code, begun.enhanced) == (421, "4.7.0")
    clamd.kill()
    clamd.mode = "ok"
    clamd.start()
    wait_until(lambda: is_scanned(hasty), "another connection is handled")
    assert hasty.stop() == 0
    assert " failed " not in hasty.log(), "nothing but the deadline went wrong"


def test_a_deadline_that_passes_on_many_connections(hasty: Server, clamd: Clamd) -> None:
    """With more of them than threads, none waits longer than the deadline; what stands in the queue is answered too."""

    def play(_: int) -> Verdict:
        with impatient(hasty) as client:
            return send(client).verdict

    with ThreadPoolExecutor(30) as pool:
        assert set(pool.map(play, range(30))) <= {TOO_LATE, TEMPFAIL}
    clamd.kill()
    clamd.mode = "ok"
    clamd.start()
    wait_until(lambda: is_scanned(hasty), "another connection is handled")


# -- the other examples --------------------------------------------------------------------------------------------


def test_the_block_list(server: Server) -> None:
    with Resolver() as resolver:
        target = f"{ROOT}/examples/dns_block_list.py:DnsBlockList"
        serve(server, target, zone=ZONE, resolvers=["127.0.0.1"], port=resolver.port)
        for address, code in (("192.0.2.99", 550), ("192.0.2.1", None)):
            with impatient(server) as client:
                outcome = client.send_message(b"\r\n", "a@example.org", ["b@example.net"], address=address)
                assert outcome.verdict.code == code
        assert server.stop() == 0


def test_the_rate_limit_of_two_workers(server: Server) -> None:
    with short_directory() as directory, redis_server(directory) as path:
        config = server.directory / "filter.toml"
        config.write_text(f'[filter]\nserver = "unix://{path}"\nmessages = 30\nseconds = 3600\n')
        target = f"{ROOT}/examples/rate_limit.py:RateLimit"
        server.start("--workers=2", f"--config={config}", target=target)

        def play(_: int) -> list[int | None]:
            with impatient(server) as client:
                begun = [client.send_message(b"\r\n", "a@b.example", ["c@d.example"], address="192.0.2.25")]
                begun += [client.send_message(b"\r\n", "a@b.example", ["c@d.example"], address="192.0.2.25")]
                return [outcome.verdict.code for outcome in begun]

        with ThreadPoolExecutor(8) as pool:
            codes = [code for pair in pool.map(play, range(20)) for code in pair]
        assert codes.count(451) == 10
        assert codes.count(None) == 30
        assert server.stop() == 0


def test_the_policy(server: Server) -> None:
    with Policy() as policy, contextlib.ExitStack() as ends:
        thread = threading.Thread(target=policy.serve_forever, args=(0.02,))
        thread.start()
        ends.callback(thread.join, DEADLINE_S)
        ends.callback(policy.shutdown)
        ends.callback(policy.stopped.set)
        policy.answers = {"c@d.example": {"action": "reject", "text": "no such office"}}
        serve(server, f"{ROOT}/examples/http_policy.py:HttpPolicy", url=policy.url, seconds=2.0, failures=1)
        with impatient(server) as client:
            outcome = client.send_message(b"\r\n", "a@b.example", ["c@d.example", "e@f.example"])
            assert outcome.recipients == ("e@f.example",)
            policy.mode = "silent"
            assert client.send_message(b"\r\n", "a@b.example", ["e@f.example"]).verdict == TEMPFAIL
        server.wait_log("guard policy opens")
        assert server.stop() == 0
