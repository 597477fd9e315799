"""Bytes to messages: framing, decoding, every check of a length or a NUL. See ``fastmilter.codec``."""

from typing import Self, final

from typing_extensions import Buffer, disjoint_base

from fastmilter._messages import _Command, _Response

@disjoint_base
class _Decoder:
    """Cuts a stream into messages. Not to be used by two threads at once.

    ``RemoteProtocolError`` says what the peer did wrong; every later use raises it again.
    """

    def feed(self, data: Buffer) -> None:
        """Take in a piece of the stream, any bytes-like object, of any size; it is copied."""

    def lend(self, view: memoryview, start: int, size: int) -> None:
        """Take in ``size`` bytes of a ``memoryview`` from ``start`` on without a copy; ``settle`` before they change.

        What is held of a packet is put in front of them, where there is room: the bytes before ``start`` are
        overwritten.
        """

    def settle(self) -> None:
        """Keep what is left of what was lent, so that the lender may use the memory again."""

    def next_field(self) -> tuple[str, str] | None:
        """Name and value of the next packet as text if it is a whole and valid header field, else ``None``.

        For dozens of them in a row, without a message object each; everything else is left to ``next_message``.
        """

    @property
    def max_data(self) -> int:
        """Most bytes of data behind a letter; to be raised when SMFIP_MDS_256K or SMFIP_MDS_1M was agreed."""

    @max_data.setter
    def max_data(self, limit: int) -> None: ...
    @property
    def buffered(self) -> int:
        """Bytes held that are not yet a message; 0 between two packets."""

    @property
    def letters_ahead(self) -> int:
        """The letters of the packets that begin in what is held, as ``Scanner`` counts them."""

    def __iter__(self) -> Self: ...
    def __next__(self) -> _Command | _Response:
        """The next complete message; stops when there is none, and goes on after more was fed."""

    def is_worked_off(self) -> bool:
        """Whether bytes are lent and none of them is left."""

    def next_message(self) -> _Command | _Response | None:
        """The next complete message, or ``None`` if there is none until more was fed."""

@final
class CommandDecoder(_Decoder):
    """Commands, out of what an MTA sends.

    ``macros_of``: the commands whose macros are wanted, bit n for the n-th letter; those of others are passed over
    (Postfix sends a set before each header field).
    """

    def __init__(self, max_data: int = 65535, macros_of: int = 67108863) -> None: ...
    def __next__(self) -> _Command:
        """The next complete message; stops when there is none, and goes on after more was fed."""

    def next_message(self) -> _Command | None:
        """The next complete message, or ``None`` if there is none until more was fed."""

@final
class ResponseDecoder(_Decoder):
    """Responses, out of what a filter sends."""

    def __init__(self, max_data: int = 1052671) -> None: ...
    def __next__(self) -> _Response:
        """The next complete message; stops when there is none, and goes on after more was fed."""

    def next_message(self) -> _Response | None:
        """The next complete message, or ``None`` if there is none until more was fed."""

def decode_command(payload: Buffer) -> _Command:
    """The command in one packet without its length, that is the letter and the data; at most 1048576 bytes."""

def decode_response(payload: Buffer) -> _Response:
    """The response in one packet without its length, that is the letter and the data; at most 1052672 bytes."""
