"""Listeners: what they are, and what they do not take over. (How addresses are spelled: test_endpoints.py.)"""

import contextlib
import errno
import grp
import os
import pwd
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from fastmilter.endpoints import EndpointKind, parse_endpoint
from fastmilter.errors import ConfigError
from fastmilter.server.listen import Listener, kernels_backlog, open_all, open_listener, spelling_for_postfix
from fastmilter.server.path_lock import AddressInUse, AddressUnavailable


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def opened(stack: ExitStack, text: str, *, backlog: int = 128) -> Listener:
    listener = open_listener(parse_endpoint(text), backlog=backlog)
    stack.callback(listener.close)
    return listener


def answers(listener: Listener) -> bool:
    """Connect to a listener; whether it was there."""
    name = listener.socket.getsockname() if listener.bound.path is None else listener.bound.path
    with socket.socket(listener.socket.family, socket.SOCK_STREAM) as client:
        client.settimeout(10)
        client.connect(name)
    connection, _ = listener.socket.accept()
    connection.close()
    return True


@pytest.mark.parametrize(
    "text", ["inet:0@127.0.0.1", "inet:127.0.0.1:0", "inet:0@localhost", "inet6:0@[::1]", "inet:0"]
)
def test_a_tcp_listener(stack: ExitStack, text: str) -> None:
    listener = opened(stack, text)
    assert isinstance(listener.bound.port, int)
    assert listener.bound.port > 0
    assert listener.bound.host == listener.address.host
    sock = listener.socket
    assert not sock.getblocking()
    assert not sock.get_inheritable()
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


def test_connections_inherit_what_they_need(stack: ExitStack) -> None:
    listener = opened(stack, "inet:0@127.0.0.1")
    with socket.create_connection(listener.socket.getsockname(), timeout=10):
        connection, _ = listener.socket.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_ipv4_and_ipv6_share_a_port(stack: ExitStack) -> None:
    first = opened(stack, "inet:0")
    second = opened(stack, f"inet6:{first.bound.port}")
    assert answers(first)
    assert second.socket.family == socket.AF_INET6


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("inet:0@192.0.2.1", "inet:0@192.0.2.1: this machine does not have that address"),
        ("inet:nosuchservice@127.0.0.1", "there is no service 'nosuchservice' on this machine"),
        ("inet:0@no-such-host.invalid", "no IPv4 address of 'no-such-host.invalid'"),
        ("fd:9999", "fd:9999: descriptor 9999 is not open"),
    ],
)
def test_what_cannot_be_listened_on(text: str, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_listener(parse_endpoint(text))
    assert error in str(caught.value)


def test_a_port_in_use_is_refused(stack: ExitStack) -> None:
    port = opened(stack, "inet:0@127.0.0.1").bound.port
    with pytest.raises(ConfigError, match=f"inet:{port}@127.0.0.1: another program listens there already"):
        open_listener(parse_endpoint(f"inet:{port}@127.0.0.1"))


def test_a_port_can_be_had_again_at_once(stack: ExitStack) -> None:
    first = opened(stack, "inet:0@127.0.0.1")
    with socket.create_connection(first.socket.getsockname(), timeout=10):
        connection, _ = first.socket.accept()
        connection.close()  # our side closes first: the port stays in TIME_WAIT
        first.close()
    assert opened(stack, f"inet:{first.bound.port}@127.0.0.1").bound == first.bound


def test_a_unix_listener_has_its_mode_and_group(stack: ExitStack, tmp_path: Path) -> None:
    group = grp.getgrgid(os.getgid()).gr_name
    listener = opened(stack, f"unix:{tmp_path}/fm.sock?mode=0640&group={group}")
    status = os.lstat(tmp_path / "fm.sock")
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert status.st_gid == os.getgid()
    assert answers(listener)
    assert sorted(os.listdir(tmp_path)) == ["fm.sock", "fm.sock.lock"]  # nothing private is left over


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_unix_listener_has_its_owner(stack: ExitStack, tmp_path: Path) -> None:
    entry = pwd.getpwnam("nobody")
    opened(stack, f"unix:{tmp_path}/fm.sock?owner=nobody&group={entry.pw_gid}")
    status = os.lstat(tmp_path / "fm.sock")
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (entry.pw_uid, entry.pw_gid, 0o660)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has abstract sockets")
def test_an_abstract_socket(stack: ExitStack, tmp_path: Path) -> None:
    name = f"unix:@fastmilter-test-{os.getpid()}"
    listener = opened(stack, name)
    assert str(listener.bound) == spelling_for_postfix(listener.bound) == name
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect("\0" + name.partition("@")[2])
    with pytest.raises(AddressInUse, match=f"{name}: another program listens there already"):
        open_listener(parse_endpoint(name))
    listener.close()
    opened(stack, name)  # nothing was left behind


def test_the_kernel_tells_how_long_a_queue_may_be() -> None:
    most = kernels_backlog()
    assert most is None or most > 0


def test_a_unix_listener_is_for_user_and_group_by_default_whatever_the_umask(stack: ExitStack, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        opened(stack, f"unix:{tmp_path}/fm.sock")
        assert os.umask(0) == 0  # and it is as it was
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.lstat(tmp_path / "fm.sock").st_mode) == 0o660


def test_there_is_no_moment_in_which_the_socket_is_open_to_all(stack: ExitStack, tmp_path: Path) -> None:
    """Watch the directory while listeners come and go: no name in it ever has more rights than asked for."""
    wider: list[str] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for name in os.listdir(tmp_path):
                try:
                    mode = stat.S_IMODE(os.lstat(tmp_path / name).st_mode)
                except FileNotFoundError:
                    continue
                if mode & ~0o620:
                    wider.append(f"{name}: {mode:o}")

    before = os.umask(0)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(300):
            open_listener(parse_endpoint(f"unix:{tmp_path}/fm.sock?mode=0620")).close()
    finally:
        done.set()
        watcher.join(timeout=60)
        os.umask(before)
    assert not wider


def test_close_removes_the_path(stack: ExitStack, tmp_path: Path) -> None:
    listener = open_listener(parse_endpoint(f"{tmp_path}/fm.sock"))
    listener.close()
    assert os.listdir(tmp_path) == []
    listener.close()  # once more does not harm


def test_conformance_116_close_leaves_the_socket_of_a_successor(stack: ExitStack, tmp_path: Path) -> None:
    first = open_listener(parse_endpoint(f"{tmp_path}/fm.sock"))
    os.unlink(tmp_path / "fm.sock")
    successor = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))  # a milter of others: no lock
    successor.bind(str(tmp_path / "fm.sock"))
    first.close()
    assert os.listdir(tmp_path) == ["fm.sock"]


