"""The ClamAV example: with a stand-in for clamd that fails in every way, then with the real one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastmilter import ConfigError, codec
from tests.process.harness import wait_until
from tests.support.clamd import MODES, VIRUS, Clamd

from .backends import clamd as real_clamd
from .backends import short_directory
from .support import Session, free_port, load

LATER = codec.TempFail()
INFECTED = codec.ReplyCode(b"550 5.7.1 this message has a virus in it: Test.Eicar")
CLEAN = [codec.AddHeader(b"X-Virus-Scanned", b"clean"), codec.Continue()]
NO_TIME_S = 0.2
"""For clamd to answer, where it will not."""


@pytest.fixture(params=["ClamAV", "AsyncClamAV"])
def name(request: pytest.FixtureRequest) -> str:
    return f"clamav.py:{request.param}"


@pytest.fixture(params=["unix", "inet"])
def clamd(request: pytest.FixtureRequest) -> Iterator[Clamd]:
    with short_directory() as directory, Clamd(directory / "clamd" if request.param == "unix" else None) as running:
        yield running


def session(name: str, clamd: Clamd, **options: Any) -> Session:
    made = Session(name, clamd=clamd.address, **options)
    made.connect()
    return made


def test_clean_and_infected(name: str, clamd: Clamd) -> None:
    fields = [(b"From", "jiří@orchard.example".encode()), (b"Subject", b"caf\xe9\n\tfolded")]
    with session(name, clamd) as talk:
        assert talk.message(fields, b"twelve ", b"boxes\r\n") == CLEAN
        assert talk.message(fields, *[b"x" * 60_000] * 5, b"\r\n" + VIRUS) == [INFECTED]
        assert talk.message([], b"\r\n") == CLEAN
        assert talk.filter_class.guard.statistics()[2:6] == (0, 3, 0, 0)
    header = b"From: ji\xc5\x99\xc3\xad@orchard.example\r\nSubject: caf\xe9\r\n\tfolded\r\n\r\n"
    assert clamd.seen == [
        header + b"twelve boxes\r\n",
        header + b"x" * 300_000 + b"\r\n" + VIRUS,
        b"\r\n\r\n",
    ]


@pytest.mark.parametrize("too_large", ["accept", "reject"])
def test_what_is_too_large_is_not_clamds_fault(name: str, clamd: Clamd, too_large: str) -> None:
    clamd.limit = 2000
    refusal: list[codec.Response] = [codec.ReplyCode(b"552 5.3.4 this message is too large to be scanned for viruses")]
    unscanned = [codec.AddHeader(b"X-Virus-Scanned", b"no, too large"), codec.Continue()]
    expected = refusal if too_large == "reject" else unscanned
    with session(name, clamd, too_large=too_large, max_bytes=4000, failures=1) as talk:
        for size in (3000, 5000):
            assert talk.message([(b"Subject", b"x")], b"x" * size) == expected
        assert talk.message([(b"Subject", b"x")], b"x") == CLEAN
    assert clamd.connections == 2, "it is not asked about what it would not take"


@pytest.mark.parametrize(("unavailable", "answer"), [("tempfail", LATER), ("accept", codec.Continue())])
@pytest.mark.parametrize("mode", MODES)
def test_when_clamd_fails_the_breaker_opens_and_closes_again(
    name: str, clamd: Clamd, mode: str, unavailable: str, answer: codec.Response
) -> None:
    options = {"seconds": NO_TIME_S, "failures": 2, "recovery": 0.05, "unavailable": unavailable}
    with session(name, clamd, **options) as talk:
        guard = talk.filter_class.guard
        clamd.mode = mode
        for state in ("closed", "open"):
            assert talk.message([], b"x") == [answer]
            assert guard.state == state
        asked = clamd.connections
        assert asked == 2
        clamd.mode = "ok"
        talk.filter_class.options.seconds = 10
        wait_until(lambda: talk.message([], b"x") == CLEAN, "clamd is asked again")
        assert guard.state == "closed"
        assert clamd.connections == asked + 1


def test_an_open_breaker_spares_clamd(name: str, clamd: Clamd) -> None:
    with session(name, clamd, seconds=NO_TIME_S, failures=1, recovery=3600) as talk:
        clamd.mode = "garbage"
        for _ in range(5):
            assert talk.message([], b"x") == [LATER]
        assert talk.filter_class.guard.statistics()[3:] == (1, 1, 4, 1)
    assert clamd.connections == 1


def test_clamd_killed_and_back(name: str, clamd: Clamd, caplog: pytest.LogCaptureFixture) -> None:
    with session(name, clamd, failures=1, recovery=0.05) as talk:
        assert talk.message([], b"x") == CLEAN
        clamd.kill()
        talk.tell(codec.Macros(b"M", ((b"i", b"4F2A"),)))
        assert talk.message([], b"x") == [LATER]
        assert talk.filter_class.guard.state == "open"
        clamd.start()
        wait_until(lambda: talk.message([], b"x") == CLEAN, "clamd is asked again")
    opened, unscanned = (text for text in caplog.messages if clamd.address in text or " opens " in text)
    assert opened.startswith("guard clamd opens for 0.05 s: failures in a row: 1, the last: ")
    assert unscanned.startswith(f"4F2A: clamd at {clamd.address}: ")


@pytest.mark.parametrize(
    "options",
    [
        {"clamd": "fd:3"},
        {"clamd": "inet:clamd@127.0.0.1"},
        {"clamd": "/"},
        {"unavailable": "reject"},
        {"too_large": "tempfail"},
        {"max_bytes": 0},
        {"seconds": 0},
        {"at_once": 0},
        {"recovery": 0},
    ],
    ids=str,
)
def test_options_that_make_no_sense(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        load(name, **options)


# -- the real one --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def addresses() -> Iterator[tuple[str, Path]]:
    """Of one clamd: the port, and the socket in the file system."""
    port = free_port()
    with short_directory() as directory, real_clamd(directory, port) as path:
        yield f"inet:{port}@127.0.0.1", path


@pytest.mark.parametrize("transport", ["inet", "unix"])
def test_the_real_clamd(name: str, addresses: tuple[str, Path], transport: str) -> None:
    inet, path = addresses
    with Session(name, clamd=inet if transport == "inet" else f"unix:{path}", too_large="reject", failures=1) as talk:
        talk.connect()
        assert talk.message([(b"Subject", b"apples")], b"twelve boxes\r\n") == CLEAN
        found = talk.message([(b"Subject", b"apples")], b"twelve boxes " + VIRUS + b"\r\n")
        assert found == [codec.ReplyCode(INFECTED.text + b".UNOFFICIAL")]
        encoded = (b"Content-Transfer-Encoding", b"base64")
        plain = (b"Content-Type", b"application/octet-stream")
        assert talk.message([(b"MIME-Version", b"1.0"), plain, encoded], b"eHh4IEVJQ0FSLUxJS0UgeXl5\r\n") == found
        assert talk.filter_class.guard.statistics().failures == 0


def test_the_real_clamd_and_a_message_that_is_too_large(name: str, addresses: tuple[str, Path]) -> None:
    with Session(name, clamd=f"unix:{addresses[1]}", too_large="reject", failures=1) as talk:
        talk.connect()
        assert talk.message([], *[b"x" * 60_000] * 50)[0] == codec.ReplyCode(
            b"552 5.3.4 this message is too large to be scanned for viruses"
        )
        assert talk.message([], b"x") == CLEAN
