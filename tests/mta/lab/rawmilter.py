"""A milter of plain sockets and struct, independent of fastmilter: to test the laboratory and the MTAs."""

from __future__ import annotations

import socketserver
import struct
import threading
from collections.abc import Sequence
from types import TracebackType

_ALL_ACTIONS = 0x1FF
_WITHOUT_REPLY = b"DAQK"


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    milter: RawMilter


class _UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    milter: RawMilter


class _Session(socketserver.BaseRequestHandler):
    server: _Server | _UnixServer

    def handle(self) -> None:
        while (packet := self._read()) is not None:
            command, data = packet[:1], packet[1:]
            self.server.milter.commands.append(command)
            if command == b"O":
                version, actions, _ = struct.unpack("!LLL", data[:12])
                self._send(b"O", struct.pack("!LLL", min(version, 6), actions & _ALL_ACTIONS, 0))
            elif command == b"E":
                for letter, payload in self.server.milter.edits:
                    self._send(letter, payload)
                self._send(b"c")
            elif command not in _WITHOUT_REPLY:
                self._send(b"c")

    def _read(self) -> bytes | None:
        length = self._exactly(4)
        return self._exactly(struct.unpack("!L", length)[0]) if length else None

    def _exactly(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            piece = self.request.recv(size - len(data))
            if not piece:
                return None
            data += piece
        return data

    def _send(self, command: bytes, data: bytes = b"") -> None:
        self.request.sendall(struct.pack("!L", 1 + len(data)) + command + data)


class RawMilter:
    """Answers continue to everything, and at the end of a message sends edits; listens as its address says."""

    def __init__(self, address: str, edits: Sequence[tuple[bytes, bytes]]) -> None:
        """`address` is `inet:PORT@127.0.0.1` or `unix:/path`, an edit is letter and payload.

        `commands` keeps the letters that came.
        """
        kind, _, rest = address.partition(":")
        if kind == "unix":
            self._server: _Server | _UnixServer = _UnixServer(rest, _Session)
        else:
            port, _, host = rest.partition("@")
            self._server = _Server((host, int(port)), _Session)
        self._server.milter = self
        self.edits = tuple(edits)
        self.commands: list[bytes] = []

    def __enter__(self) -> RawMilter:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
