"""The numbers of a server in the text format of Prometheus: one table says what there is.

``METRICS`` is the only place where a metric stands: the exposition, the reference in docs/monitoring.md and the tests
of the dashboard and the alert rules are made from it. Names follow Prometheus's customs: base units, ``_total`` for
what only grows, which is summed over all workers, those that are gone included.

Source: Prometheus, "Exposition formats", text format version 0.0.4.
"""

import platform
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

from fastmilter._version import __version__
from fastmilter.negotiation import STEP_NUMBERS
from fastmilter.server.counters import (
    BUCKETS_S,
    CALLED,
    ENDS,
    OUTCOMES,
    TIMED,
    Count,
    Gauge,
    GuardCount,
    GuardState,
    Of,
    Totals,
)
from fastmilter.server.slots import Slots
from fastmilter.server.status import is_ready, snapshot
from fastmilter.session import ADMISSIBLE

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[dict[str, str], float]
"""Labels and a value."""


class Scene(NamedTuple):
    """What the metrics of one moment are read from."""

    slots: Slots
    totals: Totals
    status: dict[str, Any]

    def of_server(self, what: int) -> int:
        """Return a number of the master."""
        return self.slots.counters.of_server(what)

    def gauges(self, gauge: Gauge) -> int:
        """Return a gauge, summed over the workers that live."""
        return sum(self.slots.counters.gauge(slot, gauge) for slot in self.slots.active())


class Metric(NamedTuple):
    """A row of the table."""

    name: str
    kind: str
    help: str
    samples: Callable[[Scene], Iterable[Sample]]
    labels: tuple[str, ...] = ()


def _one(value: float) -> list[Sample]:
    return [({}, value)]


def _count(count: Count) -> Callable[[Scene], list[Sample]]:
    return lambda scene: _one(scene.totals[count])


def _gauge(gauge: Gauge) -> Callable[[Scene], list[Sample]]:
    return lambda scene: _one(scene.gauges(gauge))


def _of(what: Of) -> Callable[[Scene], list[Sample]]:
    return lambda scene: _one(scene.of_server(what))


def _states(scene: Scene) -> list[Sample]:
    states = [worker["state"] for worker in scene.status["workers"]]
    return [({"state": state}, states.count(state)) for state in ("starting", "serving", "draining")]


def _silences(scene: Scene) -> list[Sample]:
    kinds = {"negotiation": Count.SILENT_NEGOTIATION, "packet": Count.SILENT_PACKET, "idle": Count.SILENT_IDLE}
    return [({"phase": phase}, scene.totals[count]) for phase, count in kinds.items()]


def _verdicts(scene: Scene) -> Iterator[Sample]:
    for step, number in STEP_NUMBERS.items():
        for outcome in OUTCOMES[1:-1]:
            given = scene.totals.verdicts(str(step), outcome)
            if given or outcome.partition("_")[0] in ADMISSIBLE[number]:
                yield {"step": str(step), "verdict": outcome}, given


def _guards(count: GuardCount) -> Callable[[Scene], list[Sample]]:
    return lambda scene: [({"guard": each["guard"]}, each["counts"][count]) for each in scene.status["guards"]]


def _guard_states(scene: Scene) -> list[Sample]:
    return [
        ({"guard": each["guard"], "state": state.name.lower()}, each["states"][state])
        for each in scene.status["guards"]
        for state in GuardState
    ]


_OF_WORKER: Final = {"worker": "number", "generation": "generation", "pid": "pid"}
"""Labels of a worker, and what of it they tell. A worker that drains and its successor differ in ``pid`` only."""


def _each_worker(key: str) -> Callable[[Scene], list[Sample]]:
    return lambda scene: [
        ({label: str(worker[of]) for label, of in _OF_WORKER.items()}, worker[key])
        for worker in scene.status["workers"]
        if worker[key] is not None
    ]


