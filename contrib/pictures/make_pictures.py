"""Makes the pictures of ``fastmilter status`` and ``top`` in docs/monitoring.md, from a real run.

``python -m contrib.pictures.make_pictures`` starts a server with the example filter in a directory of its own, plays
messages through it, reloads it, and draws what the commands write to a terminal; pids, times and counts are those of
that run. A test compares their words and columns with what the commands write today.
"""

import argparse
import contextlib
import itertools
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from contrib.pictures.svg import svg
from fastmilter.client import Client

ROOT: Final = Path(__file__).parents[2]
PATIENCE_S: Final = 60.0
CONTROL: Final = ("--control", "control")
QUEUE_IDS: Final = ("4ZkT9c1x2P", "4ZkT9d3m7Q", "4ZkT9f0b5R")
"""Of messages that are in flight when the pictures are made."""
_PAUSE_S: Final = 0.02
_CONTROLS: Final = re.compile(r"\x1b\[\??\d*[hlKJ]|\r")
_HOME: Final = "\x1b[H"


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "fastmilter", *words]


def _surroundings() -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("FASTMILTER_")}
    ours.pop("NO_COLOR", None)
    return {**ours, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}


@contextlib.contextmanager
def _server(directory: Path, port: int) -> Iterator[str]:
    """Run the example filter for the time of the block; gives the address."""
    shutil.copy(ROOT / "examples" / "tagger.py", directory)
    options = ["--workers", "2", "--listen", f"inet:{port}@127.0.0.1", *CONTROL]
    process = subprocess.Popen(
        _command("serve", "tagger.py:Tagger", *options),
        cwd=directory,
        env=_surroundings(),
        stderr=subprocess.PIPE,
        text=True,
    )
    too_late = threading.Timer(PATIENCE_S, process.kill)  # which ends its log, and so the wait for a line of it
    too_late.start()
    try:
        assert process.stderr is not None
        log = process.stderr
        lines = iter(log.readline, "")
        said = list(itertools.takewhile(lambda line: "worker 2 is ready" not in line, lines))
        too_late.cancel()
        address = re.search(r"listening on (\S+)", "".join(said))
        if process.poll() is not None or address is None:
            raise SystemExit(f"the server did not start:\n{''.join(said)}")
        reader = threading.Thread(target=log.read)  # a log that nobody reads would be full one day
        reader.start()
        yield address[1]
        process.terminate()
        process.wait(PATIENCE_S)
        reader.join()
    finally:
        too_late.cancel()
        process.kill()
        process.wait()


def _message(client: Client, *, queue_id: str = "", to_its_end: bool = True) -> None:
    client.macros("mail", {"i": queue_id} if queue_id else {})
    client.mail("jiri@orchard.example")
    client.rcpt("anna@harbour.example")
    if to_its_end:
        client.data()
        client.header("Subject", " apples")
        client.end_of_headers()
        client.body(b"Twelve boxes.\r\n")
        client.end_of_message()


def _greet(client: Client) -> None:
    client.connect("mail.orchard.example", "192.0.2.25", 40522)
    client.helo("mail.orchard.example")


def _load(address: str, over: threading.Event) -> None:
    """Play one message after the other, each with a connection of its own; every tenth is given up."""
    number = 0
    while not over.wait(_PAUSE_S):
        number += 1
        with Client(address) as client:
            _greet(client)
            _message(client, queue_id=f"4ZkTB{number:05}", to_its_end=number % 10 > 0)
            client.abort()


def _on_terminal(directory: Path, *words: str, frames: int = 0) -> str:
    """Run a command on a terminal of its own, q after so many frames; return all that it wrote."""
    primary, secondary = pty.openpty()
    process = subprocess.Popen(
        _command(*words), cwd=directory, env=_surroundings(), stdin=secondary, stdout=secondary, stderr=secondary
    )
    os.close(secondary)
    out, asked, deadline = b"", False, time.monotonic() + PATIENCE_S
    try:
        while select.select([primary], [], [], max(0.0, deadline - time.monotonic()))[0]:
            try:
                out += os.read(primary, 65536)
            except OSError:  # how Linux says that nobody has the terminal open any more
                break
            if frames and not asked and out.count(b"\x1b[J") >= frames:
                asked = True
                os.write(primary, b"q")
        if process.wait(PATIENCE_S) != 0:
            raise SystemExit(f"{' '.join(words)} ended with {process.returncode}:\n{out.decode()}")
    finally:
        process.kill()
        process.wait()
        os.close(primary)
    return out.decode()


def _wait_until_shown(directory: Path) -> None:
    """Wait until all that the pictures are to show is in the numbers, which workers publish once a second."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        done = subprocess.run(
            _command("status", "--json", *CONTROL), cwd=directory, env=_surroundings(), capture_output=True, check=False
        )
        status = json.loads(done.stdout or "{}")
        counts = status.get("messages", {})
        in_flight = {message["queue_id"] for message in status.get("in_flight", ())}
        if in_flight >= set(QUEUE_IDS) and counts["continue"] and counts["dropped"]:
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"the server does not show what was done: {done.stdout.decode()}")


def _draw(into: Path, name: str, written: str, *words: str) -> None:
    lines = [line.rstrip() for line in _CONTROLS.sub("", written).rstrip().split("\n")]
    prompt = f"\x1b[2m$\x1b[0m fastmilter {' '.join(words)}"
    (into / f"{name}.svg").write_text(svg([prompt, "", *lines], f"fastmilter {name}"))


def make(into: Path, port: int) -> None:
    """Run the server, and draw ``status.svg`` and ``top.svg``."""
    over = threading.Event()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        address = stack.enter_context(_server(directory, port))
        load = threading.Thread(target=_load, args=(address, over))
        kept = [stack.enter_context(Client(address)) for _ in QUEUE_IDS]
        for client in kept:
            _greet(client)
            _message(client)
        load.start()
        try:
            # The first one holds a worker of the former generation: it drains when the pictures are made.
            _message(kept[0], queue_id=QUEUE_IDS[0], to_its_end=False)
            _on_terminal(directory, "reload", *CONTROL)
            for place in (1, 2):
                kept[place].quit()
                kept[place].open()
                _greet(kept[place])
                _message(kept[place], queue_id=QUEUE_IDS[place], to_its_end=False)
            _wait_until_shown(directory)
            # The second frame of top has rates too.
            top = _on_terminal(directory, "top", *CONTROL, frames=2).split("\x1b[J")[1].partition(_HOME)[2]
            status = _on_terminal(directory, "status", *CONTROL)
        finally:
            over.set()
            load.join()
    _draw(into, "status", status, "status", *CONTROL)
    _draw(into, "top", top, "top", *CONTROL)


def main() -> None:
    """Make both pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, default=ROOT / "docs", help="the directory for them")
    parser.add_argument("--port", type=int, default=8894, help="where the server listens; 0: anywhere")
    arguments = parser.parse_args()
    make(arguments.into, arguments.port)


if __name__ == "__main__":
    main()
