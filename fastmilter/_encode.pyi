"""Messages to bytes: one function writes every packet, so nothing gets on the wire past its checks."""

from fastmilter._messages import _Command, _Response

def header_packet(letter: int, index: int | None, name: bytes, value: bytes) -> bytes:
    """The packet that adds (``h``, without an index), inserts (``i``) or changes (``m``) a header field."""

def encode(message: _Command | _Response, max_data: int = 65535) -> bytes:
    """The packet of a message, ready to send; ``InvalidMessage`` if it cannot be one.

    ``max_data``: most bytes of data behind the letter; more than 65535 only where that was negotiated.
    """
