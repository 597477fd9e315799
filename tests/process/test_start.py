"""How a server starts, or says why it does not."""

import os
import signal
import socket
import stat
import subprocess
import sys
import threading

import pytest

from fastmilter.client import Client
from tests.process.harness import FILTER, Server, begin, clean_environment, is_gone, wait_until, whole_message
from tests.process.test_reload import BROKEN, HANGS


@pytest.mark.parametrize(
    ("fault", "status"), [("syntax", 78), ("import", 78), ("class", 78), ("exit", 70), ("start", 70)]
)
def test_a_filter_that_cannot_start_ends_the_server_with_the_reason(server: Server, fault: str, status: int) -> None:
    source, error = BROKEN[fault]
    server.filter.write_text(source)
    server.start("--workers=4", wait=False)
    assert server.finish() == status
    if fault == "exit":
        error = "no worker became ready: ended with status 5"
    assert error in server.log()
    assert "no worker became ready" in server.log()
    assert server.log().count("Traceback") <= 1  # told once, whatever the number of workers


def test_a_filter_that_hangs_at_its_start_ends_the_server(server: Server) -> None:
    server.filter.write_text(HANGS)
    server.start("--ready-timeout=0.5", wait=False)
    assert server.finish() == 70
    assert "was not ready within" in server.log()


@pytest.mark.parametrize("address", ["inet:127.0.0.1:0", "inet6:0@[::1]", "unix:fm.sock", "local:fm.sock?mode=0600"])
def test_every_kind_of_address_serves(server: Server, address: str) -> None:
    server.start("--workers=1", listen=[address])
    bound = server.address().replace("unix:fm.sock", f"unix:{server.directory}/fm.sock").partition("?")[0]
    with Client(bound) as client:
        whole_message(client)
    if bound.startswith("unix"):
        mode = stat.S_IMODE(os.stat(server.directory / "fm.sock").st_mode)
        assert mode == (0o600 if "mode" in address else 0o660)
    assert server.stop() == 0
    assert not (server.directory / "fm.sock").exists()


def test_several_addresses_at_once(server: Server) -> None:
    server.start("--workers=2", listen=["inet:0@127.0.0.1", "inet6:0@[::1]", f"unix:{server.directory}/fm.sock"])
    for place in range(3):
        with server.client(place) as client:
            whole_message(client)
    assert server.stop() == 0


