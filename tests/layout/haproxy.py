"""HAProxy with the configuration of contrib/, at other addresses."""

import contextlib
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from tests.examples.backends import running
from tests.mta.lab.environment import free_port
from tests.process.harness import PATIENCE_S, ROOT

CONFIGURATION: Final = ROOT / "contrib" / "haproxy" / "haproxy.cfg"
SERVERS: Final = ("filter-1", "filter-2")


class HAProxy:
    """A proxy that runs; what it says of its servers."""

    def __init__(self, directory: Path, port: int) -> None:
        """``port`` is where MTAs connect."""
        self.port = port
        self.log_file = directory / "haproxy.log"
        self._socket = directory / "admin.sock"

    def states(self) -> dict[str, str]:
        """Return the state of each server, such as ``UP`` or ``DOWN``."""
        lines = [line.split(",") for line in self._ask("show stat").splitlines() if line]
        columns = {name: place for place, name in enumerate(lines[0])}
        return {line[columns["svname"]]: line[columns["status"]].split()[0] for line in lines[1:]}

    def is_asked(self) -> bool:
        """Tell whether it answers, which it does when it is ready."""
        with contextlib.suppress(OSError):
            return bool(self.states())
        return False

    def _ask(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as asking, asking.makefile("r") as answer:
            asking.settimeout(PATIENCE_S)
            asking.connect(str(self._socket))
            asking.sendall(f"{command}\n".encode())
            return answer.read()


def configuration(directory: Path, port: int, ports: Mapping[str, int]) -> str:
    """Return the configuration of contrib/ with our addresses, and a number of connections that any limit allows."""
    text = CONFIGURATION.read_text()
    changes = {
        r"^    bind \S+$": f"    bind 127.0.0.1:{port}",
        r"/run/haproxy/admin\.sock(?= mode)": f"{directory}/admin.sock",
        r"^    maxconn \d+$": "    maxconn 100",
    }
    for name in SERVERS:
        changes[rf"^    server {name} \S+$"] = f"    server {name} 127.0.0.1:{ports[name]}"
    for pattern, replacement in changes.items():
        text, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        assert count == 1, pattern
    return text


@contextlib.contextmanager
def started(program: str, directory: Path, ports: Mapping[str, int]) -> Iterator[HAProxy]:
    """Run HAProxy in front of servers at ``ports``."""
    proxy = HAProxy(directory, free_port())
    file = directory / "haproxy.cfg"
    file.write_text(configuration(directory, proxy.port, ports))
    with running([program, "-db", "-f", str(file)], proxy.log_file, proxy.is_asked):
        yield proxy
