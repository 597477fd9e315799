"""The programs of docs/ do what the pages say: each is taken from its page and run."""

import doctest
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from fastmilter import Client, codec
from fastmilter.testing import run as run_filter
from tests.examples.support import ROOT, environment, free_port

from .pages import programs, run, running, write

LEVEL_1 = "docs/level-1-exchange.md"
LEVEL_2 = "docs/level-2-send-receive.md"
LEVEL_3 = "docs/level-3-codec.md"


def test_the_tests_of_the_page_about_testing_pass(tmp_path: Path) -> None:
    (name,) = write("docs/testing.md", tmp_path, 0)
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", name]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


@pytest.mark.parametrize("page", [LEVEL_1, LEVEL_2, LEVEL_3])
def test_every_block_is_a_program_or_a_session(page: str) -> None:
    text = (ROOT / page).read_text()
    blocks = text.count("\n```python\n")
    assert len(programs(page)) + text.count("\n```python\n>>>") == blocks
    assert text.count("\n```text\n") == sum(program.output is not None for program in programs(page).values())


def test_the_sessions_of_level_3() -> None:
    failed, attempted = doctest.testfile(str(ROOT / LEVEL_3), module_relative=False)
    assert attempted >= 5
    assert not failed


def test_every_message_is_named() -> None:
    text = (ROOT / LEVEL_3).read_text()
    commands, responses = (text.partition(f"{title}: ")[2].partition(".")[0] for title in ("Commands", "Responses"))
    for named, union in ((commands, codec.Command), (responses, codec.Response)):
        assert set(re.findall(r"`(\w+)`", named)) == {kind.__name__ for kind in get_args(union)}


def test_every_argument_of_run_is_explained() -> None:
    text = (ROOT / "docs/testing.md").read_text()
    named = [name for cell in re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE) for name in cell.split(", ")]
    keywords = list(inspect.signature(run_filter).parameters)[2:]
    assert sorted(name.strip("`") for name in named) == sorted(keywords)


@pytest.fixture(scope="module")
def level_1(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The programs of level 1, beside the filter that they talk to."""
    directory, port = tmp_path_factory.mktemp("level-1"), free_port()
    write(LEVEL_1, directory, port)
    serve = ["-m", "fastmilter", "serve", "gatekeeper.py:Gatekeeper", "--workers=1", f"--listen=inet:{port}@127.0.0.1"]
    with running(directory, *serve, port=port):
        yield directory


@pytest.mark.parametrize("name", sorted(set(programs(LEVEL_1)) - {"gatekeeper.py"}))
def test_level_1(level_1: Path, name: str) -> None:
    shown = programs(LEVEL_1)[name].output
    assert shown
    assert run(level_1, name).rstrip() == shown.rstrip()


@pytest.mark.parametrize("page", [LEVEL_2, LEVEL_3])
def test_levels_2_and_3(page: str, tmp_path: Path) -> None:
    port = free_port()
    found = write(page, tmp_path, port)
    assert set(found) == {"milter.py", "ask.py"}
    with running(tmp_path, "milter.py", port=port):
        assert run(tmp_path, "ask.py") == found["ask.py"].output
        # It is a milter for others too.
        with Client(f"inet:{port}@127.0.0.1", mta="sendmail") as client:
            outcome = client.send_message(b"Subject: x\r\n\r\nbody\r\n", "a@b.example", ["c@d.example"])
            assert outcome.modifications == (codec.AddHeader(b"X-Level", page[len("docs/level-")].encode()),)
            assert client.send_message(b"\r\n", "spam@spam.example", ["c@d.example"]).verdict.code == 550