def test_conformance_115_a_stale_socket_is_replaced(stack: ExitStack, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
        stale.bind(str(tmp_path / "fm.sock"))
    assert answers(opened(stack, f"{tmp_path}/fm.sock"))


def test_conformance_115_a_live_socket_is_refused(stack: ExitStack, tmp_path: Path) -> None:
    first = opened(stack, f"{tmp_path}/fm.sock")
    why = rf"fm\.sock: another program listens there already: fastmilter, pid={os.getpid()}$"
    with pytest.raises(AddressInUse, match=why):
        open_listener(parse_endpoint(f"{tmp_path}/fm.sock"))
    with pytest.raises(BlockingIOError):
        first.socket.accept()  # the lock tells: nobody was asked
    assert answers(first)


def test_conformance_115_a_live_socket_of_another_program_is_refused(stack: ExitStack, tmp_path: Path) -> None:
    other = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    other.bind(str(tmp_path / "fm.sock"))
    other.listen()
    for _ in range(2):
        with pytest.raises(AddressInUse, match=r"fm\.sock: another program listens there already$"):
            open_listener(parse_endpoint(f"{tmp_path}/fm.sock"))
    assert os.listdir(tmp_path) == ["fm.sock"]  # the lock was given back


def dies(stack: ExitStack, listener: Listener) -> socket.socket:
    """Do what the end of a master does to its listener while a worker hangs: nothing is removed, the lock is free."""
    listener.forget_lock()
    return stack.enter_context(listener.socket)


def test_the_socket_of_a_dead_master_is_taken_over_although_a_worker_still_answers(
    stack: ExitStack, tmp_path: Path
) -> None:
    dies(stack, open_listener(parse_endpoint(f"{tmp_path}/fm.sock")))
    assert answers(opened(stack, f"{tmp_path}/fm.sock"))


def test_what_came_after_a_dead_master_is_not_taken_over(stack: ExitStack, tmp_path: Path) -> None:
    dies(stack, open_listener(parse_endpoint(f"{tmp_path}/fm.sock")))
    os.unlink(tmp_path / "fm.sock")
    other = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    other.bind(str(tmp_path / "fm.sock"))  # likely with the same inode
    other.listen()
    with pytest.raises(AddressInUse, match=r"listens there already$"):
        open_listener(parse_endpoint(f"{tmp_path}/fm.sock"))


@pytest.mark.parametrize("content", ["", "x", "1 2", "1 2 3 4 5", "-1 -1 -1 -1"])
def test_a_lock_file_that_says_nothing_does_no_harm(stack: ExitStack, tmp_path: Path, content: str) -> None:
    (tmp_path / "fm.sock.lock").write_text(content)
    assert answers(opened(stack, f"{tmp_path}/fm.sock"))


def test_a_lock_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fm.sock.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="symbolic link"):
        open_listener(parse_endpoint(f"{tmp_path}/fm.sock"))
    assert os.listdir(tmp_path) == ["fm.sock.lock"]


