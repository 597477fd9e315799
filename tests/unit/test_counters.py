"""Counters in shared memory: what is written is read, and nothing is lost with a worker."""

import logging
import os
import signal
import time

import pytest

from fastmilter import ACCEPT, CONTINUE, DISCARD, REJECT, SKIP, TEMPFAIL, Verdict, reply
from fastmilter.constants import Step
from fastmilter.negotiation import STEP_NUMBERS
from fastmilter.server.counters import (
    BUCKETS_S,
    CALLED,
    MOST_GUARDS,
    MOST_KEPT_GUARDS,
    MOST_SHOWN,
    NAME_BYTES,
    NO_STATE,
    OUTCOMES,
    STEPS,
    TIMED,
    Count,
    Counters,
    Gauge,
    GuardCount,
    GuardState,
    Of,
    Shown,
    Totals,
)


def test_every_number_has_a_place_of_its_own() -> None:
    counters = Counters(3)
    tally = counters.tally(1)
    for number, count in enumerate(Count, 1):
        tally.add(count, number)
    for number, gauge in enumerate(Gauge, 100):
        tally.set(gauge, number)
    tally.message(CONTINUE, 0)
    tally.verdict(STEP_NUMBERS[Step.UNKNOWN], REJECT)
    tally.exception(CALLED[-1])
    tally.observe(CALLED[-1], 100.0)
    tally.show_guard(MOST_GUARDS - 1, "last", GuardState.OPEN, 1, (1, 2, 3, 4))
    tally.show(MOST_SHOWN - 1, "q", "on_mail", 1.0)
    counters.set_failure(1, "x" * 1000)
    totals = Totals(counters.totals(3))
    assert [totals[count] for count in Count] == list(range(1, len(Count) + 1))
    assert [counters.gauge(1, gauge) for gauge in Gauge] == list(range(100, 100 + len(Gauge)))
    assert totals.messages("continue") == totals.verdicts("unknown", "reject") == totals.exceptions("__init__") == 1
    assert totals.times("other") == ([0] * len(BUCKETS_S) + [1], 100.0)
    assert list(counters.guards(3)) == ["last"]
    assert set(counters.failure(1)) == {"x"}
    assert sum(counters.counts(0)) == sum(counters.counts(2)) == 0, "neighbours see nothing of it"


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [
        (CONTINUE, "continue"),
        (Verdict(CONTINUE.kind), "continue"),
        (ACCEPT, "accept"),
        (REJECT, "reject"),
        (TEMPFAIL, "tempfail"),
        (DISCARD, "discard"),
        (SKIP, "skip"),
        (reply(451, None, "later"), "reply_4xx"),
        (reply(550, None, "no"), "reply_5xx"),
        (None, "dropped"),
    ],
)
def test_outcomes(verdict: Verdict | None, outcome: str) -> None:
    counters = Counters(1)
    counters.tally(0).message(verdict, 3)
    totals = Totals(counters.totals(1))
    assert [name for name in OUTCOMES if totals.messages(name)] == [outcome]
    assert totals[Count.EDITS] == 3


def test_callback_times_fall_into_their_classes() -> None:
    counters = Counters(1)
    tally = counters.tally(0)
    for seconds in (0.0, BUCKETS_S[0], 0.003, 31.0, -1.0):
        tally.observe("on_mail", seconds)
    counts, seconds = Totals(counters.totals(1)).times("mail")
    assert counts[0] == 3
    assert counts[BUCKETS_S.index(0.0025)] == 3
    assert counts[BUCKETS_S.index(0.005)] == 4
    assert counts[-2:] == [4, 5]
    assert seconds == pytest.approx(BUCKETS_S[0] + 31.003)
    assert all(Totals(counters.totals(1)).times(what)[0][-1] == 0 for what in TIMED if what != "mail")
    assert TIMED[:-1] == STEPS == tuple(Step)


