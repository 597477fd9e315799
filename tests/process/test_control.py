"""Orders over the control socket of a real server, and the commands that give them."""

import contextlib
import json
import os
import pty
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from fastmilter.client import Client
from tests.commands.support import Done, command, run, run_on_terminal, surroundings
from tests.process.harness import FILTER, PATIENCE_S, Server, begin, complete, title, wait_until, whole_message
from tests.process.watching import control, monitors

CONTROL = "--control=control"


def ask(server: Server, *words: str) -> Done:
    return run(*words, CONTROL, cwd=server.directory)


def test_status_shows_workers_and_what_is_in_flight(server: Server) -> None:
    server.start("--workers=2", CONTROL)
    with server.client() as client:
        client.macros("mail", {"i": "4ZkT9c1x2P"})
        begin(client)
        wait_until(lambda: control(server)["status"]["in_flight"], "a message in flight")
        status = control(server)["status"]
        assert [(each["queue_id"], each["step"]) for each in status["in_flight"]] == [("4ZkT9c1x2P", "mail")]
        assert status["in_flight"][0]["age"] > 0
        assert (status["connections"], status["in_message"], status["state"]) == (1, 1, "serving")
        assert sorted(each["pid"] for each in status["workers"]) == sorted(server.workers())
        assert status["pid"] == server.pid
        assert status["listen"] == [server.address()]
        shown = ask(server, "status")
        assert (shown.status, shown.err) == (0, "")
        assert "4ZkT9c1x2P" in shown.out
        assert "connections 1 open, 1 in a message, 1 accepted" in shown.out
        complete(client)
    wait_until(lambda: not control(server)["status"]["in_flight"], "nothing in flight")
    assert control(server)["status"]["messages"]["continue"] == 1
    assert '"generation": 1' in ask(server, "status", "--json").out
    assert "\x1b[" not in ask(server, "status").out
    assert "\x1b[32mserving" in run_on_terminal("status", CONTROL, cwd=server.directory).out
    assert server.stop() == 0


def test_the_step_in_flight_is_that_of_the_message_not_of_the_last_callback(server: Server) -> None:
    server.filter.write_text(FILTER.replace("def on_mail", "def mail"))  # no callback before the end of the message
    server.start("--workers=1", CONTROL)
    with server.client() as client:
        whole_message(client)
        client.mail("a@example.org")
        client.send()
        wait_until(lambda: control(server)["status"]["in_flight"], "a message in flight")
        assert [each["step"] for each in control(server)["status"]["in_flight"]] == ["mail"]
    assert server.stop() == 0


def running(server: Server) -> list[dict[str, object]]:
    return [each for each in control(server)["status"]["in_flight"] if each["running"]]


def test_a_callback_that_runs_long_is_shown_while_it_runs(server: Server) -> None:
    server.filter.write_text("""
import os
import fastmilter

class Tagger(fastmilter.Filter):
    def on_end_of_message(self):
        import time
        while not os.path.exists("release"):
            time.sleep(0.01)
""")
    server.start("--workers=1", CONTROL, "--metrics=127.0.0.1:0")
    with server.client() as client:
        client.macros("mail", {"i": "4ZkT9c1x2P"})
        begin(client)
        client.rcpt("b@example.net")
        client.data()
        pid = os.fork()
        if pid == 0:  # the MTA waits for the verdict
            client.end_of_message()
            os._exit(0)
        wait_until(lambda: running(server), "the callback runs")
        assert [(each["queue_id"], each["step"]) for each in running(server)] == [("4ZkT9c1x2P", "end_of_message")]
        (server.directory / "release").touch()
        os.waitpid(pid, 0)
        wait_until(lambda: not running(server), "it has ended")
        client.close()
    assert server.stop() == 0


def test_reload_tells_what_became_of_it(server: Server) -> None:
    server.start("--workers=2", CONTROL)
    done = ask(server, "reload")
    assert (done.status, done.out, done.err) == (0, "generation 2 serves, the old workers drain\n", "")
    server.filter.write_text("def f(:\n")
    failed = ask(server, "reload")
    assert failed.status == 1
    assert "reload failed, the old workers stay: worker 1 of the new generation" in failed.err
    assert "SyntaxError" in failed.err
    assert "SyntaxError" in control(server)["status"]["error"]["text"]
    assert "last trouble" in ask(server, "status").out
    with server.client() as client:
        whole_message(client)
    assert server.stop() == 0


