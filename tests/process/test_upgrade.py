"""USR2: the master becomes the code that is installed now, in the same process; or nothing changes at all."""

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from fastmilter.client import Client
from tests.process.harness import FILTER, ROOT, Server, begin, complete, is_gone, title, wait_until, whole_message
from tests.process.test_reload import BROKEN, HANGS
from tests.process.watching import control, metrics, monitors

ACCEPTED = 'fastmilter_messages_total{verdict="continue"}'


def upgraded(server: Server, count: int = 1) -> None:
    """Upgrade, and wait until the workers of the new master serve."""
    server.send(signal.SIGUSR2)
    server.wait_log(r"upgrade: the master is new", count)
    server.wait_log(rf"generation {count + 1} serves")


def test_the_master_is_another_program_and_sessions_go_on(server: Server) -> None:
    server.start(
        "--workers=2", listen=["inet:0@127.0.0.1", f"unix:{server.directory}/fm.sock", "unix:@" + os.urandom(8).hex()]
    )
    master = psutil.Process(server.pid)
    started, old = master.create_time(), set(server.workers())
    clients = [server.client(place).open() for place in range(3)]
    for client in clients:
        begin(client)
    server.filter.write_text(FILTER.replace('"one"', '"two"'))
    upgraded(server)
    assert master.create_time() == started, "the process is the same"
    assert title(server.pid) == "fastmilter: master [Tagger]"
    for client in clients:  # in the middle of their messages
        added = complete(client)
        assert (added["X-Version"], int(added["X-Pid"]) in old) == ("one", True)
        client.quit()
        client.close()
    for place in range(3):
        with server.client(place) as client:
            assert whole_message(client)["X-Version"] == "two"
    wait_until(lambda: not old & set(server.workers()), "the old workers leave")
    assert server.stop() == 0
    assert not (server.directory / "fm.sock").exists()
    assert not (server.directory / "fm.sock.lock").exists()


class Installed:
    """A package that the server imports, to be replaced by another version of it, as an installer would."""

    def __init__(self, server: Server) -> None:
        self._directory = server.directory
        self._package = server.directory / "installed" / "fastmilter"
        self._package.parent.mkdir()
        self._package.symlink_to(ROOT / "fastmilter")
        self.environment = {"PYTHONPATH": str(self._package.parent)}

    def replace(self, module: str, old: str, new: str) -> None:
        """Install a version in which one module of the server has ``new`` in place of ``old``."""
        copy = self._directory / "newer"
        (copy / "server").mkdir(parents=True)
        for place in (".", "server"):
            for each in (ROOT / "fastmilter" / place).iterdir():
                if each.name not in ("server", module):
                    (copy / place / each.name).symlink_to(each)
        text = (ROOT / "fastmilter" / "server" / module).read_text()
        assert old in text
        (copy / "server" / module).write_text(text.replace(old, new))
        self._package.unlink()
        self._package.symlink_to(copy)


def test_the_master_becomes_the_version_that_is_installed_now(server: Server) -> None:
    installed = Installed(server)
    server.start("--workers=1", environment=installed.environment)
    installed.replace("titles.py", "fastmilter: master", "fastmilter: newer master")
    upgraded(server)
    assert title(server.pid) == "fastmilter: newer master [Tagger]"
    with server.client() as client:
        whole_message(client)
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("module", "old", "new", "said"),
    [
        ("upgrade.py", "STATE_VERSION: Final = 1", "STATE_VERSION: Final = 2", "this version cannot take over from"),
        # One that knows nothing of all this: it finds nothing wrong, and must not be executed all the same.
        ("upgrade.py", "    asked = environment.get(_TRIAL)", "    return None", "of a version that cannot take over"),
        ("upgrade.py", "import sys\n", "import sys\nraise RuntimeError('half installed')\n", "half installed"),
    ],
)
def test_a_version_that_cannot_take_over_changes_nothing(
    server: Server, module: str, old: str, new: str, said: str
) -> None:
    installed = Installed(server)
    server.start("--workers=1", environment=installed.environment)
    before = server.workers()
    installed.replace(module, old, new)
    server.send(signal.SIGUSR2)
    server.wait_log("upgrade failed, everything stays: the new code cannot be used")
    assert said in server.log()
    assert server.workers() == before
    with server.client() as client:
        whole_message(client)
    assert server.stop() == 0


