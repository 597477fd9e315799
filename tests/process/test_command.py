"""The command line, as a shell sees it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastmilter._version import __version__
from tests.process.harness import FILTER, PATIENCE_S, ROOT, clean_environment


def fastmilter(directory: Path, *words: str, environment: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Run the command to its end; return its status and what it wrote."""
    done = subprocess.run(
        [sys.executable, "-m", "fastmilter", *words],
        cwd=directory,
        env=clean_environment(environment),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "tagger.py").write_text(FILTER)
    return tmp_path


def test_version(directory: Path) -> None:
    assert fastmilter(directory, "--version") == (0, f"fastmilter {__version__}\n", "")


def test_help_tells_options_signals_and_exit_status(directory: Path) -> None:
    status, out, _ = fastmilter(directory, "--help")
    assert status == 0
    assert "serve" in out
    status, out, _ = fastmilter(directory, "serve", "--help")
    assert status == 0
    for text in ("--listen ADDRESS", "default inet:8894@127.0.0.1", "TTIN, TTOU", "78  configuration", "--drain-stop"):
        assert text in out
    assert "lifeline" not in out


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("sevre",), "invalid choice: 'sevre'"),
        (("serve",), "no filter given: write fastmilter serve module:Class"),
        (("serve", "tagger"), "TARGET: 'tagger' does not name a class in a module: write module:Class"),
        (("serve", "tagger:Tagger", "--listen"), "--listen: expected one argument"),
        (("serve", "tagger:Tagger", "--work=2"), "there is no option --work=2; did you mean --workers?"),
    ],
)
def test_wrong_usage_is_told_with_status_64(directory: Path, words: tuple[str, ...], error: str) -> None:
    status, out, err = fastmilter(directory, *words)
    assert (status, out) == (64, "")
    assert error in err
    assert "Traceback" not in err


def test_check_config_tells_what_would_happen(directory: Path) -> None:
    status, out, err = fastmilter(
        directory,
        "serve",
        "tagger:Tagger",
        "--check-config",
        "--workers=3",
        "--listen=inet:8894",
        "--listen=unix:x.sock",
    )
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "filter: tagger:Tagger"
    assert "listens on: inet:8894 (in smtpd_milters of Postfix: inet:127.0.0.1:8894)" in lines
    assert "  with mode 0660, group of the user that runs it" in lines
    assert "workers: 3" in lines
    assert "  mail: asked for, the MTA waits for the answer" in lines
    assert "  data: not asked for" in lines
    assert "warning: everybody who reaches this machine may connect to inet:8894: see --allow" in lines
    assert lines[-1] == "the configuration can be used"
    assert not (directory / "x.sock").exists()  # nothing was opened


def test_check_config_warns(directory: Path) -> None:
    (directory / "odd.py").write_text("""
import fastmilter
class Odd(fastmilter.Filter):
    @fastmilter.no_reply
    def on_mail(self, sender, params):
        pass
class Idle(fastmilter.Filter):
    pass
""")
    status, out, _ = fastmilter(directory, "serve", "odd:Odd", "--check-config", environment={"FASTMILTER_WORKER": "1"})
    assert status == 0
    assert "warning: @no_reply on on_mail" in out
    assert "warning: environment variable FASTMILTER_WORKER is not known; did you mean FASTMILTER_WORKERS?" in out
    _, out, _ = fastmilter(directory, "serve", "odd:Idle", "--check-config")
    assert "warning: Idle overrides no callback: it does nothing" in out


MISFIT = """
import fastmilter
class Misfit(fastmilter.Filter):
    blocking = True
    deadline = {"rcpt": 60}
    request_macros = {"rcpt": ["{client_port}"]}
    def on_rcpt(self, recipient, params):
        return self.verdict_for(self.macros["{if_addr}"])
"""