def test_a_reload_after_another_waits_for_the_older_workers(server: Server) -> None:
    server.start("--workers=1", CONTROL)
    with server.client() as client:
        begin(client)
        assert ask(server, "reload").status == 0
        again = subprocess.Popen(
            command("reload", CONTROL), cwd=server.directory, env=surroundings(), stdout=subprocess.PIPE, text=True
        )
        server.wait_log("reload: remembered")
        complete(client)
        client.close()
    out, _ = again.communicate(timeout=PATIENCE_S)
    assert out.splitlines() == [
        "1 worker of another generation must finish first, which takes 75 s at most",
        "generation 3 serves, the old workers drain",
    ]
    assert again.returncode == 0
    assert server.stop() == 0


def test_auto_is_one_worker_for_each_processor_of_the_server(server: Server) -> None:
    server.start("--workers=2", CONTROL)
    wait_until(lambda: monitors(server), "a monitor")
    os.sched_setaffinity(monitors(server)[-1], [min(os.sched_getaffinity(0))])  # as in a container with one
    assert ask(server, "scale", "auto").out == "the number of workers is now 1\n"
    assert server.stop() == 0


def test_scale(server: Server) -> None:
    server.start("--workers=1", CONTROL)
    assert ask(server, "scale", "3").out == "the number of workers is now 3\n"
    wait_until(lambda: len(server.workers()) == 3, "three workers")
    assert ask(server, "scale", "1").status == 0
    wait_until(lambda: len(server.workers()) == 1, "one worker")
    assert ask(server, "scale", "0").status == 64
    assert ask(server, "scale").status == 64
    assert not control(server, "scale", workers=10**6)["ok"]
    assert not control(server, "scale", workers=True)["ok"]
    assert server.stop() == 0


def test_stop_finishes_sessions_and_returns_when_the_server_is_gone(server: Server) -> None:
    server.start("--workers=1", CONTROL)
    with server.client() as client:
        begin(client)
        stopping = subprocess.Popen(
            command("stop", CONTROL),
            cwd=server.directory,
            env=surroundings(),
            stdout=subprocess.PIPE,
            text=True,
        )
        server.wait_log("draining all workers")
        wait_until(lambda: control(server)["status"]["state"] == "stopping", "it is told")  # the log is written first
        shown = ask(server, "status")
        assert (shown.status, "takes no new connections" in shown.out) == (1, True)
        assert not control(server, "reload")["ok"]
        complete(client)
        assert stopping.poll() is None
    assert server.finish() == 0
    out, _ = stopping.communicate(timeout=PATIENCE_S)
    assert out.splitlines()[-1] == "stopped"
    assert stopping.returncode == 0
    assert not (server.directory / "control").exists()
    gone = ask(server, "status")
    assert (gone.status, "there is no such socket" in gone.err) == (4, True)


def test_stop_now(server: Server) -> None:
    server.start("--workers=1", CONTROL)
    client = server.client().open()
    begin(client)
    assert ask(server, "stop", "--now").status == 0
    assert server.finish() == 0
    client.close()


