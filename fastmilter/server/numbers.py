"""Reading numbers that options have; ``ConfigError`` says what would be right."""

import re
from typing import Final

from fastmilter.errors import ConfigError

MAX_BACKLOG: Final = 65535
MOST: Final = 100_000_000
"""The most of what has no limit of its own."""


def whole_number(value: object, lowest: int, highest: int, form: str) -> int:
    """Read a whole number from ``lowest`` to ``highest``; ``form`` says how it is written."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        raise ConfigError(f"{value!r} will not do: write {form}")
    if value > highest:
        raise ConfigError(f"{value} is too many: the most is {highest}")
    return value


def parse_number(value: object) -> int:
    """Read a number of things, from 1."""
    return whole_number(value, 1, MOST, "a whole number from 1")


def parse_backlog(value: object) -> int:
    """Read how many connections may wait to be accepted."""
    return whole_number(value, 1, MAX_BACKLOG, "a whole number from 1")


_SIZE: Final = re.compile(r"([0-9]{1,12})([kmg]?)(i?b)?", re.ASCII | re.IGNORECASE)
_SHIFTS: Final = {"": 0, "k": 10, "m": 20, "g": 30}
MAX_SIZE: Final = 1 << 46


def parse_size(value: object) -> int:
    """Read a size; return bytes.

    >>> parse_size("300M"), parse_size("1GiB"), parse_size(4096)
    (314572800, 1073741824, 4096)
    """
    match = None if isinstance(value, bool) else _SIZE.fullmatch(str(value).strip().replace(" ", ""))
    if match is None:
        raise ConfigError(f"{value!r} is not a size: write bytes, or a number with K, M or G")
    size = int(match[1]) << _SHIFTS[match[2].lower()]
    if not 0 < size <= MAX_SIZE:
        raise ConfigError(f"{value!r} is out of range: a size is above 0 and at most {MAX_SIZE >> 30}G")
    return size


def parse_limit(value: object) -> int:
    """Read the most of something; 0 is "unlimited".

    >>> parse_limit("100"), parse_limit("unlimited")
    (100, 0)
    """
    return 0 if value == "unlimited" else whole_number(value, 1, MOST, "a whole number from 1, or unlimited")


def parse_limit_or_auto(value: object) -> int:
    """Read the most of something; 0 is "auto"."""
    return 0 if value == "auto" else whole_number(value, 1, MOST, "a whole number from 1, or auto")
