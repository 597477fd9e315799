"""Being systemd: a server gets listening sockets that were opened for it."""

import subprocess
import sys
from collections.abc import Sequence

from tests.process.harness import Server, clean_environment

_ACTIVATE = """
import os, sys
for place, number in enumerate(map(int, sys.argv[1].split(","))):
    os.dup2(number, 3 + place)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(place + 1), LISTEN_FDNAMES="a:b")
os.execv(sys.executable, [sys.executable, "-m", "fastmilter", "serve", "tagger:Tagger", *sys.argv[2:]])
"""
"""Does what systemd does between fork and exec."""


def activate(server: Server, numbers: Sequence[int], *options: str, workers: int = 1) -> None:
    """Start the server as systemd starts the service of a socket unit; ``numbers`` are the sockets' descriptors."""
    script = server.directory / "activate.py"
    script.write_text(_ACTIVATE)
    server.begin_log()
    with server.log_file.open("ab") as log:
        server.process = subprocess.Popen(
            [sys.executable, str(script), ",".join(map(str, numbers)), f"--workers={workers}", *options],
            cwd=server.directory,
            env=clean_environment(),
            pass_fds=numbers,
            stderr=log,
            start_new_session=True,
        )
    server.wait_ready(workers)
