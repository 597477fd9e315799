"""``fastmilter stop``: have a server finish what it serves and leave, and wait for that."""

import argparse
import os
import select
import sys
from typing import Final

from fastmilter.commands import asking
from fastmilter.commands.options import Option, add_options, flag, read_options

EXIT_STATUS: Final = asking.EXIT_STATUS
OPTIONS: Final = (
    Option("now", flag, None, "", "close all connections at once", flag=True),
    Option("no_wait", flag, None, "", "do not wait until the server is gone", flag=True),
    asking.CONTROL,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser of the subcommand."""
    add_options(parser, OPTIONS, epilog=EXIT_STATUS)


def run(arguments: argparse.Namespace) -> int:
    """Stop it; return the exit status."""
    options = read_options(arguments, OPTIONS)
    request = {"command": "stop", "now": bool(options["now"])}
    if options["no_wait"] or not hasattr(os, "pidfd_open"):
        return asking.order(arguments, request)
    try:
        path = asking.find_control(options["control"])
        # Before the order: afterwards the number may be another process's.
        pidfd = os.pidfd_open(asking.ask(path, {"command": "status"})["status"]["pid"])
    except asking.Unreachable as error:
        print(f"fastmilter: {error}", file=sys.stderr)
        return asking.EXIT_UNREACHABLE
    except OSError:  # a process of another container, perhaps
        return asking.order(arguments, request)
    try:
        return asking.order(arguments, request, after=lambda: _wait(pidfd))
    finally:
        os.close(pidfd)


def _wait(pidfd: int) -> int:
    """Wait until the process has ended: it has deadlines of its own for that."""
    select.select([pidfd], [], [])
    print("stopped")
    return 0