def test_check_config_warns_of_what_mtas_do_not_take(directory: Path) -> None:
    (directory / "misfit.py").write_text(MISFIT)
    # Fewer files than the connections of a worker need, whatever this machine allows.
    words = [sys.executable, "-m", "fastmilter", "serve", "misfit:Misfit", "--check-config", "--backlog=65535"]
    done = subprocess.run(
        ["/bin/sh", "-c", 'ulimit -n 200 && exec "$@"', "sh", *words],
        cwd=directory,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), "warnings are no failure"
    lines = done.stdout.splitlines()
    assert "  Postfix does not take inet:8894@127.0.0.1: it wants smtpd_milters = inet:127.0.0.1:8894" in lines
    assert "  Sendmail: INPUT_MAIL_FILTER(`fastmilter', `S=inet:8894@127.0.0.1, F=T')" in lines
    warnings = [line for line in lines if line.startswith("warning: ")]
    assert len(set(warnings)) == len(warnings), "nothing is said twice"
    for start in (
        "warning: the hard limit of 200 open files leaves each worker 167 connections: raise it to 10033",
        "warning: Postfix does not send {client_port} at rcpt by default",
        "warning: Misfit.on_rcpt reads the macro {if_addr}, which Postfix does not have",
        "warning: the deadline at rcpt (60 s) is not below the 10 s that Sendmail waits by default: set T=R:65s",
        "warning: the deadline at rcpt (60 s) is not below the 30 s that Postfix waits by default",
    ):
        assert any(line.startswith(start) for line in warnings), start
    somaxconn = Path("/proc/sys/net/core/somaxconn")
    is_cut = somaxconn.exists() and int(somaxconn.read_text()) < 65535
    assert is_cut == any(line.startswith("warning: the kernel cuts the backlog of 65535 to ") for line in warnings)
    assert lines[-1] == "the configuration can be used"


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import nothing_like_this\n", "No module named 'nothing_like_this'"),
        (FILTER.replace("Tagger", "Tager"), "there is no 'Tagger' in tagger; did you mean Tager?"),
        (FILTER + "\n    def __init__(self):\n        raise OSError('no room')\n", "OSError: no room"),
        (
            FILTER
            + "\n    from dataclasses import dataclass\n    @dataclass\n    class Options:\n        colour: str\n",
            "lacks the key 'colour'",
        ),
    ],
)
def test_check_config_finds_what_a_worker_would_find(directory: Path, source: str, error: str) -> None:
    (directory / "tagger.py").write_text(source)
    status, out, err = fastmilter(directory, "serve", "tagger:Tagger", "--check-config")
    assert status == 78
    assert error in err
    assert "the configuration can be used" not in out


def test_check_config_reads_the_file(directory: Path) -> None:
    (directory / "fm.toml").write_text('target = "tagger:Tagger"\nworkers = 7\n')
    status, out, _ = fastmilter(directory, "serve", "--config=fm.toml", "--check-config")
    assert status == 0
    assert "configuration file: fm.toml" in out
    assert "workers: 7" in out


def test_the_log_has_time_level_logger_text_and_keys(directory: Path) -> None:
    (directory / "tagger.py").write_text("import os\nos._exit(3)\n")
    status, _, err = fastmilter(directory, "serve", "tagger:Tagger", "--listen=inet:0@127.0.0.1")
    assert status == 70
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d{4}"
    assert re.search(rf"^{time} info fastmilter\.server\.supervisor: worker 1 started pid=\d+ generation=1$", err, re.M)
    assert re.search(rf"^{time} error fastmilter\.server\.supervisor: no worker became ready: .* status 3$", err, re.M)


def test_quiet_logs(directory: Path) -> None:
    (directory / "tagger.py").write_text("import os\nos._exit(3)\n")
    _, _, err = fastmilter(directory, "serve", "tagger:Tagger", "--listen=inet:0@127.0.0.1", "--log-level=error")
    assert " info " not in err
    assert " error " in err


def test_the_package_is_light() -> None:
    """Importing the package loads nothing that only some programs need."""
    heavy = {"argparse", "asyncio", "json", "ssl", "subprocess", "tomllib", "unittest"}
    source = f"import sys, fastmilter; print(*sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
