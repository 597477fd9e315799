"""HUP: a new generation beside the old one, or nothing at all."""

import os
import resource
import signal
import socket
from pathlib import Path

import pytest

from tests.process.harness import FILTER, Server, begin, complete, wait_until, whole_message

BROKEN = {
    "syntax": ("class Tagger(:\n", "SyntaxError"),
    "import": ("raise RuntimeError('not today')\n", "RuntimeError: not today"),
    "class": (FILTER.replace("class Tagger", "class Tager"), "did you mean Tager"),
    "exit": ("import os\nos._exit(5)\n", "worker 1 of the new generation ended with status 5"),
    "start": (
        FILTER + "\n    @classmethod\n    def worker_started(cls, options):\n        raise OSError('no data base')\n",
        "OSError: no data base",
    ),
}

HANGS = FILTER + "\n    @classmethod\n    def worker_started(cls, options):\n        import time; time.sleep(600)\n"


def change(path: Path, text: str) -> None:
    path.write_text(text)


def test_the_new_code_serves_and_the_old_finishes_what_it_began(server: Server) -> None:
    server.start("--workers=2")
    old = set(server.workers())
    client = server.client().open()
    begin(client)
    change(server.filter, FILTER.replace('"one"', '"two"'))
    server.send(signal.SIGHUP)
    server.wait_log("generation 2 serves, the old workers drain")
    new = set(server.workers()) - old
    assert len(new) == 2
    wait_until(lambda: len(server.workers()) == 3, "the idle old worker leaves")
    with server.client() as fresh:
        added = whole_message(fresh)
    assert added["X-Version"] == "two"
    assert int(added["X-Pid"]) in new
    titles = sorted(server.workers().values())
    assert [title for title in titles if not title.endswith("draining")] == [
        "fastmilter: worker 1 [Tagger]",
        "fastmilter: worker 2 [Tagger]",
    ]
    assert complete(client)["X-Version"] == "one"
    client.mail("next@example.org")
    assert complete(client)["X-Version"] == "one"
    client.quit()
    wait_until(lambda: set(server.workers()) == new, "the last old worker leaves")
    assert server.stop() == 0


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_filter_changes_nothing_and_is_told(server: Server, fault: str) -> None:
    source, error = BROKEN[fault]
    server.start("--workers=2")
    before = server.workers()
    change(server.filter, source)
    server.send(signal.SIGHUP)
    server.wait_log("reload failed, the old workers stay")
    assert error in server.log()
    assert server.workers() == before
    with server.client() as client:
        assert whole_message(client)["X-Version"] == "one"
    # Repaired, it can be loaded.
    change(server.filter, FILTER.replace('"one"', '"three"'))
    server.send(signal.SIGHUP)
    server.wait_log("the old workers drain")
    wait_until(lambda: not before.keys() & server.workers().keys(), "the old workers leave")
    with server.client() as client:
        assert whole_message(client)["X-Version"] == "three"
    assert server.stop() == 0


def test_a_filter_that_hangs_at_its_start_changes_nothing(server: Server) -> None:
    server.start("--workers=1", "--ready-timeout=0.5")
    before = server.workers()
    change(server.filter, HANGS)
    server.send(signal.SIGHUP)
    server.wait_log("reload failed, the old workers stay: worker 1 of the new generation died of SIGKILL")
    assert "worker 1 was not ready within" in server.log()
    wait_until(lambda: server.workers() == before, "the hanging worker is gone")
    assert server.stop() == 0


def test_a_reload_during_a_reload_is_remembered(server: Server) -> None:
    server.start("--workers=1", "--drain-stop=0.1,0.2,0.3")
    client = server.client().open()  # keeps the first generation there, until it is made to hurry
    begin(client)
    server.send(signal.SIGHUP)
    server.wait_log("generation 2 serves")
    change(server.filter, FILTER.replace('"one"', '"last"'))
    server.send(signal.SIGHUP)
    server.wait_log("reload: remembered")
    server.wait_log("generation 3 serves")
    wait_until(lambda: len(server.workers()) == 1, "the older workers leave")
    with server.client() as fresh:
        assert whole_message(fresh)["X-Version"] == "last"
    client.close()
    assert server.stop() == 0


