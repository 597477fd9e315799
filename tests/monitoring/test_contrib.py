"""The dashboard and the alert rules use numbers that there are, and Prometheus understands them and the exposition."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastmilter.server.counters import GuardState
from fastmilter.server.metrics import METRICS, render
from fastmilter.server.slots import Slots

ROOT = Path(__file__).parents[2]
RULES = ROOT / "contrib" / "prometheus" / "alerts.yml"
DASHBOARD: dict[str, Any] = json.loads((ROOT / "contrib" / "grafana" / "fastmilter.json").read_text())


def known() -> dict[str, set[str]]:
    """Every name that is exported, and its labels."""
    names: dict[str, set[str]] = {}
    for metric in METRICS:
        labels = {*metric.labels, "job", "instance"}
        if metric.kind == "histogram":
            names |= {
                f"{metric.name}_bucket": labels | {"le"},
                f"{metric.name}_sum": labels,
                f"{metric.name}_count": labels,
            }
        else:
            names[metric.name] = labels
    return names


def rules() -> list[tuple[str, str]]:
    """The alerts and their expressions, each on one line of the file."""
    return re.findall(r"- alert: (\w+)\n +expr: (.+)\n", RULES.read_text())


def queries() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])


def expressions() -> list[tuple[str, str]]:
    return [*rules(), *queries()]


@pytest.mark.parametrize(("name", "expression"), expressions(), ids=lambda text: text[:40])
def test_every_name_and_label_is_exported(name: str, expression: str) -> None:
    names = set(re.findall(r"\bfastmilter_\w+", expression))
    assert names or "up{" in expression, f"{name} looks at nothing of ours"
    assert names <= set(known())
    labels = set(re.findall(r'[{,](\w+)(?:=~|!=|!~|=)"', expression))
    for listed in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
        labels |= {label.strip() for label in listed.split(",")}
    allowed = set.union({"job", "instance"}, *(known()[each] for each in names))
    assert labels <= allowed


def test_the_dashboard_shows_every_number() -> None:
    shown = set(re.findall(r"\bfastmilter_\w+", json.dumps(DASHBOARD)))
    assert shown == set(known())
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_values_of_labels_exist() -> None:
    """An alert on a state that there is not would never come."""
    text = render(served())
    for _, expression in expressions():
        for label, value in re.findall(r'[{,](\w+)(?:=|!=)"([^"$]+)"', expression):
            assert label == "job" or f'{label}="{value}"' in text, (label, value)


def served() -> Slots:
    """Shared memory as of a server with a guard."""
    slots = Slots(2)
    slots.claim(0, pid=1, generation=1, number=1)
    tally = slots.counters.tally(0)
    tally.show_guard(0, 'odd "name" \\', GuardState.OPEN, 2, (1, 2, 3, 4))
    tally.observe("on_mail", 0.02)
    slots.beat(0, 1.0)
    return slots


def test_prometheus_reads_the_exposition(promtool: str) -> None:
    done = subprocess.run(
        [promtool, "check", "metrics"], input=render(served()), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_prometheus_takes_the_rules(promtool: str) -> None:
    done = subprocess.run(
        [promtool, "check", "rules", str(RULES)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules())} rules found" in done.stdout


def test_prometheus_takes_the_queries_of_the_dashboard(promtool: str, tmp_path: Path) -> None:
    """As rules, since promtool checks those."""
    path = tmp_path / "queries.yml"
    real = [expression.replace("$__rate_interval", "5m") for _, expression in queries()]
    lines = [f"  - record: query:{number}\n    expr: {json.dumps(each)}" for number, each in enumerate(real)]
    path.write_text("groups:\n- name: dashboard\n  rules:\n" + "\n".join(lines) + "\n")
    done = subprocess.run(
        [promtool, "check", "rules", str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