def test_a_lock_that_a_child_let_go_of_is_still_held(stack: ExitStack, tmp_path: Path) -> None:
    opened(stack, f"{tmp_path}/fm.sock")
    listener = opened(stack, f"{tmp_path}/fm2.sock")
    child = os.fork()
    if child == 0:
        listener.forget()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    with pytest.raises(AddressInUse):
        open_listener(parse_endpoint(f"{tmp_path}/fm2.sock"))
    assert answers(listener)


def test_a_lock_ends_with_its_master_if_the_children_let_go_of_it(stack: ExitStack, tmp_path: Path) -> None:
    listener = open_listener(parse_endpoint(f"{tmp_path}/fm.sock"))
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        listener.forget_lock()
        theirs.send(b"!")
        theirs.recv(1)
        os._exit(0)
    theirs.close()
    assert ours.recv(1) == b"!"
    dies(stack, listener)
    assert answers(opened(stack, f"{tmp_path}/fm.sock"))  # although the child has the old socket
    ours.close()
    assert os.waitpid(child, 0)[1] == 0


def test_conformance_115_a_live_socket_with_a_full_queue_is_refused(stack: ExitStack, tmp_path: Path) -> None:
    other = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    other.bind(str(tmp_path / "fm.sock"))
    other.listen(0)
    while True:
        client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        client.setblocking(False)
        if client.connect_ex(str(tmp_path / "fm.sock")) == errno.EAGAIN:
            break
    with pytest.raises(AddressInUse, match="another program listens there already, and its queue is full"):
        open_listener(parse_endpoint(f"{tmp_path}/fm.sock"))


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_conformance_115_what_is_no_socket_is_refused_and_kept(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "fm.sock"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="the path exists and is not a socket"):
        open_listener(parse_endpoint(f"unix:{path}"))
    assert os.listdir(tmp_path) == ["fm.sock"]


