"""How large the data behind each letter may be, and the words for a packet that is not as it should be.

The one table of sizes: the codec reads it when it is imported and keeps it in C. Only the wording runs later, for a
connection that ends anyway, so it is plain Python. The peer's bytes are quoted and cut, since they end up in a log.
"""

from typing import Final

from fastmilter.constants import CHUNK_BYTES, MAX_DATA_BYTES, OPTNEG_BYTES, CommandLetter, ResponseLetter

UNBOUNDED: Final = 0x7FFFFFF0
"""Stands for "as much as ``max_data`` says"; also the largest ``max_data``, far from where sizes overflow."""

COMMAND_BOUNDS: Final[dict[bytes, tuple[int, int]]] = {
    CommandLetter.NEGOTIATE: (OPTNEG_BYTES, MAX_DATA_BYTES),
    # Larger sizes (SMFIP_MDS_256K, SMFIP_MDS_1M) are for what belongs to the content, not for the envelope.
    CommandLetter.CONNECT: (2, MAX_DATA_BYTES),
    CommandLetter.HELO: (1, MAX_DATA_BYTES),
    CommandLetter.MAIL: (1, MAX_DATA_BYTES),
    CommandLetter.RCPT: (1, MAX_DATA_BYTES),
    CommandLetter.UNKNOWN: (1, MAX_DATA_BYTES),
    CommandLetter.MACRO: (1, UNBOUNDED),
    CommandLetter.HEADER: (3, UNBOUNDED),
    CommandLetter.BODY: (1, UNBOUNDED),  # libmilter closes on an empty one
    CommandLetter.END_OF_MESSAGE: (0, UNBOUNDED),
    # These carry nothing; libmilter ignores what stands behind them.
    CommandLetter.DATA: (0, MAX_DATA_BYTES),
    CommandLetter.END_OF_HEADERS: (0, MAX_DATA_BYTES),
    CommandLetter.ABORT: (0, MAX_DATA_BYTES),
    CommandLetter.QUIT: (0, MAX_DATA_BYTES),
    CommandLetter.QUIT_NEW_CONNECTION: (0, MAX_DATA_BYTES),
}
"""Lowest and highest size of the data behind a command letter, in bytes."""

RESPONSE_BOUNDS: Final[dict[bytes, tuple[int, int]]] = {
    ResponseLetter.NEGOTIATE: (OPTNEG_BYTES, CHUNK_BYTES),
    ResponseLetter.REPLY_CODE: (1, UNBOUNDED),
    ResponseLetter.ADD_HEADER: (3, UNBOUNDED),
    ResponseLetter.INSERT_HEADER: (7, UNBOUNDED),
    ResponseLetter.CHANGE_HEADER: (7, UNBOUNDED),
    ResponseLetter.ADD_RECIPIENT: (1, UNBOUNDED),
    ResponseLetter.ADD_RECIPIENT_PARAMS: (1, UNBOUNDED),
    ResponseLetter.DELETE_RECIPIENT: (1, UNBOUNDED),
    ResponseLetter.CHANGE_SENDER: (1, UNBOUNDED),
    ResponseLetter.REPLACE_BODY: (0, UNBOUNDED),  # an empty one empties the body
    ResponseLetter.QUARANTINE: (1, UNBOUNDED),
    # Postfix refuses anything behind these.
    ResponseLetter.CONTINUE: (0, 0),
    ResponseLetter.ACCEPT: (0, 0),
    ResponseLetter.REJECT: (0, 0),
    ResponseLetter.TEMPFAIL: (0, 0),
    ResponseLetter.DISCARD: (0, 0),
    ResponseLetter.SKIP: (0, 0),
    ResponseLetter.PROGRESS: (0, 0),
    ResponseLetter.SHUTDOWN: (0, 0),
    ResponseLetter.CONNECTION_FAIL: (0, 0),
}
"""Lowest and highest size of the data behind a response letter, in bytes."""

STRANGERS: Final[dict[str, tuple[bytes, ...]]] = {
    "HTTP": (b"GET ", b"POST", b"PUT ", b"HEAD", b"OPTI", b"DELE", b"PATC", b"TRAC", b"PRI ", b"HTTP"),
    "SMTP": (
        b"HELO",
        b"EHLO",
        b"LHLO",
        b"MAIL",
        b"RCPT",
        b"DATA",
        b"NOOP",
        b"RSET",
        b"QUIT",
        b"STAR",
        b"220 ",
        b"220-",
    ),
    "the PROXY protocol": (b"PROX", b"\r\n\r\n"),
    "SSH": (b"SSH-",),
}
"""What the four bytes of a length spell when a program that speaks something else has found the port."""

TLS_HANDSHAKE: Final = b"\x16\x03"
QUOTED: Final = 60


def counted(size: int) -> str:
    """``1 byte``, ``2 bytes``."""
    return f"{size} byte{'' if size == 1 else 's'}"


def quoted(data: bytes) -> str:
    """``repr`` of the beginning of ``data``; says how much was left out.

    >>> quoted(b"a\\n")
    "b'a\\\\n'"
    """
    left_out = len(data) - QUOTED
    return f"{data[:QUOTED]!r} and {counted(left_out)} more" if left_out > 0 else repr(data)


def titled(letter: int) -> str:
    """The name of a letter, and the letter: ``HELO ('H')``. Only ``O`` is of both directions, with one name."""
    byte = bytes([letter])
    name = CommandLetter(byte).name if byte in COMMAND_BOUNDS else ResponseLetter(byte).name
    return f"{name} ({chr(letter)!r})"


def wrong_length(head: bytes, limit: int) -> str:
    """What to say of the four bytes in front of a packet when they are 0 or above ``limit``."""
    length = int.from_bytes(head, "big")
    if length == 0:
        return "length 0: a packet has at least its letter"
    text = f"length {length} (bytes {head!r}) is above the limit of {limit}"
    strangers = [name for name, beginnings in STRANGERS.items() if head in beginnings]
    if head.startswith(TLS_HANDSHAKE):
        strangers = ["TLS"]
    elif not strangers and head.isascii() and head.decode("ascii").isprintable():
        strangers = ["text"]
    return text + "".join(f": this looks like {name}, not like the milter protocol" for name in strangers)


def wrong_size(letter: int, command: bool, size: int, limit: int) -> str:
    """What to say of a letter that is unknown, or of the size of the data behind it."""
    table = COMMAND_BOUNDS if command else RESPONSE_BOUNDS
    if bytes([letter]) not in table:
        return f"unknown {'command' if command else 'response'} letter {bytes([letter])!r} ({counted(size)} of data)"
    lowest, highest = table[bytes([letter])]
    expected = f"at least {lowest}" if size < lowest else f"at most {min(highest, limit)}"
    return f"{titled(letter)}: {counted(size)} of data, expected {expected}"


def wrong_content(letter: int, data: bytes, what: str, *, secret: bool = False) -> str:
    """What to say of the data behind a letter; only how many bytes they are if they are ``secret``."""
    return f"{titled(letter)}: {what}: {counted(len(data)) if secret else quoted(data)}"
