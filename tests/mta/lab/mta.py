"""What the two MTAs have in common for a test."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from .environment import LabError, free_port, new_directory, wait_until
from .sink import Sink
from .smtp import SmtpClient

HOST_NAME = "mx.lab.test"
# The one that both MTAs refuse by themselves. Of such recipients Sendmail shows filters only what is an unknown
# local user, not what its rules refuse.
UNKNOWN_RECIPIENT = f"unknown@{HOST_NAME}"


class Mta(ABC):
    """A private instance: own directory, own port on 127.0.0.1, delivers to a sink, asks the milters given.

    Milters are addresses in libmilter's spelling: `inet:PORT@127.0.0.1`, `unix:/path`.
    """

    name: str

    def __init__(self, sink: Sink, milters: Sequence[str]) -> None:
        """Nothing runs before `start`, or before the context is entered."""
        self.sink = sink
        self.milters = tuple(milters)
        self.port = free_port()
        self.directory: Path = new_directory(self.name)
        self.log_file: Path = self.directory / "log"

    def __enter__(self) -> Mta:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @abstractmethod
    def start(self) -> None:
        """Write the configuration, start the daemon, return when it greets."""

    @abstractmethod
    def stop(self) -> None:
        """End the daemon and its children, remove the directory."""

    @abstractmethod
    def submit(self, message: bytes, sender: str, recipients: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
        """Hand a message (LF lines) to this MTA's sendmail(1), as a local user does."""

    @abstractmethod
    def smtp_on_stdin(self) -> SmtpClient:
        """A dialogue with `sendmail -bs`."""

    @abstractmethod
    def waiting(self) -> list[str]:
        """Names of queue files of mail that is on its way or is to be tried again; held mail is not among them."""

    @abstractmethod
    def held(self) -> list[str]:
        """Names of queue files of quarantined mail."""

    @abstractmethod
    def discard_queue(self) -> None:
        """Remove what waits or is held."""

    @abstractmethod
    def retry(self) -> None:
        """Try local submissions that a filter put off once more, now."""

    def client(self, source: str = "127.0.0.1") -> SmtpClient:
        """A new SMTP session; the greeting is read."""
        return SmtpClient.over_tcp(self.port, source)

    def log(self) -> str:
        """What it logged so far."""
        return self.log_file.read_text("utf-8", "replace") if self.log_file.exists() else ""

    def settle(self, seconds: float = 20.0) -> None:
        """Wait until nothing is on its way any more: then what has not been delivered never will be."""
        wait_until(lambda: not self.waiting(), f"empty queue of {self.name}, has {self.waiting()}", seconds)

    def _wait_for_greeting(self, died: Callable[[], bool] = lambda: False) -> None:
        def greets() -> bool:
            if died():
                raise LabError("the daemon ended")
            try:
                self.client().quit()
            except (ConnectionRefusedError, ConnectionResetError):
                return False
            return True

        try:
            wait_until(greets, "greeting of the daemon")
        except LabError as error:
            raise LabError(f"{self.name}: {error}\n{self.log()}") from error

    def _remove_directory(self) -> None:
        def gone() -> bool:
            shutil.rmtree(self.directory, ignore_errors=True)
            return not self.directory.exists()

        # A child that is still ending may write its last line of the log into what is being removed.
        wait_until(gone, f"removal of {self.directory}")


def end_group(pid: int, seconds: float = 10.0) -> None:
    """End a process and its group, politely first; returns when the process is gone."""

    def gone() -> bool:
        try:
            state = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True
        return re.sub(r"^.*\) ", "", state).startswith("Z")

    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(pid, number)
        except ProcessLookupError:
            return
        try:
            wait_until(gone, f"end of process {pid}", seconds)
        except LabError:
            continue
        return
