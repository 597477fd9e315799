"""Running a command as a shell does: in a pipe, or on a terminal of its own."""

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.process.harness import PATIENCE_S, ROOT, clean_environment

CAPTURES = ROOT / "tests" / "captures"


class Done(NamedTuple):
    """What a command left."""

    status: int
    out: str
    err: str


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "fastmilter", *words]


def surroundings(**variables: str) -> dict[str, str]:
    ours = clean_environment(variables)
    for name in ("NO_COLOR", "COLUMNS", "LINES"):
        if name not in variables:
            ours.pop(name, None)
    return {name: value for name, value in ours.items() if not name.startswith("FASTMILTER_")}


def run(*words: str, given: bytes = b"", cwd: Path = ROOT, **variables: str) -> Done:
    """Run a command with pipes around it."""
    done = subprocess.run(
        command(*words),
        input=given,
        cwd=cwd,
        env=surroundings(**variables),
        capture_output=True,
        timeout=60,
        check=False,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def run_on_terminal(*words: str, cwd: Path = ROOT, columns: int = 80, **variables: str) -> Done:
    """Run a command whose output is a terminal; what it wrote has the terminal's line ends taken back."""
    primary, secondary = pty.openpty()
    try:
        process = subprocess.Popen(
            command(*words),
            cwd=cwd,
            env=surroundings(TERM="xterm", COLUMNS=str(columns), **variables),
            stdin=subprocess.DEVNULL,
            stdout=secondary,
            stderr=secondary,
        )
    finally:
        os.close(secondary)
    out = b""
    deadline = time.monotonic() + PATIENCE_S
    try:
        while time.monotonic() < deadline and select.select([primary], [], [], PATIENCE_S)[0]:
            try:
                piece = os.read(primary, 65536)
            except OSError:  # how Linux says that nobody has the terminal open any more
                break
            if not piece:
                break
            out += piece
        status = process.wait(PATIENCE_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(primary)
    return Done(status, out.decode().replace("\r\n", "\n"), "")


@contextmanager
def running(
    *words: str, log: Path, cwd: Path = ROOT, limit_bytes: int | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command while the block runs; end it by its number if the block has not. Its stderr goes to ``log``."""
    line = command(*words)
    if limit_bytes is not None:
        # In a process of its own: the limit must not hit the tests, nor the log.
        code = (
            "import resource, sys, runpy; "
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes}, resource.RLIM_INFINITY)); "
            "sys.argv[0] = 'fastmilter'; runpy.run_module('fastmilter', run_name='__main__')"
        )
        line = [sys.executable, "-c", code, *words]
    with log.open("wb") as file:
        process = subprocess.Popen(
            line,
            cwd=cwd,
            env=surroundings(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
