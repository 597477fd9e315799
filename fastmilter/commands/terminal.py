"""Text for people: what came over the wire made harmless, and colours and widths where there is a terminal.

In a pipe everything is plain and does not depend on the surroundings. ``NO_COLOR`` (https://no-color.org) counts.
"""

import argparse
import functools
import io
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any, Final

EXIT_PIPE: Final = 141
"""What a shell expects of a program whose reader (``head``, a pager) went away."""

PIPE_WIDTH: Final = 80
"""Columns of what is written to a pipe or a file, where lines are not cut but columns still have to end somewhere."""

CUT_BYTES: Final = 60
"""How much of a long value is shown."""

_COLOURS: Final = {"red": "31", "green": "32", "yellow": "33", "cyan": "36", "bold": "1", "dim": "2"}


class Paper:
    """Where a command writes: standard output, as it is."""

    def __init__(self) -> None:
        """Look at standard output once. A character that it cannot show is written as an escape from now on."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        self.is_terminal: Final = sys.stdout.isatty()
        self.colours: Final = self.is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self.width: Final = shutil.get_terminal_size((PIPE_WIDTH, 24)).columns if self.is_terminal else PIPE_WIDTH

    def coloured(self, words: str, colour: str) -> str:
        """Return ``words`` in a colour if there are colours."""
        return f"\x1b[{_COLOURS[colour]}m{words}\x1b[0m" if self.colours and colour else words


def until_the_reader_leaves(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Make of ``run`` a command that ends without a word when nobody reads its output any more."""

    @functools.wraps(run)
    def command(arguments: argparse.Namespace) -> int:
        try:
            status = run(arguments)
            sys.stdout.flush()
        except BrokenPipeError:
            # Python flushes standard output once more on its way out, which must not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_PIPE
        return status

    return command


def safe(data: bytes) -> str:
    r"""Return bytes as text without anything that could do something to a terminal.

    >>> safe(b"caf\xc3\xa9 \xff\x1b[31m\n")
    'café \\xff\\x1b[31m\\n'
    """
    return harmless(data.decode("utf-8", "backslashreplace"))


def harmless(words: str) -> str:
    r"""Return text with escapes in the place of what cannot be printed.

    >>> harmless("a\tb\u202ec")
    'a\\tb\\u202ec'
    """
    if words.isprintable():
        return words
    # A lone surrogate is a byte that was no UTF-8.
    return "".join(
        each
        if each.isprintable()
        else f"\\x{ord(each) - 0xDC00:02x}"
        if "\udc80" <= each <= "\udcff"
        else ascii(each)[1:-1]
        for each in words
    )


def quoted(data: bytes, *, full: bool = False) -> str:
    r"""Return bytes in quotes on one line, cut unless ``full``; says how many there are if they were cut.

    >>> quoted(b'say "a"')
    '"say \\"a\\""'
    >>> quoted(b"x" * 61)[-16:]
    'x"... (61 bytes)'
    """
    shown = safe((data if full else data[:CUT_BYTES]).replace(b"\\", b"\\\\")).replace('"', '\\"')
    return f'"{shown}"' + ("" if full or len(data) <= CUT_BYTES else f"... ({len(data)} bytes)")


def as_json(data: bytes) -> str | dict[str, str]:
    """Return bytes for JSON: a string if they are UTF-8, else ``{"hex": ...}``."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return {"hex": data.hex()}


def fields_as_json(value: Any) -> Any:
    """Return a field of a message for JSON: bytes by ``as_json``, tuples as lists."""
    if isinstance(value, bytes):
        return as_json(value)
    if isinstance(value, tuple):
        return [fields_as_json(each) for each in value]
    return value