METRICS: Final = (
    Metric(
        "fastmilter_build_info",
        "gauge",
        "Version of fastmilter and of Python; always 1.",
        lambda _: [({"version": __version__, "python": platform.python_version()}, 1)],
        ("version", "python"),
    ),
    Metric(
        "fastmilter_start_time_seconds",
        "gauge",
        "When the server started, Unix time.",
        lambda scene: _one(scene.slots.counters.time_of(Of.STARTED_AT)),
    ),
    Metric(
        "fastmilter_ready",
        "gauge",
        "1 if at least one worker takes new connections.",
        lambda scene: _one(is_ready(scene.slots)),
    ),
    Metric("fastmilter_generation", "gauge", "Generation of workers that serves; a reload adds 1.", _of(Of.GENERATION)),
    Metric("fastmilter_workers_wanted", "gauge", "Workers that there should be.", _of(Of.WANTED)),
    Metric("fastmilter_workers", "gauge", "Workers that there are, by state.", _states, ("state",)),
    Metric("fastmilter_worker_starts_total", "counter", "Workers started.", _of(Of.STARTS)),
    Metric(
        "fastmilter_worker_ends_total",
        "counter",
        "Workers that ended: drained (asked to), killed (by a signal, also of --kill-hung or for want of memory), "
        "crashed, failed (status), config (78).",
        lambda scene: [({"reason": each}, scene.of_server(Of.DRAINED + n)) for n, each in enumerate(ENDS)],
        ("reason",),
    ),
    Metric(
        "fastmilter_reloads_total",
        "counter",
        "Reloads that ended, by result: ok, or failed, where the old workers stayed.",
        lambda scene: [
            ({"result": "ok"}, scene.of_server(Of.RELOADS)),
            ({"result": "failed"}, scene.of_server(Of.FAILED_RELOADS)),
        ],
        ("result",),
    ),
    Metric("fastmilter_monitor_starts_total", "counter", "Monitor processes started.", _of(Of.MONITOR_STARTS)),
    Metric(
        "fastmilter_connections",
        "gauge",
        "Connections of MTAs that are open.",
        lambda scene: _one(scene.status["connections"]),
    ),
    Metric("fastmilter_connections_accepted_total", "counter", "Connections accepted.", _count(Count.ACCEPTED)),
    Metric(
        "fastmilter_connections_refused_total",
        "counter",
        "Connections closed at once: a peer that may not, or a limit.",
        _count(Count.REFUSED),
    ),
    Metric(
        "fastmilter_connections_timed_out_total",
        "counter",
        "Connections closed because the MTA was silent: before the negotiation, in a packet, between packets (idle).",
        _silences,
        ("phase",),
    ),
    Metric(
        "fastmilter_accept_failures_total",
        "counter",
        "Times that no connection could be accepted for want of descriptors or memory.",
        _count(Count.ACCEPT_FAILURES),
    ),
    Metric("fastmilter_received_bytes_total", "counter", "Bytes received from MTAs.", _count(Count.BYTES_READ)),
    Metric("fastmilter_messages_in_flight", "gauge", "Messages between MAIL and their end.", _gauge(Gauge.IN_MESSAGE)),
    Metric(
        "fastmilter_messages_total",
        "counter",
        "Messages that ended, by verdict; dropped: RSET, or a client or an MTA that went away.",
        lambda scene: [({"verdict": each}, scene.totals.messages(each)) for each in OUTCOMES if each != "skip"],
        ("verdict",),
    ),
    Metric(
        "fastmilter_verdicts_total",
        "counter",
        "Verdicts other than continue, by the step that they were given for, failed callbacks included.",
        _verdicts,
        ("step", "verdict"),
    ),
    Metric("fastmilter_edits_total", "counter", "Modifications sent.", _count(Count.EDITS)),
    Metric(
        "fastmilter_callback_seconds",
        "histogram",
        "Time that callbacks took, by step; other: those of no step, such as on_close.",
        lambda _: [],  # see _histogram
        ("step",),
    ),
    Metric(
        "fastmilter_callback_exceptions_total",
        "counter",
        "Callbacks that raised, by name.",
        lambda scene: [({"callback": each}, scene.totals.exceptions(each)) for each in CALLED],
        ("callback",),
    ),
    Metric(
        "fastmilter_callback_timeouts_total",
        "counter",
        "Callbacks that ran out of time and were answered for.",
        _count(Count.CALLBACK_TIMEOUTS),
    ),
    Metric(
        "fastmilter_late_callbacks_total",
        "counter",
        "Callbacks that went on after their time was up, and ended later.",
        _count(Count.LATE_CALLBACKS),
    ),
    Metric(
        "fastmilter_complaints_total",
        "counter",
        "Warnings about the filter or the MTA: an inadmissible verdict, a step out of order.",
        _count(Count.COMPLAINTS),
    ),
    Metric(
        "fastmilter_protocol_errors_total",
        "counter",
        "Connections closed because the peer broke the protocol.",
        _count(Count.PROTOCOL_ERRORS),
    ),
    Metric(
        "fastmilter_negotiation_failures_total",
        "counter",
        "Connections closed because MTA and filter could not agree.",
        _count(Count.NEGOTIATION_FAILURES),
    ),
    Metric(
        "fastmilter_internal_errors_total",
        "counter",
        "Connections closed because of a fault of fastmilter itself.",
        _count(Count.INTERNAL_ERRORS),
    ),
    Metric("fastmilter_threads", "gauge", "Threads for callbacks.", _gauge(Gauge.THREADS)),
    Metric("fastmilter_threads_busy", "gauge", "Threads that run a callback.", _gauge(Gauge.THREADS_BUSY)),
    Metric("fastmilter_jobs_waiting", "gauge", "Callbacks that wait for a thread.", _gauge(Gauge.JOBS_WAITING)),
    Metric("fastmilter_tasks", "gauge", "Callbacks that run as tasks of an event loop.", _gauge(Gauge.TASKS)),
    Metric(
        "fastmilter_read_ahead_bytes",
        "gauge",
        "Bytes received while a callback of their connection runs.",
        _gauge(Gauge.READ_AHEAD_BYTES),
    ),
    Metric(
        "fastmilter_guards",
        "gauge",
        "Workers in which a guard (circuit breaker) of the filter is in a state.",
        _guard_states,
        ("guard", "state"),
    ),
    Metric(
        "fastmilter_guard_running",
        "gauge",
        "Calls under a guard that run now.",
        lambda scene: [({"guard": each["guard"]}, each["running"]) for each in scene.status["guards"]],
        ("guard",),
    ),
    *(
        Metric(f"fastmilter_guard_{count.name.lower()}_total", "counter", text, _guards(count), ("guard",))
        for count, text in {
            GuardCount.CALLS: "Calls that a guard let through.",
            GuardCount.FAILURES: "Calls under a guard that failed.",
            GuardCount.REFUSED: "Calls that a guard did not let through.",
            GuardCount.OPENED: "Times that a guard opened.",
        }.items()
    ),
    Metric(
        "fastmilter_worker_resident_bytes",
        "gauge",
        "Resident memory of a worker.",
        _each_worker("resident_bytes"),
        tuple(_OF_WORKER),
    ),
    Metric(
        "fastmilter_worker_cpu_seconds_total",
        "counter",
        "Processor time of a worker; begins anew with its process.",
        _each_worker("cpu_seconds"),
        tuple(_OF_WORKER),
    ),
    Metric(
        "fastmilter_worker_loop_age_seconds",
        "gauge",
        "Time since the loop of a worker last turned: above 2, it runs a callback that takes long.",
        _each_worker("loop_age"),
        tuple(_OF_WORKER),
    ),
)
"""Every metric, in the order of the documentation."""


