"""What README.md and docs/commands.md say of the commands: tables as in the code, output as it really is."""

import importlib
import re
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest

from fastmilter.commands import SUBCOMMANDS
from fastmilter.commands.options import render_options
from tests.process.harness import PATIENCE_S, ROOT, Server, wait_until

from .support import run, run_on_terminal, running

COMMANDS = ("check", "tap", "decode")
ORDERS = ("status", "top", "reload", "scale", "stop", "reopen-logs")
DOCUMENTS = ("README.md", "docs/commands.md")
DOCUMENT = (ROOT / "docs" / "commands.md").read_text()


def module(name: str) -> Any:
    return importlib.import_module(f"fastmilter.commands.{name.replace('-', '_')}")


def shown(path: str) -> dict[str, tuple[list[str], str]]:
    """The commands in a document, by the word behind ``fastmilter``: all of the words, and what comes out."""
    found = {}
    for block in re.findall(r"^```console\n(.*?)^```$", (ROOT / path).read_text(), re.MULTILINE | re.DOTALL):
        line, _, output = block.partition("\n")
        words = shlex.split(line.removeprefix("$ "))
        if words[:1] == ["fastmilter"]:
            found[words[1]] = (words[1:], output)
    return found


def masked(text: str) -> list[str]:
    """Output without what differs each time (the day, the time, milliseconds, port numbers, counts of reads), and
    without the space that stands for an empty line of a diff, which editors take out of documents."""
    text = re.sub(r"^\d{4}-\S+", "DAY", text, flags=re.MULTILINE)
    text = re.sub(r" +\d+\.\d\d$", " MS", text, flags=re.MULTILINE)
    text = re.sub(r"\b\d{4,5}\b|records=\d+", "N", text)
    return [line.rstrip() for line in text.rstrip().splitlines()]


def test_every_command_is_shown() -> None:
    assert set(SUBCOMMANDS) == {"serve", *COMMANDS, *ORDERS}
    for path in DOCUMENTS:
        assert set(shown(path)) == set(COMMANDS)


@pytest.mark.parametrize("path", DOCUMENTS)
@pytest.mark.parametrize("name", ["check", "decode"])
def test_the_output_is_real(path: str, name: str) -> None:
    words, output = shown(path)[name]
    done = run(*words)
    assert (done.status, done.err) == (0, "")
    assert masked(done.out) == masked(output)


@pytest.mark.parametrize("path", DOCUMENTS)
def test_the_session_of_the_tap_is_real(path: str, tmp_path: Path) -> None:
    words, output = shown(path)["tap"]
    log = tmp_path / "tap.log"
    server = Server(tmp_path)
    try:
        server.start("--workers=1")
        listen, upstream, out = (words[words.index(option) + 1] for option in ("--listen", "--upstream", "--out"))
        real = {listen: "inet:0@127.0.0.1", upstream: server.address()}
        with running(*(real.get(word, word) for word in words), log=log, cwd=tmp_path) as tap:
            wait_until(lambda: "passing on to" in log.read_text(), "the tap starts")
            (address,) = re.findall(r"listening on (\S+)", log.read_text())
            assert run("check", address, str(ROOT / "examples" / "message.eml")).status == 0
            tap.send_signal(signal.SIGTERM)
            assert tap.wait(PATIENCE_S) == 0
        assert server.stop() == 0
    finally:
        server.kill_all()
    assert masked(log.read_text()) == masked(output)
    assert run("decode", str(tmp_path / out)).status == 0


@pytest.mark.parametrize("name", COMMANDS + ORDERS)
def test_the_tables_are_those_of_the_code(name: str) -> None:
    section = DOCUMENT.partition(f"## fastmilter {name}\n")[2].partition("\n## ")[0]
    assert render_options(module(name).OPTIONS) in section
    told = re.findall(r"^\| (\d+) \| (.*) \|$", section, re.MULTILINE)
    assert told == re.findall(r"^  (\d+) +(.*)$", module(name).EXIT_STATUS, re.MULTILINE)
    assert told


@pytest.mark.parametrize("name", COMMANDS + ORDERS)
def test_the_help_tells_everything(name: str) -> None:
    for done in (run(name, "--help", COLUMNS="1000"), run_on_terminal(name, "--help", columns=1000)):
        assert done.status == 0
        for option in module(name).OPTIONS:
            assert (option.form if option.positional else option.switch) in done.out
            assert option.help in done.out
            assert option.positional or not option.default or f"(default {option.default})" in done.out
        assert module(name).EXIT_STATUS.strip() in done.out
    assert SUBCOMMANDS[name] in run("--help").out