def test_counts_outlive_a_worker_and_gauges_do_not() -> None:
    counters = Counters(2)
    for turn in range(1, 4):
        tally = counters.tally(0)
        tally.add(Count.ACCEPTED, 2)
        tally.set(Gauge.THREADS, 5)
        tally.show_guard(0, "dns", GuardState.OPEN, 3, (10, 0, 0, 0))
        tally.show(0, "q", "on_mail", 1.0)
        tally.set_shown(1, 1)
        counters.set_failure(0, "broken")
        counters.retire(0)
        assert counters.totals(2)[Count.ACCEPTED] == 2 * turn
        assert counters.gauge(0, Gauge.THREADS) == counters.gauge(0, Gauge.IN_MESSAGE) == 0
        assert counters.in_flight(0) == []
        assert counters.failure(0) == ""
        guard = counters.guards(2)["dns"]
        assert (guard.states, guard.running, guard.counts) == ((0, 0, 0), 0, (10 * turn, 0, 0, 0))
    counters.retire(0)
    counters.retire(1)
    assert counters.totals(2)[Count.ACCEPTED] == 6, "nothing counts twice"


def test_guards_are_put_together_by_name() -> None:
    counters = Counters(2)
    for slot, place, state in ((0, 0, GuardState.OPEN), (1, 5, GuardState.CLOSED)):
        counters.tally(slot).show_guard(place, "dns", state, slot + 1, [count + 1 for count in GuardCount])
    guard = counters.guards(2)["dns"]
    assert guard.states == (1, 0, 1)
    assert guard.running == 3
    assert guard.counts == (2, 4, 6, 8)
    for place in (-1, MOST_GUARDS):
        with pytest.raises(IndexError):
            counters.tally(0).show_guard(place, "more", GuardState.CLOSED, 0, ())


def test_a_guard_that_is_gone_is_in_no_state() -> None:
    counters = Counters(1)
    counters.tally(0).show_guard(0, "dns", NO_STATE, 0, (5, 0, 0, 0))
    assert counters.guards(1)["dns"] == ((0, 0, 0), 0, (5, 0, 0, 0))


def test_more_names_of_guards_than_places_over_time(caplog: pytest.LogCaptureFixture) -> None:
    """More are kept than one worker has places for; of those beyond that, it is said once."""
    caplog.set_level(logging.WARNING)
    counters = Counters(1)
    for number in range(MOST_KEPT_GUARDS + 2):
        assert not caplog.messages or number > MOST_KEPT_GUARDS
        counters.tally(0).show_guard(0, f"guard {number}", GuardState.CLOSED, 0, (number, 1, 2, 3))
        counters.retire(0)
    kept = counters.guards(1)
    assert [kept[f"guard {number}"].counts for number in range(MOST_KEPT_GUARDS)] == [
        (number, 1, 2, 3) for number in range(MOST_KEPT_GUARDS)
    ]
    assert len(kept) == MOST_KEPT_GUARDS > MOST_GUARDS + 1
    (message,) = caplog.messages
    assert f"more than {MOST_KEPT_GUARDS} names" in message
    assert f"guard {MOST_KEPT_GUARDS}," in message
    assert sum(counters.totals(1)) == 0, "the counts in front of them are not touched"


def test_what_is_in_flight() -> None:
    counters = Counters(1)
    tally = counters.tally(0)
    tally.show(0, "late", "on_body", 20.0)
    tally.show(1, "x" * 100 + "é", "nothing known", 10.0)
    tally.set_shown(2, 500)
    first, second = counters.in_flight(0)
    assert (first.queue_id, first.since) == ("x" * NAME_BYTES, 10.0)
    assert second == ("late", "on_body", 20.0)
    assert counters.gauge(0, Gauge.IN_MESSAGE) == 500


