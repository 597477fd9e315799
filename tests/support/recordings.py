"""The recordings in tests/captures: conversations of real MTAs with real filters, as bytes and as packets."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

CAPTURES = Path(__file__).parent.parent / "captures"

Direction: TypeAlias = Literal["mta>filter", "filter>mta"]


@dataclass(frozen=True)
class Segment:
    """What one read of the proxy returned; ``event`` instead of bytes where the connection changed."""

    direction: Direction
    seconds: float
    data: bytes = b""
    event: str = ""


@dataclass
class Conversation:
    """One milter connection."""

    recording: str
    number: int
    segments: list[Segment] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.recording}#{self.number}"

    def stream(self, direction: Direction) -> bytes:
        """Everything that went one way."""
        return b"".join(segment.data for segment in self.segments if segment.direction == direction)

    def packets(self, direction: Direction) -> list[bytes]:
        """The payloads (letter and data) one way, cut by their lengths only; a packet that was cut off is left out."""
        stream = self.stream(direction)
        packets = []
        at = 0
        while at + 4 <= len(stream):
            length = int.from_bytes(stream[at : at + 4], "big")
            if at + 4 + length > len(stream):
                break
            packets.append(stream[at + 4 : at + 4 + length])
            at += 4 + length
        return packets

    def exchanges(self) -> Iterator[tuple[Direction, bytes]]:
        """The bytes of both directions in the order in which they came."""
        for segment in self.segments:
            if segment.data:
                yield segment.direction, segment.data


def paths() -> list[Path]:
    """Every recording, in a fixed order."""
    return sorted(path for path in CAPTURES.glob("*/*.jsonl*"))


def name_of(path: Path) -> str:
    """``postfix/plain`` for ``.../postfix/plain.jsonl.gz``."""
    return f"{path.parent.name}/{path.name.partition('.jsonl')[0]}"


@cache
def load(name: str) -> tuple[Conversation, ...]:
    """The connections of one recording, ``load("postfix/plain")``, in order of their numbers."""
    (path,) = CAPTURES.glob(f"{name}.jsonl*")
    content = path.read_bytes()
    conversations: dict[int, Conversation] = {}
    for line in (gzip.decompress(content) if path.suffix == ".gz" else content).splitlines():
        entry = json.loads(line)
        conversation = conversations.setdefault(entry["conn"], Conversation(name, entry["conn"]))
        conversation.segments.append(
            Segment(entry["dir"], entry["t"], bytes.fromhex(entry.get("hex", "")), entry.get("event", ""))
        )
    return tuple(conversations[number] for number in sorted(conversations))


def result(name: str) -> dict[str, Any]:
    """What else is known of a recording: the SMTP dialogue, what was delivered."""
    found: dict[str, Any] = json.loads((CAPTURES / f"{name}.result.json").read_text(encoding="utf-8"))
    return found


def names() -> list[str]:
    """The name of every recording."""
    return [name_of(path) for path in paths()]


def conversations() -> Iterator[Conversation]:
    """Every connection of every recording."""
    for name in names():
        yield from load(name)


if __name__ == "__main__":
    for each in names():
        print(f"{each:40} {result(each)['description']}")
