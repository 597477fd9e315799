"""What a check refuses because a server would not start with it, and what it must not refuse."""

import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastmilter.errors import ConfigError
from fastmilter.server import descriptors, obstacles
from fastmilter.server.listen import open_listener
from fastmilter.server.obstacles import refuse_obstacles
from fastmilter.server.path_lock import PathLock
from fastmilter.server.settings import load_settings

NOBODY = 65534


def refuse(**options: object) -> None:
    refuse_obstacles(load_settings({"target": "tagger:Tagger", **options}, {}))


def refused(**options: object) -> str:
    with pytest.raises(ConfigError) as caught:
        refuse(**options)
    return str(caught.value)


@pytest.fixture
def somebody(tmp_path: Path) -> Iterator[None]:
    """This process is not root for a while, and ``tmp_path`` belongs to who it is then."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    for directory in (tmp_path, *tmp_path.parents):
        if directory.owner() == "root" and directory.is_relative_to("/tmp/") and directory != Path("/tmp"):
            directory.chmod(0o711)
    os.chown(tmp_path, NOBODY, NOBODY)
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def test_what_can_be_made_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "link.log").symlink_to(tmp_path / "not-there.log")
    refuse(listen=[f"unix:{tmp_path}/s?owner={os.geteuid()}&group={os.getegid()}", "unix:@m", "inet:1@192.0.2.1"])
    refuse(listen=["fd:77", "systemd", "inet:1@no-such-name.invalid"])
    refuse(log_file=str(tmp_path / "log"), control=str(tmp_path / "ctl"))
    refuse(log_file=str(tmp_path / "link.log"))
    refuse(log_file="/dev/null")
    assert [path.name for path in tmp_path.iterdir()] == ["link.log"], "nothing was made"


def test_paths_within_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refuse(listen="unix:s", log_file="log", control="ctl")
    assert refused(listen="unix:run/s") == "unix:run/s: the directory 'run' does not exist"
    assert refused(log_file="run/log").endswith("run/log: No such file or directory")


def test_a_server_that_runs_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "s"
    (listener,) = [open_listener(load_settings({"target": "a:B", "listen": f"unix:{path}"}, {}).listen[0])]
    try:
        with socket.create_server(("127.0.0.1", 0)) as other:
            refuse(listen=[f"unix:{path}", f"inet:{other.getsockname()[1]}@127.0.0.1"], control=str(path))
    finally:
        listener.close()


def test_a_control_socket_that_nobody_asked_for_is_no_obstacle() -> None:
    environment = {"RUNTIME_DIRECTORY": "/nonexistent"}
    settings = load_settings({"target": "tagger:Tagger"}, environment)
    assert settings.control == "/nonexistent/control"
    refuse_obstacles(settings)
    with pytest.raises(ConfigError, match="the directory '/nonexistent' does not exist"):
        refuse_obstacles(load_settings({"target": "tagger:Tagger", "control": "/nonexistent/control"}, environment))


def test_the_limit_on_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "_limits", lambda: (64, 256))
    refuse(max_connections_per_worker="10")
    refuse()
    assert "1000 connections per worker need " in refused(max_connections_per_worker="1000")


def test_a_place_where_this_user_may_not_write(tmp_path: Path, somebody: None) -> None:
    refuse(listen=f"unix:{tmp_path}/s", log_file=str(tmp_path / "log"), control=str(tmp_path / "ctl"))
    (tmp_path / "log").touch(0o440)
    assert refused(log_file=str(tmp_path / "log")).endswith("/log: Permission denied")
    tmp_path.chmod(0o500)
    (why, control) = refused(listen=f"unix:{tmp_path}/s"), refused(control=str(tmp_path / "ctl"))
    assert why == f"unix:{tmp_path}/s: this user may not write in the directory"
    assert control == f"unix:{tmp_path}/ctl?mode=0600: this user may not write in the directory"
    assert refused(log_file=str(tmp_path / "new")).endswith("/new: Permission denied")
    tmp_path.chmod(0o600)
    assert refused(listen=f"unix:{tmp_path}/s") == f"unix:{tmp_path}/s: Permission denied"


def test_whom_a_socket_may_be_given(tmp_path: Path, somebody: None, monkeypatch: pytest.MonkeyPatch) -> None:
    place = f"unix:{tmp_path}/s"
    refuse(listen=[f"{place}?group={NOBODY}", f"{place}?owner={NOBODY}"])
    why = "{}: this user may not give files to '0': it must be root, or a member of the group"
    for query in ("?group=0", "?owner=0"):
        assert refused(listen=place + query) == why.format(place + query)
        with pytest.raises(ConfigError) as caught:
            open_listener(load_settings({"target": "a:B", "listen": place + query}, {}).listen[0])
        assert str(caught.value) == why.format(place + query), "the words of the start"
    monkeypatch.setattr(obstacles, "_may_give_files_away", lambda: True)
    refuse(listen=f"{place}?group=0")


def test_a_directory_may_hand_down_the_group_that_is_wanted(tmp_path: Path, somebody: None) -> None:
    os.seteuid(0)
    os.chown(tmp_path, NOBODY, 0)
    tmp_path.chmod(0o2755)
    os.seteuid(NOBODY)
    address = load_settings({"target": "a:B", "listen": f"unix:{tmp_path}/s?group=0"}, {}).listen[0]
    refuse(listen=str(address))
    open_listener(address).close()


def test_a_lock_file_of_another_user(tmp_path: Path, somebody: None) -> None:
    os.seteuid(0)
    lock = PathLock(str(tmp_path / "s"))
    os.seteuid(NOBODY)
    try:
        assert refused(listen=f"unix:{tmp_path}/s") == f"the lock file '{tmp_path}/s.lock' belongs to another user"
        with pytest.raises(ConfigError, match="belongs to another user"):
            PathLock(str(tmp_path / "s"))
    finally:
        fcntl.flock(lock.fd, fcntl.LOCK_UN)
        lock.release()
