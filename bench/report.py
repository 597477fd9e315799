"""Results as a table."""

from __future__ import annotations

from bench.measure import Figures, Measured, best_libmilter

COLUMNS = (
    ("CPU us", "/message"),
    ("messages", "/s"),
    ("p50", "us"),
    ("p99", "us"),
    ("calls", "/message"),
    ("", "errors"),
    ("libmilter", "/ this"),
    ("of raw", "speed"),
)
HEAD, UNITS = (" " * 34 + "".join(f"{column[i]:>10}" for column in COLUMNS) for i in (0, 1))


def table(measured: Measured) -> str:
    """Return one row of the benchmark as lines of text."""
    lines = [measured.row.title, HEAD, UNITS]
    lines += [_line(figures, measured) for figures in measured.results.values()]
    lines += [f"  missing: {text}" for text in measured.missing]
    lines += [f"  {text}" for text in aims(measured)]
    return "\n".join(lines)


def _line(figures: Figures, measured: Measured) -> str:
    sample = figures.median
    libmilter = best_libmilter(measured.results, lambda other: other.median.cpu_us)
    raw = measured.results.get("raw")
    calls = "-" if figures.syscalls is None else f"{figures.syscalls:.1f}"
    against = f"{libmilter / sample.cpu_us:.2f}" if libmilter and sample.cpu_us else "-"
    of_raw = f"{raw.median.cpu_us / sample.cpu_us:.2f}" if raw and sample.cpu_us else "-"
    return (
        f"  {figures.label:<32}{sample.cpu_us:>10.1f}{sample.per_second:>10.0f}{sample.p50_us:>10.0f}"
        f"{sample.p99_us:>10.0f}{calls:>10}{figures.errors:>10}{against:>10}{of_raw:>10}"
    )


def aims(measured: Measured) -> list[str]:
    lines = []
    for wanted in measured.row.wanted:
        value = wanted.figure(measured.results)
        if value is None:
            lines.append(f"{wanted.aim}: not measured")
            continue
        met = value <= wanted.limit if wanted.at_most else value >= wanted.limit
        sign = "<=" if wanted.at_most else ">="
        lines.append(f"{wanted.aim}: {value:.2f} (aim {sign} {wanted.limit:g}): {'met' if met else 'MISSED'}")
    return lines
