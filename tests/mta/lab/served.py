"""Filters behind the real `fastmilter serve`: master and workers, as an administrator runs them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from .environment import SUITE, LabError, new_directory, wait_until

FILTERS = SUITE / "filters"
_ROOT = SUITE.parent.parent


class Served:
    """One server: `with Served("planned.py:Default", port) as served`; `served.directory` is the filter's option."""

    def __init__(
        self,
        target: str,
        port: int,
        *,
        workers: int = 1,
        options: Sequence[str] = (),
        listen: Sequence[str] = (),
        table: Mapping[str, str | list[str]] | None = None,
    ) -> None:
        """Nothing runs before `start`.

        `target` is FILE:CLASS below `filters`, or an absolute path; `options` are further words of the command line,
        `listen` addresses beside the port, `table` is the filter's, without it the directory.
        """
        self.target = target
        self.port = port
        self.workers = workers
        self.directory: Path = new_directory("served")
        self._log = self.directory / "log"
        self._options = [f"--workers={workers}", *options]
        self._listen = [f"inet:{port}@127.0.0.1", *listen]
        self._table = dict(table) if table is not None else {"directory": str(self.directory)}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Served:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """The master's."""
        if self._process is None:
            raise LabError("not started")
        return self._process.pid

    def start(self) -> None:
        """Start the master; returns when the port takes connections."""
        config = self.directory / "fastmilter.toml"
        # Strings and lists of strings look the same in JSON and TOML.
        table = "".join(f"{key} = {json.dumps(value)}\n" for key, value in self._table.items())
        config.write_text(f"listen = {json.dumps(self._listen)}\n[filter]\n{table}")
        command = [
            sys.executable,
            "-m",
            "fastmilter",
            "serve",
            str(FILTERS / self.target),
            "--allow-root",
            "--config",
            str(config),
        ]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *self._options],
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until(self._listens, f"{self.target} to listen")
        except LabError as error:
            raise LabError(f"{error}\n{self.log()}") from error

    def _listens(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise LabError("the server ended")
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def signal(self, number: signal.Signals) -> None:
        """Send the master a signal."""
        os.kill(self.pid, number)

    def wait(self, seconds: float = 30.0) -> int:
        """Wait for the master's end, return its exit status."""
        if self._process is None:
            raise LabError("not started")
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.target} does not end\n{self.log()}") from None

    def stop(self) -> int:
        """TERM, and wait; returns the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """End what is left of it at once, and remove the directory."""
        if self._process is not None and self._process.poll() is None:
            for number in (signal.SIGTERM, signal.SIGTERM):  # the second means now
                self._process.send_signal(number)
                time.sleep(0.05)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait(10)
        shutil.rmtree(self.directory, ignore_errors=True)

    def log(self) -> str:
        """What the server wrote."""
        return self._log.read_text("utf-8", "replace") if self._log.exists() else ""

    def events(self, client: str) -> list[dict[str, Any]]:
        """What the filters wrote down about a client, in order."""
        path = self.directory / "events"
        if not path.exists():
            return []
        mine = json.dumps(client).encode()
        lines = path.read_bytes().split(b"\n")
        events = [json.loads(line) for line in lines[:-1] if mine in line]
        return [event for event in events if event["client"] == client]

    def plan(self, client: str, acts: Sequence[dict[str, Any]]) -> None:
        """Say what the filter is to do for a client; before the client connects."""
        (self.directory / f"plan-{client}.json").write_text(json.dumps(list(acts)))


class Stage:
    """The one place behind `milter_port`: keeps the server that runs as long as the same filter is asked for."""

    def __init__(self, port: int) -> None:
        """Nothing runs yet."""
        self._port = port
        self._served: Served | None = None

    def serve(self, target: str, *, workers: int = 1) -> Served:
        """The server of that filter, started if it is not what runs."""
        if self._served is None or (self._served.target, self._served.workers) != (target, workers):
            self.clear()
            self._served = Served(target, self._port, workers=workers)
            self._served.__enter__()
        return self._served

    def clear(self) -> None:
        """End what runs."""
        if self._served is not None:
            self._served.kill()
            self._served = None
