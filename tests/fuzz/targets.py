"""What the fuzzer feeds. A target gets one stream in pieces and may raise nothing: any exception is a finding.

To aim the fuzzer at something else, write a function of this shape and name it in ``TARGETS``.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from fastmilter.codec import CommandDecoder, ResponseDecoder, decode_command, decode_response, encode
from fastmilter.constants import MAX_RESPONSE_BYTES
from fastmilter.errors import RemoteProtocolError
from tests.support.recordings import Direction

Target: TypeAlias = Callable[[Direction, Sequence[bytes]], tuple[int, str]]
"""Takes the direction of a stream and its pieces; returns the number of messages and why it was refused or ``""``."""


def codec(direction: Direction, pieces: Sequence[bytes]) -> tuple[int, str]:
    """The decoders, and ``encode``: what came out of bytes must go back into bytes and come out as it was."""
    decode: Callable[[bytes], Any]
    decoder: CommandDecoder | ResponseDecoder
    if direction == "mta>filter":
        decoder, decode = CommandDecoder(), decode_command
    else:
        decoder, decode = ResponseDecoder(), decode_response
    count = 0
    fed = 0
    try:
        for piece in pieces:
            decoder.feed(piece)
            fed += len(piece)
            for message in decoder:
                count += 1
                packet = encode(message, MAX_RESPONSE_BYTES)
                if decode(packet[4:]) != message:
                    raise AssertionError(f"{message!r} does not survive {packet!r}")
            if decoder.buffered > fed:
                raise AssertionError(f"{decoder.buffered} bytes held of {fed}")
    except RemoteProtocolError as error:
        if decoder.buffered:
            raise AssertionError("a broken decoder holds on to its bytes") from error
        return count, str(error)
    return count, ""


TARGETS: dict[str, Target] = {"codec": codec}
