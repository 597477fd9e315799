"""The exposition: what is in shared memory comes out under its name."""

import os
import re
from pathlib import Path

import pytest

from fastmilter.server.counters import (
    MOST_GUARDS,
    MOST_KEPT_GUARDS,
    NAME_BYTES,
    Count,
    Gauge,
    GuardCount,
    GuardState,
)
from fastmilter.server.metrics import METRICS, render, render_reference
from fastmilter.server.slots import Slots

OF_COUNTS = {
    Count.REFUSED: "fastmilter_connections_refused_total",
    Count.ACCEPT_FAILURES: "fastmilter_accept_failures_total",
    Count.INTERNAL_ERRORS: "fastmilter_internal_errors_total",
    Count.CALLBACK_TIMEOUTS: "fastmilter_callback_timeouts_total",
    Count.LATE_CALLBACKS: "fastmilter_late_callbacks_total",
}
OF_GAUGES = {
    Gauge.IN_MESSAGE: "fastmilter_messages_in_flight",
    Gauge.THREADS: "fastmilter_threads",
    Gauge.THREADS_BUSY: "fastmilter_threads_busy",
    Gauge.JOBS_WAITING: "fastmilter_jobs_waiting",
    Gauge.TASKS: "fastmilter_tasks",
    Gauge.READ_AHEAD_BYTES: "fastmilter_read_ahead_bytes",
}


def series(slots: Slots) -> dict[str, str]:
    return dict(line.rsplit(" ", 1) for line in render(slots).splitlines() if not line.startswith("#"))


@pytest.mark.parametrize(("count", "name"), OF_COUNTS.items())
def test_counts(count: Count, name: str) -> None:
    slots = Slots(2)
    slots.claim(0, pid=1, generation=1)
    assert series(slots)[name] == "0"
    slots.counters.tally(0).add(count, 3)
    assert series(slots)[name] == "3"
    slots.clear(0)
    assert series(slots)[name] == "3"


@pytest.mark.parametrize(("gauge", "name"), OF_GAUGES.items())
def test_gauges(gauge: Gauge, name: str) -> None:
    slots = Slots(2)
    for slot in (0, 1):
        slots.claim(slot, pid=1, generation=1, number=slot + 1)
        slots.counters.tally(slot).set(gauge, 3)
    assert series(slots)[name] == "6"
    slots.clear(0)
    assert series(slots)[name] == "3"


def test_guards() -> None:
    slots = Slots(1)
    slots.claim(0, pid=1, generation=1)
    slots.counters.tally(0).show_guard(0, "dns", GuardState.HALF_OPEN, 2, [count + 1 for count in GuardCount])
    found = series(slots)
    assert found['fastmilter_guards{guard="dns",state="half_open"}'] == "1"
    assert found['fastmilter_guards{guard="dns",state="open"}'] == "0"
    assert found['fastmilter_guard_running{guard="dns"}'] == "2"
    for count in GuardCount:
        assert found[f'fastmilter_guard_{count.name.lower()}_total{{guard="dns"}}'] == str(count + 1)


def test_a_worker_that_drains_and_its_successor_have_series_of_their_own() -> None:
    slots = Slots(2)
    for slot, pid in enumerate((os.getpid(), os.getppid())):
        slots.claim(slot, pid=pid, generation=1, number=1)
        slots.beat(slot, 1.0)
    names = [line.rpartition(" ")[0] for line in render(slots).splitlines() if not line.startswith("#")]
    assert sorted(names) == sorted(set(names))
    for name in ("resident_bytes", "cpu_seconds_total", "loop_age_seconds"):
        for pid in (os.getpid(), os.getppid()):
            assert f'fastmilter_worker_{name}{{worker="1",generation="1",pid="{pid}"}}' in names


def test_labels_are_those_of_the_table() -> None:
    slots = Slots(1)
    slots.claim(0, pid=os.getpid(), generation=1, number=1)
    slots.counters.tally(0).show_guard(0, "dns", GuardState.OPEN, 0, ())
    slots.beat(0, 1.0)
    found: dict[str, set[tuple[str, ...]]] = {}
    for name in series(slots):
        found.setdefault(name.partition("{")[0], set()).add(tuple(re.findall(r'(\w+)="', name)))
    for metric in METRICS:
        if metric.kind != "histogram":
            assert found[metric.name] == {metric.labels}, metric.name


def test_labels_are_escaped() -> None:
    slots = Slots(1)
    slots.claim(0, pid=1, generation=1)
    slots.counters.tally(0).show_guard(0, 'a"b\\c\nd', GuardState.OPEN, 0, ())
    assert 'fastmilter_guard_running{guard="a\\"b\\\\c\\nd"} 0' in render(slots)


def test_names_follow_the_customs() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS) >= 24
    for metric in METRICS:
        assert re.fullmatch(r"fastmilter_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.help.endswith(".")


def test_the_limits_of_guards_are_those_of_the_page() -> None:
    page = " ".join((Path(__file__).parents[2] / "docs" / "monitoring.md").read_text().split())
    assert f"the first {NAME_BYTES} bytes of their names" in page
    assert f"at most {MOST_GUARDS} names, and at most {MOST_KEPT_GUARDS} are kept" in page


def test_the_reference_is_what_the_table_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
    assert render_reference() in page, "put render_reference() of fastmilter.server.metrics into docs/monitoring.md"
