"""Who may connect, and who never gets so far that a byte of it is read."""

import contextlib
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fastmilter import codec
from fastmilter.client import Client
from tests.process.harness import PATIENCE_S, Server, begin, complete, wait_until, whole_message
from tests.support.playing import V6

REFUSED = "connection refused before anything was read: "
NOBODY = pwd.getpwnam("nobody").pw_uid

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users")


@pytest.fixture
def open_server() -> Iterator[Server]:
    """A server in a directory that every user may enter."""
    directory = Path(tempfile.mkdtemp(prefix="fastmilter-test-", dir="/tmp"))
    directory.chmod(0o755)
    server = Server(directory)
    yield server
    server.kill_all()
    print(server.log_file.read_text())
    shutil.rmtree(directory)


def is_turned_away(place: str | tuple[str, int], source: str | None = None) -> bool:
    """Connect and negotiate; whether the other side closes without an answer."""
    with socket.socket(socket.AF_UNIX if isinstance(place, str) else socket.AF_INET, socket.SOCK_STREAM) as peer:
        peer.settimeout(PATIENCE_S)
        if source is not None:
            peer.bind((source, 0))
        try:
            peer.connect(place)
            peer.sendall(codec.encode(V6))
            return not peer.recv(1000)
        except (ConnectionResetError, BrokenPipeError):
            return True


def as_nobody(path: str) -> bool:
    """Ask ``is_turned_away`` as another user."""
    child = os.fork()
    if child == 0:
        status = 3
        try:
            os.setgroups([])
            os.setgid(pwd.getpwnam("nobody").pw_gid)
            os.setuid(NOBODY)
            status = int(is_turned_away(path))
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 1), "the child failed"
    return bool(status)


def port_of(server: Server) -> int:
    return int(re.split("[:@]", server.address())[1])


def test_who_is_in_no_network_is_closed_before_a_byte_is_read(server: Server) -> None:
    server.start("--workers=1", "--allow=192.0.2.0/24", "--allow=127.0.0.2")
    worker = psutil.Process(server.workers().popitem()[0])
    worker.suspend()
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=PATIENCE_S) as peer:
        peer.sendall(b"GET / HTTP/1.1\r\n\r\n")  # it is there when the worker accepts
        worker.resume()
        with contextlib.suppress(ConnectionResetError):
            assert peer.recv(100) == b""
    server.wait_log(rf"{REFUSED}127\.0\.0\.1 is in no network of --allow pid={worker.pid}\n")
    assert is_turned_away(("127.0.0.1", port_of(server)))
    assert not is_turned_away(("127.0.0.1", port_of(server)), source="127.0.0.2")
    assert "broke the protocol" not in server.log()
    assert server.stop() == 0


def test_networks_mean_nothing_on_a_unix_socket_nor_users_on_tcp(server: Server) -> None:
    path = server.directory / "fm.sock"
    options = ("--allow=::1", "--allow=127.0.0.0/8", f"--allow-user={os.geteuid()}")
    server.start("--workers=1", *options, listen=["inet:0@127.0.0.1", "inet6:0@[::1]", f"unix:{path}"])
    for place in range(3):
        with server.client(place) as client:
            whole_message(client)
    assert REFUSED not in server.log()
    assert server.stop() == 0


@needs_root
def test_who_is_not_the_user_is_closed_before_a_byte_is_read(open_server: Server) -> None:
    server = open_server
    path = server.directory / "fm.sock"
    server.start("--workers=1", "--allow-user=nobody", listen=[f"unix:{path}?mode=0666"])
    assert is_turned_away(str(path))
    server.wait_log(rf"{REFUSED}user 0 is none of --allow-user pid=\d+\n")
    assert not as_nobody(str(path))
    server.stop()
    server.start(
        "--workers=1", "--allow-user=0", f"--allow-user={os.getpid() + 100000}", listen=[f"unix:{path}?mode=0666"]
    )
    assert not is_turned_away(str(path))
    assert as_nobody(str(path))
    server.wait_log(rf"{REFUSED}user {NOBODY} is none of --allow-user")


@needs_root
def test_an_abstract_socket_is_kept_by_users_alone(open_server: Server) -> None:
    server = open_server
    name = f"@fastmilter-test-{os.getpid()}"
    server.start("--workers=1", listen=[f"unix:{name}"])
    assert f"everybody on this machine may connect to unix:{name}" in server.log()
    assert not as_nobody("\0" + name[1:])
    with Client(f"unix:{name}") as client:
        whole_message(client)
    assert server.stop() == 0
    server.start("--workers=1", "--allow-user=root", listen=[f"unix:{name}"])
    assert "everybody" not in server.log()
    assert as_nobody("\0" + name[1:])
    assert not is_turned_away("\0" + name[1:])


def test_many_refusals_are_few_lines(server: Server) -> None:
    server.start("--workers=1", "--allow=192.0.2.1")
    for _ in range(50):
        assert is_turned_away(("127.0.0.1", port_of(server)))

    def told() -> int:
        return sum(
            1 + int(more or 0) for more in re.findall(rf"{REFUSED}.*?(?:\((\d+) more like it\))?\n", server.log())
        )

    wait_until(lambda: told() == 50, "all are counted")
    assert server.log().count(REFUSED) < 50


