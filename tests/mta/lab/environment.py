"""What the machine must offer for real MTAs to run privately on it, and where their files go."""

from __future__ import annotations

import os
import random
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SUITE = Path(__file__).resolve().parent.parent
SENDMAIL_PREFIX = SUITE / ".lab" / "sendmail"
SENDMAIL_PROGRAM = SENDMAIL_PREFIX / "usr/libexec/sendmail/sendmail"
SENDMAIL_CF = SENDMAIL_PREFIX / "usr/share/sendmail/cf"
SENDMAIL_SHIM = SENDMAIL_PREFIX / "sendmail_shim.so"

# Below the ephemeral range of Linux: no client socket can take the port of a filter that is restarted.
_PORTS = range(20000, 30000)
_POLL_SECONDS = 0.01
_ports_given: set[int] = set()


class LabError(Exception):
    """The laboratory itself failed: an MTA did not start, or an answer did not come in time."""


def program(name: str) -> str | None:
    """Full path of a program, looked for where administrators' programs live too."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def missing_for_postfix() -> list[str]:
    """What is missing to run Postfix, in words; empty when nothing is."""
    reasons = ["Postfix needs root"] if os.geteuid() != 0 else []
    reasons += [f"{name} is not installed" for name in ("postfix", "postconf") if program(name) is None]
    if not Path("/etc/postfix/main.cf").exists():
        reasons.append("/etc/postfix/main.cf is missing")
    return reasons


def missing_for_sendmail() -> list[str]:
    """What is missing to run Sendmail, in words; empty when nothing is."""
    reasons = ["Sendmail needs root"] if os.geteuid() != 0 else []
    if program("m4") is None:
        reasons.append("m4 is not installed")
    for path in (SENDMAIL_PROGRAM, SENDMAIL_CF, SENDMAIL_SHIM):
        if not path.exists():
            reasons.append(f"{path.relative_to(SUITE)} is missing")
    return reasons


def required() -> bool:
    """Whether a missing MTA is a failure: in continuous integration, or when asked for."""
    return bool(os.environ.get("CI")) or os.environ.get("FASTMILTER_REQUIRE_MTA", "") not in ("", "0")


def new_directory(purpose: str) -> Path:
    """A directory of our own, all of whose parents only root can write: Sendmail refuses sockets below others."""
    path = Path(tempfile.mkdtemp(prefix=f"fastmilter-{purpose}-", dir="/run"))
    path.chmod(0o755)
    return path


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on, outside the ephemeral range, and another one each time."""
    for port in random.sample(_PORTS, 200):
        if port in _ports_given:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            _ports_given.add(port)
            return port
    raise LabError("no free port")


def wait_until(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    """Wait for a condition of another process; LabError names it when it does not come in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"not within {seconds:g} s: {what}")
        time.sleep(_POLL_SECONDS)