@pytest.mark.parametrize("by_signal", [True, False])
def test_the_log_file_is_opened_anew_by_all(server: Server, by_signal: bool) -> None:
    log, old = server.directory / "milter.log", server.directory / "milter.log.1"
    server.start("--workers=1", CONTROL, "--log-file=milter.log", "--log-messages", "--log-format=json", wait=False)
    wait_until(lambda: log.exists() and "is ready" in log.read_text(), "it serves")
    assert stat.S_IMODE(log.stat().st_mode) == 0o640 & ~_umask()
    listening = server.address()
    log.rename(old)
    if by_signal:
        server.send(signal.SIGUSR1)
        wait_until(log.exists, "a new log file")
    else:
        assert ask(server, "reopen-logs").out == "the log file is open anew\n"

    def logged() -> bool:
        with Client(listening) as client:
            whole_message(client)
        return '"logger": "fastmilter.message"' in log.read_text()

    wait_until(logged, "the worker writes there")  # which takes its orders when its loop comes to it
    assert control(server, "stop")["ok"]
    assert server.finish() == 0
    assert "the server ends" in log.read_text()
    assert "the server ends" not in old.read_text()
    assert "worker 1 is ready" in old.read_text()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_log_file_that_cannot_be_opened_anew_stays(server: Server) -> None:
    logs, moved = server.directory / "logs", server.directory / "moved"
    logs.mkdir()
    server.start("--workers=1", CONTROL, "--log-file=logs/milter.log", wait=False)
    wait_until(lambda: (logs / "milter.log").exists() and "is ready" in (logs / "milter.log").read_text(), "it serves")
    logs.rename(moved)
    done = ask(server, "reopen-logs")
    why = "the log file was not opened anew: --log-file logs/milter.log: No such file or directory"
    assert (done.status, done.out, done.err) == (1, "", f"fastmilter: {why}\n")
    assert why in (moved / "milter.log").read_text()
    logs.mkdir()
    assert ask(server, "reopen-logs").out == "the log file is open anew\n"
    assert server.stop() == 0
    assert "the server ends" in (logs / "milter.log").read_text()


def test_without_a_log_file_there_is_none_to_open(server: Server) -> None:
    server.start("--workers=1", CONTROL, "--log-file=-")
    done = ask(server, "reopen-logs")
    assert (done.status, done.err) == (1, "fastmilter: the server has no log file (--log-file)\n")
    server.send(signal.SIGUSR1)
    with server.client() as client:
        whole_message(client)
    assert server.stop() == 0


def test_a_log_file_that_cannot_be_opened(server: Server) -> None:
    server.start("--log-file=/nonexistent/milter.log", wait=False)
    assert server.finish() == 78
    assert "--log-file /nonexistent/milter.log: No such file or directory" in server.log()


# -- who may --------------------------------------------------------------------------------------------------------

STRANGER = """
import os, socket, sys
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
connection = socket.socket(socket.AF_UNIX)
try:
    connection.connect(sys.argv[1])
except PermissionError:
    sys.exit("may not connect")
try:
    connection.sendall(b'{"command": "stop"}\\n')
except BrokenPipeError:
    pass  # answered already
print(connection.makefile().readline())
"""


def test_the_socket_is_its_owners_alone(server: Server, tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    # pytest's directories are closed to others, so that it is one of our own that decides.
    open_directory = Path("/tmp") / f"fastmilter-test-{os.getpid()}"
    open_directory.mkdir(mode=0o755)
    try:
        path = open_directory / "control"
        server.start("--workers=1", f"--control={path}")
        wait_until(lambda: monitors(server), "a monitor")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        closed = subprocess.run([sys.executable, "-c", STRANGER, path], capture_output=True, text=True, check=False)
        assert (closed.returncode, closed.stderr) == (1, "may not connect\n")
        path.chmod(0o666)  # were it open, the kernel would still say who it is
        refused = subprocess.run([sys.executable, "-c", STRANGER, path], capture_output=True, text=True, check=False)
        assert "user 65534 may not" in refused.stdout
        assert server.stop() == 0
    finally:
        shutil.rmtree(open_directory)


def test_odd_requests_are_refused(server: Server) -> None:
    server.start("--workers=1", CONTROL)
    wait_until(lambda: monitors(server), "a monitor")
    for request in (
        b"\n",
        b"status\n",
        b"[1]\n",
        b'{"command": 1}\n',
        b'{"command": "fly"}\n',
        b"[" * 1000 + b"\n",
        b"x" * 5000,
    ):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE_S)
            connection.connect(str(server.directory / "control"))
            connection.sendall(request)
            assert json.loads(connection.makefile().readline())["ok"] is False
    assert server.stop() == 0


def test_by_default_the_socket_is_where_systemd_made_a_directory(server: Server) -> None:
    (server.directory / "run").mkdir()
    directory = str(server.directory / "run")
    server.start("--workers=1", environment={"RUNTIME_DIRECTORY": directory})
    wait_until(lambda: monitors(server), "a monitor")
    assert run("status", "--control", f"{directory}/control").status == 0
    assert server.stop() == 0
    server.start("--workers=1", environment={"RUNTIME_DIRECTORY": "/nonexistent"})
    assert "there is no control socket: " in server.log(), "what nobody asked for does not keep it from serving"
    assert server.stop() == 0