def test_slots_of_another_meaning_are_left_to_the_old_workers(server: Server) -> None:
    installed = Installed(server)
    server.start("--workers=1", environment=installed.environment)
    client = server.client().open()
    begin(client)
    installed.replace("upgrade.py", 'former.get("layout") != LAYOUT', 'former.get("layout") != LAYOUT + " NEW"')
    upgraded(server)
    assert complete(client)["X-Version"] == "one"
    client.quit()
    client.close()
    wait_until(lambda: len(server.workers()) == 1, "the old worker leaves")
    with server.client() as fresh:
        whole_message(fresh)
    assert server.stop() == 0


def test_who_watches_the_server_goes_on_watching(server: Server) -> None:
    """The same port, the same control socket, the same log file; no number falls back, and one monitor is left."""
    server.start("--workers=1", "--metrics=127.0.0.1:0", "--control=control")
    with server.client() as client:
        whole_message(client)
    wait_until(lambda: metrics(server)[ACCEPTED] == 1, "the message is counted")
    (former,) = monitors(server)
    started = start_in(control(server)["status"])
    upgraded(server)
    wait_until(lambda: len(server.workers()) == 1, "the old worker leaves")
    with server.client() as client:
        whole_message(client)
    wait_until(lambda: metrics(server)[ACCEPTED] == 2, "the next one is counted with it")
    status = control(server)["status"]
    assert (status["generation"], status["error"]) == (2, None)
    assert start_in(status) == pytest.approx(started)
    assert control(server, "scale", workers=2)["ok"]
    wait_until(lambda: is_gone(former), "the former monitor leaves")
    alive = [pid for pid in monitors(server) if not is_gone(pid)]
    wait_until(lambda: [pid for pid in monitors(server) if not is_gone(pid)] == alive[-1:], "one monitor is left")
    assert server.stop() == 0
    assert not (server.directory / "control").exists()


def start_in(status: dict[str, Any]) -> float:
    """Return when the server was started, as its status has it."""
    return float(status["at"] - status["uptime"])


def test_why_an_upgrade_failed_is_shown(server: Server) -> None:
    server.start("--workers=1", "--control=control")
    server.filter.write_text("import fastmilter\nthis is no Python\n")
    server.send(signal.SIGUSR2)
    wait_until(lambda: control(server)["status"]["error"], "the status says why")
    assert "invalid syntax" in control(server)["status"]["error"]["text"]
    assert server.stop() == 0


IMPORT_HANGS = "import time\ntime.sleep(600)\n"


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_filter_changes_nothing_and_is_told(server: Server, fault: str) -> None:
    source, error = BROKEN[fault]
    server.start("--workers=2")
    before = server.workers()
    server.filter.write_text(source)
    server.send(signal.SIGUSR2)
    # What shows when the filter is imported stops the trial; what shows at its start stops the new generation.
    server.wait_log("upgrade failed, everything stays|reload failed, the old workers stay")
    assert error in server.log() or "it ended with status 5" in server.log()
    assert ("upgrade: the new code takes over" in server.log()) == (fault == "start")
    wait_until(lambda: server.workers() == before, "the workers are those of before")
    with server.client() as client:
        assert whole_message(client)["X-Version"] == "one"
    # A worker that dies is replaced as before, once the filter is whole again.
    server.filter.write_text(FILTER)
    upgraded_again = len(server.started())
    os.kill(min(before), signal.SIGKILL)
    wait_until(lambda: len(server.started()) > upgraded_again, "its successor starts")
    wait_until(lambda: len(server.workers()) == 2, "two workers again")
    assert server.stop() == 0


@pytest.mark.parametrize("hangs", [HANGS, IMPORT_HANGS])
def test_a_filter_that_hangs_changes_nothing(server: Server, hangs: str) -> None:
    server.start("--workers=1", "--ready-timeout=3")
    before = server.workers()
    server.filter.write_text(hangs)
    server.send(signal.SIGUSR2)
    if hangs is IMPORT_HANGS:
        server.wait_log("upgrade failed, everything stays: the new code cannot be used: it took more than 3 s to load")
    else:
        server.wait_log("reload failed, the old workers stay: worker 1 of the new generation died of SIGKILL")
    wait_until(lambda: server.workers() == before, "what hangs is gone")
    assert psutil.Process(server.pid).children() == [psutil.Process(pid) for pid in before]
    with server.client() as client:
        assert whole_message(client)["X-Version"] == "one"
    assert server.stop() == 0


def test_a_configuration_that_cannot_be_used_changes_nothing(server: Server) -> None:
    config = server.directory / "fm.toml"
    config.write_text("workers = 1\n")
    server.start(f"--config={config}")
    before = server.workers()
    config.write_text("wokers = 1\n")
    server.send(signal.SIGUSR2)
    server.wait_log("there is no option 'wokers'; did you mean workers")
    assert "upgrade failed, everything stays" in server.log()
    assert server.workers() == before
    assert server.stop() == 0


