"""What keeps a server from starting is what ``--check-config`` refuses, in the same words."""

import os
import signal
from pathlib import Path

import pytest

from fastmilter.client import Client
from tests.process.harness import Server, wait_until, whole_message
from tests.process.test_command import fastmilter
from tests.process.test_upgrade import upgraded


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--listen=unix:/nonexistent/s"], "unix:/nonexistent/s: the directory '/nonexistent' does not exist"),
        (["--listen=unix:log/s"], "unix:log/s: Not a directory"),
        (["--listen=unix:tagger.py"], "the path exists and is not a socket: remove it, or choose another path"),
        (["--listen=unix:s?group=nosuch"], "unix:s?group=nosuch: there is no group 'nosuch' on this machine"),
        (["--listen=unix:s?owner=nosuch"], "unix:s?owner=nosuch: there is no user 'nosuch' on this machine"),
        (["--log-file=/nonexistent/x"], "--log-file /nonexistent/x: No such file or directory"),
        (["--log-file=."], "Is a directory"),
        (["--log-file=tagger.py/x"], "Not a directory"),
        (["--control=/nonexistent/ctl"], "unix:/nonexistent/ctl?mode=0600: the directory '/nonexistent' does not"),
    ],
)
def test_a_check_refuses_what_does_not_start(server: Server, options: list[str], error: str) -> None:
    words = ["serve", "tagger:Tagger", "--listen=inet:0@127.0.0.1", *options]
    starting, _, said = fastmilter(server.directory, *words)
    before = sorted(os.listdir(server.directory))
    status, out, err = fastmilter(server.directory, *words, "--check-config")
    assert (starting, status, out) == (78, 78, "")
    assert error in err
    assert err.splitlines() == said.splitlines()[-1:]
    assert sorted(os.listdir(server.directory)) == before, "nothing was made"


def test_a_check_beside_the_server_that_runs(server: Server) -> None:
    """As in the trial of an upgrade, and in a deploy."""
    path = Path(server.directory)
    options = [f"--control={path}/ctl", f"--log-file={path}/own.log", "--workers=1"]
    server.start(*options, listen=[f"unix:{path}/fm.sock?mode=0660"], wait=False)
    server.log_file = path / "own.log"
    try:
        wait_until(server.log_file.exists, "the log file is there")
        server.wait_ready(1)
        words = ["serve", "tagger:Tagger", f"--listen=unix:{path}/fm.sock?mode=0660", *options, "--check-config"]
        status, out, err = fastmilter(path, *words)
        assert (status, err) == (0, "")
        assert out.endswith("the configuration can be used\n")
        upgraded(server)
        with Client(f"unix:{path}/fm.sock") as client:
            whole_message(client)
    finally:
        server.send(signal.SIGTERM)
        server.finish()
