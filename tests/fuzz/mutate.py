"""Feeds mutated recordings to a target, and watches what it raises and what it keeps.

    python -m tests.fuzz.mutate --count 1000000

Packets that real MTAs and filters exchanged are damaged (bits, cuts, splices, lengths, letters), put among sound ones,
cut into pieces at random and fed: one damaged packet per stream, so that each of them is looked at. A finding (any
exception of the target) ends the run with the seed, the number of the stream and its bytes; so does memory that grows.
"""

import argparse
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import psutil

from tests.fuzz.targets import TARGETS, Target
from tests.support.recordings import Direction, conversations

DIRECTIONS: tuple[Direction, Direction] = ("mta>filter", "filter>mta")
LARGE = 2048
"""Packets above this size are rare here: a damaged body of 64 KB tells no more than a short one."""
LARGE_SHARE = 0.002
GROWTH_LIMIT = 8 << 20
"""How much larger the process may be than after the warm-up, in bytes."""
LENGTHS = (0, 1, 2, 5, 12, 13, 14, 65535, 65536, 65537, 1 << 20, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
BYTES = (0, 0, 0, 1, 0x0A, 0x0D, 0x20, 0x25, 0x34, 0x36, 0x4C, 0x55, 0x7F, 0x80, 0xFF)
VARYING = re.compile(r"""b'(\\.|[^'\\])*'|b"(\\.|[^"\\])*"|\d+""")
"""What differs between two errors of one kind."""
LETTERS = b"ABCDEHKLMNOQRTU+2-4abcdefhimpqrsty"


@dataclass
class Corpus:
    """Different recorded packets of one direction, without their lengths."""

    small: list[bytes] = field(default_factory=list)
    large: list[bytes] = field(default_factory=list)

    def pick(self, dice: random.Random) -> bytes:
        return dice.choice(self.large if self.large and dice.random() < LARGE_SHARE else self.small)


def load_corpora() -> dict[Direction, Corpus]:
    """Each letter gets about the same share: a few hundred kinds of answers should not drown in CONTINUE."""
    seen: dict[Direction, set[bytes]] = {direction: set() for direction in DIRECTIONS}
    for conversation in conversations():
        for direction in DIRECTIONS:
            seen[direction].update(conversation.packets(direction))
    corpora = {}
    for direction, packets in seen.items():
        corpus = corpora[direction] = Corpus(large=sorted(packet for packet in packets if len(packet) > LARGE))
        by_letter: dict[bytes, list[bytes]] = {}
        for packet in sorted(packet for packet in packets if len(packet) <= LARGE):
            by_letter.setdefault(packet[:1], []).append(packet)
        most = max(map(len, by_letter.values()))
        for group in by_letter.values():
            corpus.small.extend(group * (most // len(group)))
    return corpora


def damage(packet: bytes, other: bytes, dice: random.Random) -> bytes:
    """One change to a payload."""
    kind = dice.randrange(8)
    place = dice.randrange(len(packet)) if packet else 0
    if kind == 0 and packet:
        return packet[:place] + bytes([packet[place] ^ 1 << dice.randrange(8)]) + packet[place + 1 :]
    if kind == 1:
        return packet[:place] + bytes([dice.choice(BYTES)]) + packet[place + 1 :]
    if kind == 2:
        return packet[:place]
    if kind == 3:
        return packet[:place] + bytes(dice.choices(BYTES, k=dice.randrange(1, 6))) + packet[place:]
    if kind == 4:
        return packet[:place] + other[dice.randrange(len(other)) :]
    if kind == 5:
        return packet[:place] + packet[place + dice.randrange(1, 9) :]
    if kind == 6:
        return packet[:place] + packet[place : place + dice.randrange(1, 9)] * 2 + packet[place:]
    return bytes([dice.choice(LETTERS)]) + packet[1:]


def mutated(corpus: Corpus, dice: random.Random) -> bytes:
    """A damaged packet with its length; most lengths are honest, or nothing behind them would ever be looked at."""
    packet = corpus.pick(dice)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        packet = damage(packet, corpus.pick(dice), dice)
    length = len(packet)
    lie = dice.random()
    if lie < 0.05:
        length = dice.choice(LENGTHS)
    elif lie < 0.1:
        length = max(0, length + dice.randrange(-3, 4))
    return length.to_bytes(4, "big") + packet


def cut(stream: bytes, dice: random.Random) -> list[bytes]:
    """The stream in one to six pieces, now and then byte by byte."""
    if len(stream) < 200 and dice.random() < 0.05:
        return [stream[at : at + 1] for at in range(len(stream))]
    places = sorted(dice.randrange(len(stream) + 1) for _ in range(dice.randrange(6)))
    return [stream[start:end] for start, end in zip([0, *places], [*places, len(stream)], strict=True)]


class Finding(Exception):
    """The target raised something, or kept something."""


@dataclass
class Figures:
    """What a run did."""

    seed: int
    packets: int = 0
    messages: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    warm: int = 0
    end: int = 0

    def __str__(self) -> str:
        refused = self.reasons.total()
        return (
            f"{self.packets} mutated packets (seed {self.seed}), {self.seconds:.0f} s\n"
            f"{self.messages} messages came out; {refused} packets refused, in {len(self.reasons)} ways; nothing else\n"
            f"memory: {self.warm / 1e6:.1f} MB after the warm-up, {self.end / 1e6:.1f} MB at the end"
        )


def rss() -> int:
    return int(psutil.Process().memory_info().rss)


def one_stream(corpora: dict[Direction, Corpus], dice: random.Random) -> tuple[Direction, list[bytes]]:
    """A stream, in pieces, with one damaged packet in it. One in twenty goes the wrong way."""
    source = dice.choice(DIRECTIONS)
    sound = [corpora[source].pick(dice) for _ in range(dice.choice((0, 0, 1, 2)))]
    packets = [len(packet).to_bytes(4, "big") + packet for packet in sound]
    packets.insert(dice.randrange(len(packets) + 1), mutated(corpora[source], dice))
    direction = source if dice.random() < 0.95 else DIRECTIONS[source == DIRECTIONS[0]]
    return direction, cut(b"".join(packets), dice)


def run(target: Target, count: int, seed: int) -> Figures:
    """Feed ``count`` mutated packets; ``Finding`` if the target raises or the process grows."""
    corpora = load_corpora()
    dice = random.Random(seed)
    figures = Figures(seed)
    started = time.monotonic()
    for number in range(count):
        direction, pieces = one_stream(corpora, dice)
        try:
            messages, reason = target(direction, pieces)
        except Exception as error:
            raise Finding(f"seed {seed}, stream {number}, {direction}: {pieces!r}") from error
        figures.packets += 1
        figures.messages += messages
        if reason:
            figures.reasons[VARYING.sub("", reason)] += 1
        if number == count // 5:
            figures.warm = rss()
    figures.seconds = time.monotonic() - started
    figures.end = rss()
    if figures.end - figures.warm > GROWTH_LIMIT:
        raise Finding(f"memory grew from {figures.warm} to {figures.end} bytes")
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 for a finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.mutate", description="Feed mutated recordings.")
    parser.add_argument("--count", type=int, default=100_000, help="mutated packets to feed (default: 100000)")
    parser.add_argument("--seed", type=int, default=None, help="repeats a run (default: another one each time)")
    parser.add_argument("--target", choices=sorted(TARGETS), default="codec", help="what to feed (default: codec)")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    try:
        print(f"{options.target}: {run(TARGETS[options.target], options.count, seed)}")
    except Finding as finding:
        print(f"{options.target}: FOUND {finding}", file=sys.stderr)
        if finding.__cause__ is not None:
            print(f"{type(finding.__cause__).__name__}: {finding.__cause__}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
