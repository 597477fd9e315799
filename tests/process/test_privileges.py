"""As whom filters run: what a worker gives up before the filter's code, and what is refused."""

import grp
import os
import pwd
import re
import signal
from pathlib import Path

import pytest

from tests.process.harness import FILTER, Server, wait_until, whole_message
from tests.process.test_who_may_connect import open_server

__all__ = ["open_server"]

NOBODY = pwd.getpwnam("nobody")
GROUP = grp.getgrgid(NOBODY.pw_gid).gr_name
OTHER_GROUP = "daemon"


pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

CURIOUS = FILTER.replace(
    "class Tagger",
    """
IMPORTED_AS = os.getuid(), os.getgid(), sorted(os.getgroups())
try:
    os.setuid(0)
    AGAIN = "root again"
except PermissionError:
    AGAIN = "for good"

class Tagger""",
).replace(
    'self.message.add_header("X-Version", self.version)',
    """self.message.add_header("X-Imported-As", repr(IMPORTED_AS))
        self.message.add_header("X-Again", AGAIN)
        self.message.add_header("X-Home", os.environ["HOME"] + " " + os.environ["USER"])""",
)


def credentials(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


def assert_dropped(pid: int, group: int, groups: list[int]) -> None:
    status = credentials(pid)
    assert status["Uid"] == [str(NOBODY.pw_uid)] * 4
    assert status["Gid"] == [str(group)] * 4
    assert sorted(map(int, status["Groups"])) == sorted(groups)
    assert status["NoNewPrivs"] == ["1"]
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(status[name][0], 16) == 0, name


@pytest.mark.parametrize("given", [(), ("--group", OTHER_GROUP)])
def test_privileges_are_gone_in_every_worker_before_the_filter_is_imported(
    open_server: Server, given: tuple[str, ...]
) -> None:
    server = open_server
    server.filter.write_text(CURIOUS)
    group = grp.getgrnam(given[1]).gr_gid if given else NOBODY.pw_gid
    groups = os.getgrouplist("nobody", group)
    server.start("--workers=2", "--user=nobody", *given, listen=[f"unix:{server.directory}/fm.sock"])
    server.send(signal.SIGTTIN)
    server.wait_ready(3)
    first = set(server.started())
    server.send(signal.SIGHUP)
    server.wait_log("generation 2 serves")
    wait_until(lambda: not first & set(server.workers()), "the old ones leave")
    assert len(server.workers()) == 3
    for pid in server.workers():
        assert_dropped(pid, group, groups)
    assert credentials(server.pid)["Uid"] == ["0"] * 4
    with server.client() as client:
        added = whole_message(client)
    assert added["X-Imported-As"] == repr((NOBODY.pw_uid, group, sorted(groups)))
    assert added["X-Again"] == "for good"
    assert added["X-Home"] == f"{NOBODY.pw_dir} nobody"
    assert server.stop() == 0
    assert not (server.directory / "fm.sock").exists()  # which the master removed


def test_the_log_file_is_opened_anew_where_the_user_of_the_workers_could_not(open_server: Server) -> None:
    """As logrotate does it: in a directory, and into a file, that are root's."""
    server = open_server
    logs = server.directory / "logs"
    logs.mkdir(mode=0o700)
    log, old = logs / "milter.log", logs / "milter.log.1"
    options = ("--workers=1", "--user=nobody", f"--log-file={log}", "--log-messages", f"--control={server.directory}/c")
    server.start(*options, listen=[f"unix:{server.directory}/fm.sock"], wait=False)
    wait_until(lambda: log.exists() and "is ready" in log.read_text(), "it serves")
    log.rename(old)
    server.send(signal.SIGUSR1)

    def logged() -> bool:
        with server.client() as client:
            whole_message(client)
        return log.exists() and "fastmilter.message: " in log.read_text()

    wait_until(logged, "the worker writes there")
    for pid in server.workers():
        assert os.readlink(f"/proc/{pid}/fd/2") == str(log)
    (monitor,) = re.findall(r"the monitor started pid=(\d+)", old.read_text())
    wait_until(lambda: os.readlink(f"/proc/{monitor}/fd/2") == str(log), "the monitor too")
    assert "not opened anew" not in log.read_text() + old.read_text()
    assert server.stop() == 0


def test_a_number_without_a_name_will_do(open_server: Server) -> None:
    server = open_server
    server.start("--workers=1", "--user=54321", f"--group={GROUP}")
    (pid,) = server.workers()
    status = credentials(pid)
    assert status["Uid"] == ["54321"] * 4
    assert status["Gid"] == [str(NOBODY.pw_gid)] * 4
    assert status["Groups"] == [str(NOBODY.pw_gid)]
    with server.client() as client:
        whole_message(client)


def test_a_filter_that_its_user_cannot_read_ends_the_server(open_server: Server) -> None:
    server = open_server
    server.filter.chmod(0o600)
    server.start("--user=nobody", wait=False)
    assert server.finish() == 78
    assert "Permission denied" in server.log()


def test_a_directory_that_its_user_cannot_enter_is_told(server: Server) -> None:
    """Those of tests are for their user only."""
    server.start("--user=nobody", "--workers=1", wait=False)
    assert server.finish() == 78
    assert f"user 'nobody' may not read '{server.directory}': imports from there will fail" in server.log()


NOT_ALLOWED = {"FASTMILTER_ALLOW_ROOT": "no"}


@pytest.mark.parametrize("more", [[], ["--check-config"]])
def test_root_is_refused_before_anything_is_done(server: Server, more: list[str]) -> None:
    server.filter.write_text("open('imported', 'w').close()\n" + FILTER)
    server.start(*more, listen=["unix:fm.sock"], wait=False, environment=NOT_ALLOWED)
    assert server.finish() == 78
    assert server.log().startswith("fastmilter: the filter would run as root: name the user")
    assert "(--allow-root)" in server.log()
    assert sorted(os.listdir(server.directory)) == ["log", "tagger.py"]
    server.start("--user=root", *more, wait=False, environment=NOT_ALLOWED)
    assert server.finish() == 78
    assert "--user root would run the filter as root: if that is meant, say --allow-root" in server.log()


def test_root_is_allowed_where_that_is_said(server: Server) -> None:
    server.start("--workers=1", "--allow-root", environment={"FASTMILTER_ALLOW_ROOT": ""})
    with server.client() as client:
        whole_message(client)
    assert server.stop() == 0


def test_a_check_imports_the_filter_as_its_user(open_server: Server) -> None:
    server = open_server
    server.filter.write_text(FILTER + "\nprint('imported as', os.getuid())\n")
    server.start("--check-config", "--user=nobody", wait=False, environment=NOT_ALLOWED)
    assert server.finish() == 0
    assert f"imported as {NOBODY.pw_uid}\n" in server.log()
    assert "runs as: nobody\n" in server.log()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--user=no-such-user"], "there is no user 'no-such-user' on this machine"),
        (["--user=nobody", "--group=no-such-group"], "there is no group 'no-such-group' on this machine"),
        (["--user=54321"], "user 54321 is not in the user database: name its group too (--group)"),
        (["--group=daemon"], "--group goes with --user: name the user too"),
    ],
)
def test_what_cannot_be(server: Server, options: list[str], error: str) -> None:
    server.start(*options, listen=["unix:fm.sock"], wait=False, environment=NOT_ALLOWED)
    assert server.finish() == 78
    assert server.log() == f"fastmilter: {error}\n"
    assert not (server.directory / "fm.sock").exists()
