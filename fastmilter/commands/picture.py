"""The state of a server as lines of text, for ``status`` and ``top``."""

import time
from collections.abc import Sequence
from typing import Any, Final

from fastmilter.commands.terminal import Paper, harmless
from fastmilter.server.counters import GuardCount, GuardState

_COLOURS: Final = {
    "serving": "green",
    "starting": "yellow",
    "reloading": "yellow",
    "draining": "cyan",
    "stopping": "cyan",
}
_SLOW_S: Final = 2.0
"""A loop that has not turned for so long is worth a colour: it turns every second when there is nothing to do."""


def picture(status: dict[str, Any], paper: Paper, before: dict[str, Any] | None = None) -> list[str]:
    """Return what ``status`` says; with an earlier one ``before``, what has happened per second since too."""
    lines = _head(status, paper, before)
    lines += ["", *_workers(status, paper, before)]
    if status["in_flight"]:
        lines += ["", *_in_flight(status)]
    if status["guards"]:
        lines += ["", *_guards(status)]
    return lines


def _head(status: dict[str, Any], paper: Paper, before: dict[str, Any] | None) -> list[str]:
    state = paper.coloured(status["state"], _COLOURS.get(status["state"], ""))
    ready = "" if status["ready"] else paper.coloured(", takes no new connections", "red")
    messages = ", ".join(f"{name} {number}" for name, number in status["messages"].items() if number) or "none"
    reloads = f"{status['reloads']} reloads" + (
        f", {status['failed_reloads']} failed" if status["failed_reloads"] else ""
    )
    lines = [
        f"{harmless(status['filter'])}: {state}{ready}, pid {status['pid']}, up {duration(status['uptime'])},"
        f" generation {status['generation']} ({reloads})",
        f"listens on {', '.join(map(harmless, status['listen']))}",
        f"connections {status['connections']} open, {status['in_message']} in a message, {status['accepted']} accepted"
        + _rate(status, before, lambda each: each["accepted"]),
        f"messages {messages}" + _rate(status, before, lambda each: sum(each["messages"].values())),
        f"errors {status['errors']}, {status['exceptions']} of them exceptions of the filter",
    ]
    if status["error"]:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status["error"]["at"]))
        lines.append(paper.coloured(f"last trouble, {at}: {harmless(status['error']['text'])}", "red"))
    return lines


def _rate(status: dict[str, Any], before: dict[str, Any] | None, count: Any) -> str:
    seconds = status["at"] - before["at"] if before else 0.0
    return f" ({(count(status) - count(before)) / seconds:.1f}/s)" if before and seconds > 0 else ""


def _workers(status: dict[str, Any], paper: Paper, before: dict[str, Any] | None) -> list[str]:
    earlier = {each["pid"]: each for each in before["workers"]} if before else {}
    rows = [["worker", "pid", "gen", "state", "conns", "in msg", "messages", "errors", "cpu", "memory", "loop"]]
    workers = sorted(status["workers"], key=lambda each: (each["number"], each["generation"]))
    for each in workers:
        rows.append(
            [
                str(each["number"]),
                str(each["pid"]),
                str(each["generation"]),
                each["state"],
                str(each["connections"]),
                str(each["in_message"]),
                str(each["messages"]),
                str(each["errors"]),
                _cpu(each, earlier.get(each["pid"]), status["at"] - before["at"] if before else 0.0),
                size(each["resident_bytes"]),
                "-" if each["loop_age"] is None else f"{each['loop_age']:.1f} s",
            ]
        )
    lines = table(rows, left=(3,))
    for place, each in enumerate(workers, 1):
        state = each["state"]
        lines[place] = lines[place].replace(state, paper.coloured(state, _COLOURS.get(state, "")), 1)
        if (each["loop_age"] or 0.0) > _SLOW_S:
            lines[place] = paper.coloured(lines[place], "red")
    missing = status["workers_wanted"] - sum(each["state"] != "draining" for each in status["workers"])
    return lines + (
        [paper.coloured(f"{missing} of {status['workers_wanted']} are missing", "red")] if missing > 0 else []
    )


def _cpu(worker: dict[str, Any], before: dict[str, Any] | None, seconds: float) -> str:
    """Return the share of a processor since ``before``; without that, the time used since the start."""
    if worker["cpu_seconds"] is None:
        return "-"
    if before is None or before["cpu_seconds"] is None or seconds <= 0:
        return f"{worker['cpu_seconds']:.1f} s"
    return f"{(worker['cpu_seconds'] - before['cpu_seconds']) / seconds * 100:.0f} %"


def _in_flight(status: dict[str, Any]) -> list[str]:
    rows = [["in flight", "step", "age", "worker"]]
    for each in status["in_flight"]:
        step = each["step"] + (" (runs)" if each["running"] else "")
        rows.append([harmless(each["queue_id"] or "-"), step, duration(each["age"]), str(each["worker"])])
    return table(rows, left=(0, 1))


def _guards(status: dict[str, Any]) -> list[str]:
    rows = [["guard", "state", "running", *(count.name.lower() for count in GuardCount)]]
    for each in status["guards"]:
        states = [f"{state.name.lower()} {each['states'][state]}" for state in GuardState if each["states"][state]]
        rows.append(
            [harmless(each["guard"]), ", ".join(states) or "-", str(each["running"]), *map(str, each["counts"])]
        )
    return table(rows, left=(0, 1))


def table(rows: Sequence[Sequence[str]], *, left: Sequence[int] = ()) -> list[str]:
    """Return rows in columns, to the right but for those named; the first row is the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def duration(seconds: float) -> str:
    """Return a time for people.

    >>> duration(0.25), duration(75), duration(3725), duration(200000)
    ('0.2 s', '1 min 15 s', '1 h 2 min', '2 d 7 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def size(number: int | None) -> str:
    """Return bytes for people.

    >>> size(20 << 20), size(None)
    ('20.0 MB', '-')
    """
    return "-" if number is None else f"{number / (1 << 20):.1f} MB"
