"""What systemd is told, and what it hands over."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastmilter.endpoints import parse_endpoint
from fastmilter.errors import ConfigError
from fastmilter.server.listen import open_listeners
from fastmilter.server.systemd import Notifier, Phase, forget_in_child, take_sockets

US = {"LISTEN_PID": str(os.getpid())}


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@fastmilter-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0", 1))
        sock.setblocking(False)
        yield sock, name


def came(sock: socket.socket) -> list[str]:
    """Return the lines of all notices that have come."""
    lines: list[str] = []
    while True:
        try:
            lines += sock.recv(4096).decode().split("\n")
        except BlockingIOError:
            return lines


def test_each_phase_is_told_once(manager: tuple[socket.socket, str]) -> None:
    sock, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.look(1.0, Phase.RELOADING, 0)  # before anything served
    assert came(sock) == ["STATUS=0 workers serve"]
    notifier.look(1.0, Phase.SERVING, 2)
    assert came(sock) == ["READY=1", f"MAINPID={os.getpid()}", "STATUS=2 workers serve"]
    notifier.look(2.0, Phase.SERVING, 2)
    assert came(sock) == []
    notifier.look(3.5, Phase.RELOADING, 2)
    assert came(sock) == ["RELOADING=1", "MONOTONIC_USEC=3500000", "STATUS=reloading, 2 workers serve"]
    notifier.look(4.0, None, 2)
    assert came(sock) == []
    notifier.look(5.0, Phase.SERVING, 1)
    assert came(sock) == ["READY=1", f"MAINPID={os.getpid()}", "STATUS=1 worker serves"]
    notifier.look(6.0, Phase.STOPPING, 1, leave_s=75.5)
    notifier.look(7.0, Phase.SERVING, 1)  # there is no way back
    assert came(sock) == ["STOPPING=1", "EXTEND_TIMEOUT_USEC=75500000", "STATUS=stopping"]
    assert notifier.next_sign() is None


def test_the_watchdog_hears_of_us_twice_in_its_time_while_somebody_serves(manager: tuple[socket.socket, str]) -> None:
    sock, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())})
    signs = []
    now = 100.0
    for serving in (1, 1, 0, 1):
        notifier.look(now, None, serving)
        signs.append(came(sock).count("WATCHDOG=1"))
        notifier.look(now + 1.0, None, serving)
        assert "WATCHDOG=1" not in came(sock)
        assert notifier.next_sign() == now + 5.0
        now += 5.0
    assert signs == [1, 1, 0, 1]


def test_what_systemd_has_no_room_for_is_sent_later_in_its_order(manager: tuple[socket.socket, str]) -> None:
    sock, name = manager
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as others, contextlib.suppress(BlockingIOError):
        others.setblocking(False)
        while True:
            others.sendto(b"X=1", name.replace("@", "\0", 1))
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.look(1.0, Phase.SERVING, 1)
    notifier.look(1.1, Phase.RELOADING, 1)
    assert notifier.next_sign() == pytest.approx(1.6)
    assert set(came(sock)) == {"X=1"}
    notifier.look(1.6, None, 1)
    assert [line.partition("=")[0] for line in came(sock)][::3] == ["READY", "RELOADING"]
    assert notifier.next_sign() is None


@pytest.mark.parametrize(
    "environment",
    [{}, {"NOTIFY_SOCKET": "/nobody/is/here", "WATCHDOG_USEC": "2000000"}, {"WATCHDOG_USEC": "2000000"}],
)
def test_without_systemd_nothing_happens(environment: dict[str, str]) -> None:
    Notifier(environment).look(1.0, Phase.SERVING, 1)


@pytest.mark.parametrize("period", [{"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_PID": "1"}])
def test_a_watchdog_that_is_not_for_us_gets_nothing(period: dict[str, str]) -> None:
    environment = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "2000000", **period}
    assert Notifier(environment).next_sign() is None


def test_sockets_are_found_once() -> None:
    environment = {**US, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b", "OTHER": "1"}
    assert take_sockets(environment) == [3, 4]
    assert environment == {"OTHER": "1"}
    with pytest.raises(ConfigError, match="systemd has handed no sockets"):
        take_sockets(environment)


@pytest.mark.parametrize(
    "environment",
    [{}, {"LISTEN_FDS": "1"}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}, {**US, "LISTEN_FDS": "0"}]
    + [{**US, "LISTEN_FDS": text} for text in ("-1", "x", "", "99999999")],
)
def test_what_is_not_for_us_is_not_taken(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="handed no sockets to this process"):
        take_sockets(environment)


def test_the_address_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LISTEN_FDS", raising=False)
    with pytest.raises(ConfigError, match=r"^systemd: systemd has handed no sockets"):
        open_listeners(parse_endpoint("systemd"))


def test_a_worker_finds_nothing_of_it() -> None:
    environment = {**US, "LISTEN_FDS": "1", "NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "A": "1"}
    forget_in_child(environment)
    assert environment == {"A": "1"}
