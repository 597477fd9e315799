"""``fastmilter stop``: have a server finish what it serves and leave, and wait for that."""

import argparse
import contextlib
import os
import select
import socket
import sys
import time
from typing import Any, Final

import psutil

from fastmilter.commands import asking
from fastmilter.commands.options import Option, add_options, flag, read_options
from fastmilter.server.peers import process_of

EXIT_STATUS: Final = asking.EXIT_STATUS
OPTIONS: Final = (
    Option("now", flag, None, "", "close all connections at once", flag=True),
    Option("no_wait", flag, None, "", "do not wait until the server is gone", flag=True),
    asking.CONTROL,
)

_MASTER: Final = "fastmilter: master"
_LOOK_S: Final = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser of the subcommand."""
    add_options(parser, OPTIONS, epilog=EXIT_STATUS)


def run(arguments: argparse.Namespace) -> int:
    """Stop it; return the exit status."""
    options = read_options(arguments, OPTIONS)
    request = {"command": "stop", "now": bool(options["now"])}
    if options["no_wait"]:
        return asking.order(arguments, request)
    with contextlib.ExitStack() as stack:
        ends = _Ends(stack)
        return asking.order(arguments, request, connected=ends.find, after=ends.wait)


class _Ends:
    """How it is learnt that the server is gone: from its process, or where that is not in sight from its socket."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        """Whatever is opened is closed with ``stack``."""
        self._stack = stack
        self._pidfd = -1

    def find(self, connection: socket.socket) -> None:
        """Find the master before the order: afterwards the number may be another process's.

        The kernel says who listens at the other end, by the numbers of our own pid namespace (0: it is in none that we
        see). Who is called otherwise is no master: something may stand between that passes on what is said.
        """
        if not hasattr(os, "pidfd_open"):
            return
        pid = process_of(connection)
        try:
            if pid and " ".join(psutil.Process(pid).cmdline()).startswith(_MASTER):
                self._pidfd = os.pidfd_open(pid)
                self._stack.callback(os.close, self._pidfd)
        except (OSError, psutil.Error):
            pass  # it cannot be looked at

    def wait(self, path: str, answer: dict[str, Any]) -> int:
        """Wait until the server has ended, or for as long as it says that this may take; return the exit status."""
        seconds = asking.limit_in(answer)
        if self._pidfd >= 0:
            is_gone = bool(select.select([self._pidfd], [], [], seconds)[0])
        else:
            is_gone = _is_let_go(path, seconds)
        if not is_gone:
            print(f"fastmilter: the server is still there after {seconds:.0f} s", file=sys.stderr)
            return asking.EXIT_REFUSED
        print("stopped")
        return 0


def _is_let_go(path: str, seconds: float) -> bool:
    """Tell whether within this time nobody is behind the control socket any more."""
    deadline = time.monotonic() + seconds
    while asking.answers(path):
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        select.select([], [], [], min(_LOOK_S, left))
    return True
