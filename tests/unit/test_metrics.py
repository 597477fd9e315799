"""The exposition: what is in shared memory comes out under its name."""

import re
from pathlib import Path

import pytest

from fastmilter.server.counters import Count, Gauge, GuardCount, GuardState
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


def test_the_reference_is_what_the_table_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
    assert render_reference() in page, "put render_reference() of fastmilter.server.metrics into docs/monitoring.md"
