"""What a run of the benchmark leaves behind: the JSON document, from which table and chart are made."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

from bench.measure import Effort, Figures, Measured
from bench.programs import DEBIAN_PYTHON, ROOT
from bench.servers import Cores, steps


class Line(TypedDict):
    """One contestant under one traffic; medians over the rounds."""

    key: str
    label: str
    kind: str
    cpu_us: float
    cpu_us_of_rounds: list[float]
    per_second: float
    p50_us: float
    p99_us: float
    syscalls: float | None
    errors: int
    error_samples: list[str]
    edits: float
    resident: int
    load_cpu_share: float
    foreign_share: float
    answered: str
    """The commands that are answered before the end of the message, as letters of the protocol."""


class Section(TypedDict):
    """One row of the benchmark."""

    name: str
    title: str
    lines: list[Line]
    missing: list[str]


class Aim(TypedDict):
    """One aim and its figure; what real_mta.py, spread.py and memory.py return."""

    job: str
    aim: str
    value: float
    limit: float
    at_most: bool
    shown: str


class Document(TypedDict):
    """All of it."""

    made: str
    machine: dict[str, str]
    method: dict[str, Any]
    sections: list[Section]
    aims: list[Aim]
    missing: list[str]


def is_met(aim: Aim) -> bool:
    """Whether the figure keeps within its bound."""
    return aim["value"] <= aim["limit"] if aim["at_most"] else aim["value"] >= aim["limit"]


def section(measured: Measured) -> Section:
    """Make the section of a measured row."""
    return {
        "name": measured.row.name,
        "title": measured.row.title,
        "lines": [_line(key, figures) for key, figures in measured.results.items()],
        "missing": list(measured.missing),
    }


def _line(key: str, figures: Figures) -> Line:
    sample = figures.median
    return {
        "key": key,
        "label": figures.label,
        "kind": figures.kind,
        "cpu_us": round(sample.cpu_us, 2),
        "cpu_us_of_rounds": [round(value, 2) for value in figures.cpu_us_of_rounds],
        "per_second": round(sample.per_second, 1),
        "p50_us": sample.p50_us,
        "p99_us": sample.p99_us,
        "syscalls": None if figures.syscalls is None else round(figures.syscalls, 2),
        "errors": figures.errors,
        "error_samples": list(sample.said),
        "edits": sample.edits,
        "resident": sample.resident,
        "load_cpu_share": round(sample.load_cpu_share, 3),
        "foreign_share": round(sample.foreign_share, 3),
        "answered": steps(figures.protocol)[0],
    }


def aims(measured: Measured) -> tuple[list[Aim], list[str]]:
    """Return the aims of a measured row with their figures, and those that could not be judged, in words."""
    judged: list[Aim] = []
    missing = []
    for wanted in measured.row.wanted:
        value = wanted.figure(measured.results)
        if value is None:
            missing.append(f"{measured.row.title}: {wanted.aim}")
            continue
        judged.append(
            {
                "job": measured.row.title,
                "aim": wanted.aim,
                "value": round(value, 4),
                "limit": wanted.limit,
                "at_most": wanted.at_most,
                "shown": f"{value:.{wanted.digits}f}{wanted.unit}",
            }
        )
    return judged, missing


def document(
    sections: Iterable[Section], judged: Iterable[Aim], missing: Iterable[str], method: Mapping[str, Any]
) -> Document:
    """Put a document together, with this moment and this machine."""
    return {
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "method": dict(method),
        "sections": list(sections),
        "aims": list(judged),
        "missing": list(missing),
    }


def method(effort: Effort, cores: Cores, accounting: str, *, quick: bool) -> dict[str, Any]:
    """Say how it was measured."""
    return {
        "rounds": effort.rounds,
        "time_factor": effort.time_factor,
        "quick": quick,
        "cpu_accounting": accounting,
        "server_core": cores.server,
        "load_core": cores.load,
    }


def updated(former: Document, newer: Document) -> Document:
    """Return ``former`` with the sections and aims of ``newer`` in the place of its own; ratios are those of a row."""
    sections = {section["name"]: section for section in newer["sections"]}
    aims = {(aim["job"], aim["aim"]): aim for aim in newer["aims"]}
    kept = [aims.pop((aim["job"], aim["aim"]), aim) for aim in former["aims"]]
    return {
        **former,
        "sections": [sections.get(section["name"], section) for section in former["sections"]],
        "aims": [*kept, *aims.values()],
        "missing": newer["missing"],
    }


def write(content: Document, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> Document:
    return cast(Document, json.loads(path.read_text(encoding="utf-8")))


def machine() -> dict[str, str]:
    """Describe what it was measured on, as far as it can be found out."""
    return {
        "processor": _processor(),
        "processors": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.release()}",
        "distribution": _distribution(),
        "python": platform.python_version(),
        "compiler": _first_line(["cc", "--version"]),
        "libmilter": _first_line(["dpkg-query", "-W", "-f", "${Version}", "libmilter-dev"]),
        "pymilter": _first_line([DEBIAN_PYTHON, "-c", "import Milter; print(Milter.__version__)"]),
        "fastmilter": _first_line(["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--tags"]),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        return ""


def _first_line(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0].strip() if done.returncode == 0 else ""
