"""The master and its workers: birth, death, signals, and the end."""

import os
import signal
import socket

import psutil
import pytest

from fastmilter.client import Client, ConnectionLost
from tests.process.harness import Server, begin, complete, is_gone, title, wait_until, whole_message


def test_titles(server: Server) -> None:
    server.start("--workers=2")
    assert title(server.pid) == "fastmilter: master [Tagger]"
    assert sorted(server.workers().values()) == ["fastmilter: worker 1 [Tagger]", "fastmilter: worker 2 [Tagger]"]


def test_a_killed_worker_is_replaced_and_the_others_notice_nothing(server: Server) -> None:
    server.start("--workers=2")
    clients = [server.client().open() for _ in range(8)]
    for client in clients:
        begin(client)
    answered = {int(complete(client)["X-Pid"]) for client in clients}
    assert len(answered) == 2, "both workers have connections"
    victim = min(answered)
    for client in clients:
        begin_next(client)
    os.kill(victim, signal.SIGKILL)
    server.wait_ready(3)
    assert "worker 1 died of SIGKILL: starting another now" in server.log()
    served = 0
    for client in clients:
        try:
            pid = int(complete(client)["X-Pid"])
        except ConnectionLost:
            continue
        assert pid != victim
        served += 1
        client.quit()
    assert served >= 1, "the other worker's messages all got their verdicts"
    for client in clients:
        client.close()
    assert len(server.workers()) == 2
    assert server.stop() == 0


def begin_next(client: Client) -> None:
    client.mail("again@example.org")


def test_a_worker_that_crashes_in_a_callback_is_replaced(server: Server) -> None:
    server.start("--workers=1")
    with pytest.raises(ConnectionLost):
        begin(server.client().open(), "crash@example.org")
    server.wait_ready(2)
    assert "worker 1 ended with status 3: starting another in" in server.log()
    with server.client() as client:
        whole_message(client)
    assert server.stop() == 0


def test_a_crash_loop_backs_off_and_ends_when_the_cause_is_gone(server: Server) -> None:
    broken = server.directory / "broken"
    server.filter.write_text(
        server.filter.read_text()
        + f"""
    @classmethod
    def worker_started(cls, options):
        if os.path.exists({str(broken)!r}):
            raise RuntimeError("no data base")
"""
    )
    server.start("--workers=2")
    broken.touch()
    second = next(pid for pid, name in server.workers().items() if "worker 2" in name)
    os.kill(second, signal.SIGKILL)
    delays = [
        float(match[1])
        for match in server.wait_log(r"worker 2 ended with status 70: starting another in (\d\.\d) s", 2)
    ]
    assert delays[0] <= 1.2 < 1.6 <= delays[1]
    assert "RuntimeError: no data base" in server.log()
    with server.client() as client:  # the other one serves all the time
        whole_message(client)
    broken.unlink()
    server.wait_ready(3)
    assert server.stop() == 0


def test_a_worker_that_is_stopped_and_continued_keeps_its_pid(server: Server) -> None:
    server.start("--workers=1")
    (pid,) = server.workers()
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, "the worker is stopped")
    with socket.create_connection(("127.0.0.1", int(server.address().split(":")[1].split("@")[0]))):
        os.kill(pid, signal.SIGCONT)
    with server.client() as client:
        assert whole_message(client)["X-Pid"] == str(pid)
    assert list(server.workers()) == [pid]
    assert server.stop() == 0


def test_a_suspended_master_kills_nobody(server: Server) -> None:
    """A worker becomes ready while the master is stopped, long after the time it had."""
    release = server.directory / "release"
    server.filter.write_text(
        server.filter.read_text()
        + f"""
    @classmethod
    def worker_started(cls, options):
        import time
        while not os.path.exists({str(release)!r}):
            time.sleep(0.01)
"""
    )
    server.start("--workers=1", "--ready-timeout=0.2s", wait=False)
    (worker,) = [int(match[1]) for match in server.wait_log(r"started pid=(\d+)")]
    os.kill(server.pid, signal.SIGSTOP)
    release.touch()
    wait_until(lambda: sends_ready(worker), "the worker serves")
    os.kill(server.pid, signal.SIGCONT)
    server.wait_ready(1)
    assert list(server.workers()) == [worker]
    assert server.stop() == 0


def sends_ready(pid: int) -> bool:
    """Tell whether a worker waits for connections (it has made its poller)."""
    directory = f"/proc/{pid}/fd"
    links = [os.readlink(f"{directory}/{name}") for name in os.listdir(directory)]
    return any("eventpoll" in link for link in links)


# -- the end --------------------------------------------------------------------------------------------------------


