"""A filter served for one check: by the real server, in a process of its own, on a socket that nobody else can reach.

The listening socket is made here and handed over, so a client can connect at once: it waits in the queue until a worker
is ready, and is sent away if none ever is. The server's warnings and whatever the filter prints go to standard error.
"""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from fastmilter.endpoints import MAX_UNIX_PATH_BYTES
from fastmilter.server.load import Target

READY_S: Final = 60.0
"""Longest time the filter may take to load; that of ``fastmilter serve`` is the same."""

_STOP_S: Final = 10.0
_SOCKET: Final = "milter.sock"


@contextmanager
def serving(target: Target, config: str | None) -> Iterator[str]:
    """Serve ``target`` with one worker while the block runs; yield the address.

    ``config``: the configuration file whose ``[filter]`` table the filter gets.
    """
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="fastmilter-", dir=_directory()))
        path = os.path.join(directory, _SOCKET)
        lifeline, ours = os.pipe()
        stack.callback(os.close, ours)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(path)
            listener.listen()
            try:
                server = _start(target, config, listener.fileno(), lifeline)
            finally:
                os.close(lifeline)
        # Only the server has the socket now: if it cannot start, a waiting client is told.
        try:
            yield f"unix:{path}"
        finally:
            _stop(server)


def _start(target: Target, config: str | None, listener: int, lifeline: int) -> "subprocess.Popen[bytes]":
    switches = [f"--listen=fd:{listener}", "--workers=1", "--log-level=warning", f"--ready-timeout={READY_S:.0f}"]
    switches += ["--metrics=none", "--control=none", "--log-file=-"]  # those of the real server, perhaps
    switches += ["--allow-root"]  # whoever checks a filter by hand runs it as himself
    switches += [f"--config={config}"] if config else []
    command = [sys.executable, "-m", "fastmilter", "serve", *switches, f"--lifeline={lifeline}", "--", str(target)]
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr.fileno(),  # standard output is the report's
        pass_fds=(listener, lifeline),
        process_group=0,  # a Ctrl-C is for the check, which then stops the server
    )


def _stop(server: "subprocess.Popen[bytes]") -> None:
    server.terminate()
    try:
        server.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _directory() -> str | None:
    """Return where to make the socket's directory: where temporary files go, unless that path is too long."""
    room = MAX_UNIX_PATH_BYTES - len(f"/fastmilter-12345678/{_SOCKET}")
    return None if len(os.fsencode(tempfile.gettempdir())) <= room else "/tmp"
