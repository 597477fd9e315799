"""``fastmilter scale N``: change the number of workers of a server."""

import argparse
from typing import Final

from fastmilter.commands import asking
from fastmilter.commands.options import Option, add_options, read_options
from fastmilter.server.options import parse_workers
from fastmilter.server.places import AUTO
from fastmilter.server.settings import UsageError

EXIT_STATUS: Final = asking.EXIT_STATUS


def _workers(value: object) -> int | str:
    """Read a number of workers; ``auto`` stays: the server knows its processors."""
    return AUTO if value == AUTO else parse_workers(value)


OPTIONS: Final = (
    Option("workers", _workers, None, "N|auto", "how many workers; auto: one per processor", positional=True),
    asking.CONTROL,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser of the subcommand."""
    add_options(parser, OPTIONS, epilog=EXIT_STATUS)


def run(arguments: argparse.Namespace) -> int:
    """Have it done; return the exit status."""
    workers = read_options(arguments, OPTIONS)["workers"]
    if workers is None:
        raise UsageError("say how many workers: fastmilter scale N")
    return asking.order(arguments, {"command": "scale", "workers": workers})
