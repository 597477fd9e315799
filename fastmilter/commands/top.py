"""``fastmilter top``: what a server is doing, again and again until q or Ctrl-C.

Plain escapes of a terminal do here what a library for it would do: one screen, drawn anew from its upper left corner.
"""

import argparse
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from fastmilter.commands import asking
from fastmilter.commands.options import Option, UsageError, add_options, read_options
from fastmilter.commands.picture import picture
from fastmilter.commands.terminal import Paper, until_the_reader_leaves
from fastmilter.server.options import parse_duration

EXIT_STATUS: Final = """\
exit status:
  0   ended by q or Ctrl-C
  4   the server could not be asked, or is gone
  64  the command line cannot be used, or there is no terminal
"""

OPTIONS: Final = (
    Option("interval", parse_duration, "2", "SECONDS", "how often to look"),
    asking.CONTROL,
)

_ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l"
"""Another screen, no cursor, lines that are cut and not wrapped."""
_LEAVE: Final = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_HOME: Final = "\x1b[H"
_END_OF_LINE: Final = "\x1b[K"
_REST: Final = "\x1b[J"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser of the subcommand."""
    add_options(parser, OPTIONS, epilog=EXIT_STATUS)


@until_the_reader_leaves
def run(arguments: argparse.Namespace) -> int:
    """Show the status until it is enough; return the exit status."""
    options = read_options(arguments, OPTIONS)
    paper = Paper()
    if not paper.is_terminal:
        raise UsageError("top needs a terminal; fastmilter status prints the same once")
    path = asking.find_control(options["control"])
    try:
        with _screen():
            _watch(path, paper, options["interval"])
    except asking.Unreachable as error:
        print(f"fastmilter: {error}", file=sys.stderr)
        return asking.EXIT_UNREACHABLE
    except KeyboardInterrupt:
        pass
    return 0


def _watch(path: str, paper: Paper, interval: float) -> None:
    before: dict[str, Any] | None = None
    while True:
        answer = asking.ask(path, {"command": "status"})
        if not answer["ok"]:
            raise asking.Unreachable(answer["text"])
        _draw(picture(answer["status"], paper, before))
        before = answer["status"]
        if _key_within(interval) in ("q", "Q", "\x03"):
            return


def _draw(lines: list[str]) -> None:
    height = shutil.get_terminal_size((80, 24)).lines
    head = f"fastmilter top  {time.strftime('%H:%M:%S')}  q: end"
    shown = [head, "", *lines][: height - 1]
    sys.stdout.write(_HOME + "".join(f"{line}{_END_OF_LINE}\r\n" for line in shown) + _REST)
    sys.stdout.flush()


def _key_within(seconds: float) -> str:
    """Return a key that is pressed in time, "" if none is; "q" if nobody could press one any more."""
    if not sys.stdin.isatty():
        select.select([], [], [], seconds)
        return ""
    if not select.select([sys.stdin], [], [], seconds)[0]:
        return ""
    return sys.stdin.read(1) or "q"


@contextmanager
def _screen() -> Iterator[None]:
    """Take the terminal for the time of the block: another screen, no cursor, keys as they are pressed."""
    former = termios.tcgetattr(sys.stdin) if sys.stdin.isatty() else None
    if former is not None:
        tty.setcbreak(sys.stdin)
    sys.stdout.write(_ENTER)
    try:
        yield
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        if former is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, former)
