"""``fastmilter top``: what a server is doing, again and again until q or Ctrl-C.

Plain escapes of a terminal do here what a library for it would do: one screen, drawn anew from its upper left corner.
"""

import argparse
import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, NoReturn

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

_MOST_KEYS: Final = 64
_END_KEYS: Final = (b"q", b"Q", b"\x03")
_ENDS: Final = (signal.SIGTERM, signal.SIGHUP)


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
    try:
        path = asking.find_control(options["control"])
        with _screen():
            _watch(path, paper, options["interval"])
    except (asking.Unreachable, asking.Refused) as error:
        print(f"fastmilter: {error}", file=sys.stderr)
        return asking.EXIT_UNREACHABLE
    except KeyboardInterrupt:
        pass
    return 0


def _watch(path: str, paper: Paper, interval: float) -> None:
    before: dict[str, Any] | None = None
    while True:
        status = asking.ask_status(path)
        _draw(picture(status, paper, before))
        before = status
        if _is_ended_within(interval):
            return


def _draw(lines: list[str]) -> None:
    height = shutil.get_terminal_size((80, 24)).lines
    head = f"fastmilter top  {time.strftime('%H:%M:%S')}  q: end"
    shown = [head, "", *lines][: height - 1]
    sys.stdout.write(_HOME + "".join(f"{line}{_END_OF_LINE}\r\n" for line in shown) + _REST)
    sys.stdout.flush()


def _is_ended_within(seconds: float) -> bool:
    """Tell whether a key that ends this is pressed in time, or nobody could press one any more."""
    if not sys.stdin.isatty():
        select.select([], [], [], seconds)
        return False
    fd, deadline = sys.stdin.fileno(), time.monotonic() + seconds
    while select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
        # Bytes: a key may be no text, or half of it.
        keys = b""
        with contextlib.suppress(OSError):  # the terminal is gone
            keys = os.read(fd, _MOST_KEYS)
        if not keys or any(key in keys for key in _END_KEYS):
            return True
    return False


@contextmanager
def _screen() -> Iterator[None]:
    """Take the terminal for the time of the block: another screen, no cursor, keys as they are pressed.

    It is given back also if a signal ends the program; the exit status is then the one that a shell would show.
    """
    former = termios.tcgetattr(sys.stdin) if sys.stdin.isatty() else None
    handlers = {number: signal.signal(number, _leave) for number in _ENDS}
    try:
        if former is not None:
            tty.setcbreak(sys.stdin)
        sys.stdout.write(_ENTER)
        yield
    finally:
        for number in _ENDS:
            signal.signal(number, signal.SIG_IGN)  # nothing shall come between now
        with contextlib.suppress(OSError, termios.error):  # the terminal may be gone
            sys.stdout.write(_LEAVE)
            sys.stdout.flush()
        with contextlib.suppress(OSError, termios.error):
            if former is not None:
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, former)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
