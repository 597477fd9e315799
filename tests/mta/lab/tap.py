"""What an MTA and a filter say to each other, recorded by the real `fastmilter tap` between them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from fastmilter.codec import CommandDecoder, ResponseDecoder
from fastmilter.commands.recordings import TO_FILTER, Piece, open_input, read_pieces

from .environment import LabError, new_directory, wait_until


class Tap:
    """A proxy at `address` (libmilter's spelling) before a filter; `with Tap(address, upstream) as tap`."""

    def __init__(self, address: str, upstream: str) -> None:
        """Nothing runs before the context is entered; an address `unix:` gets a path of its own."""
        self._directory: Path = new_directory("tap")
        self.address = f"unix:{self._directory}/milter" if address == "unix:" else address
        self._upstream = upstream
        self._recording = self._directory / "recording"
        self._log = self._directory / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Tap:
        words = ["--listen", self.address, "--upstream", self._upstream, "--out", str(self._recording), "--grace", "5"]
        with self._log.open("wb") as log:
            process = self._process = subprocess.Popen(
                [sys.executable, "-m", "fastmilter", "tap", *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

        def listens() -> bool:
            if process.poll() is not None:
                raise LabError(f"the tap ended: {self._log.read_text()}")
            return "listening on" in self._log.read_text()

        wait_until(listens, "the tap to listen")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        for path in self._directory.iterdir():
            path.unlink(missing_ok=True)
        self._directory.rmdir()

    def stop(self) -> None:
        """End it: the recording is complete then."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(20)

    def exchange(self, client: str) -> list[object]:
        """Messages of the connection about an SMTP client, as they came by; after `stop`."""
        with open_input(str(self._recording)) as file:
            pieces = list(read_pieces(file, None))
        mark = client.encode() + b"\0"  # as it stands in CONNECT
        numbers = {piece.conn for piece in pieces if piece.direction == TO_FILTER and mark in piece.data[:4096]}
        if len(numbers) != 1:
            raise LabError(f"{len(numbers)} connections for {client} were recorded")
        return _decoded([piece for piece in pieces if piece.conn in numbers])


def _decoded(pieces: list[Piece]) -> list[object]:
    commands, responses = CommandDecoder(), ResponseDecoder()
    messages: list[object] = []
    for piece in pieces:
        decoder = commands if piece.direction == TO_FILTER else responses
        decoder.feed(piece.data)
        messages += decoder
    return messages