def test_the_configuration_is_read_again(server: Server) -> None:
    config = server.directory / "fm.toml"
    change(config, 'target = "tagger:Tagger"\nworkers = 1\nlisten = ["inet:0@127.0.0.1"]\n[filter]\ncolour = "red"\n')
    change(
        server.filter,
        FILTER
        + "\n    @classmethod\n    def worker_started(cls, options):\n        print('options', options, flush=True)\n",
    )
    server.start(f"--config={config}", target="", listen=())
    server.wait_log(r"options \{'colour': 'red'\}")
    change(config, config.read_text().replace("red", "blue").replace("workers = 1", "workers = 2"))
    server.send(signal.SIGHUP)
    server.wait_log(r"options \{'colour': 'blue'\}", 2)
    server.wait_log("the old workers drain")
    wait_until(lambda: len(server.workers()) == 2, "two workers, as the file says now")
    # A file that cannot be used changes nothing.
    before = server.workers()
    change(config, config.read_text().replace("workers", "wokers"))
    server.send(signal.SIGHUP)
    server.wait_log("reload failed, the old workers stay: .* there is no option 'wokers'; did you mean workers")
    assert server.workers() == before
    assert server.stop() == 0


def test_a_size_set_by_a_signal_outlives_a_reload(server: Server) -> None:
    server.start("--workers=1")
    server.send(signal.SIGTTIN)
    server.wait_ready(2)
    server.send(signal.SIGHUP)
    server.wait_log("the old workers drain")
    wait_until(lambda: len(server.workers()) == 2, "two new workers")
    assert server.stop() == 0


def test_a_changed_address_is_opened_before_the_old_one_is_closed(server: Server) -> None:
    config = server.directory / "fm.toml"
    change(config, f'listen = ["inet:0@127.0.0.1", "unix:{server.directory}/a.sock"]\n')
    server.start(f"--config={config}", "--workers=1", listen=())
    unix = server.client(1).open()
    begin(unix)
    change(config, f'listen = ["inet:0@127.0.0.1", "unix:{server.directory}/b.sock"]\n')
    server.send(signal.SIGHUP)
    server.wait_log("the old workers drain")
    wait_until(lambda: not (server.directory / "a.sock").exists(), "the old path is removed")
    wait_until(lambda: any("draining" in title for title in server.workers().values()), "the old worker drains")
    with server.client(2) as client:  # the third that was opened: the TCP listener stayed what it was
        whole_message(client)
    with server.client(0) as client:
        whole_message(client)
    complete(unix)
    unix.quit()
    # An address that cannot be had changes nothing.
    with socket.create_server(("127.0.0.1", 0)) as taken:
        change(config, f'listen = ["inet:{taken.getsockname()[1]}@127.0.0.1"]\n')
        wait_until(lambda: len(server.workers()) == 1, "the old worker leaves")
        server.send(signal.SIGHUP)
        server.wait_log("reload failed, the old workers stay: .*another program listens there already")
    with server.client(2) as client:
        whole_message(client)
    assert server.stop() == 0
    assert not list(server.directory.glob("*.sock*"))


def test_term_during_a_reload_ends_everything(server: Server) -> None:
    server.start("--workers=2")
    change(server.filter, HANGS)
    server.send(signal.SIGHUP)
    server.wait_log("worker 1 started pid=.* generation=2")
    assert server.stop() == 0
    assert not server.workers()


def test_workers_killed_during_a_reload(server: Server) -> None:
    server.start("--workers=2")
    for turn in range(5):
        server.send(signal.SIGHUP)
        os.kill(max(server.workers()), signal.SIGKILL)
        server.wait_log("the old workers drain|reload failed", turn + 1)
    wait_until(lambda: len(server.workers()) == 2, "two workers in the end")
    with server.client() as client:
        whole_message(client)
    assert server.stop() == 0


@pytest.mark.parametrize("fault", ["number", "descriptors"])
def test_nothing_that_a_reload_meets_ends_the_server(server: Server, fault: str) -> None:
    config = server.directory / "fastmilter.toml"
    text = f'target = "tagger:Tagger"\nworkers = 1\nlisten = ["unix:{server.directory}/a.sock"]\n'
    config.write_text(text)
    server.start(f"--config={config}", target="", listen=())
    if fault == "number":
        config.write_text(text + "max_messages = " + "9" * 5000 + "\n")
    else:
        config.write_text(text.replace("]", f', "unix:{server.directory}/b.sock"]'))
        used = {int(name) for name in os.listdir(f"/proc/{server.pid}/fd")}
        free = next(number for number in range(1000) if number not in used)
        one_more = free + 1  # for the configuration, then for the lock; none for the socket
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (one_more, one_more))
    server.send(signal.SIGHUP)
    server.wait_log("reload failed, the old workers stay: ")
    assert "internal error" not in server.log(), "it is told as what it is"
    with server.client() as client:
        whole_message(client)
    if fault == "number":
        config.write_text(text)
        server.send(signal.SIGHUP)
        server.wait_log("generation 2 serves")
    assert server.stop() == 0


