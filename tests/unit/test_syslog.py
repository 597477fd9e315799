"""Lines for a syslog daemon: each is sent once, by the process that logged it, and cut between characters."""

import logging
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastmilter.server import syslog_handler
from fastmilter.server.syslog import MOST_BYTES, Syslog, SyslogWriter
from fastmilter.server.syslog_handler import SyslogHandler

MANY = 40
"""More lines than the kernel queues for a daemon that does not read."""


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
