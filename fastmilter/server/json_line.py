"""A line of the log as a JSON object that the strictest parser takes, and that is no longer than it may be."""

import bisect
import json
from typing import Final

_CUT: Final = "..."
"""Stands where something was left out."""
_SHORT: Final = 16
"""A text that is not cut, to gain nothing: bytes as JSON."""


def json_line(fields: dict[str, object], most: int | None = None) -> str:
    r"""Return an object in ASCII; if it were longer than ``most`` bytes, its longest texts are cut in the middle.

    A lone surrogate (a byte that is not UTF-8) is shown: many parsers refuse a line that has one, and whoever sent it
    would be in no log.

    >>> print(json_line({"helo": "caf\udce9"}))
    {"helo": "caf\\udce9"}
    >>> print(json_line({"message": "from " + "x" * 1000 + " to", "pid": 4711}, 48))
    {"message": "from xxxx...xxxxx to", "pid": 4711}
    """
    line = json.dumps(fields)
    if "\\ud" in line:  # rare, and also of what is no lone surrogate
        fields = {name: _shown(value) if isinstance(value, str) else value for name, value in fields.items()}
        line = json.dumps(fields)
    return line if most is None or len(line) <= most else _shortened(fields, most)


def _shown(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _shortened(fields: dict[str, object], most: int) -> str:
    texts = {name: value for name, value in fields.items() if isinstance(value, str)}
    # No text fits whose characters are more than the line may have bytes; what is left is quick to measure.
    texts = {name: _ends(text, most) if len(text) > most else text for name, text in texts.items()}
    sizes = {name: _size(text) for name, text in texts.items()}
    while (too_many := len(line := json.dumps({**fields, **texts})) - most) > 0:
        longest = max(sizes, key=sizes.__getitem__, default="")
        size = sizes.get(longest, 0)
        if size <= _SHORT:
            break
        texts[longest] = _cut(texts[longest], max(size // 2, size - too_many))  # two long ones share what there is
        sizes[longest] = _size(texts[longest])
    return line


def _cut(text: str, most: int) -> str:
    """Leave out the middle of a text, so that it is at most so many bytes as JSON."""
    count = bisect.bisect_right(range(len(text)), most, key=lambda count: _size(_ends(text, count)))
    return _ends(text, max(count - 1, 0))


def _ends(text: str, count: int) -> str:
    """Return the first and last characters, ``count`` of them."""
    last = count // 2
    return text[: count - last] + _CUT + text[len(text) - last :]


def _size(text: str) -> int:
    return len(json.dumps(text))
