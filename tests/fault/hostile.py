"""Filters that do everything wrong: what they send, when, and what it has to be called."""

import contextlib
import select
import socket
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from fastmilter import codec
from fastmilter.codec import encode
from fastmilter.constants import MAX_RESPONSE_BYTES, ResponseLetter, Step
from fastmilter.errors import ConnectionLost, ProtocolBroken, TimedOut
from tests.support import oracle
from tests.support.scripted_milter import Peer, Script
from tests.support.strategies import framed

NEGOTIATION = "negotiation"
PLACES: tuple[str, ...] = (NEGOTIATION, *(step for step in Step if step is not Step.UNKNOWN))
"""Where a filter can turn out to be hostile."""

COMMANDS: dict[str, type] = {
    NEGOTIATION: codec.Negotiate,
    Step.CONNECT: codec.Connect,
    Step.HELO: codec.Helo,
    Step.MAIL: codec.MailFrom,
    Step.RCPT: codec.RcptTo,
    Step.DATA: codec.Data,
    Step.HEADER: codec.Header,
    Step.END_OF_HEADERS: codec.EndOfHeaders,
    Step.BODY: codec.Body,
    Step.END_OF_MESSAGE: codec.EndOfMessage,
}

MODIFICATIONS: tuple[codec.Modification, ...] = (
    codec.AddHeader(b"X-A", b"1"),
    codec.InsertHeader(1, b"X-A", b"1"),
    codec.ChangeHeader(1, b"X-A", b"1"),
    codec.AddRecipient(b"<a@b>"),
    codec.AddRecipient(b"<a@b>", (b"NOTIFY=NEVER",)),
    codec.DeleteRecipient(b"<a@b>"),
    codec.ChangeSender(b"<a@b>", (b"RET=HDRS",)),
    codec.ReplaceBody(b"body\r\n"),
    codec.Quarantine(b"spam"),
)
VERDICTS: tuple[codec.Response, ...] = (
    codec.Continue(),
    codec.Accept(),
    codec.Reject(),
    codec.TempFail(),
    codec.Discard(),
    codec.Skip(),
    codec.Progress(),
    codec.ReplyCode(b"550 5.7.1 no"),
)
NEVER: tuple[codec.Response, ...] = (codec.Shutdown(), codec.ConnectionFail())
NEGOTIATE = codec.Negotiate(6, 0x1FF, 0)


