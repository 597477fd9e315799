"""Lines for a syslog daemon: each is sent once, by the process that logged it, and cut between characters."""

import json
import logging
import os
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastmilter.commands import JsonFormat
from fastmilter.server import syslog_handler
from fastmilter.server.syslog import MOST_BYTES, MOST_BYTES_OF_TEXT, Syslog, SyslogWriter
from fastmilter.server.syslog_handler import SyslogHandler

MANY = 40
"""More lines than the kernel queues for a daemon that does not read."""
TOO_MANY = 2000
"""More lines, of 700 bytes, than may wait."""
SOON_S = 10.0


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(str(tmp_path / "log"))
        yield daemon


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("test", logging.WARNING, __file__, 0, text, None, None)


def read(daemon: socket.socket) -> list[str]:
    """Read what has come."""
    lines = []
    while select.select([daemon], [], [], 0)[0]:
        lines.append(daemon.recv(1 << 16).decode())
    return lines


def test_what_waits_at_a_fork_comes_once(
    daemon: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syslog_handler, "CLOSE_S", 0.0)
    handler = SyslogHandler(Syslog("mail", str(tmp_path / "log")))
    for number in range(MANY):
        handler.emit(record(f"parent {number}"))
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)  # as it is after a fork
    got = read(daemon)
    handler.emit(record("child"))
    got += read(daemon)
    handler.close()
    assert len(got) < MANY, "what waited was the parent's to send"
    assert got[-1].endswith("child")


@pytest.mark.parametrize("before", range(4))
def test_a_line_is_cut_between_characters(daemon: socket.socket, tmp_path: Path, before: int) -> None:
    writer = SyslogWriter(Syslog("mail", str(tmp_path / "log")))
    writer.put(b"x" * before + "\U0001f4e8".encode() * MOST_BYTES)
    writer.flush()
    line = daemon.recv(1 << 16)
    assert MOST_BYTES - 3 <= len(line) <= MOST_BYTES
    line.decode()
    writer.close()


@pytest.mark.parametrize("facility", ["user", "local7"])
def test_json_that_is_too_long_is_still_json(daemon: socket.socket, tmp_path: Path, facility: str) -> None:
    handler = SyslogHandler(Syslog(facility, str(tmp_path / "log")))
    handler.setFormatter(JsonFormat(most_bytes=MOST_BYTES_OF_TEXT))
    handler.emit(record("begin " + "x" * 20_000 + " end"))
    (line,) = read(daemon)
    handler.close()
    assert MOST_BYTES - 64 < len(line) <= MOST_BYTES
    message = json.loads(line[line.index("{") :])["message"]
    assert message.startswith("begin xxx")
    assert "..." in message
    assert message.endswith("xxx end")


def test_what_leaves_room_for_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1 << 22)  # the highest of Linux
    assert MOST_BYTES_OF_TEXT + len(Syslog("local7", "").head("debug")) <= MOST_BYTES


def test_a_line_that_the_socket_cannot_send_is_counted_and_holds_up_nothing(
    daemon: socket.socket, tmp_path: Path
) -> None:
    handler = SyslogHandler(Syslog("mail", str(tmp_path / "log")))
    handler._writer._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # gets the least there is
    handler.emit(record("x" * MOST_BYTES))
    handler.emit(record("after it"))
    told, after = read(daemon)
    handler.close()
    assert told.endswith("records are missing lost=1")
    assert after.endswith("after it")


def overfull(daemon: socket.socket, path: Path, as_json: bool) -> SyslogHandler:
    """A handler with more records than may wait, for a daemon that has gone."""
    handler = SyslogHandler(Syslog("mail", str(path)))
    handler.setFormatter(JsonFormat() if as_json else None)
    daemon.close()
    path.unlink()
    for _ in range(TOO_MANY):
        handler.emit(record("x" * 700))
    return handler


@pytest.mark.parametrize("as_json", [False, True])
def test_what_was_lost_is_told_on_standard_error_if_no_daemon_is_there_at_the_end(
    daemon: socket.socket, tmp_path: Path, capfd: pytest.CaptureFixture[str], as_json: bool
) -> None:
    overfull(daemon, tmp_path / "log", as_json).close()
    text = f"the syslog daemon took no more: records are missing lost={TOO_MANY} pid={os.getpid()}"
    assert capfd.readouterr().err == f"fastmilter: {text}\n"


def test_what_was_lost_is_told_at_the_end_to_a_daemon_that_is_back(
    daemon: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syslog_handler, "CLOSE_S", SOON_S)
    handler = overfull(daemon, tmp_path / "log", True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as back:
        back.bind(str(tmp_path / "log"))
        back.settimeout(SOON_S)
        closing = threading.Thread(target=handler.close)
        closing.start()
        count = 0
        while b"lost=" not in (line := back.recv(1 << 16)):
            count += 1
        closing.join()
    told = json.loads(line[line.index(b"{") :])
    assert told["message"].endswith(f"records are missing lost={TOO_MANY - count}")