def test_messages_in_flight_are_never_mixed() -> None:
    """Another process shows two messages in turns at the same place, again and again, while this one reads."""
    counters = Counters(1)
    rows = [Shown("A" * 20, "on_mail", 1.0), Shown("B" * 20, "on_body", 2.0)]
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        tally = counters.tally(0)
        while os.getppid() == parent:
            for row in rows:
                tally.show(0, *row)
                tally.show(1, *row)
                tally.set_shown(2, 2)
        os._exit(0)
    seen: set[tuple[Shown, ...]] = set()
    reads, until = 0, time.monotonic() + 60
    try:
        # On a busy machine one of the two may be all that is seen for a while.
        while (reads < 1_000 or len(seen - {()}) < 2) and time.monotonic() < until:
            seen.add(tuple(counters.in_flight(0)))
            reads += 1
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert seen - {()} == {(row, row) for row in rows}


def test_messages_of_a_worker_that_died_as_it_wrote_them_are_not_shown() -> None:
    counters = Counters(1)
    tally = counters.tally(0)
    tally.show(0, "q", "on_mail", 1.0)
    tally.set_shown(1, 1)
    tally.show(0, "half", "on_mail", 1.0)
    assert counters.in_flight(0) == []
    tally.set_shown(1, 1)
    assert counters.in_flight(0) == [("half", "on_mail", 1.0)]


def test_texts_are_cut_between_characters_and_hold_anything() -> None:
    counters = Counters(1)
    counters.tally(0).show(0, "é" * 20, "on_mail", 1.0)
    counters.tally(0).set_shown(1, 1)
    assert counters.in_flight(0)[0].queue_id == "é" * (NAME_BYTES // 2)
    counters.set_error("line\nwith \udcff bytes", 12.5)
    assert counters.error() == "line\nwith \\udcff bytes"
    assert counters.time_of(Of.ERROR_AT) == 12.5


def test_numbers_of_the_server() -> None:
    counters = Counters(1)
    for number, what in enumerate(Of):
        counters.set_of_server(what, number)
    assert [counters.of_server(what) for what in Of] == list(range(len(Of)))
    assert counters.error() == ""


@pytest.mark.parametrize("slot", [-1, 2])
def test_a_slot_that_does_not_exist_is_an_error(slot: int) -> None:
    counters = Counters(2)
    with pytest.raises(IndexError):
        counters.tally(slot)
    with pytest.raises(IndexError):
        counters.retire(slot)


def test_a_child_and_its_parent_see_the_same_numbers() -> None:
    counters = Counters(1)
    pid = os.fork()
    if pid == 0:
        counters.tally(0).add(Count.ACCEPTED, 7)
        os._exit(0)
    os.waitpid(pid, 0)
    assert counters.totals(1)[Count.ACCEPTED] == 7


def test_a_sum_never_goes_down_while_workers_come_and_go() -> None:
    """Another process counts and is retired, again and again, while this one reads."""
    counters = Counters(1)
    pid = os.fork()
    if pid == 0:
        for _ in range(5000):
            counters.tally(0).add(Count.ACCEPTED)
            counters.retire(0)
        os._exit(0)
    seen: list[int] = []
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        seen.append(counters.totals(1)[Count.ACCEPTED])
    assert seen == sorted(seen)
    assert len(set(seen)) > 2
    assert counters.totals(1)[Count.ACCEPTED] == 5000


def test_the_counts_of_a_guard_never_go_down_while_workers_come_and_go() -> None:
    counters = Counters(4)
    pid = os.fork()
    if pid == 0:
        for _ in range(5000):
            counters.tally(0).show_guard(0, "dns", GuardState.CLOSED, 0, (5, 0, 0, 0))
            counters.retire(0)
        os._exit(0)
    seen: list[int] = []
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        guard = counters.guards(4).get("dns")
        seen.append(guard.counts[GuardCount.CALLS] if guard else 0)
    assert seen == sorted(seen)
    assert len(set(seen)) > 2
    assert counters.guards(4)["dns"].counts == (25_000, 0, 0, 0)