def test_no_socket_to_be_found(tmp_path: Path) -> None:
    done = run("status", cwd=tmp_path)
    assert (done.status, "--control PATH" in done.err) == (64, True)


# -- top ------------------------------------------------------------------------------------------------------------


class Top:
    """``fastmilter top`` on a terminal of its own."""

    def __init__(self, server: Server) -> None:
        self.terminal, theirs = pty.openpty()
        self.modes = termios.tcgetattr(self.terminal)
        self.out = b""
        self.process = subprocess.Popen(
            command("top", "--interval=0.2", CONTROL),
            cwd=server.directory,
            env=surroundings(TERM="xterm"),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)

    def __enter__(self) -> "Top":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.terminal)

    def read_pictures(self, count: int) -> None:
        """Read until so many pictures more have come."""
        wanted = self.out.count(PICTURE) + count
        while self.out.count(PICTURE) < wanted:
            assert select.select([self.terminal], [], [], PATIENCE_S)[0], self.out
            self.out += os.read(self.terminal, 65536)

    def press(self, keys: bytes) -> None:
        os.write(self.terminal, keys)

    def finish(self) -> int:
        """Read what still comes; return the exit status."""
        with contextlib.suppress(OSError):  # how Linux says that nobody has the terminal open any more
            while select.select([self.terminal], [], [], PATIENCE_S)[0] and (piece := os.read(self.terminal, 65536)):
                self.out += piece
        status = self.process.wait(PATIENCE_S)
        assert self.out.rstrip().rpartition(b"\x1b[?1049l")[1], "the other screen is left"
        assert termios.tcgetattr(self.terminal) == self.modes
        return status


PICTURE = b"tagger:Tagger"


@pytest.fixture
def watched(server: Server) -> Server:
    """A server that can be asked."""
    server.start("--workers=1", CONTROL)
    wait_until(lambda: monitors(server), "a monitor")
    return server


def test_top_draws_until_a_key_ends_it(watched: Server) -> None:
    with Top(watched) as top:
        top.read_pictures(3)
        top.press(b"q")
        assert top.finish() == 0
    assert b"/s)" in top.out, "rates, from the second picture on"
    assert b" %" in top.out
    assert watched.stop() == 0


def test_any_key_may_be_pressed_in_top(watched: Server) -> None:
    with Top(watched) as top:
        top.read_pictures(1)
        top.press(b"\xe9")
        top.read_pictures(2)
        top.press("xyé".encode() + b"q\xc3")
        assert top.finish() == 0
    assert b"internal error" not in top.out
    assert watched.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_top_gives_the_terminal_back(watched: Server, number: signal.Signals) -> None:
    with Top(watched) as top:
        top.read_pictures(1)
        top.process.send_signal(number)
        assert top.finish() == 128 + number
    assert watched.stop() == 0


def test_a_monitor_that_stands_still_is_not_waited_for(watched: Server) -> None:
    monitor = monitors(watched)[-1]
    with Top(watched) as top:
        top.read_pictures(1)
        os.kill(monitor, signal.SIGSTOP)
        try:
            orders = [
                subprocess.Popen(
                    command(*words, CONTROL),
                    cwd=watched.directory,
                    env=surroundings(),
                    stderr=subprocess.PIPE,
                    text=True,
                )
                for words in (["status"], ["stop"], ["reload"])
            ]
            done = [(process.communicate(timeout=PATIENCE_S)[1], process.returncode) for process in orders]
            assert top.finish() == 4
        finally:
            os.kill(monitor, signal.SIGCONT)
    assert done == [(f"fastmilter: {watched.directory / 'control'}: no answer within 5 s\n", 4)] * 3
    assert control(watched)["status"]["state"] == "serving", "orders whose givers have gone are not carried out"
    assert watched.stop() == 0


def test_top_needs_a_terminal_and_a_server(server: Server) -> None:
    server.start("--workers=1", CONTROL)
    wait_until(lambda: monitors(server), "a monitor")
    done = ask(server, "top")
    assert (done.status, "fastmilter status" in done.err) == (64, True)
    assert server.stop() == 0
    gone = run_on_terminal("top", CONTROL, cwd=server.directory)
    assert gone.status == 4
    assert not title(server.pid)
