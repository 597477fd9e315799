"""A server as a process of its own, watched from outside: by its log, its processes and its sockets."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import psutil

from fastmilter.client import Client
from fastmilter.codec import AddHeader
from fastmilter.replies import Verdict

PATIENCE_S: Final = 30.0
"""How long a test waits for an event before it fails; nothing is ever asserted to be fast."""
_POLL_S: Final = 0.01

ROOT: Final = Path(__file__).parents[2]

FILTER = """
import os
import fastmilter

class Tagger(fastmilter.Filter):
    version = "one"

    def on_mail(self, sender, params):
        if sender.local_part == "crash":
            os._exit(3)

    def on_end_of_message(self):
        self.message.add_header("X-Version", self.version)
        self.message.add_header("X-Pid", str(os.getpid()))
"""


def clean_environment(more: dict[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a server: that of the tests, without what would hide a fault."""
    ours = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    # No bytecode: a filter that is changed twice within a second would be taken for unchanged.
    # Tests of MTAs need root, so most runs of these are root's too.
    allowed = {"FASTMILTER_ALLOW_ROOT": "yes", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return {**ours, **allowed, **(more or {})}


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"this did not happen within {PATIENCE_S:.0f} s: {what}"
        time.sleep(_POLL_S)


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended (a zombie has)."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def title(pid: int) -> str:
    """Return what ``ps`` shows of a process, "" if it is gone."""
    try:
        return " ".join(psutil.Process(pid).cmdline()).strip()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


class Server:
    """One server in a directory of its own, which holds the filter and the log."""

    def __init__(self, directory: Path) -> None:
        """Write the usual filter; nothing is started yet."""
        self.directory = directory
        self.filter = directory / "tagger.py"
        self.filter.write_text(FILTER)
        self.log_file = directory / "log"
        self.log_file.touch()
        self.process: subprocess.Popen[bytes] | None = None
        self._read_from = 0

    # -- life ----------------------------------------------------------------------------------------------------

    def start(
        self,
        *options: str,
        target: str = "tagger:Tagger",
        listen: Sequence[str] = ("inet:0@127.0.0.1",),
        wait: bool = True,
        command: Sequence[str] = ("-m", "fastmilter", "serve"),
        environment: dict[str, str] | None = None,
    ) -> "Server":
        """Start the server; returns when every worker of a single number given in ``options`` is ready."""
        self.begin_log()
        switches = [*(f"--listen={address}" for address in listen), *options]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command, *([target] if target else []), *switches],
                cwd=self.directory,
                env=clean_environment(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if wait:
            workers = re.search(r"--workers=(\d+)", " ".join(options))
            self.wait_ready(int(workers[1]) if workers else 1)
        return self

    @property
    def pid(self) -> int:
        """The master's."""
        assert self.process is not None
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the master."""
        assert self.process is not None
        self.process.send_signal(number)

    def finish(self) -> int:
        """Wait for the master to end; return its exit status."""
        assert self.process is not None
        return self.process.wait(timeout=PATIENCE_S)

    def stop(self) -> int:
        """Stop it as an administrator would."""
        self.send(signal.SIGTERM)
        return self.finish()

    def kill_all(self) -> None:
        """End whatever a failed test left behind; each process by its number."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for match in re.finditer(r"started pid=(\d+)", self.log_file.read_text()):
            pid = int(match[1])
            if title(pid).startswith("fastmilter: worker"):
                os.kill(pid, signal.SIGKILL)

    # -- what it says --------------------------------------------------------------------------------------------

    def log(self) -> str:
        """Return what was written since the last start."""
        return self.log_file.read_text()[self._read_from :]

    def begin_log(self) -> None:
        """Leave what is written up to now out of ``log()``."""
        self._read_from = len(self.log_file.read_text())

    def wait_log(self, pattern: str, count: int = 1) -> list[re.Match[str]]:
        """Wait until ``pattern`` is in the log ``count`` times; return all matches."""
        found: list[re.Match[str]] = []

        def there() -> bool:
            nonlocal found
            found = list(re.finditer(pattern, self.log()))
            return len(found) >= count

        try:
            wait_until(there, f"{count} times {pattern!r} in the log")
        except AssertionError as error:
            raise AssertionError(f"{error}\n--- the log:\n{self.log()}") from None
        return found

    def wait_ready(self, count: int) -> None:
        """Wait until so many workers have become ready since the start."""
        self.wait_log(r"worker \d+ is ready", count)

    def started(self) -> list[int]:
        """Return the process ids of all workers started so far."""
        return [int(match[1]) for match in re.finditer(r"worker \d+ started pid=(\d+)", self.log())]

    def workers(self) -> dict[int, str]:
        """Return the living workers and their titles."""
        titles = {pid: title(pid) for pid in self.started()}
        return {pid: text for pid, text in titles.items() if text.startswith("fastmilter: worker")}

    # -- what it does --------------------------------------------------------------------------------------------

    def address(self, place: int = 0) -> str:
        """Return where it listens, in libmilter's spelling."""
        return self.wait_log(r"listening on (\S+)", place + 1)[place][1]

    def notes(self) -> list[str]:
        """Return what the filter wrote into the file ``notes`` of its directory, line by line."""
        file = self.directory / "notes"
        return file.read_text().splitlines() if file.exists() else []

    def client(self, place: int = 0) -> Client:
        """Return a client of it; as a context manager, it is connected and has negotiated."""
        return Client(self.address(place))


def begin(client: Client, sender: str = "a@example.org") -> Verdict | None:
    """Open an SMTP session and a message, up to MAIL; return the answer to it."""
    client.connect("client.example", "192.0.2.1", 25)
    client.helo("client.example")
    return client.mail(sender)


def complete(client: Client) -> dict[str, str]:
    """Take a message from MAIL to its end; return the header fields that were added."""
    client.rcpt("b@example.net")
    client.data()
    client.header("Subject", "hello")
    client.end_of_headers()
    client.body(b"text\r\n")
    verdict, modifications = client.end_of_message()
    assert verdict.kind in ("accept", "continue"), verdict
    added = [modification for modification in modifications if isinstance(modification, AddHeader)]
    return {field.name.decode(): field.value.decode() for field in added}


def whole_message(client: Client) -> dict[str, str]:
    """Play a whole message on a fresh connection; return the header fields that were added."""
    begin(client)
    return complete(client)