def test_the_configuration_is_read_again(server: Server) -> None:
    config = server.directory / "fm.toml"
    old, new = (f"unix:{server.directory}/{name}.sock" for name in ("old", "new"))
    config.write_text(f'workers = 1\nlisten = ["{old}"]\n')
    server.start(f"--config={config}", listen=())
    config.write_text(f'workers = 2\nlisten = ["{new}"]\n')
    upgraded(server)
    wait_until(lambda: sum("draining" not in text for text in server.workers().values()) == 2, "two workers")
    with Client(new) as client:
        whole_message(client)
    assert not (server.directory / "old.sock").exists()
    assert server.stop() == 0


def test_a_size_set_by_a_signal_outlives_an_upgrade(server: Server) -> None:
    server.start("--workers=1")
    server.send(signal.SIGTTIN)
    server.wait_ready(2)
    upgraded(server)
    wait_until(lambda: len(server.workers()) == 2, "two new workers")
    assert server.stop() == 0


def test_what_was_asked_for_meanwhile_is_not_forgotten(server: Server) -> None:
    """TERM comes in the moment of the exchange, again and again: it is never lost, and never kills the master."""
    server.start("--workers=1", "--drain-stop=0.1,0.2,0.3")
    server.send(signal.SIGUSR2)
    server.wait_log("upgrade: the new code takes over")
    server.send(signal.SIGTERM)
    assert server.finish() == 0
    assert "stopping: draining all workers" in server.log()


def test_an_upgrade_during_a_reload_is_remembered(server: Server) -> None:
    server.start("--workers=1", "--drain-stop=0.1,0.2,0.3")
    with server.client() as client:  # keeps the first generation there, until it is made to hurry
        begin(client)
        server.send(signal.SIGHUP)
        server.wait_log("generation 2 serves")
        server.send(signal.SIGUSR2)
        server.wait_log("upgrade: remembered")
        server.wait_log("upgrade: the master is new, 1 workers serve on")
        server.wait_log("generation 3 serves")
    assert server.stop() == 0


def test_a_worker_that_died_unseen_is_replaced(server: Server) -> None:
    """While the new master loads, nobody looks: the first thing that it does is to find out."""
    server.start("--workers=2")
    victim = min(server.workers())
    server.send(signal.SIGUSR2)
    server.wait_log("upgrade: the new code takes over")
    os.kill(victim, signal.SIGKILL)
    server.wait_log(rf"worker \d+ ended pid={victim} ")
    server.wait_log("generation 2 serves")
    assert server.stop() == 0


def test_a_killed_new_master_leaves_no_worker(server: Server) -> None:
    server.start("--workers=2", "--drain-stop=0.1,0.2,0.3")
    upgraded(server)
    workers = list(server.workers())
    os.kill(server.pid, signal.SIGKILL)
    server.finish()
    wait_until(lambda: all(is_gone(pid) for pid in workers), "the workers leave")


def test_nothing_of_the_exchange_is_left_in_a_worker(server: Server) -> None:
    server.filter.write_text(
        FILTER
        + """
    def on_message_end(self, verdict):
        print("finds", [name for name in os.environ if name.startswith("_FASTMILTER")], flush=True)
"""
    )
    server.start("--workers=1")
    (before,) = server.workers()
    descriptors = kinds(before)
    upgraded(server)
    wait_until(lambda: before not in server.workers(), "the old worker leaves")
    (after,) = server.workers()
    assert kinds(after) == descriptors
    with server.client() as client:
        whole_message(client)
    server.wait_log(r"finds \[\]")
    assert server.stop() == 0


def kinds(pid: int) -> list[str]:
    """Return what the descriptors of a process are, without their numbers."""
    directory = Path(f"/proc/{pid}/fd")
    return sorted(os.readlink(entry).partition(":")[0] for entry in directory.iterdir())


def test_two_in_a_row_and_the_usual_orders_after_them(server: Server) -> None:
    server.start("--workers=1")
    upgraded(server)
    wait_until(lambda: len(server.workers()) == 1, "the first worker leaves")
    upgraded(server, 2)
    wait_until(lambda: len(server.workers()) == 1, "the second one leaves")
    server.send(signal.SIGHUP)
    server.wait_log("generation 4 serves")
    server.send(signal.SIGTTIN)
    wait_until(lambda: len([name for name in server.workers().values() if "draining" not in name]) == 2, "one more")
    with Client(server.address()) as client:
        whole_message(client)
    assert server.stop() == 0
