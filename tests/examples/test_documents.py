"""The documents say what is so: commands work, tables agree with the code, names exist."""

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastmilter import CONTINUE, Client, Filter, codec
from fastmilter.commands import EXIT_STATUS
from fastmilter.commands.serve import SIGNALS
from fastmilter.constants import STEPS, Action, Step
from fastmilter.endpoints import parse_endpoint
from fastmilter.message import Message
from fastmilter.plan import CALLBACKS
from fastmilter.replies import VerdictKind
from fastmilter.server.listen import spelling_for_postfix
from fastmilter.server.options import OPTIONS
from fastmilter.session import ADMISSIBLE

from .support import ROOT, environment, served

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "bench" / "README.md"])
README = (ROOT / "README.md").read_text()
DEFAULT_LISTEN = next(option.default for option in OPTIONS if option.name == "listen") or ""


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def rows(path: str, *, columns: int, after: str = "") -> list[list[str]]:
    """The cells of the tables with that many columns; of the section behind the text ``after``, if that is given."""
    text = (ROOT / path).read_text()
    assert after in text
    found = []
    for line in (text.partition(after)[2].partition("\n## ")[0] if after else text).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and len(cells) == columns and not set(line) <= set("| -"):
            found.append(cells)
    return found


# -- README --------------------------------------------------------------------------------------------------------


def test_the_filter_of_the_readme_serves(tmp_path: Path) -> None:
    first, own_test, try_it = blocks(README, "python")
    (tmp_path / "first.py").write_text(first)
    (tmp_path / "test_first.py").write_text(own_test)
    run_test = "import test_first; test_first.test_the_subject_is_marked()"
    subprocess.run([sys.executable, "-c", run_test], cwd=tmp_path, env=environment(), check=True, timeout=60)
    with served("first.py:First", cwd=tmp_path) as server:
        with Client(server.address) as client:
            refused = client.send_message(b"Subject: x\r\n\r\n", "a@SPAM.example", ["c@d.example"])
            assert (refused.verdict.code, refused.verdict.text) == (550, "no thanks")
            changed = client.send_message(b"Subject: x\r\n\r\n", "a@b.example", ["c@d.example"])
            assert set(changed.modifications) == {
                codec.ChangeHeader(1, b"Subject", b"[external] x"),
                codec.AddHeader(b"X-Checked", b"yes"),
            }
        assert DEFAULT_LISTEN in try_it
        program = try_it.replace(DEFAULT_LISTEN, server.address)
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 0, done.stderr
    assert "continue" in done.stdout
    assert "Subject: [external] hello" in done.stdout
    assert server.status == 0


def test_the_commands_of_the_readme_work(tmp_path: Path) -> None:
    (tmp_path / "first.py").write_text(blocks(README, "python")[0])
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    checked = 0
    for line in "".join(blocks(README, "sh")).splitlines():
        words = line.partition("#")[0].split()
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
        else:
            assert words[0] == ".venv/bin/fastmilter", line
            command = [sys.executable, "-m", "fastmilter", *words[1:], "--check-config"]
            subprocess.run(command, cwd=tmp_path, env=environment(), check=True, timeout=60, stdout=subprocess.DEVNULL)
            checked += 1
    assert checked == 2


def test_the_filter_of_the_readme_is_short() -> None:
    code = [line for line in blocks(README, "python")[0].splitlines() if line.strip()]
    assert len(code) <= 12


@pytest.mark.parametrize("path", ["README.md", "docs/operations.md"])
def test_the_lines_for_the_mtas_name_the_default_address(path: str) -> None:
    text = (ROOT / path).read_text()
    address = parse_endpoint(DEFAULT_LISTEN)
    milters = re.findall(r"^ *((?:non_)?smtpd_milters) = (\S+)$", text, re.MULTILINE)
    assert [name for name, _ in milters] == ["smtpd_milters", "non_smtpd_milters"]
    for _, value in milters:
        assert value == spelling_for_postfix(address)
        assert parse_endpoint(value) == address
    (sendmail,) = re.findall(r"^ *INPUT_MAIL_FILTER\(`fastmilter', `S=(\S+), F=T'\)$", text, re.MULTILINE)
    assert parse_endpoint(sendmail) == address


def test_the_table_of_callbacks_is_whole() -> None:
    told = dict(re.findall(r"^\| `(on_\w+)\((.*?)\)`", README, re.MULTILINE))
    assert set(told) == set(CALLBACKS)
    for name, arguments in told.items():
        names = [word.strip() for word in arguments.split(",") if word.strip()]
        assert len(names) == CALLBACKS[name], name
        if hasattr(Filter, name):
            assert names == list(inspect.signature(getattr(Filter, name)).parameters)[1:], name


# -- docs ----------------------------------------------------------------------------------------------------------


def test_the_table_of_possible_verdicts() -> None:
    table = rows("docs/verdicts.md", columns=2, after="Which verdicts are possible:")[1:]
    told = {cells[0].strip("`"): set(cells[1].split()) for cells in table}
    assert set(told) == set(map(str, STEPS))
    for step, possible in zip(STEPS, ADMISSIBLE, strict=True):
        names = {str(kind) if kind is VerdictKind.REPLY else str(kind).upper() for kind in possible}
        assert told[str(step)] == names, step