def malformed() -> dict[str, bytes]:
    """Packets that are no response, by what is wrong with them; an independent decoder says that it is."""
    found: dict[str, bytes] = {}
    for message in (*MODIFICATIONS, *VERDICTS, *NEVER, NEGOTIATE):
        name, payload = type(message).__name__, encode(message)[4:]
        for size in range(1, len(payload)):
            found[f"{name} cut to {size}"] = framed(payload[:size])
        found[f"{name} and a byte"] = framed(payload + b"x")
        found[f"{name} and a NUL"] = framed(payload + b"\0")
    for number in range(256):
        if bytes([number]) not in {letter.value for letter in ResponseLetter}:
            found[f"letter {number}"] = framed(bytes([number]))
    for length in (0, MAX_RESPONSE_BYTES + 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
        found[f"length {length:#x}"] = length.to_bytes(4, "big") + b"c"
    for text in (b"", b"5", b"250 ok", b"999 x", b"550", b"5x0 a", b"550_a", b"\r\n", b"550 a\0b"):
        found[f"reply {text!r}"] = framed(b"y" + text + b"\0")
    found["HTTP"] = b"HTTP/1.1 400 Bad Request\r\n\r\n"
    found["SMTP"] = b"220 mx.example.org ESMTP\r\n"
    return {name: packet for name, packet in found.items() if name.startswith("reply") or refused(packet)}


def refused(packet: bytes) -> bool:
    return oracle.decode("response", packet, MAX_RESPONSE_BYTES)[1]


def out_of_turn(place: str, mta: str) -> list[codec.Response]:
    """Responses that are none at this place."""
    if place == NEGOTIATION:
        return [*MODIFICATIONS, *VERDICTS, *NEVER]
    found: list[codec.Response] = [NEGOTIATE, *NEVER]
    if place != Step.END_OF_MESSAGE:
        found += MODIFICATIONS
        found += [codec.Progress()] if mta == "sendmail" else []
    elif mta == "sendmail":
        found.append(codec.Skip())
    return found


def linger(peer: Peer) -> None:
    """Say nothing more until the client goes away."""
    with contextlib.suppress(OSError):
        while peer.connection.recv(65536):
            pass


def up_to(place: str, act: Callable[[Peer], None]) -> Script:
    """Behave well up to the command of ``place``, answer that with ``act``, and say nothing more."""

    def script(peer: Peer) -> None:
        while (command := peer.read()) is not None:
            if isinstance(command, COMMANDS[place]):
                act(peer)
                linger(peer)
                return
            if isinstance(command, codec.Negotiate):
                peer.say(NEGOTIATE)
            elif not isinstance(command, codec.Abort | codec.Quit):
                peer.say(codec.Continue())

    return script


def saying(place: str, data: bytes) -> Script:
    return up_to(place, lambda peer: peer.connection.sendall(data))


# -- in time -----------------------------------------------------------------------------------------------------------


def silent(peer: Peer) -> None:
    """Never answer."""


def gone(peer: Peer) -> bool:
    """Whether the client has closed, after a second at most."""
    readable, _, _ = select.select([peer.connection], [], [], 1)
    return bool(readable) and not peer.connection.recv(65536)


def trickle(data: bytes) -> Callable[[Peer], None]:
    """Send one byte a second."""

    def act(peer: Peer) -> None:
        for number in range(len(data)):
            peer.connection.sendall(data[number : number + 1])
            if gone(peer):
                return

    return act


def endless(*responses: codec.Response) -> Callable[[Peer], None]:
    """Send these as fast as they are taken, for ever."""
    packets = b"".join(map(encode, responses)) * 1000

    def act(peer: Peer) -> None:
        while True:
            peer.connection.sendall(packets)

    return act


def reset(peer: Peer) -> None:
    """Close with an RST."""
    peer.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.connection.close()


def ending(place: str, data: bytes, *, rudely: bool = False) -> Script:
    """Send the beginning of an answer and close."""

    def act(peer: Peer) -> None:
        peer.connection.sendall(data)
        if rudely:
            reset(peer)
        else:
            peer.connection.shutdown(socket.SHUT_RDWR)

    return up_to(place, act)


class Case(NamedTuple):
    """One hostile filter, and the error that its client has to raise."""

    name: str
    script: Script
    error: type[Exception]


def quick_cases(place: str, mta: str) -> Iterator[Case]:
    """Everything that shows at once."""
    for name, packet in malformed().items():
        yield Case(name, saying(place, packet), ProtocolBroken)
    for response in out_of_turn(place, mta):
        yield Case(f"{response!r} out of turn", saying(place, encode(response)), ProtocolBroken)
    yield Case("closes", ending(place, b""), ConnectionLost)
    yield Case("closes in the length", ending(place, b"\0\0"), ConnectionLost)
    yield Case("closes in the data", ending(place, encode(codec.ReplyCode(b"550 no"))[:-1]), ConnectionLost)
    yield Case("resets", ending(place, b"", rudely=True), ConnectionLost)


def slow_cases(place: str, mta: str) -> Iterator[Case]:
    """Everything that shows when time is up."""
    yield Case("never answers", up_to(place, silent), TimedOut)
    yield Case("answers a half", saying(place, b"\0\0\0\x0dO"), TimedOut)
    yield Case("one byte a second", up_to(place, trickle(framed(b"y550 " + b"x" * 100 + b"\0"))), TimedOut)
    yield Case("a large packet, slowly", up_to(place, trickle((1 << 20).to_bytes(4, "big") + b"y" * 100)), TimedOut)
    if place == Step.END_OF_MESSAGE:
        yield Case("modifications for ever", up_to(place, endless(*MODIFICATIONS)), TimedOut)
        yield Case("bodies for ever", up_to(place, endless(codec.ReplaceBody(b"x" * 100))), TimedOut)
    if place == Step.END_OF_MESSAGE or (place != NEGOTIATION and mta == "postfix"):
        yield Case("progress for ever", up_to(place, endless(codec.Progress())), TimedOut)
        yield Case("progress now and then", up_to(place, trickle(encode(codec.Progress()) * 20)), TimedOut)
