"""The chart of the README: CPU time per message, as SVG for light and dark pages alike."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from bench import results
from bench.report import cheapest_libmilter
from bench.results import Document, Line, Section

ROWS = ("typical-unix", "typical-kept", "typical-tcp", "noreply-unix", "answered-unix", "noop-tcp", "look-unix")

WIDTH = 820
LEFT = 16
BARS = 150  # where bars begin, right of their names
LONGEST = 440
BAR = 14
GAP = 5
TITLE = 24
BETWEEN = 16
TOP = 100
MACHINE = ("processor", "system", "distribution")

STYLE = """
text { font: 13px -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328; }
.head { font-size: 16px; font-weight: 600; }
.job { font-weight: 600; }
.small, .name { fill: #59636e; font-size: 12px; }
.figure { font-size: 12px; font-variant-numeric: tabular-nums; }
.fastmilter { fill: #0969da; }
.libmilter { fill: #bc4c00; }
.pymilter { fill: #9a6700; }
.raw { fill: #818b98; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; }
  .small, .name { fill: #9198a1; }
  .fastmilter { fill: #4493f8; }
  .libmilter { fill: #db6d28; }
  .pymilter { fill: #d29922; }
  .raw { fill: #656c76; }
}
"""


@dataclass(frozen=True)
class Bar:
    name: str
    style: str
    cpu_us: float
    note: str = ""


def bars(section: Section) -> list[Bar]:
    """Return what is drawn of a row: ours, the cheaper libmilter, pymilter, the limit, as far as measured."""
    lines: dict[str, Line] = {line["key"]: line for line in section["lines"]}
    drawn = []
    if "fastmilter" in lines:
        ours = lines["fastmilter"]
        libmilter = cheapest_libmilter(section, ours)
        drawn.append(Bar("fastmilter", "fastmilter", ours["cpu_us"]))
        if libmilter:
            note = f"{libmilter / ours['cpu_us']:.1f} times as much" if ours["cpu_us"] else ""
            drawn.append(Bar("libmilter (C)", "libmilter", libmilter, note))
    if "pymilter" in lines:
        drawn.append(Bar("pymilter", "pymilter", lines["pymilter"]["cpu_us"]))
    if "raw" in lines:
        drawn.append(Bar("raw C loop", "raw", lines["raw"]["cpu_us"]))
    return drawn


def draw(document: Document) -> str:
    """Return the chart; rows that were not measured are not in it."""
    sections = {section["name"]: section for section in document["sections"]}
    groups = [(sections[name]["title"], bars(sections[name])) for name in ROWS if name in sections]
    longest = max((bar.cpu_us for _, drawn in groups for bar in drawn), default=0) or 1
    parts = []
    y = TOP
    for title, drawn in groups:
        parts.append(_text(LEFT, y + 13, "job", title))
        y += TITLE
        for bar in drawn:
            parts += _bar(bar, y, LONGEST * bar.cpu_us / longest)
            y += BAR + GAP
        y += BETWEEN
    machine = document["machine"]
    heading = [
        _text(LEFT, 24, "head", "CPU time of the filter per message, in microseconds (shorter is better)"),
        _text(
            LEFT,
            46,
            "small",
            "One core, 50 connections, 20 header fields, 4 KB of body unless said. Raw C loop: neither",
        ),
        _text(
            LEFT,
            63,
            "small",
            "Raw C loop: the replies of fastmilter without parsing or callbacks, the least that is possible.",
        ),
        _text(LEFT, 80, "small", ", ".join(machine[key] for key in MACHINE if machine.get(key))),
    ]
    size = f'width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="CPU time per message">',
            f"<style>{STYLE}</style>",
            *heading,
            *parts,
            "</svg>\n",
        ]
    )


def _text(x: float, y: float, style: str, text: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{style}">{escape(text)}</text>'


def _bar(bar: Bar, y: float, length: float) -> list[str]:
    figure = f"{bar.cpu_us:.0f}" if bar.cpu_us >= 10 else f"{bar.cpu_us:.1f}"
    shown = f"{figure}  ({bar.note})" if bar.note else figure
    return [
        _text(LEFT + 12, y + 11, "name", bar.name),
        f'<rect x="{BARS}" y="{y}" width="{max(length, 1):.1f}" height="{BAR}" rx="2" class="{bar.style}"/>',
        _text(BARS + max(length, 1) + 6, y + 11, "figure", shown),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.chart", description="Draws the chart of a results.json.")
    parser.add_argument("results", type=Path)
    parser.add_argument("chart", type=Path)
    options = parser.parse_args()
    options.chart.write_text(draw(results.read(options.results)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
