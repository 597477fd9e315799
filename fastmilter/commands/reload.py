"""``fastmilter reload``: have a server read code and configuration again."""

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
    """Reload, wait until the new workers serve or the old ones stay; return the exit status."""
    return asking.order(arguments, {"command": "reload"})
