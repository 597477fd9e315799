"""Looking at a server from outside: its numbers by HTTP, its control socket."""

import json
import re
import socket
from typing import Any

from tests.process.harness import PATIENCE_S, Server

Series = dict[str, float]


def http(server: Server, path: str = "/metrics", *, raw: bytes | None = None) -> tuple[int, str]:
    """Ask the monitor; return the status and the body. ``raw``: say this instead."""
    match = server.wait_log(r"metrics on http://127\.0\.0\.1:(\d+)/")[-1]
    request = raw if raw is not None else f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", int(match[1])), timeout=PATIENCE_S) as connection:
        connection.sendall(request)
        data = b""
        while piece := connection.recv(65536):
            data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head else 0), body.decode()


def metrics(server: Server) -> Series:
    """Return all series, by name with labels as they stand there."""
    status, body = http(server)
    assert status == 200, body
    lines = [line for line in body.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def control(server: Server, command: str = "status", **more: object) -> dict[str, Any]:
    """Ask over the control socket ``control`` in the server's directory."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_S)
        connection.connect(str(server.directory / "control"))
        connection.sendall(json.dumps({"command": command, **more}).encode() + b"\n")
        answer = connection.makefile().readline()
    return dict(json.loads(answer))


def monitors(server: Server) -> list[int]:
    """Return the process ids of all monitors so far."""
    return [int(pid) for pid in re.findall(r"the monitor started pid=(\d+)", server.log())]