def render(slots: Slots, status: dict[str, Any] | None = None) -> str:
    """Return all metrics as Prometheus reads them."""
    totals = Totals(slots.counters.totals(slots.in_use()))
    scene = Scene(slots, totals, status or snapshot(slots, name="", pid=0, listen=[]))
    lines = []
    for metric in METRICS:
        lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
        if metric.kind == "histogram":
            lines += _histogram(metric.name, totals)
        else:
            lines += [f"{metric.name}{_labels(labels)} {_number(value)}" for labels, value in metric.samples(scene)]
    return "\n".join(lines) + "\n"


def _histogram(name: str, totals: Totals) -> Iterator[str]:
    bounds = [*map(_number, BUCKETS_S), "+Inf"]
    for what in TIMED:
        counts, seconds = totals.times(what)
        for bound, count in zip(bounds, counts, strict=True):
            yield f"{name}_bucket{_labels({'step': what, 'le': bound})} {count}"
        yield f"{name}_sum{_labels({'step': what})} {_number(seconds)}"
        yield f"{name}_count{_labels({'step': what})} {counts[-1]}"


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def render_reference() -> str:
    """Return the table of all metrics in Markdown, as it stands in docs/monitoring.md."""
    lines = ["| metric | type | labels | meaning |", "| --- | --- | --- | --- |"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(lines)