def test_term_drains(server: Server) -> None:
    server.start("--workers=2")
    address = server.address()
    client = server.client().open()
    begin(client)
    server.send(signal.SIGTERM)
    wait_until(lambda: title(server.pid) == "fastmilter: master [Tagger] draining", "the title of the master")
    wait_until(lambda: len(server.workers()) == 1, "the idle worker leaves")
    (name,) = server.workers().values()
    assert name.endswith("[Tagger] draining")
    wait_refused(address)
    complete(client)  # the message under way gets its verdict
    client.mail("next@example.org")  # and the session goes on, in the first tier
    complete(client)
    client.quit()
    assert server.finish() == 0
    assert not server.workers()


def wait_refused(address: str) -> None:
    """Wait until nobody holds the port any more: each process lets go of it by itself."""
    port = int(address.split(":")[1].split("@")[0])

    def refused() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            return True
        return False

    wait_until(refused, f"port {port} is closed")


def test_the_second_term_means_now(server: Server) -> None:
    server.start("--workers=2")
    client = server.client().open()
    begin(client)
    server.send(signal.SIGTERM)
    server.wait_log("stopping: draining")
    server.send(signal.SIGTERM)
    assert server.finish() == 0
    assert "stopping now" in server.log()
    with pytest.raises(ConnectionLost):
        complete(client)
    client.close()


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGINT])
def test_quit_stops_now_and_int_drains(server: Server, number: signal.Signals) -> None:
    server.start("--workers=2")
    server.send(number)
    assert server.finish() == 0
    assert ("stopping now" if number == signal.SIGQUIT else "stopping: draining") in server.log()


def test_ctrl_c_reaches_the_whole_group_and_cuts_nobody(server: Server) -> None:
    server.start("--workers=2")
    client = server.client().open()
    begin(client)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTTIN):
        for pid in server.workers():
            os.kill(pid, number)
    os.killpg(server.pid, signal.SIGINT)
    server.wait_log("stopping: draining")
    complete(client)
    client.quit()
    assert server.finish() == 0


def test_a_drain_that_takes_too_long_is_ended_by_the_worker(server: Server) -> None:
    server.start("--workers=1", "--drain-stop=0.1,0.2,0.3")
    client = server.client().open()
    begin(client)
    server.send(signal.SIGTERM)
    assert server.finish() == 0
    client.close()


@pytest.mark.parametrize("workers", [1, 3])
def test_when_the_master_is_killed_the_workers_finish_and_leave(server: Server, workers: int) -> None:
    server.start(f"--workers={workers}")
    address = server.address()
    client = server.client().open()
    begin(client)
    server.send(signal.SIGKILL)
    server.finish()
    wait_until(lambda: len(server.workers()) == 1, "the idle workers leave")
    wait_refused(address)  # and nobody holds the port: the next server can start
    (last,) = server.workers()
    complete(client)
    client.quit()
    wait_until(lambda: is_gone(last), "the last worker leaves")
    server.start("--workers=1", listen=[address])
    with server.client() as client:
        whole_message(client)
    assert server.stop() == 0


def test_a_program_that_the_filter_started_holds_no_listener(server: Server) -> None:
    server.filter.write_text(
        "import subprocess\n"
        + server.filter.read_text()
        + """
    @classmethod
    def worker_started(cls, options):
        child = subprocess.Popen(["sleep", "600"], close_fds=False)
        print("sleeper", child.pid, flush=True)
"""
    )
    server.start("--workers=1")
    (sleeper,) = [int(match[1]) for match in server.wait_log(r"sleeper (\d+)")]
    try:
        address = server.address()
        assert server.stop() == 0
        assert not is_gone(sleeper)
        wait_refused(address)
    finally:
        os.kill(sleeper, signal.SIGKILL)


# -- signals and descriptors ----------------------------------------------------------------------------------------


def test_more_and_fewer_workers(server: Server) -> None:
    server.start("--workers=1")
    server.send(signal.SIGTTIN)
    server.wait_ready(2)
    assert sorted(server.workers().values()) == ["fastmilter: worker 1 [Tagger]", "fastmilter: worker 2 [Tagger]"]
    server.send(signal.SIGTTOU)
    wait_until(lambda: len(server.workers()) == 1, "one worker leaves")
    server.send(signal.SIGTTOU)
    server.wait_log("the number of workers stays 1")
    assert list(server.workers().values()) == ["fastmilter: worker 1 [Tagger]"]
    assert server.stop() == 0


@pytest.mark.parametrize("event", [r"listening on", r"worker 1 started", r"worker 1 is ready", r"worker 2 started"])
def test_an_early_term_is_not_lost(server: Server, event: str) -> None:
    for _ in range(5):
        server.start("--workers=2", wait=False)
        server.wait_log(event)
        server.send(signal.SIGTERM)
        assert server.finish() == 0
        assert not server.workers()


