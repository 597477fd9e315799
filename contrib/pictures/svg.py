"""Text as a terminal shows it, as an SVG: characters in their columns, and the few colours that the commands use."""

import re
from collections.abc import Sequence
from html import escape
from typing import Final

_COLUMN: Final = 8.4
_LINE: Final = 19
_MARGIN: Final = 14
_SIZE: Final = 14
_STYLES: Final = {
    "31": 'fill="#ff7b72"',
    "32": 'fill="#7ee787"',
    "33": 'fill="#f2cc60"',
    "36": 'fill="#79c0ff"',
    "1": 'font-weight="bold"',
    "2": 'opacity="0.6"',
}
"""What the codes of ``fastmilter.commands.terminal`` look like; another one is a KeyError."""

_CODE: Final = re.compile(r"\x1b\[(\d+)m")


def svg(lines: Sequence[str], title: str) -> str:
    """Return a picture of lines with the codes for colours in them."""
    width = max(len(_CODE.sub("", line)) for line in lines) * _COLUMN + 2 * _MARGIN
    height = len(lines) * _LINE + 2 * _MARGIN
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" '
        f'height="{height}" font-family="ui-monospace, Menlo, Consolas, monospace" font-size="{_SIZE}" fill="#e6edf3">',
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" rx="6" fill="#0d1117"/>',
    ]
    for number, line in enumerate(lines):
        pieces = "".join(_pieces(line))
        if pieces:
            drawn.append(f'<text y="{number * _LINE + _MARGIN + _SIZE}" xml:space="preserve">{pieces}</text>')
    return "\n".join([*drawn, "</svg>", ""])


def _pieces(line: str) -> list[str]:
    """Return the parts of a line, each at its column and as wide as its characters whatever the font is."""
    found, column, style = [], 0, ""
    for place, piece in enumerate(_CODE.split(line)):
        if place % 2:
            style = "" if piece == "0" else f" {_STYLES[piece]}"
            continue
        if piece.strip():
            start, wide = _MARGIN + column * _COLUMN, len(piece) * _COLUMN
            found.append(f'<tspan x="{start:.1f}" textLength="{wide:.1f}"{style}>{escape(piece, quote=False)}</tspan>')
        column += len(piece)
    return found
