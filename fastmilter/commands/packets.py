"""Cutting recorded streams into packets, and saying what is wrong with one and where.

Lengths and contents are judged by the codec; what is added here is the place of each packet, and going on behind one
that is broken as long as its length can be believed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from fastmilter import codec
from fastmilter._bounds import wrong_length
from fastmilter.commands.recordings import TO_FILTER, TO_MTA, Direction, Piece
from fastmilter.constants import LENGTH_BYTES, MAX_DATA_BYTES_1M, MAX_RESPONSE_BYTES
from fastmilter.errors import RemoteProtocolError
from fastmilter.negotiation import max_data_of

_LIMITS: Final[dict[Direction, int]] = {TO_FILTER: MAX_DATA_BYTES_1M, TO_MTA: MAX_RESPONSE_BYTES}


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet, or one event, or what is wrong.

    ``offset``: where the packet begins in the stream of its direction, in bytes; ``payload``: letter and data, of a
    broken packet what there is of it. ``message`` is ``None`` where there is none, ``problem`` says why.
    """

    conn: int
    seconds: float | None
    direction: Direction
    offset: int | None = None
    payload: bytes = b""
    message: codec.Command | codec.Response | None = None
    event: str = ""
    problem: str = ""


@dataclass
class _Stream:
    """One direction of one connection."""

    conn: int
    direction: Direction
    limit: int
    offset: int = 0
    segments: int = 0
    lost: bool = False
    """Where packets begin is not known any more."""
    held: bytearray = field(default_factory=bytearray)

    def take(self, piece: Piece) -> Iterator[Packet]:
        """Take in what one read returned; yield the packets that are complete."""
        if self.lost:
            return
        if piece.segment is not None and piece.segment != self.segments:
            what = f"read {piece.segment} comes where read {self.segments} should: the recording has a hole"
            yield self._give_up(piece.seconds, what)
            return
        self.segments += 1
        self.held += piece.data
        at = 0
        while len(self.held) - at >= LENGTH_BYTES:
            length = int.from_bytes(self.held[at : at + LENGTH_BYTES], "big")
            if not 1 <= length <= self.limit + 1:
                del self.held[:at]
                yield self._give_up(piece.seconds, wrong_length(bytes(self.held[:LENGTH_BYTES]), self.limit + 1))
                return
            end = at + LENGTH_BYTES + length
            if end > len(self.held):
                break
            yield self._packet(piece.seconds, bytes(self.held[at + LENGTH_BYTES : end]))
            self.offset += end - at
            at = end
        del self.held[:at]

    def end(self, seconds: float | None) -> Iterator[Packet]:
        """Yield what is wrong with the end of the stream, if it comes here."""
        if self.held and not self.lost:
            have, whole = len(self.held), "4 or more"
            if have >= LENGTH_BYTES:
                whole = str(int.from_bytes(self.held[:LENGTH_BYTES], "big") + LENGTH_BYTES)
            yield self._give_up(seconds, f"the stream ends in the middle of a packet: {have} of {whole} bytes are here")

    def _packet(self, seconds: float | None, payload: bytes) -> Packet:
        message: codec.Command | codec.Response | None = None
        problem = ""
        try:
            decode = codec.decode_command if self.direction == TO_FILTER else codec.decode_response
            message = decode(payload)
        except RemoteProtocolError as error:
            problem = str(error)
        return Packet(self.conn, seconds, self.direction, self.offset, payload, message, problem=problem)

    def _give_up(self, seconds: float | None, problem: str) -> Packet:
        self.lost = True
        rest = "the rest of this direction cannot be read"
        return Packet(self.conn, seconds, self.direction, self.offset, bytes(self.held), problem=f"{problem}; {rest}")


class _Connection:
    """The two streams of a connection."""

    def __init__(self, number: int) -> None:
        self.streams = {direction: _Stream(number, direction, limit) for direction, limit in _LIMITS.items()}
        self.ended: set[Direction] = set()
        self.offered = 0
        self.agreed: int | None = None

    def note(self, packet: Packet) -> Packet:
        """Return the packet, with a problem if it is larger than what was agreed before it."""
        if isinstance(packet.message, codec.Negotiate):
            if packet.direction == TO_FILTER:
                self.offered = packet.message.protocol
            else:
                self.agreed = max_data_of(packet.message.protocol & self.offered)
        size = len(packet.payload) - 1
        if packet.message is None or packet.direction == TO_MTA or self.agreed is None or size <= self.agreed:
            return packet
        return replace(packet, problem=f"{size} bytes of data, and {self.agreed} is the most that was agreed")


def packets(pieces: Iterable[Piece]) -> Iterator[Packet]:
    """Yield packets, events and problems in the order in which they came."""
    connections: dict[int, _Connection] = {}
    seconds: float | None = None
    for piece in pieces:
        seconds = piece.seconds if piece.seconds is not None else seconds
        if piece.problem:
            yield Packet(piece.conn, piece.seconds, piece.direction, problem=piece.problem)
            continue
        if piece.event == "open" or piece.conn not in connections:
            connections[piece.conn] = _Connection(piece.conn)
        connection = connections[piece.conn]
        stream = connection.streams[piece.direction]
        if piece.event:
            if piece.event != "open":
                yield from stream.end(piece.seconds)
                connection.ended |= set(_LIMITS) if piece.event == "refused" else {piece.direction}
            yield Packet(piece.conn, piece.seconds, piece.direction, event=piece.event)
            if len(connection.ended) == len(_LIMITS):
                del connections[piece.conn]  # a recording of days has many
        else:
            yield from map(connection.note, stream.take(piece))
    for connection in connections.values():
        for stream in connection.streams.values():
            yield from stream.end(seconds)