def test_a_worker_that_dies_while_files_are_copied_is_replaced_when_they_are(server: Server) -> None:
    server.start("--workers=1")
    (first,) = server.workers()
    server.filter.write_text("import not_copied_yet\n")
    server.send(signal.SIGHUP)
    server.wait_log("reload failed, the old workers stay")
    os.kill(first, signal.SIGKILL)
    server.wait_log("worker 1 could not use the configuration: starting another in", 2)
    server.filter.write_text(FILTER)
    wait_until(lambda: "is ready" in server.log().rpartition("starting another in")[2], "it is there again")
    with server.client() as client:
        whole_message(client)
    assert server.stop() == 0


def test_a_reload_that_fails_leaves_the_log_as_it_was(server: Server) -> None:
    config = server.directory / "fm.toml"
    text = f'target = "tagger:Tagger"\nworkers = 1\nlisten = ["unix:{server.directory}/fm.sock"]\n'
    change(config, text)
    server.start(f"--config={config}", target="", listen=())
    other, moved = '["inet:0@192.0.2.77"]', server.directory / "other.log"
    # Refused before a worker is started, and after that.
    for listen, filter_text in ((other, FILTER), (f'["unix:{server.directory}/fm.sock"]', BROKEN["syntax"][0])):
        server.begin_log()
        change(server.filter, filter_text)
        lines = [f"listen = {listen}", 'log_format = "json"', 'log_level = "error"', f'log_file = "{moved}"']
        change(config, "\n".join(['target = "tagger:Tagger"', "workers = 1", *lines]))
        server.send(signal.SIGHUP)
        server.wait_log(r"\d error fastmilter\S* reload failed")
        server.send(signal.SIGTTIN)
        server.wait_log(r"info fastmilter\S* the number of workers is now 2")
        server.send(signal.SIGTTOU)
        server.wait_log(r"info fastmilter\S* the number of workers is now 1")
    change(server.filter, FILTER)
    change(config, config.read_text().replace("error", "info"))
    server.send(signal.SIGHUP)
    wait_until(lambda: "the old workers drain" in moved.read_text(), "the log is in the other file")
    assert server.stop() == 0


@pytest.mark.parametrize("lock", [False, True])
def test_a_path_that_was_removed_is_made_again(server: Server, lock: bool) -> None:
    path = server.directory / "fm.sock"
    server.start("--workers=1", f"--control={server.directory}/control", listen=[f"unix:{path}"])
    client = server.client().open()
    begin(client)
    for each in (path, server.directory / "control"):
        each.unlink()
        if lock:
            each.with_name(each.name + ".lock").unlink()
    server.send(signal.SIGHUP)
    server.wait_log("generation 2 serves")
    with server.client() as fresh:
        whole_message(fresh)
    wait_until((server.directory / "control").exists, "the control socket is there again")
    complete(client)
    client.close()
    server.send(signal.SIGHUP)
    server.wait_log("generation 3 serves")
    with server.client() as fresh:
        whole_message(fresh)
    assert server.stop() == 0
    assert not list(server.directory.glob("fm.sock*"))


def test_an_address_that_only_this_server_is_in_the_way_of(server: Server) -> None:
    config = server.directory / "fm.toml"
    change(config, 'listen = ["inet:0@127.0.0.1"]\n')
    server.start(f"--config={config}", "--workers=1", listen=())
    port = server.address().split(":")[1].split("@")[0]
    change(config, f'listen = ["inet:{port}@0.0.0.0"]\n')
    server.send(signal.SIGHUP)
    server.wait_log(
        "reload failed, .* this server listens on inet:0@127.0.0.1 itself, .*: restart, or take another port"
    )
    assert server.stop() == 0


def test_a_link_to_the_code_is_followed_at_each_reload(server: Server) -> None:
    for version in ("one", "two"):
        (server.directory / version).mkdir()
        (server.directory / version / "tagger.py").write_text(FILTER.replace('"one"', f'"{version}"'))
    current = server.directory / "current"
    current.symlink_to("one")
    server.start("--workers=1", target=f"{current}/tagger.py:Tagger")
    with server.client() as client:
        assert whole_message(client)["X-Version"] == "one"
    (server.directory / "next").symlink_to("two")
    (server.directory / "next").rename(current)
    server.send(signal.SIGHUP)
    server.wait_log("generation 2 serves")
    with server.client() as client:
        assert whole_message(client)["X-Version"] == "two"
    assert server.stop() == 0
