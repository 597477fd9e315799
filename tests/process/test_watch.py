"""Filters that stand still: the master says where, and kills only what it was told to kill."""

import os
import signal
import time

import pytest

from fastmilter.client import Client
from fastmilter.constants import Step
from fastmilter.server.supervisor import GAP_S
from tests.process.harness import Server, begin, wait_until, whole_message

STUCK = """
import os
import time
import fastmilter

class Stuck(fastmilter.Filter):
    def on_header(self, name, value):
        open("inside", "w").close()
        match value:
            case "sleep":
                while not os.path.exists("release"):
                    time.sleep(0.05)  # sleeps
            case "spin":
                while not os.path.exists("release"):
                    pass
            case "compiled":
                sum(range(10**15))  # holds the interpreter

    def on_end_of_message(self):
        self.message.add_header("X-Pid", str(os.getpid()))

class StuckAsync(Stuck):
    async def on_end_of_message(self):
        super().on_end_of_message()
"""
QUEUE_ID = "4ZkT9c1x2Pz3wYQ"
SOON = "--slow-callback=0.3s"
REPORT = r"warning fastmilter\.server\.watchman: worker (\d) stands still: Stuck\.on_header has run for \d"


@pytest.fixture
def stuck(server: Server) -> Server:
    (server.directory / "stuck.py").write_text(STUCK)
    return server


def line_of(text: str) -> int:
    """The line of the filter's file in which ``text`` stands."""
    return next(number for number, line in enumerate(STUCK.split("\n"), 1) if text in line)


def hang(server: Server, how: str) -> Client:
    """Begin a message whose header field has the filter stand still; return its client when it does."""
    client = server.client().open()
    begin(client)
    client.rcpt("b@example.net")
    client.macros(Step.DATA, {"i": QUEUE_ID})
    client.data()
    client.header("Subject", how)
    client.send()  # what waits to be sent: nobody waits for an answer to a field
    wait_until((server.directory / "inside").exists, "the callback has begun")
    return client


@pytest.mark.parametrize(
    ("how", "lines"), [("sleep", ["sleeps", "while not"]), ("spin", ["while not", "pass"]), ("compiled", ["sum("])]
)
def test_a_callback_that_stands_still_is_reported_with_its_stack(stuck: Server, how: str, lines: list[str]) -> None:
    stuck.start("--workers=2", SOON, target="stuck:Stuck")
    client = hang(stuck, how)
    (report,) = stuck.wait_log(REPORT + r".*\n  stack, innermost call first:\n(?:    .*\n)+")
    text = report[0]
    first = text.split("\n")[0]
    assert "blocking = True" in first
    assert "async def" in first
    assert f"qid='{QUEUE_ID}'" in first
    pids = {name.split()[2]: pid for pid, name in stuck.workers().items()}
    assert f"pid={pids[report[1]]} " in first
    where = stuck.directory / "stuck.py"
    assert "in on_header" in text
    assert any(f'File "{where}", line {number}, in on_header' in text for number in numbers(lines)), text
    assert "supervisor.py" not in text
    with stuck.client() as other:  # the second worker serves on
        assert whole_message(other)["X-Pid"] != str(pids[report[1]])
    if how == "compiled":
        os.kill(pids[report[1]], signal.SIGKILL)
        stuck.wait_ready(3)
    else:
        (stuck.directory / "release").touch()
        stuck.wait_log(rf"info .*: worker {report[1]} goes on: Stuck\.on_header stood for \d+\.\d s or more")
        verdict, _ = client.end_of_message()
        assert verdict.kind == "continue"
        assert len(stuck.started()) == 2, "nobody was killed"
    client.close()
    assert len(stuck.wait_log("stands still")) == 1
    assert stuck.stop() == 0


def numbers(texts: list[str]) -> list[int]:
    """The lines of the filter's file in which one of ``texts`` stands."""
    return [number for number, line in enumerate(STUCK.split("\n"), 1) if any(text in line for text in texts)]


@pytest.mark.parametrize("how", ["sleep", "compiled"])
def test_a_hung_worker_is_killed_if_that_was_asked_for_and_replaced(stuck: Server, how: str) -> None:
    stuck.start("--workers=1", SOON, "--kill-hung=0.5s", target="stuck:Stuck")
    (pid,) = stuck.workers()
    client = hang(stuck, how)
    stuck.wait_ready(2)
    client.close()
    log = stuck.log()
    assert log.index("stands still: Stuck.on_header") < log.index(" is killed, and its connections break")
    assert f"kill_hung is 0.5 s pid={pid} qid='{QUEUE_ID}'" in log
    assert "worker 1 died of SIGKILL: starting another now" in log
    assert f'stuck.py", line {line_of("sleeps" if how == "sleep" else "sum(")}, in on_header' in log
    with stuck.client() as other:
        assert whole_message(other)["X-Pid"] != str(pid)
    assert stuck.stop() == 0


def test_a_plain_callback_of_an_async_filter_holds_up_its_loop_too(stuck: Server) -> None:
    stuck.start("--workers=1", SOON, target="stuck:StuckAsync")
    client = hang(stuck, "sleep")
    where = rf'File "{stuck.directory}/stuck\.py", line {line_of("sleeps")}, in on_header'
    stuck.wait_log(rf"stands still: StuckAsync\.on_header has run for .* qid='{QUEUE_ID}'\n  stack.*\n    {where}")
    (stuck.directory / "release").touch()
    assert client.end_of_message()[0].kind == "continue"
    client.close()
    assert stuck.stop() == 0


def test_a_stopped_worker_is_reported_as_stopped(stuck: Server) -> None:
    stuck.start("--workers=1", SOON, target="stuck:Stuck")
    (pid,) = stuck.workers()
    os.kill(pid, signal.SIGSTOP)
    stuck.wait_log(rf"worker 1 is stopped, by SIGSTOP or a debugger: .* for [\d.]+ s or more pid={pid} \(no stack\)")
    os.kill(pid, signal.SIGCONT)
    stuck.wait_log("worker 1 goes on: its loop stood for")
    with stuck.client() as client:
        assert whole_message(client)["X-Pid"] == str(pid)
    assert "stands still" not in stuck.log()
    assert stuck.stop() == 0


def test_master_and_worker_that_are_stopped_together_are_not_reported(stuck: Server) -> None:
    """As with a machine that is suspended: the callback in work has nothing to do with it."""
    stuck.start("--workers=1", "--slow-callback=4s", "--kill-hung=5s", target="stuck:Stuck")
    (pid,) = stuck.workers()
    client = hang(stuck, "sleep")
    for process in (stuck.pid, pid):
        os.kill(process, signal.SIGSTOP)
    end = time.monotonic() + GAP_S + 2
    wait_until(lambda: time.monotonic() > end, "longer than all limits have passed")
    os.kill(stuck.pid, signal.SIGCONT)
    stuck.wait_log("the master was suspended")
    (stuck.directory / "release").touch()
    os.kill(pid, signal.SIGCONT)
    assert client.end_of_message()[0].kind == "continue"
    client.quit()
    client.close()
    assert list(stuck.workers()) == [pid]
    assert stuck.stop() == 0
    assert "stands still" not in stuck.log()
    assert "is stopped" not in stuck.log()
