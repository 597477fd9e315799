"""The programs in C compile without a warning, and the load generator notices every fault of a filter."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.programs import HERE, program
from tests.bench.conftest import need

FILTER_S = 10.0

Peer = Callable[[socket.socket], None]

GO_ON = struct.pack("!Ic", 1, b"c")


def negotiation(version: int = 6, actions: int = 0, protocol: int = 0) -> bytes:
    return struct.pack("!IcIII", 13, b"O", version, actions, protocol)


def read_packets(connection: socket.socket, until: bytes) -> None:
    """Read to the end of the first packet with the letter ``until``."""
    with connection.makefile("rb") as stream:
        while True:
            (length,) = struct.unpack("!I", stream.read(4))
            if stream.read(length)[:1] == until:
                return


def closes(connection: socket.socket) -> None:
    """Goes away when it is asked."""


def claims_too_much(connection: socket.socket) -> None:
    connection.sendall(negotiation(actions=1 << 30))


def wants_no_reply_but_replies(connection: socket.socket) -> None:
    """DATA, CONNECT and HELO are agreed to get no reply."""
    connection.sendall(negotiation(protocol=0x10000 | 0x1000 | 0x2000))
    read_packets(connection, b"M")
    connection.sendall(GO_ON + GO_ON)


def answers_unknown(connection: socket.socket) -> None:
    connection.sendall(negotiation())
    read_packets(connection, b"C")
    connection.sendall(struct.pack("!Ic", 1, b"z"))


def says_impossible_length(connection: socket.socket) -> None:
    connection.sendall(negotiation())
    read_packets(connection, b"C")
    connection.sendall(struct.pack("!I", 0) + b"c")


def never_answers(connection: socket.socket) -> None:
    connection.sendall(negotiation())
    connection.settimeout(FILTER_S)
    while connection.recv(65536):  # until the load generator has given up
        pass


def edits_too_early(connection: socket.socket) -> None:
    connection.sendall(negotiation())
    read_packets(connection, b"C")
    connection.sendall(struct.pack("!Ic", 7, b"h") + b"X\0y\0z\0")


FAULTS: list[tuple[Peer, str]] = [
    (closes, "closed the connection"),
    (claims_too_much, "what was not offered"),
    (wants_no_reply_but_replies, "a reply where none is due"),
    (answers_unknown, "an unknown reply"),
    (says_impossible_length, "impossible length"),
    (never_answers, "no reply in time"),
    (edits_too_early, "an unknown reply"),
]


def load_against(peer: Peer, path: str, *options: str) -> tuple[int, dict[str, Any]]:
    """Run the load generator with one message against a filter that behaves like ``peer`` on every connection."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(FILTER_S)

        def serve() -> None:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(17)
                peer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        done = subprocess.run(
            [program("load"), "--address", f"unix:{path}", "--total", "1", "--timeout", "1", *options],
            capture_output=True,
            text=True,
            check=False,
            timeout=FILTER_S,
        )
        thread.join()
    report: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, report


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(("peer", "message"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("connections", ["1", "2"], ids=["blocking", "polling"])
def test_load_reports_what_a_filter_does_wrong(
    peer: Peer, message: str, connections: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # paths of unix sockets are short
    status, report = load_against(peer, "filter", "--connections", connections)
    assert status == 1
    assert report["errors"] >= 1
    assert message in report["error_samples"][0]
    assert report["messages"] == 0


@pytest.mark.usefixtures("built")
def test_load_refuses_what_it_does_not_know() -> None:
    for arguments in ([], ["--address", "tcp:1"], ["--address", "unix:/x", "--body", "-1"]):
        done = subprocess.run([program("load"), *arguments], capture_output=True, check=False)
        assert done.returncode == 2
        assert done.stderr


@pytest.mark.parametrize("name", ["load", "raw_loop", "libmilter_debian"])
def test_it_compiles_without_a_warning(name: str, tmp_path: Path) -> None:
    if name == "libmilter_debian":
        need("debian")
    command = ["make", "-C", str(HERE / "native"), f"OUT={tmp_path}", "CFLAGS=-O1 -Werror", f"{tmp_path}/{name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