def test_a_socket_of_another_type_is_refused(stack: ExitStack, tmp_path: Path) -> None:
    other = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    other.bind(str(tmp_path / "fm.sock"))
    with pytest.raises(ConfigError, match="cannot tell whether the socket is in use"):
        open_listener(parse_endpoint(f"{tmp_path}/fm.sock"))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{}/no/fm.sock", "the directory '{}/no' does not exist"),
        ("{}/fm.sock?group=no-such-group", "there is no group 'no-such-group' on this machine"),
        ("{}/fm.sock?owner=no-such-user", "there is no user 'no-such-user' on this machine"),
    ],
)
def test_unix_errors_say_what_is_missing(tmp_path: Path, text: str, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_listener(parse_endpoint("unix:" + text.format(tmp_path)))
    assert error.format(tmp_path) in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("length", [97, 103])
@pytest.mark.parametrize("name", ["x", "xxx", "xxxxxxx", ""])
def test_a_path_as_long_as_it_may_be(stack: ExitStack, tmp_path: Path, length: int, name: str) -> None:
    rest = length - len(str(tmp_path)) - 1
    directory = tmp_path / ("d" * (rest - len(name) - 1)) if name else tmp_path
    directory.mkdir(exist_ok=True)
    path = directory / (name or "x" * rest)
    assert len(str(path)) == length
    assert answers(opened(stack, str(path)))


def test_an_inherited_listener_is_taken_over(stack: ExitStack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as original:
        name = original.getsockname()
        number = os.dup(original.fileno())
    os.set_inheritable(number, True)
    listener = opened(stack, f"fd:{number}")
    assert (listener.bound.kind, listener.bound.host, listener.bound.port) == (EndpointKind.INET, *name)
    assert not listener.socket.get_inheritable()
    assert answers(listener)


def test_an_inherited_unix_listener_keeps_its_path(stack: ExitStack, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as original:
        original.bind(str(tmp_path / "fm.sock"))
        original.listen()
        listener = open_listener(parse_endpoint(f"fd:{os.dup(original.fileno())}"))
    assert listener.bound.path == str(tmp_path / "fm.sock")
    listener.close()
    assert os.listdir(tmp_path) == ["fm.sock"]  # it belongs to whoever made it


@pytest.mark.parametrize(
    ("kind", "error"),
    [("pipe", "is not a socket"), ("udp", "is not a TCP or unix stream socket"), ("tcp", "does not listen")],
)
def test_an_inherited_descriptor_of_another_kind_is_refused_and_stays_open(
    stack: ExitStack, kind: str, error: str
) -> None:
    if kind == "pipe":
        number, other = os.pipe()
        stack.callback(os.close, other)
    else:
        type_ = socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM
        number = socket.socket(socket.AF_INET, type_).detach()
    stack.callback(os.close, number)  # fails if it was closed
    with pytest.raises(ConfigError, match=error):
        open_listener(parse_endpoint(f"fd:{number}"))


def test_a_reload_knows_its_own_listeners(stack: ExitStack, tmp_path: Path) -> None:
    listener = opened(stack, f"unix:{tmp_path}/fm.sock?mode=0600")
    assert listener.is_at(parse_endpoint(f"local:{tmp_path}/fm.sock?mode=0600"))
    assert not listener.is_at(parse_endpoint(f"unix:{tmp_path}/other.sock"))
    for change in ("mode=0660", "mode=0600&owner=0", "mode=0600&group=0"):
        with pytest.raises(ConfigError, match="cannot be changed: restart"):
            listener.is_at(parse_endpoint(f"unix:{tmp_path}/fm.sock?{change}"))
    proxied = opened(stack, "inet:0@127.0.0.1?proxy=yes")
    assert proxied.bound.proxy
    assert proxied.is_at(parse_endpoint("inet:127.0.0.1:0?proxy=yes"))
    with pytest.raises(ConfigError, match="cannot be changed: restart"):
        proxied.is_at(parse_endpoint("inet:0@127.0.0.1"))


def test_an_inherited_socket_may_be_for_proxies(stack: ExitStack, tmp_path: Path) -> None:
    tcp, unix = opened(stack, "inet:0@127.0.0.1"), opened(stack, f"unix:{tmp_path}/fm.sock")
    assert opened(stack, f"fd:{os.dup(tcp.socket.fileno())}?proxy=yes").bound == replace(tcp.bound, proxy=True)
    number = os.dup(unix.socket.fileno())
    stack.callback(os.close, number)
    with pytest.raises(ConfigError, match="the PROXY protocol is for TCP"):
        open_listener(parse_endpoint(f"fd:{number}?proxy=yes"))


def test_the_spelling_for_postfix() -> None:
    for text, spelling in (
        ("inet:8894@0.0.0.0", "inet:127.0.0.1:8894"),
        ("inet:8894@mail.example", "inet:mail.example:8894"),
        ("inet6:8894", "inet:[::1]:8894"),
        ("unix:/run/fm.sock?mode=0660", "unix:/run/fm.sock"),
        ("fd:3", "fd:3"),
    ):
        assert spelling_for_postfix(parse_endpoint(text)) == spelling


def test_the_backlog_of_a_listener_that_is_known_stays_until_it_is_set(stack: ExitStack, tmp_path: Path) -> None:
    listener = opened(stack, f"unix:{tmp_path}/fm.sock", backlog=20)
    assert open_all([listener.address], backlog=1, known=[listener]) == (listener,)

    def connections() -> int:
        """Connect until the queue is full; return how many did."""
        for count in range(100):
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.setblocking(False)
            try:
                client.connect(f"{tmp_path}/fm.sock")
            except BlockingIOError:
                return count
        return 100

    assert 20 <= connections() < 100
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.socket.accept()[0].close()
    listener.set_backlog(1)
    assert 1 <= connections() < 20
    listener.close()
    listener.set_backlog(5)  # of a closed one: nothing


def test_an_address_that_is_not_there_yet_may_be_had_in_a_moment() -> None:
    with pytest.raises(AddressUnavailable, match="this machine does not have that address"):
        open_listener(parse_endpoint("inet:0@192.0.2.77"))
