"""A stand-in that speaks clamd's protocol, and can fail in every way that clamd can."""

import contextlib
import socket
import struct
import threading
from pathlib import Path
from typing import Final

PATIENCE_S: Final = 30.0
VIRUS: Final = b"EICAR-LIKE"
"""What the stand-in, and the signature for the real clamd, take for a virus."""

MODES: Final = {
    "hang": "reads all and never answers",
    "slow": "answers a byte at a time, and never to the end",
    "garbage": "answers in another protocol",
    "endless": "answers without an end",
    "close": "closes the connection without a word",
}
"""The ways to fail while it listens; ``ok`` is none of them."""


class Clamd:
    """Listens on ``path``, or on a port of the loopback interface. ``mode`` may be changed at any time.

    ``seen``: the messages that were read whole. ``connections``: how many there were. ``limit``: StreamMaxLength.
    """

    def __init__(self, path: Path | None = None, limit: int = 1 << 30) -> None:
        self.mode = "ok"
        self.limit = limit
        self.seen: list[bytes] = []
        self.connections = 0
        self.path = path
        self.port = 0
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._stopped = threading.Event()

    @property
    def address(self) -> str:
        return f"inet:{self.port}@127.0.0.1" if self.path is None else f"unix:{self.path}"

    def __enter__(self) -> "Clamd":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Begin to listen, at the same address as before."""
        self._stopped.clear()
        if self.path is None:
            listener = socket.create_server(("127.0.0.1", self.port))
            self.port = listener.getsockname()[1]
        else:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(self.path))
            listener.listen()
        self._listener = listener
        self._run(self._accept, listener)

    def kill(self) -> None:
        """Be gone, as a process is that was killed; a socket in the file system stays."""
        self._stopped.set()
        if self._listener is not None:
            self._end(self._listener)
            self._listener = None
        for connection in list(self._open):
            self._end(connection)
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        self._threads.clear()
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _run(self, function: object, *arguments: object) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _end(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not self._stopped.is_set():
                connection, _ = listener.accept()
                self._open.add(connection)
                self.connections += 1
                self._run(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):
            if self.mode != "close":
                self._converse(connection)
        self._open.discard(connection)
        self._end(connection)

    def _converse(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as source:
            assert source.read(len(b"zINSTREAM\0")) == b"zINSTREAM\0"
            message = bytearray()
            while size := struct.unpack("!I", source.read(4) or b"\0" * 4)[0]:
                message += source.read(size)
                if len(message) > self.limit:
                    connection.sendall(b"INSTREAM size limit exceeded. ERROR\0")
                    return
            self.seen.append(bytes(message))
        self._answer(connection, b"stream: Test.Eicar FOUND\0" if VIRUS in message else b"stream: OK\0")

    def _answer(self, connection: socket.socket, answer: bytes) -> None:
        mode = self.mode
        if mode == "hang":
            self._stopped.wait(PATIENCE_S)
        elif mode == "slow":
            while not self._stopped.wait(0.02):
                connection.sendall(b"s")
        elif mode == "endless":
            while not self._stopped.is_set():
                connection.sendall(b"x" * 65536)
        else:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n\xff\0" if mode == "garbage" else answer)
