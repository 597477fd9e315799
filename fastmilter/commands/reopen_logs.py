"""``fastmilter reopen-logs``: have a server open its log file anew."""

import argparse
from typing import Final

from fastmilter.commands import asking
from fastmilter.commands.options import add_options

EXIT_STATUS: Final = asking.EXIT_STATUS
OPTIONS: Final = (asking.CONTROL,)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser of the subcommand."""
    add_options(parser, OPTIONS, epilog=EXIT_STATUS)


def run(arguments: argparse.Namespace) -> int:
    """Have it done; return the exit status."""
    return asking.order(arguments, {"command": "reopen-logs"})
