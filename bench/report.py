"""Results as the table that make bench prints."""

from __future__ import annotations

from collections.abc import Iterable

from bench.measure import DISTURBED, LIBMILTER
from bench.results import Aim, Document, Line, Section, is_met

LABEL = 36
COLUMNS = (
    ("CPU us", "/message"),
    ("messages", "/s"),
    ("p50", "us"),
    ("p99", "us"),
    ("calls", "/message"),
    ("replies", "to"),
    ("", "errors"),
    ("libmilter", "/ this"),
    ("raw", "/ this"),
)
FULL = 0.9  # of its core: then the load generator's speed is shown, not the server's


def head() -> str:
    """Return the head of the table."""
    return "\n".join(" " * LABEL + "".join(f"{column[i]:>10}" for column in COLUMNS) for i in (0, 1))


def section_table(section: Section) -> str:
    """Return one row of the benchmark as lines of the table."""
    lines = ["", f"{section['title']}  [{section['name']}]"]
    lines += [_line(line, section) for line in section["lines"]]
    lines += [f"  not measured: {text}" for text in section["missing"]]
    disturbed = max((line["foreign_share"] for line in section["lines"]), default=0)
    if disturbed > DISTURBED:
        lines.append(f"  disturbed: other programs had up to {disturbed:.0%} of the server's core; measure again")
    for line in section["lines"]:
        lines += [f"  {line['label']} gave an error: {text}" for text in line["error_samples"]]
    return "\n".join(lines)


def suffix(key: str) -> str:
    """Return what distinguishes lines of one kind within a row: ``raw@50`` belongs to ``fastmilter@50``."""
    return key.partition("@")[2]


def cheapest_libmilter(section: Section, line: Line) -> float | None:
    """CPU per message of the cheaper of libmilter's builds under the same traffic as ``line``."""
    costs = [
        other["cpu_us"]
        for other in section["lines"]
        if other["kind"] in LIBMILTER and suffix(other["key"]) == suffix(line["key"])
    ]
    return min(costs) if costs else None


def raw_loop(section: Section, line: Line) -> float | None:
    """CPU per message of the raw loop under the same traffic as ``line``."""
    for other in section["lines"]:
        if other["kind"] == "raw" and suffix(other["key"]) == suffix(line["key"]):
            return other["cpu_us"]
    return None


def _ratio(cost: float | None, line: Line) -> str:
    return f"{cost / line['cpu_us']:.2f}" if cost and line["cpu_us"] else "-"


def _line(line: Line, section: Section) -> str:
    calls = "-" if line["syscalls"] is None else f"{line['syscalls']:.1f}"
    speed = f"{line['per_second']:.0f}" + ("*" if line["load_cpu_share"] > FULL else "")
    return (
        f"  {line['label']:<{LABEL - 2}}{line['cpu_us']:>10.1f}{speed:>10}{line['p50_us']:>10.0f}"
        f"{line['p99_us']:>10.0f}{calls:>10}{line['answered']:>10}{line['errors']:>10}"
        f"{_ratio(cheapest_libmilter(section, line), line):>10}{_ratio(raw_loop(section, line), line):>10}"
    )


def notes(document: Document) -> str:
    """Return what one must know to read the table."""
    method, machine = document["method"], document["machine"]
    return "\n".join(
        [
            "",
            f"CPU time: {method['cpu_accounting']}. Medians of {method['rounds']} interleaved rounds; server on core "
            f"{method['server_core']}, load on core {method['load_core']}.",
            "libmilter / this: CPU per message of the cheaper of libmilter's two builds, divided by this line's; raw / "
            "this: the raw loop's.",
            "replies to: commands that are answered before the end of the message, by their letters in the protocol.",
            "*: the load generator's core was full: the figure is its speed, not the server's.",
            ", ".join(f"{name} {value}" for name, value in machine.items() if value),
        ]
    )


def aims_table(aims: Iterable[Aim], missing: Iterable[str] = ()) -> str:
    """Return the aims, their figures, and whether they are met."""
    rows = [("job", "aim", "", "measured", "")]
    for aim in aims:
        bound = f"{'at most' if aim['at_most'] else 'at least'} {aim['limit']:g}"
        rows.append((aim["job"], aim["aim"], bound, aim["shown"], "met" if is_met(aim) else "MISSED"))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *(f"not measured: {text}" for text in missing)])


def whole(document: Document) -> str:
    """Return everything, as ``make bench`` prints it."""
    parts = [head(), *(section_table(section) for section in document["sections"]), notes(document), ""]
    return "\n".join([*parts, aims_table(document["aims"], document["missing"])])
