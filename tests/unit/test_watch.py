"""Which workers are reported and which are given up, with a clock that the test turns."""

from dataclasses import dataclass, replace

import pytest

from fastmilter.server.watch import LATE_S, SHORTEST_LOOK_S, STALE_S, Finding, GoesOn, Hangs, Sight, StandsStill, Watch

IN_HEADER = Sight("on_header", 7, 100.0)
IDLE = Sight("", 7, 100.0)


@dataclass
class Bench:
    """A watch over one worker, number 1, and its clock."""

    slow: float = 2.0
    kill: float | None = None

    def __post_init__(self) -> None:
        self.now = 1000.0
        self.watch = Watch(clock=lambda: self.now)
        self.watch.add(1, slow=self.slow, kill=self.kill)

    def look(self, sight: Sight) -> list[Finding]:
        """Look when it is time."""
        due = self.watch.next_look()
        assert due is not None
        self.now = max(self.now, due)
        return self.watch.look({1: sight})

    def look_for(self, seconds: float, sight: Sight) -> list[Finding]:
        """Look as often as it is due, for so long; return all that was found."""
        end, found = self.now + seconds, []
        while self.now < end:
            found += self.look(sight)
        return found


def test_nothing_to_watch_needs_no_look() -> None:
    watch = Watch(clock=lambda: 0.0)
    assert watch.next_look() is None
    assert watch.look({}) == []
    watch.add(1, slow=2.0, kill=None)
    assert watch.next_look() == 1.0
    watch.remove(1)
    assert watch.next_look() is None


def test_a_callback_that_stands_is_reported_once() -> None:
    bench = Bench()
    assert bench.look_for(2.0, IN_HEADER) == []
    assert bench.look(IN_HEADER) == [StandsStill(1, "on_header", 2.0)]
    assert bench.look_for(10.0, IN_HEADER) == []


def test_and_again_after_ten_times_as_long() -> None:
    bench = Bench()
    found = bench.look_for(250.0, IN_HEADER)
    assert found == [StandsStill(1, "on_header", seconds) for seconds in (2.0, 20.0, 200.0)]


@pytest.mark.parametrize(
    "moved",
    [replace(IN_HEADER, calls=8), replace(IN_HEADER, heartbeat=101.0), replace(IN_HEADER, callback="on_body")],
    ids=["another call", "the loop has turned", "another callback"],
)
def test_whatever_moves_begins_anew(moved: Sight) -> None:
    bench = Bench()
    for _ in range(20):
        assert bench.look(IN_HEADER) == bench.look(moved) == []
    assert bench.look_for(2.0, moved) == [StandsStill(1, moved.callback, 2.0)]


def test_a_worker_that_was_reported_and_goes_on() -> None:
    bench = Bench()
    bench.look_for(5.0, IN_HEADER)
    assert bench.look(IDLE) == [GoesOn(1, "on_header", 4.0)], "seen standing for so long, at least"
    assert bench.look_for(2.0, IN_HEADER) == []
    assert bench.look(IN_HEADER) == [StandsStill(1, "on_header", 2.0)]


def test_a_loop_may_rest_longer_than_a_callback() -> None:
    bench = Bench()
    assert bench.look_for(STALE_S, IDLE) == []
    assert bench.look(IDLE) == [StandsStill(1, "", STALE_S)]


def test_a_worker_without_a_loop_is_left_alone() -> None:
    """Before its loop it may load for long, after it ``worker_stopped`` may take its time."""
    bench = Bench(kill=3.0)
    assert bench.look_for(100.0, Sight("", 0, 0.0)) == []
    assert bench.look_for(100.0, Sight("on_close", 9, 0.0)) == []


def test_nothing_is_killed_unless_it_was_asked_for() -> None:
    found = Bench().look_for(5000.0, IN_HEADER)
    assert found
    assert all(isinstance(finding, StandsStill) for finding in found)


def test_a_hung_worker_is_killed_once_and_after_a_report() -> None:
    bench = Bench(kill=10.0)
    assert bench.look_for(60.0, IN_HEADER) == [StandsStill(1, "on_header", 2.0), Hangs(1, "on_header", 10.0)]
    assert bench.look(IDLE) == []


def test_a_limit_below_that_of_the_report_brings_the_report_forward() -> None:
    bench = Bench(slow=30.0, kill=2.0)
    assert bench.look_for(10.0, IN_HEADER) == [StandsStill(1, "on_header", 2.0), Hangs(1, "on_header", 3.0)]


def test_a_loop_that_rests_is_not_killed_too_early() -> None:
    bench = Bench(kill=2.0)
    assert bench.look_for(20.0, IDLE) == [StandsStill(1, "", STALE_S), Hangs(1, "", STALE_S + 1.0)]


def test_a_late_look_does_not_count() -> None:
    """The master stood still itself: with its machine, or by SIGSTOP."""
    bench = Bench(kill=3.0)
    bench.look(IN_HEADER)
    for _ in range(50):
        bench.now += 1.0 + LATE_S + 0.1
        assert bench.look(IN_HEADER) == []
    assert bench.look(IN_HEADER) == []
    assert bench.look(IN_HEADER) == [StandsStill(1, "on_header", 2.0)]


def test_each_worker_has_its_own_limits() -> None:
    now = 0.0
    watch = Watch(clock=lambda: now)
    watch.add(1, slow=2.0, kill=None)
    watch.add(2, slow=4.0, kill=5.0)
    found = []
    for _ in range(8):
        now += 1.0
        found += watch.look({1: IN_HEADER, 2: IN_HEADER})
    assert found == [StandsStill(1, "on_header", 2.0), StandsStill(2, "on_header", 4.0), Hangs(2, "on_header", 5.0)]


def test_short_limits_are_looked_at_more_often() -> None:
    for slow, interval in ((60.0, 1.0), (2.0, 1.0), (0.5, 0.25), (0.001, SHORTEST_LOOK_S)):
        bench = Bench(slow=slow)
        assert bench.watch.next_look() == bench.now + interval
