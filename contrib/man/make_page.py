"""Makes the manual page of ``fastmilter`` from the tables that ``--help`` is made from.

``python contrib/man/make_page.py > contrib/man/fastmilter.1``; a test compares the two.
"""

import importlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from fastmilter._version import __version__
from fastmilter.commands import EXIT_STATUS, SUBCOMMANDS
from fastmilter.commands.serve import SIGNALS
from fastmilter.server.options import FILTER_TABLE, Option

WHAT_IT_IS: Final = "milters (mail filters for Postfix and Sendmail) in Python"
DESCRIPTION: Final = (
    "A milter is a program that an MTA asks about every SMTP session, step by step. fastmilter runs one that is written"
    " as a class in Python, in several processes, and has commands to look at any milter."
)
ENVIRONMENT: Final = (
    "An option of fastmilter serve counts on the command line before the environment, there before the file of"
    " --config, and there before its default. In the environment, several values are separated by spaces or commas."
)
SEE_ALSO: Final = "docs/operations.md and docs/operators-guide.md of the distribution; postconf(5), milter(5)."


def render_page() -> str:
    """Return the page, in the man macros of roff."""
    lines = [
        '.\\" Made by contrib/man/make_page.py; do not edit by hand.',
        f'.TH FASTMILTER 1 "" "fastmilter {__version__}" "User Commands"',
        ".SH NAME",
        f"fastmilter \\- {_text(WHAT_IT_IS)}",
        ".SH SYNOPSIS",
        *_lines_between(".br", (f".B fastmilter {name}\n{_synopsis(_options(name))}" for name in SUBCOMMANDS)),
        ".SH DESCRIPTION",
        _text(DESCRIPTION),
    ]
    for name, what in SUBCOMMANDS.items():
        lines += [f".SH FASTMILTER {name.upper()}", _text(what[0].upper() + what[1:] + ".")]
        lines += [line for option in _options(name) for line in _option(option)]
        if name == "serve":
            lines += [".SS Signals", *_table(SIGNALS)]
        lines += [".SS Exit status", *_table(getattr(_module(name), "EXIT_STATUS", EXIT_STATUS))]
    lines += [".SH ENVIRONMENT", _text(ENVIRONMENT)]
    for option in _options("serve"):
        if option.in_environment:
            lines += [".TP", f".B {_text(option.variable)}", f"as {_text(option.switch)}"]
    lines += [".TP", f".B FASTMILTER_{FILTER_TABLE.upper()}", "options of the filter itself: a JSON object"]
    lines += [".SH SEE ALSO", _text(SEE_ALSO)]
    return "\n".join(lines) + "\n"


def _module(name: str) -> object:
    return importlib.import_module(f"fastmilter.commands.{name.replace('-', '_')}")


def _options(name: str) -> Sequence[Option]:
    return tuple(getattr(_module(name), "OPTIONS", ()))


def _synopsis(options: Iterable[Option]) -> str:
    words = [option.form for option in options if option.positional]
    return _text(" ".join([*words, "[OPTIONS]"]))


def _option(option: Option) -> Iterator[str]:
    default = f" (default {option.default})" if option.default else ""
    yield ".TP"
    if option.positional or option.flag:
        yield f".B {_text(option.switch)}"
    else:
        yield f'.BI {_text(option.switch)} " {_text(option.form)}"'
    yield _text(option.help + default)


def _table(text: str) -> Iterator[str]:
    """Yield the rows of a text whose lines are ``  NAME   meaning``, without its title."""
    for name, meaning in re.findall(r"^  (\S+(?:, \S+)*) +(.*)$", text, re.MULTILINE):
        yield from (".TP", f".B {_text(name)}", _text(meaning))


def _lines_between(separator: str, parts: Iterable[str]) -> Iterator[str]:
    for place, part in enumerate(parts):
        yield from ([separator] if place else [])
        yield part


def _text(text: str) -> str:
    """Return text as roff shows it."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq").replace("'", "\\(aq")
    return re.sub(r"^\.", r"\\&.", escaped, flags=re.MULTILINE)


if __name__ == "__main__":
    print(render_page(), end="")