def test_an_inherited_listener_serves_and_stays(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        script = server.directory / "inherit.py"
        script.write_text("""
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.set_inheritable(3, True)
os.execv(sys.executable, [sys.executable, "-m", "fastmilter", "serve", "tagger:Tagger", "--listen=fd:3"])
""")
        os.set_inheritable(listener.fileno(), True)
        log = server.log_file.open("ab")
        with log:
            server.process = subprocess.Popen(
                [sys.executable, str(script), str(listener.fileno())],
                cwd=server.directory,
                env=clean_environment(),
                pass_fds=(listener.fileno(),),
                stderr=log,
                start_new_session=True,
            )
        server.wait_ready(1)
        with Client(f"inet:{port}@127.0.0.1") as client:
            whole_message(client)
        assert server.stop() == 0
        # Whoever holds the socket still holds it: a connection waits for the next server.
        socket.create_connection(("127.0.0.1", port)).close()


def test_mtas_find_no_address_that_is_closed_again_at_once(server: Server) -> None:
    """As while the metrics are still those of another server, which has left the mail to us."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server.start("--bind-timeout=1", f"--metrics=127.0.0.1:{port}", wait=False)
        assert server.finish() == 78
    assert f"inet:{port}@127.0.0.1: another program listens there already" in server.log()
    assert "listening on" not in server.log()


def test_conformance_115_a_stale_socket_is_no_hindrance_but_a_live_one_is(server: Server) -> None:
    path = server.directory / "fm.sock"
    server.start("--workers=1", listen=[f"unix:{path}"])
    second = Server(server.directory)
    try:
        second.log_file = server.directory / "log2"
        second.log_file.touch()
        second.start("--bind-timeout=0.1", listen=[f"unix:{path}"], wait=False)
        assert second.finish() == 78
        assert f"fastmilter: unix:{path}: another program listens there already" in second.log()
    finally:
        second.kill_all()
    with server.client() as client:
        whole_message(client)
    server.send(signal.SIGKILL)
    server.finish()
    wait_until(lambda: not server.workers(), "the workers leave")
    assert path.exists()  # nobody was left to remove it
    server.start("--workers=1", listen=[f"unix:{path}"])
    with server.client() as client:
        whole_message(client)
    assert server.stop() == 0
    assert not path.exists()


def test_conformance_116_a_successors_socket_is_left_alone(server: Server) -> None:
    path = server.directory / "fm.sock"
    server.start("--workers=1", listen=[f"unix:{path}"])
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as successor:
        successor.bind(str(path))
        assert server.stop() == 0
        assert path.exists()


def test_a_successor_may_take_the_path_while_the_old_server_drains(server: Server) -> None:
    path = server.directory / "fm.sock"
    server.start("--workers=1", listen=[f"unix:{path}"])
    client = server.client().open()
    begin(client)
    server.send(signal.SIGTERM)
    wait_until(lambda: not path.exists(), "the path is free as soon as the server drains")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as successor:
        successor.bind(str(path))
        client.close()
        assert server.finish() == 0
        assert path.exists()


@pytest.mark.parametrize(
    ("options", "status", "error"),
    [
        (["--workers=x"], 64, "fastmilter: --workers: 'x' will not do: write a whole number from 1, or auto"),
        (["--lisen=x"], 64, "fastmilter serve: there is no option --lisen=x; did you mean --listen?"),
        (["again"], 64, "fastmilter serve: 'again' is one argument too many"),
        (["--config=no.toml"], 78, "fastmilter: --config no.toml: No such file or directory"),
        (["--listen=fd:99"], 78, "fastmilter: fd:99: descriptor 99 is not open"),
        (["--listen=unix:no/fm.sock"], 78, "the directory 'no' does not exist"),
        (["--listen=unix:tagger.py"], 78, "the path exists and is not a socket"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(server: Server, options: list[str], status: int, error: str) -> None:
    server.start(*options, listen=(), wait=False)
    assert server.finish() == status
    assert error in server.log()
    assert "Traceback" not in server.log()


def test_an_address_that_the_machine_does_not_have_yet_is_waited_for(server: Server) -> None:
    server.start("--bind-timeout=0.3", listen=["inet:0@192.0.2.77"], wait=False)
    assert server.finish() == 78
    assert "this machine does not have that address; trying again for up to 0 s" in server.log()


def test_a_port_in_use_is_told(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server.start(listen=[f"inet:{port}@127.0.0.1"], wait=False)
        assert server.finish() == 78
    assert f"fastmilter: inet:{port}@127.0.0.1: another program listens there already" in server.log()


def test_the_environment_alone_will_do(server: Server) -> None:
    server.start(
        target="",
        listen=(),
        environment={
            "FASTMILTER_TARGET": "./tagger.py:Tagger",
            "FASTMILTER_LISTEN": "inet:0@127.0.0.1 unix:fm.sock",
            "FASTMILTER_WORKERS": "1",
            "FASTMILTER_WORKER": "1",
        },
    )
    assert "FASTMILTER_WORKER is not known; did you mean FASTMILTER_WORKERS?" in server.log()
    with server.client() as client:
        whole_message(client)
    assert server.stop() == 0


def test_a_file_serves_from_its_own_directory(server: Server) -> None:
    directory = server.directory / "deep"
    directory.mkdir()
    (directory / "words.py").write_text("VERSION = 'from words'\n")
    (directory / "my-filter.py").write_text("import words\n" + FILTER.replace('"one"', "words.VERSION"))
    server.start("--workers=1", target="deep/my-filter.py:Tagger")
    with server.client() as client:
        assert whole_message(client)["X-Version"] == "from words"
    assert server.stop() == 0


def test_a_worker_does_not_start_a_server_of_its_own(server: Server) -> None:
    server.filter.write_text(FILTER + "\nfastmilter.serve(Tagger, listen='inet:0@127.0.0.1')\n")
    server.start(wait=False)
    assert server.finish() == 78
    assert "call it under if __name__ == '__main__'" in server.log()


def test_closed_standard_descriptors_are_never_those_of_a_socket(server: Server) -> None:
    path = server.directory / "fm.sock"
    script = server.directory / "closed.py"
    script.write_text("""
import os, sys
os.closerange(0, 3)
os.execv(sys.executable, [sys.executable, "-m", "fastmilter", "serve", "tagger:Tagger", *sys.argv[1:]])
""")
    server.filter.write_text(
        FILTER.replace("def on_end_of_message(self):", "def on_end_of_message(self):\n        print(1)")
    )
    server.start("--workers=1", target="", listen=[f"unix:{path}"], command=(str(script),), wait=False)
    wait_until(path.exists, "the server listens")
    with Client(f"unix:{path}") as client:
        worker = int(whole_message(client)["X-Pid"])
    for pid in (server.pid, worker):
        assert [os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)] == ["/dev/null"] * 3
    assert server.stop() == 0


def test_conformance_118_the_server_outlives_the_reader_of_its_log(server: Server) -> None:
    path = server.directory / "fm.sock"
    read_end, write_end = os.pipe()
    server.process = subprocess.Popen(
        [sys.executable, "-m", "fastmilter", "serve", "tagger:Tagger", f"--listen=unix:{path}", "--workers=1"],
        cwd=server.directory,
        env=clean_environment(),
        stdout=write_end,
        stderr=write_end,
        start_new_session=True,
    )
    os.close(write_end)
    os.read(read_end, 1)
    os.close(read_end)
    wait_until(path.exists, "the server listens")
    for _ in range(3):
        with Client(f"unix:{path}") as client:
            worker = int(whole_message(client)["X-Pid"])
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: is_gone(worker), "the worker dies")  # noqa: B023 - called before the next round
    with Client(f"unix:{path}") as client:
        whole_message(client)
    assert server.stop() == 0


def test_there_is_no_moment_in_which_others_could_connect(server: Server) -> None:
    """Servers after each other on one path: whatever name the socket has meanwhile, it is for its owner only."""
    path = server.directory / "fm.sock"
    modes: set[int] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for name in os.listdir(server.directory):
                if name.startswith("fm.sock"):
                    try:
                        modes.add(stat.S_IMODE(os.lstat(server.directory / name).st_mode))
                    except FileNotFoundError:
                        continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(5):
            server.start("--workers=1", listen=[f"unix:{path}?mode=0600"])
            with server.client() as client:
                whole_message(client)
            assert server.stop() == 0
    finally:
        done.set()
        watcher.join(timeout=30)
    assert modes == {0o600}
