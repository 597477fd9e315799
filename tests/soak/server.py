"""The server of a soak: everything on, and a log that is read in small parts and moved away under its writers."""

import itertools
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any, Final

from fastmilter.commands.asking import Unreachable, ask
from tests.process.harness import PATIENCE_S, Server, title
from tests.soak.account import Account, Fault

WORKERS: Final = 2
THREADS: Final = 16
RECYCLED: Final = r"\(--max-messages\): starting its successor"
SETTLED_S: Final = 90.0
"""Longest wait for a change to be over: 4 servers share the processors, and the last limit of the drain is below it."""
_DRAIN: Final = "0.2,5,7"
"""Sessions that go on are told 421 at once, a message of a slow client has ended before that is told at RCPT, and idle
connections, which may be held for longer, are closed at last. A reload waits until the one before has drained."""
_POLL_S: Final = 0.1

_LINE: Final = re.compile(r"\d{4}-\d\d-\d\dT\S+ \w+ [\w.]+: ")
_SCRIPTED: Final = re.compile(r"\.on_\w+ failed|is out of time|the peer broke the protocol")
_LATE: Final = re.compile(r" is out of time .* client='([^']+)'")
_ERROR: Final = re.compile(r"[\w.]*(?:Error|Exception)\b")


class SoakedServer(Server):
    """A server with monitor, log file and configuration."""

    def __init__(self, directory: Path, account: Account) -> None:
        """Prepare it; nothing is started yet."""
        super().__init__(directory)
        self.account = account
        self.config = directory / "soak.toml"
        self.control_path = str(directory / "control")
        self._read: dict[int, int] = {}
        self._rests: dict[int, bytes] = {}
        self._kept: list[str] = []
        self.late: set[str] = set()
        """Clients for whom a callback was out of time, by the log that was read so far."""
        self._files = itertools.count(1)

    def begin(self, model: str) -> list[str]:
        """Start it; return its addresses."""
        self.configure(max_messages=None)
        unix = f"unix:{self.directory}/fm.sock"
        self.start(
            f"--workers={WORKERS}",
            f"--threads={THREADS}",
            f"--drain-reload={_DRAIN}",
            f"--drain-stop={_DRAIN}",
            f"--config={self.config}",
            f"--log-file={self.log_file}",
            f"--control={self.control_path}",
            "--metrics=127.0.0.1:0",
            target=f"tests.soak.filters:{model}",
            listen=[unix, "inet:0@127.0.0.1"],
        )
        return [self.address(0), self.address(1)]

    def configure(self, *, max_messages: int | None) -> None:
        """Write what the next reload reads."""
        self.config.write_text("" if max_messages is None else f"max_messages = {max_messages}\n")

    def recycled(self) -> int:
        """Return how many workers were replaced since they had served their messages."""
        return len(re.findall(RECYCLED, self.log()))

    # -- the log -------------------------------------------------------------------------------------------------

    def log(self) -> str:
        """Return what was written since the start, without what the filters were told to do wrong."""
        for path in sorted(self.directory.glob("log*")):
            with path.open("rb") as file:
                number = os.fstat(file.fileno()).st_ino  # a file that is moved away is the same one
                file.seek(self._read.get(number, 0))
                *lines, rest = (self._rests.get(number, b"") + file.read()).split(b"\n")
                self._read[number], self._rests[number] = file.tell(), rest
            texts = [line.decode("utf-8", "replace") for line in lines]
            self._kept += [f"{text}\n" for text in texts if _is_kept(text)]
            self.late.update(late[1] for text in texts if (late := _LATE.search(text)))
        return "".join(self._kept)

    def reopen_log(self) -> None:
        """Move the log away as logrotate does."""
        self.log_file.rename(self.directory / f"log.{next(self._files)}")
        self.send(signal.SIGUSR1)
        self.wait_for(self.log_file.exists, "the log file is opened anew")

    def kill_all(self) -> None:
        """End whatever is left, each process by its number."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in self.workers():
            os.kill(pid, signal.SIGKILL)

    # -- what it says ----------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any] | None:
        """Ask for the status; ``None`` if there was no answer."""
        try:
            answer = ask(self.control_path, {"command": "status"})
        except Unreachable:
            return None
        status: dict[str, Any] = answer["status"]
        return status

    def must_status(self) -> dict[str, Any]:
        """Ask until there is an answer: a monitor that leaves in an upgrade may owe one."""
        found: dict[str, Any] | None = None

        def answered() -> bool:
            nonlocal found
            found = self.status()
            return found is not None

        self.wait_for(answered, "the monitor answers")
        assert found is not None
        return found

    def wait_for(self, condition: Any, what: str) -> None:
        """Wait until something has happened; ``Fault`` if it does not, or if the run is over because of one."""
        deadline = time.monotonic() + SETTLED_S
        rest = threading.Event()  # never set
        while not condition():
            if self.account.faults:
                raise Fault(self.account.faults[0])
            if time.monotonic() > deadline:
                raise Fault(f"this did not happen within {SETTLED_S:.0f} s: {what}")
            rest.wait(_POLL_S)

    def wait_settled(self, what: str, generation: int = 0) -> dict[str, Any]:
        """Wait until no change is under way and all workers serve that should, of this generation or a newer one."""
        found: dict[str, Any] = {}

        def settled() -> bool:
            status = self.status()
            if status is None:
                return False
            found.update(status)
            states = [worker["state"] for worker in status["workers"]]
            serve = states.count("serving") >= status["workers_wanted"] and "starting" not in states
            return status["state"] == "serving" and serve and status["generation"] >= generation

        self.wait_for(settled, what)
        return found

    def wait_alone(self, what: str) -> dict[str, Any]:
        """Wait until the workers of former generations are gone."""
        self.wait_for(
            lambda: {each["state"] for each in self.must_status()["workers"]} == {"serving"},
            f"{what}: the former workers leave",
        )
        return self.must_status()

    def monitor(self) -> int:
        """Return the process id of the monitor of now."""
        pids = [int(pid) for pid in re.findall(r"the monitor started pid=(\d+)", self.log())]
        return next(pid for pid in reversed(pids) if title(pid).startswith("fastmilter: monitor"))


def _is_kept(line: str) -> bool:
    """Tell whether a line of the log says something that the filters and the clients were not told to do."""
    if _LINE.match(line):
        return not _SCRIPTED.search(line)
    return bool(_ERROR.match(line)) and "as scripted" not in line


def get(port: int, path: str) -> tuple[int, str]:
    """Ask the monitor by HTTP; ``OSError`` if it does not answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        data = b""
        while piece := connection.recv(65536):
            data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    if not head:
        raise ConnectionError("the connection was closed without an answer")
    return int(head.split()[1]), body.decode()
