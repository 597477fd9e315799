"""The programs of the page about kinds of filters do what it says, each against a real service where it asks one."""

import contextlib
import socketserver
import sqlite3
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastmilter import CONTINUE, TEMPFAIL, Filter, Verdict
from fastmilter.server.deadlines import COMMAND_S, CONTENT_S, POSTFIX_COMMAND_S
from fastmilter.server.options import OPTIONS
from fastmilter.testing import run
from tests.examples.support import ROOT, free_port

from .pages import programs

PAGE = "docs/kinds.md"
PATIENCE_S = 30.0
NOBODY = (550, "5.1.1", "there is nobody of that name here")


def load(name: str, port: int = 0) -> Any:
    """Import a program of the page, which asks a service at another port."""
    source = programs(PAGE)[name].source.replace("8895", str(port))
    module = types.ModuleType(name.removesuffix(".py"))
    exec(compile(source, name, "exec"), module.__dict__)
    return module


def parts(verdict: Verdict) -> tuple[int | None, str | None, str | None]:
    return verdict.code, verdict.enhanced, verdict.text


class Service(socketserver.StreamRequestHandler):
    """Knows the recipient known@x; whoever asks nothing gets a score."""

    def handle(self) -> None:
        self.request.settimeout(0.05)
        try:
            question = self.rfile.readline()
        except TimeoutError:
            question = b""
        if question:
            self.wfile.write(b"200 yes\n" if question == b"get known@x\n" else b"500 no\n")
        else:
            self.wfile.write(b"3.5\n")


@pytest.fixture
def port() -> Iterator[int]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Service) as service:
        thread = threading.Thread(target=service.serve_forever, args=(0.02,))
        thread.start()
        yield service.server_address[1]
        service.shutdown()
        thread.join(PATIENCE_S)


def test_every_block_is_a_program() -> None:
    assert (ROOT / PAGE).read_text().count("\n```python\n") == len(programs(PAGE)) == 6


def test_plain() -> None:
    kind = load("plain.py").NoExecutables
    assert run(kind, b"Subject: game.exe\r\n\r\n").verdict.code == 550
    assert run(kind, b"Subject: game\r\n\r\n").verdict == CONTINUE


def test_blocking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with contextlib.closing(sqlite3.connect("known.db")) as db, db:
        db.execute("CREATE TABLE recipient (address TEXT)")
        db.execute("INSERT INTO recipient VALUES ('known@x')")
    kind = load("known.py").Known
    assert kind.blocking
    outcome = run(kind, b"\r\n", recipients=["Known@x", "other@x"])
    assert outcome.recipients == ("Known@x",)
    assert [parts(verdict) for verdict in outcome.refused.values()] == [NOBODY]


@pytest.mark.parametrize("name", ["lookup.py", "guarded.py"])
def test_async(name: str, port: int) -> None:
    outcome = run(load(name, port).Lookup, b"\r\n", recipients=["known@x", "other@x"])
    assert outcome.recipients == ("known@x",)
    assert [parts(verdict) for verdict in outcome.refused.values()] == [NOBODY]


def test_deadlines() -> None:
    kind = load("patient.py").Patient
    assert kind.deadline["rcpt"] == 5
    assert kind().on_timeout("end_of_message").code == 451
    assert kind().on_timeout("rcpt") is None


def test_the_defaults_are_those_of_the_server() -> None:
    text = " ".join((ROOT / PAGE).read_text().split())
    assert f"Without it: {COMMAND_S:.0f} s, with Postfix {POSTFIX_COMMAND_S:.0f} s, for the steps" in text
    assert f"and {CONTENT_S:.0f} s for the content and the end" in text
    threads = next(option.default for option in OPTIONS if option.name == "threads")
    assert f"in each worker ({threads} by default)" in text


def test_guarded_when_the_service_is_down() -> None:
    module = load("guarded.py", free_port())
    for _ in range(5):
        assert module.lookups.state == "closed"
        assert run(module.Lookup, b"\r\n", raise_errors=False).verdict == TEMPFAIL
    assert module.lookups.state == "open"
    # Nothing is raised any more: that the guard answers is no fault of the filter.
    assert run(module.Lookup, b"\r\n").verdict == TEMPFAIL
    assert module.lookups.statistics()[3:] == (5, 5, 1, 1)


def test_unchecked(port: int) -> None:
    assert score(load("unchecked.py", port).Scored) == b"3.5"


def test_unchecked_when_the_service_is_down() -> None:
    module = load("unchecked.py", free_port())
    for _ in range(5):
        assert score(module.Scored) == b"unknown"
    assert module.scores.statistics()[3:] == (3, 3, 2, 1)


def score(kind: type[Filter[Any]]) -> bytes:
    outcome = run(kind, b"\r\n")
    assert outcome.verdict == CONTINUE
    return outcome.apply().message.partition(b"X-Score: ")[2].partition(b"\r\n")[0]