def test_a_signal_to_a_newborn_worker_is_not_taken_for_the_masters(server: Server) -> None:
    """A child inherits the pipe that signals are read from; a signal to the child must not come out at the master."""
    server.start("--workers=1")
    for _ in range(20):
        born = len(server.started())
        os.kill(server.started()[-1], signal.SIGKILL)
        server.wait_log(r"worker 1 started", born + 1)
        newborn = server.started()[-1]
        for _ in range(20):
            os.kill(newborn, signal.SIGTTIN)
            os.kill(newborn, signal.SIGTERM)
        server.wait_ready(born + 1)
    assert "the number of workers" not in server.log()
    assert "stopping" not in server.log()
    assert server.stop() == 0


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_no_descriptor_leaks(server: Server) -> None:
    server.start("--workers=2")
    masters, workers = descriptors(server.pid), sorted(descriptors(pid) for pid in server.workers())
    ready = 2
    for _ in range(5):
        os.kill(max(server.workers()), signal.SIGKILL)
        ready += 1
        server.wait_ready(ready)
    for turn in range(5):
        server.send(signal.SIGHUP)
        ready += 2
        server.wait_ready(ready)
        server.wait_log("status=0", 2 * (turn + 1))  # the old workers left
    server.send(signal.SIGTTIN)
    server.wait_ready(ready + 1)
    server.send(signal.SIGTTOU)
    wait_until(lambda: len(server.workers()) == 2, "one worker leaves")
    wait_until(lambda: descriptors(server.pid) == masters, f"the master has {masters} descriptors again")
    assert sorted(descriptors(pid) for pid in server.workers()) == workers
    assert len(set(workers)) == 1, "a later worker has nothing of the earlier ones"
    assert server.stop() == 0


def test_without_pidfds_the_ends_of_workers_are_noticed_too(server: Server) -> None:
    script = server.directory / "without_pidfds.py"
    script.write_text("""
import os, sys
from fastmilter.commands import set_up_logging
from fastmilter.server.settings import load_settings
from fastmilter.server.supervisor import Supervisor
from fastmilter.server.worker import Worker
set_up_logging("info")
options = {"target": "tagger:Tagger", "listen": ["inet:0@127.0.0.1"], "workers": "2", "allow_root": True}
settings = load_settings(options, {})
sys.exit(Supervisor(settings, Worker, pidfds=False).run())
""")
    server.start(target="", listen=(), command=(str(script),), wait=False)
    server.wait_ready(2)
    for ready in (3, 4, 5):
        os.kill(max(server.workers()), signal.SIGKILL)
        server.wait_ready(ready)
    server.send(signal.SIGHUP)
    server.wait_ready(7)
    wait_until(lambda: len(server.workers()) == 2, "the old workers leave")
    assert server.stop() == 0


def test_many_deaths_at_once(server: Server) -> None:
    server.start("--workers=8")
    for pid in server.workers():
        os.kill(pid, signal.SIGKILL)
    server.wait_ready(16)
    assert len(server.workers()) == 8
    with server.client() as client:
        whole_message(client)
    assert server.stop() == 0


def test_a_connection_made_before_the_first_worker_is_ready_waits(server: Server) -> None:
    server.filter.write_text(
        server.filter.read_text()
        + """
    @classmethod
    def worker_started(cls, options):
        import time
        while not os.path.exists("release"):
            time.sleep(0.01)
"""
    )
    server.start("--workers=1", wait=False)
    port = int(server.address().split(":")[1].split("@")[0])
    early = socket.create_connection(("127.0.0.1", port))
    (server.directory / "release").touch()
    with early:
        early.settimeout(30)
        early.sendall(bytes.fromhex("0000000d4f00000006000001ff001fffff"))
        assert early.recv(5)[4:] == b"O"
    assert server.stop() == 0


def test_python_warns_of_nothing(server: Server) -> None:
    """Fork beside threads, sockets left open and the like would be reported here."""
    server.start("--workers=2", environment={"PYTHONWARNINGS": "always", "PYTHONDEVMODE": "1"})
    with server.client() as client:
        whole_message(client)
    server.send(signal.SIGHUP)
    server.wait_ready(4)
    assert server.stop() == 0
    assert "Warning" not in server.log()


def test_the_master_has_one_thread_and_none_of_the_filter(server: Server) -> None:
    server.filter.write_text("import decimal\n" + server.filter.read_text())  # a compiled module shows in the maps
    server.start("--workers=1")
    assert psutil.Process(server.pid).num_threads() == 1
    (worker,) = server.workers()
    with open(f"/proc/{worker}/maps") as maps:
        assert "_decimal" in maps.read()
    with open(f"/proc/{server.pid}/maps") as maps:
        assert "_decimal" not in maps.read()
    assert server.stop() == 0