def test_one_peer_has_so_many_connections_over_all_workers(server: Server) -> None:
    server.start("--workers=3", "--max-connections-per-peer=2", listen=["inet:0@127.0.0.1"])
    place = ("127.0.0.1", port_of(server))
    with server.client() as first, server.client() as second:
        assert is_turned_away(place)
        server.wait_log(rf"{REFUSED}127\.0\.0\.1 has 2 connections \(--max-connections-per-peer\)")
        assert not is_turned_away(place, source="127.0.0.2")
        whole_message(first)
        first.quit()
        wait_until(lambda: not is_turned_away(place), "there is room for another one")
        whole_message(second)
    assert server.stop() == 0


def test_a_socket_is_never_open_to_others(open_server: Server) -> None:
    """Servers after each other on one path, and a user who may not connect tries all the time, under every name."""
    server = open_server
    done, tried = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(done[1])
        status = 1
        try:
            os.setgid(pwd.getpwnam("nobody").pw_gid)
            os.setuid(NOBODY)
            status = _try_to_connect(server.directory, done[0], tried[1])
        finally:
            os._exit(status)
    os.close(done[0])
    os.close(tried[1])
    try:
        for _ in range(5):
            server.start("--workers=1", listen=[f"unix:{server.directory}/fm.sock?mode=0600"])
            assert os.read(tried[0], 1) == b"!"  # that attempt was turned away by its permissions
            with server.client() as client:
                whole_message(client)
            assert server.stop() == 0
    finally:
        os.close(done[1])
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.close(tried[0])
    assert status == 0, "a connection came through"


def _try_to_connect(directory: Path, done: int, tried: int) -> int:
    os.set_blocking(done, False)
    os.set_blocking(tried, False)
    while True:
        with contextlib.suppress(BlockingIOError):
            os.read(done, 1)
            return 0
        for name in os.listdir(directory):
            path = directory / name
            try:
                if not stat.S_ISSOCK(path.lstat().st_mode):
                    continue
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
                    peer.connect(str(path))
                return 1
            except PermissionError:
                with contextlib.suppress(BlockingIOError):
                    os.write(tried, b"!")
            except OSError:
                continue


@pytest.mark.parametrize("address", ["unix", "inet"])
def test_an_address_that_is_in_use_is_waited_for(server: Server, address: str, tmp_path: Path) -> None:
    server.start("--workers=1", listen=[f"unix:{tmp_path}/fm.sock" if address == "unix" else "inet:0@127.0.0.1"])
    second = Server(tmp_path)
    second.log_file = tmp_path / "log2"
    second.log_file.touch()
    try:
        second.start("--workers=1", f"--bind-timeout={PATIENCE_S}", listen=[server.address()], wait=False)
        second.wait_log("another program listens there already.*; trying again for up to 30 s")
        assert server.stop() == 0
        second.wait_ready(1)
        with second.client() as client:
            whole_message(client)
        assert second.log().count("trying again") == second.log().count("listening on") == 1
        assert second.stop() == 0
    finally:
        second.kill_all()


def test_a_server_that_waits_for_its_address_can_be_stopped(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"inet:{taken.getsockname()[1]}@127.0.0.1"
        server.start(f"--bind-timeout={PATIENCE_S}", listen=[address], wait=False)
        server.wait_log("trying again")
        assert server.stop() == 0
    assert "worker" not in server.log()


HANGING = """
import fastmilter

class Hanging(fastmilter.Filter):
    def on_mail(self, sender, params):
        open("hangs", "w").close()
        with open("pipe"):  # that nobody writes to yet
            pass
"""


def test_a_killed_master_blocks_nothing_although_its_worker_hangs(server: Server) -> None:
    path = server.directory / "fm.sock"
    os.mkfifo(server.directory / "pipe")
    (server.directory / "hanging.py").write_text(HANGING)
    server.start("--workers=1", target="hanging:Hanging", listen=[f"unix:{path}"])
    old = server.workers()
    client = server.client().open()
    hanging = threading.Thread(target=begin, args=(client,))
    hanging.start()
    try:
        wait_until((server.directory / "hangs").exists, "the worker hangs")
        server.send(signal.SIGKILL)
        server.finish()
        server.start("--workers=1", listen=[f"unix:{path}"])
        assert "trying again" not in server.log()
        assert set(old) & set(psutil.pids()), "the old worker is still there"
        with server.client() as fresh:
            whole_message(fresh)
    finally:
        with (server.directory / "pipe").open("w"):
            hanging.join()
    complete(client)
    client.close()
    wait_until(lambda: not [pid for pid in old if psutil.pid_exists(pid)], "the old worker leaves")
    assert path.exists()
    assert server.stop() == 0
    assert not path.exists()


def test_a_lock_ends_with_its_master_and_no_worker_has_it(server: Server) -> None:
    path = server.directory / "fm.sock"
    server.start("--workers=2", listen=[f"unix:{path}"])
    for pid in (*server.workers(), server.pid):
        opened = [os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")]
        assert (f"{path}.lock" in opened) == (pid == server.pid)
    assert server.stop() == 0
    assert sorted(os.listdir(server.directory)) == ["log", "tagger.py"]
