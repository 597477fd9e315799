"""What the fuzzer feeds. A target gets one stream in pieces and may raise nothing: any exception is a finding.

To aim the fuzzer at something else, write a function of this shape and name it in ``TARGETS``.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from fastmilter.codec import CommandDecoder, ResponseDecoder, decode_command, decode_response, encode
from fastmilter.constants import MAX_RESPONSE_BYTES
from fastmilter.errors import RemoteProtocolError
from fastmilter.session import Phase
from tests.support.playing import V6, Mta, everything
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


_LOOKS_AT_EVERYTHING: Any = everything("", on_abort=None, on_message_end=None, on_close=None)


def session(direction: Direction, pieces: Sequence[bytes]) -> tuple[int, str]:
    """A session with a filter that looks at every step: it ends closed, and leaves no filter object behind."""
    if direction != "mta>filter":
        return 0, ""
    mta = Mta(_LOOKS_AT_EVERYTHING, V6)
    for piece in pieces:
        mta.feed(piece)
    mta.eof()
    if mta.session.phase is not Phase.CLOSED or mta.conversation.filter is not None:
        raise AssertionError(f"{mta.session.phase!r} after the end, with {mta.conversation.filter!r}")
    if mta.failures:
        raise AssertionError(f"a callback that returns nothing failed: {mta.failures!r}")
    begun, ended = mta.names.count("on_mail"), mta.names.count("on_message_end")
    if begun != ended:
        raise AssertionError(f"{begun} messages began and {ended} ended")
    return len(mta.calls), str(mta.session.error or "")


TARGETS: dict[str, Target] = {"codec": codec, "session": session}
