"""``fastmilter status``: what a server is doing."""

import argparse
import json
import sys
from typing import Final

from fastmilter.commands import asking
from fastmilter.commands.options import Option, add_options, flag, read_options
from fastmilter.commands.picture import picture
from fastmilter.commands.terminal import Paper, until_the_reader_leaves

EXIT_STATUS: Final = """\
exit status:
  0   the server takes new connections
  1   the server does not take new connections: it starts, stops, or has no worker
  4   the server could not be asked
  64  the command line cannot be used
"""

EXIT_NOT_READY: Final = 1

OPTIONS: Final = (
    Option("json", flag, None, "", "everything as one JSON object", flag=True),
    asking.CONTROL,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser of the subcommand."""
    add_options(parser, OPTIONS, epilog=EXIT_STATUS)


@until_the_reader_leaves
def run(arguments: argparse.Namespace) -> int:
    """Show the status; return the exit status."""
    options = read_options(arguments, OPTIONS)
    try:
        status = asking.ask_status(asking.find_control(options["control"]))
    except (asking.Unreachable, asking.Refused) as error:
        print(f"fastmilter: {error}", file=sys.stderr)
        return asking.EXIT_UNREACHABLE
    if options["json"]:
        print(json.dumps(status, indent=2))
    else:
        print("\n".join(picture(status, Paper())))
    return 0 if status["ready"] else EXIT_NOT_READY
