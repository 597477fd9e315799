"""Taking the content out of a conversation while it passes, and leaving its shape.

What stays: lengths, letters, the boundaries of fields, numbers and flags of the negotiation, names of macros, the
family of an address, indices of header fields, the code of a reply. All other text becomes ``x`` of equal length; the
port of a client becomes 0. Where the stream is no milter protocol, everything becomes ``x`` from there on.

A packet may come in any number of pieces, and each piece goes into the record at once: so this is a state machine over
bytes, which looks back at nothing and holds nothing back.
"""

from typing import Final

from fastmilter.constants import LENGTH_BYTES, MAX_DATA_BYTES_1M, MAX_RESPONSE_BYTES, CommandLetter, ResponseLetter

_ALL: Final = b"x" * 256
_TEXT: Final = bytes([0]) + b"x" * 255
"""Everything but the NUL behind a string."""
_LINES: Final = bytes(byte if byte in b"\0\r\n" else ord("x") for byte in range(256))

_PARAMS: Final = bytes(byte if byte in b"\0 " else ord("x") for byte in range(256))
"""A filter sends ESMTP parameters joined by spaces, behind the address."""

_CODE_BYTES: Final = 4
_FAMILY: Final = 1
_PORT: Final = slice(1, 3)

_NAMED: Final = {letter.value for letter in CommandLetter} - {CommandLetter.BODY, CommandLetter.END_OF_MESSAGE}
_INDEXED: Final = {ResponseLetter.INSERT_HEADER.value, ResponseLetter.CHANGE_HEADER.value}
_WITH_PARAMS: Final = {ResponseLetter.CHANGE_SENDER.value, ResponseLetter.ADD_RECIPIENT_PARAMS.value}
_TEXTS: Final = {letter.value for letter in ResponseLetter} - _INDEXED - {ResponseLetter.REPLACE_BODY.value}


class Redactor:
    """One direction of one connection."""

    def __init__(self, *, command: bool) -> None:
        """Begin at the beginning of a stream of commands, or of responses."""
        self._command = command
        self._limit = (MAX_DATA_BYTES_1M if command else MAX_RESPONSE_BYTES) + 1
        self._head = b""
        self._letter = b""
        self._left = 0
        """Bytes of the packet that are still to come, behind its length."""
        self._at = 0
        """Place in the data behind the letter."""
        self._nuls = 0
        self._behind_nul = 0
        self._lost = False

    def redact(self, data: bytes) -> bytes:
        """Return as many bytes as ``data`` has, without their content."""
        out = bytearray()
        at = 0
        while at < len(data):
            if self._lost:
                out += b"x" * (len(data) - at)
                break
            if not self._left:
                taken = self._length(data[at : at + LENGTH_BYTES - len(self._head)])
            elif not self._letter:
                self._letter, self._at, self._nuls, self._behind_nul = data[at : at + 1], 0, 0, 0
                self._left -= 1
                taken = self._letter
            else:
                piece = data[at : at + self._left]
                taken = self._content(piece)
                self._left -= len(piece)
                self._at += len(piece)
            if not self._left:
                self._letter = b""
            out += taken
            at += len(taken)
        return bytes(out)

    def _length(self, data: bytes) -> bytes:
        """Take bytes of a length. One that cannot be true may be text: it is not shown."""
        for place in range(len(data)):
            head = self._head + data[: place + 1]
            if int.from_bytes(head.ljust(LENGTH_BYTES, b"\0"), "big") > self._limit:
                self._lost = True
                return data[:place] + b"x" * (len(data) - place)
        self._head += data
        if len(self._head) == LENGTH_BYTES:
            self._left = int.from_bytes(self._head, "big")
            self._lost = self._left == 0
            self._head = b""
        return data

    def _content(self, data: bytes) -> bytes:
        letter = self._letter
        if letter == CommandLetter.NEGOTIATE.value:
            return data
        if self._command and letter == CommandLetter.MACRO.value:
            return self._macros(data)
        if self._command and letter == CommandLetter.CONNECT.value:
            return self._connect(data)
        if not self._command and letter in _INDEXED:
            kept = max(LENGTH_BYTES - self._at, 0)
            return data[:kept] + data[kept:].translate(_TEXT)
        if not self._command and letter == ResponseLetter.REPLY_CODE.value:
            return self._reply(data)
        if not self._command and letter in _WITH_PARAMS:
            address, nul, params = (b"", b"", data) if self._nuls else data.partition(b"\0")
            self._nuls += len(nul)
            return address.translate(_ALL) + nul + params.translate(_PARAMS)
        return data.translate(_TEXT if letter in (_NAMED if self._command else _TEXTS) else _ALL)

    def _macros(self, data: bytes) -> bytes:
        """Keep the letter of the step and each name."""
        kept = data[: max(1 - self._at, 0)]
        parts = data[len(kept) :].split(b"\0")
        shown = [part if (self._nuls + n) % 2 == 0 else b"x" * len(part) for n, part in enumerate(parts)]
        self._nuls += len(parts) - 1
        return kept + b"\0".join(shown)

    def _connect(self, data: bytes) -> bytes:
        """Keep the family of the address, which stands behind the name of the host."""
        if not self._nuls:
            name, nul, data = data.partition(b"\0")
            masked = b"x" * len(name) + nul
            self._nuls = len(nul)
        else:
            masked = b""
        rest = bytearray(data.translate(_TEXT))
        for place in range(min(len(rest), max(_PORT.stop - self._behind_nul, 0))):
            rest[place] = data[place] if self._behind_nul + place < _FAMILY else 0
        self._behind_nul += len(rest)
        return masked + bytes(rest)

    def _reply(self, data: bytes) -> bytes:
        """Keep the code in front, with the space or hyphen behind it, and the ends of lines."""
        kept = data[: max(_CODE_BYTES - self._at, 0)]
        code = bytes(byte if byte in b"0123456789 -\0" else ord("x") for byte in kept)
        return code + data[len(kept) :].translate(_LINES)