def test_the_table_of_effects_names_every_step_and_what_is_impossible() -> None:
    table = rows("docs/verdicts.md", columns=4, after="## What each does where")
    steps = [step.strip("` ") for cells in table[1:] for step in cells[0].split(",")]
    assert steps == [str(step) for step in STEPS]
    for cells in table[1:]:
        for name in cells[0].split(","):
            possible = ADMISSIBLE[list(STEPS).index(Step(name.strip("` ")))]
            assert ("not possible" in cells[1]) == (VerdictKind.ACCEPT not in possible), name
            assert ("not possible" in cells[3]) == (VerdictKind.DISCARD not in possible) or cells[3].startswith("as at")


def waiting(step: str, *callbacks: Any) -> str:
    """What a class with that callback at ``step``, or none, asks for."""
    cls: Any = type("Made", (Filter,), {f"on_{step}": callback for callback in callbacks})
    wish = cls.wish()
    return "not shown" if step in wish.never else "shown without an answer" if step in wish.no_reply else "answered"


def test_the_table_of_where_the_mta_waits() -> None:
    table = rows("docs/verdicts.md", columns=3, after="## When the MTA waits")
    told = {step.strip("` "): cells[1:] for cells in table[1:] for step in cells[0].split(",")}
    assert set(told) == set(map(str, STEPS))
    for step, (overridden, plain) in told.items():
        telling, mute = waiting(step, lambda self, *_: CONTINUE), waiting(step, lambda self, *_: None)
        assert overridden.startswith(telling), step
        assert ("unless the callback returns nothing" in overridden) == (mute != telling), step
        assert plain.startswith(waiting(step)), step


def test_the_table_of_edits() -> None:
    told = {}
    for cells in rows("docs/edits.md", columns=3)[1:]:
        match = re.fullmatch(r"`(\w+)\((.*)\)`", cells[0])
        assert match is not None, cells
        told[match[1]] = match[2]
        for action in re.findall(r"`(\w+)`", cells[2]):
            assert action in Action.__members__
    own = {"sender", "sender_params", "recipients", "macros", "queue_id", "state"}
    assert set(told) == {name for name in dir(Message) if not name.startswith("_")} - own
    for name, arguments in told.items():
        parameters = [part.partition("=")[0].strip() for part in re.split(r", (?![)])", arguments)]
        actual = list(inspect.signature(getattr(Message, name)).parameters)[1:]
        assert [parameter for parameter in parameters if parameter != "*"] == actual, name


def test_signals_and_status_are_those_of_the_help() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    for names in re.findall(r"^  ([A-Z, 12]+?)  ", SIGNALS, re.MULTILINE):
        for name in names.split(", "):
            assert f"`{name}`" in text, name
    told = re.findall(r"^\| (\d+) \| (.*) \|$", text, re.MULTILINE)
    assert told == re.findall(r"^  (\d+) +(.*)$", EXIT_STATUS, re.MULTILINE)


def test_the_defaults_of_time_outs() -> None:
    told = {cells[0].strip("`"): cells[1] for cells in rows("docs/operations.md", columns=3, after="## Time-outs")}
    for option in OPTIONS:
        if option.name.endswith("_timeout") and option.name != "ready_timeout":
            assert told[option.name] == f"{option.default} s"


# -- all of them ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_files_exist(path: Path) -> None:
    text = path.read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (path.parent / target).exists(), target
    for name in re.findall(r"`((?:tests|docs|examples|bench|contrib|fastmilter|\.ci)/[\w./]+)", text):
        assert (ROOT / name).exists(), name


def test_the_tests_of_the_threat_model_exist() -> None:
    named = re.findall(r"`(tests/[\w/.]+?\.py)(?:::(\w+))?`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 15
    for path, function in named:
        source = (ROOT / path).read_text()
        assert f"def {function or 'test_'}" in source, (path, function)


def test_the_map_of_the_architecture_is_whole() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    table = text.partition("## Where is ...?")[2].partition("## What always holds")[0]
    named = set(re.findall(r"`((?:\w+/)?\w+\.pyx?)`", table)) | {"__init__.py", "__main__.py", "_version.py"}
    package = ROOT / "fastmilter"
    there = {str(path.relative_to(package)) for suffix in ("*.py", "*.pyx") for path in package.rglob(suffix)}
    missing = {name for name in there - named if not name.endswith("__init__.py") and not name.startswith("commands/")}
    assert not missing
    assert named <= there


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_make_targets_exist(path: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for name in re.findall(r"`make ([a-z-]+)", path.read_text()):
        assert name in targets or name == "sendmail", name


def test_the_service_file_runs_what_can_be_run(tmp_path: Path) -> None:
    service = (ROOT / "contrib" / "systemd" / "fastmilter@.service").read_text()
    for name in ("tagger.toml", "tagger.py"):
        source = ROOT / ("examples" if name.endswith(".py") else "contrib/systemd") / name
        (tmp_path / name).write_bytes(source.read_bytes())
    (check,) = re.findall(r"^ExecStartPre=\S+/fastmilter (.*)$", service, re.MULTILINE)
    assert check == re.findall(r"^ExecStart=\S+/fastmilter (.*)$", service, re.MULTILINE)[0] + " --check-config"
    command = [sys.executable, "-m", "fastmilter", *check.replace("%i", "tagger").split()]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "workers: 2" in done.stdout
    longest = next(option.default for option in OPTIONS if option.name == "drain_stop") or ""
    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)$", service, re.MULTILINE)
    assert int(stop) > float(longest.split(",")[-1])
