"""What a server is doing, as plain data: read from shared memory, and from the system what it knows of the processes.

Used by the monitor only, which may be asked at any time. Ages are seconds; ``at`` is the clock on the wall. What cannot
be known (a process that has just gone) is ``None``.
"""

import time
from typing import Any, Final

import psutil

from fastmilter._version import __version__
from fastmilter.server.counters import CALLED, OUTCOMES, Count, Gauge, Of, Shown, State, Totals
from fastmilter.server.slots import Slots

STANDS_STILL_S: Final = 1.5
"""A loop turns at least once a second: one that has not for so long is in a callback that takes long."""

MOST_SHOWN: Final = 20
"""How many messages in flight are shown of a server: the oldest."""


def snapshot(slots: Slots, *, name: str, pid: int, listen: list[str]) -> dict[str, Any]:
    """Return everything about a server that runs the filter ``name`` under the master ``pid``."""
    shown, now, wall = slots.counters, time.monotonic(), time.time()
    workers = [worker(slots, slot, now) for slot in slots.active()]
    totals = Totals(shown.totals(slots.in_use()))
    in_flight = [each for slot in slots.active() for each in _in_flight(slots, slot, now)]
    error = shown.error()
    return {
        "version": __version__,
        "filter": name,
        "pid": pid,
        "at": wall,
        "uptime": wall - shown.time_of(Of.STARTED_AT),
        "state": State(shown.of_server(Of.STATE)).name.lower(),
        "ready": is_ready(slots),
        "generation": shown.of_server(Of.GENERATION),
        "workers_wanted": shown.of_server(Of.WANTED),
        "listen": listen,
        "reloads": shown.of_server(Of.RELOADS),
        "failed_reloads": shown.of_server(Of.FAILED_RELOADS),
        "error": {"text": error, "at": shown.time_of(Of.ERROR_AT)} if error else None,
        "connections": sum(each["connections"] for each in workers),
        "in_message": sum(each["in_message"] for each in workers),
        "accepted": totals[Count.ACCEPTED],
        "messages": {outcome: totals.messages(outcome) for outcome in OUTCOMES},
        "exceptions": sum(totals.exceptions(callback) for callback in CALLED),
        "errors": errors_in(totals),
        "workers": workers,
        "in_flight": sorted(in_flight, key=lambda each: -each["age"])[:MOST_SHOWN],
        "guards": [
            {"guard": name, "states": guard.states, "running": guard.running, "counts": guard.counts}
            for name, guard in sorted(shown.guards(slots.in_use()).items())
        ],
    }


def worker(slots: Slots, slot: int, now: float) -> dict[str, Any]:
    """Return what is to be said of one worker."""
    counts, heartbeat = Totals(slots.counters.counts(slot)), slots.heartbeat(slot)
    return {
        "number": slots.number(slot),
        "pid": slots.pid(slot),
        "generation": slots.generation(slot),
        "state": state_of(slots, slot),
        "connections": slots.connections(slot),
        "in_message": slots.counters.gauge(slot, Gauge.IN_MESSAGE),
        "accepted": counts[Count.ACCEPTED],
        "messages": sum(counts.messages(outcome) for outcome in OUTCOMES),
        "errors": errors_in(counts),
        "loop_age": max(0.0, now - heartbeat) if heartbeat else None,  # it may have turned after ``now``
        **usage(slots.pid(slot)),
    }


def state_of(slots: Slots, slot: int) -> str:
    """Return ``starting``, ``serving`` or ``draining``."""
    if slots.listening(slot):
        return "serving"
    return "draining" if slots.has_listened(slot) else "starting"


def is_ready(slots: Slots) -> bool:
    """Tell whether somebody takes new connections."""
    return any(slots.listening(slot) for slot in slots.active())


def errors_in(counts: Totals) -> int:
    """Return how much went wrong: callbacks that raised, peers that broke the protocol, connections given up."""
    kinds = (Count.PROTOCOL_ERRORS, Count.NEGOTIATION_FAILURES, Count.INTERNAL_ERRORS, Count.CALLBACK_TIMEOUTS)
    return sum(counts.exceptions(callback) for callback in CALLED) + sum(counts[kind] for kind in kinds)


def usage(pid: int) -> dict[str, float | int | None]:
    """Return the processor time (seconds) and the resident memory (bytes) of a process."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times, memory = process.cpu_times(), process.memory_info()
    except psutil.Error:
        return {"cpu_seconds": None, "resident_bytes": None}
    return {"cpu_seconds": times.user + times.system, "resident_bytes": memory.rss}


def _in_flight(slots: Slots, slot: int, now: float) -> list[dict[str, Any]]:
    """Return the oldest messages of a worker, and the callback that its loop stands still in."""
    number, loop_age = slots.number(slot), now - slots.heartbeat(slot)
    found = [_shown(each, number, now - each.since, running=False) for each in slots.counters.in_flight(slot)]
    callback = slots.callback(slot)
    if callback and slots.heartbeat(slot) and loop_age > STANDS_STILL_S:
        queue_id = slots.queue_id(slot).decode("utf-8", "replace")
        found.append(_shown(Shown(queue_id, callback, 0.0), number, loop_age, running=True))
    return found


def _shown(shown: Shown, number: int, age: float, *, running: bool) -> dict[str, Any]:
    return {
        "queue_id": shown.queue_id or None,
        "step": shown.callback.removeprefix("on_"),
        "running": running,
        "age": max(0.0, age),
        "worker": number,
    }
