"""``fastmilter decode [FILE]``: a recording or a stream of bytes, packet by packet."""

import argparse
import json
import textwrap
from collections.abc import Iterator
from typing import Any, Final

from fastmilter.commands.options import Option, UsageError, add_options, flag, one_of, read_options, text
from fastmilter.commands.packets import Packet, packets
from fastmilter.commands.recordings import TO_FILTER, TO_MTA, Direction, open_input, read_pieces
from fastmilter.commands.terminal import Paper, fields_as_json, quoted, until_the_reader_leaves
from fastmilter.commands.wording import details, name_of_letter
from fastmilter.errors import ConfigError


def _number(value: object) -> int:
    words = str(value)
    if words.isascii() and words.isdigit() and len(words) < 10:
        return int(words)
    raise ConfigError(f"{value!r} is not the number of a connection")


OPTIONS: Final = (
    Option(
        "file",
        text,
        "-",
        "FILE",
        "what to print: a recording made by tap, or the bytes of one direction, as they are or as hexadecimal digits;"
        " may be compressed with gzip; - is standard input",
        positional=True,
    ),
    Option(
        "from",
        one_of("mta", "filter"),
        None,
        "mta|filter",
        "who sent a stream of bytes; a recording says it itself",
    ),
    Option("conn", _number, None, "N", "only the connection with this number"),
    Option("full", flag, None, "", "show long values whole", flag=True),
    Option("json", flag, None, "", "one JSON object per packet, always whole", flag=True),
)
"""Every option of ``fastmilter decode``."""

EXIT_BROKEN: Final = 1

EXIT_STATUS: Final = """\
exit status:
  0   every packet could be read
  1   something is wrong with a packet or with the recording; the output says what and where
  64  the command line or the file cannot be used
"""

_ARROWS: Final[dict[Direction, str]] = {TO_FILTER: "-->", TO_MTA: "<--"}
_EPILOG: Final = f"""\
--> is from the MTA to the filter, <-- from the filter to the MTA. The first columns are the connection and the seconds
since the recording began; for a stream of bytes, where the packet begins in it.

{EXIT_STATUS}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the table."""
    add_options(parser, OPTIONS, epilog=_EPILOG)


@until_the_reader_leaves
def run(arguments: argparse.Namespace) -> int:
    """Print; return the exit status."""
    options = read_options(arguments, OPTIONS)
    origin: Direction | None = {"mta": TO_FILTER, "filter": TO_MTA, None: None}[options["from"]]
    paper = Paper()
    status = 0
    try:
        with open_input(options["file"]) as file:
            for packet in packets(read_pieces(file, origin)):
                if options["conn"] not in (None, packet.conn):
                    continue
                status = EXIT_BROKEN if packet.problem else status
                if options["json"]:
                    print(json.dumps(as_object(packet)))
                else:
                    for line in as_lines(packet, paper, full=bool(options["full"])):
                        print(line)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise UsageError(f"{options['file']}: {error.strerror or error}") from None
    return status


def as_lines(packet: Packet, paper: Paper, *, full: bool) -> Iterator[str]:
    """Yield a packet for people."""
    place = f"{packet.offset or 0:>10}" if packet.seconds is None else f"{packet.conn:>4} {packet.seconds:>10.3f}"
    arrow = _ARROWS[packet.direction]
    margin = " " * (len(place) + len(arrow) + 18)
    if packet.event:
        yield f"{place} {arrow} {paper.coloured(f'({packet.event})', 'dim')}"
    elif packet.payload:
        told = details(packet.message, full=full) if packet.message is not None else [_bytes(packet, full=full)]
        name = _name(packet)
        colour = "cyan" if packet.direction == TO_FILTER else "green"
        yield f"{place} {arrow} {paper.coloured(f'{name:<15}', colour)} {told[0]}".rstrip()
        for more in told[1:]:
            room = paper.width - len(margin) if paper.is_terminal else 0
            # Only the flags of a negotiation come here; in a pipe a line stays a line.
            yield from (margin + line for line in (textwrap.wrap(more, room) if room > 40 else [more]))
    if packet.problem:
        where = "" if packet.offset is None else f"at byte {packet.offset} of this direction: "
        yield (margin if packet.payload else "") + paper.coloured(f"!!! {where}{packet.problem}", "red")


def _name(packet: Packet) -> str:
    """Return what to call a packet; the bytes behind a broken length have no letter that could be believed."""
    if packet.message is None and packet.problem.endswith("cannot be read"):
        return "???"
    return name_of_letter(packet.payload[:1], command=packet.direction == TO_FILTER)


def _bytes(packet: Packet, *, full: bool) -> str:
    return f"{len(packet.payload)} bytes {quoted(packet.payload, full=full)}"


def as_object(packet: Packet) -> dict[str, Any]:
    """Return a packet for programs."""
    found: dict[str, Any] = {"conn": packet.conn, "dir": packet.direction}
    if packet.seconds is not None:
        found["t"] = packet.seconds
    if packet.event:
        return {**found, "event": packet.event}
    if packet.offset is not None:
        found["offset"] = packet.offset
    if packet.message is not None:
        found["size"] = len(packet.payload)
        found["name"] = _name(packet)
        found["fields"] = {
            name: fields_as_json(getattr(packet.message, name)) for name in packet.message.__match_args__
        }
    elif packet.payload:
        found["hex"] = packet.payload.hex()
    if packet.problem:
        found["problem"] = packet.problem
    return found
