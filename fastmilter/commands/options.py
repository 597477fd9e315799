"""Options of the commands: one table each, made into a command line and read into values.

The rows of docs/commands.md are made from the same tables. What cannot be read is a ``UsageError`` that names the
option. (The server's table has two more sources, the environment and a file: ``server/settings.py``.)
"""

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

from fastmilter.errors import ConfigError
from fastmilter.server.options import Option
from fastmilter.server.settings import UsageError

__all__ = ["Option", "UsageError", "add_options", "flag", "one_of", "read_options", "render_options", "text"]


def text(value: object) -> str:
    """Read any text."""
    return str(value)


def flag(value: object) -> bool:
    """Read an option that takes no value."""
    return bool(value)


def one_of(*words: str) -> Any:
    """Return a reader of one of ``words``."""

    def read(value: object) -> str:
        if value in words:
            return str(value)
        raise ConfigError(f"{value!r} will not do: write {' or '.join(words)}")

    return read


def add_options(parser: argparse.ArgumentParser, options: Sequence[Option], *, epilog: str) -> None:
    """Add the options of a table to the parser of a command; ``epilog`` stands below them in its help."""
    for option in options:
        default = f" (default {option.default})" if option.default else ""
        shown = (option.help + default).replace("%", "%%")
        if option.positional:
            parser.add_argument(option.name, metavar=option.form, nargs="?", help=shown)
        elif option.flag:
            parser.add_argument(option.switch, dest=option.name, action="store_true", default=None, help=shown)
        else:
            action = "append" if option.repeat else "store"
            parser.add_argument(option.switch, dest=option.name, metavar=option.form, action=action, help=shown)
    parser.epilog = epilog


def read_options(arguments: argparse.Namespace, options: Sequence[Option]) -> dict[str, Any]:
    """Return the values of all options by name; ``None`` where neither a value nor a default was given."""
    values: dict[str, Any] = {}
    for option in options:
        given = getattr(arguments, option.name)
        if given is None:
            given = option.default
        try:
            values[option.name] = None if given is None else option.parse(given)
        except ConfigError as error:
            raise UsageError(f"{option.switch}: {error}") from None
    return values


def render_options(options: Iterable[Option]) -> str:
    """Return the rows of a table in Markdown."""
    lines = ["| option | default | meaning |", "| --- | --- | --- |"]
    for option in options:
        switch = option.switch if option.positional or option.flag else f"{option.switch} {option.form}"
        default = f"`{option.default}`" if option.default else ""
        lines.append(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in (f"`{switch}`", default, option.help)) + " |"
        )
    return "\n".join(lines)
