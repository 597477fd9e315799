"""When workers are started, replaced and stopped; and what holds whatever happens."""

import logging
import signal

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fastmilter.server.channel import Reason
from fastmilter.server.decisions import (
    Action,
    CloseListeners,
    Kill,
    Leave,
    PrepareReload,
    PrepareUpgrade,
    SendDrain,
    SendStopNow,
    Spawn,
)
from fastmilter.server.policy import DRAIN_GRACE_S, HEALTHY_AFTER_S, KILL_GRACE_S
from tests.support.policy_bench import LIMITS, SIGKILL, SIGSEGV, STOP, Bench, next_master, spawns

# -- the start ------------------------------------------------------------------------------------------------------


def test_one_worker_is_tried_first_and_the_others_follow_when_it_is_ready() -> None:
    bench = Bench(3)
    (first,) = bench.acts(bench.policy.start())
    assert first == Spawn(worker=1, number=1, slot=0, generation=1)
    assert bench.acts(bench.policy.on_ready(1)) == [Spawn(2, 2, 1, 1), Spawn(3, 3, 2, 1)]
    assert bench.policy.next_deadline() is not None  # the two must become ready in time
    bench.policy.on_ready(2)
    bench.policy.on_ready(3)
    assert bench.policy.next_deadline() is None  # and then there is nothing to wait for


@pytest.mark.parametrize(("status", "end"), [(78, 78), (70, 70), (0, 70), (1, 70), (SIGKILL, 70), (SIGSEGV, 70)])
def test_if_the_first_worker_never_becomes_ready_the_server_ends(status: int, end: int) -> None:
    bench = Bench()
    bench.policy.start()
    assert bench.acts(bench.policy.on_exit(1, status)) == [CloseListeners(), Leave(end)]
    assert bench.said[0][0] == logging.ERROR
    assert "no worker became ready" in bench.said[0][1]


def test_a_first_worker_that_hangs_is_killed_and_the_server_ends() -> None:
    bench = Bench()
    bench.policy.start()
    assert bench.pass_time(59.9) == []
    assert bench.pass_time(0.1) == [Kill(1)]
    assert bench.said == [(logging.ERROR, "worker 1 was not ready within 60 s: killed")]
    assert bench.acts(bench.policy.on_exit(1, SIGKILL)) == [CloseListeners(), Leave(70)]


# -- replacing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [SIGKILL, -signal.SIGTERM, -signal.SIGXCPU])
def test_a_worker_that_somebody_killed_is_replaced_at_once_however_often(status: int) -> None:
    bench = Bench()
    _, second = bench.running()
    for _ in range(10):
        (second,) = spawns(bench.acts(bench.policy.on_exit(second.worker, status)))
        assert (second.number, second.slot) == (2, 1)
        bench.policy.on_ready(second.worker)


@pytest.mark.parametrize("status", [0, 1, 70, SIGSEGV, -signal.SIGABRT])
def test_a_worker_that_falls_again_and_again_is_replaced_ever_later(status: int) -> None:
    bench = Bench()
    _, second = bench.running()
    for seconds in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0):
        assert bench.acts(bench.policy.on_exit(second.worker, status)) == []
        assert bench.pass_time(seconds - 0.01) == []
        (second,) = spawns(bench.pass_time(0.01))
        assert second.number == 2
        if status != 1:  # with or without having been ready for a moment
            bench.policy.on_ready(second.worker)


@pytest.mark.parametrize(("dice", "seconds"), [(0.0, 0.8), (1.0, 1.2)])
def test_delays_are_spread(dice: float, seconds: float) -> None:
    bench = Bench(dice=dice)
    _, second = bench.running()
    bench.policy.on_exit(second.worker, 1)
    assert bench.policy.next_deadline() == pytest.approx(bench.now + seconds)


def test_dying_before_being_ready_counts_as_a_fault_even_by_a_signal() -> None:
    bench = Bench()
    _, second = bench.running()
    (second,) = spawns(bench.acts(bench.policy.on_exit(second.worker, SIGKILL)))
    assert bench.acts(bench.policy.on_exit(second.worker, SIGKILL)) == []
    assert bench.policy.next_deadline() == bench.now + 1.0


def test_health_clears_the_record() -> None:
    bench = Bench()
    _, second = bench.running()
    for seconds in (1.0, 2.0, 4.0):
        bench.policy.on_exit(second.worker, 1)
        (second,) = spawns(bench.pass_time(seconds))
        bench.policy.on_ready(second.worker)
    bench.pass_time(HEALTHY_AFTER_S)
    (second,) = spawns(bench.acts(bench.policy.on_exit(second.worker, 1)))  # at once
    bench.policy.on_ready(second.worker)
    bench.policy.on_exit(second.worker, 1)
    assert bench.policy.next_deadline() == bench.now + 1.0  # and from the beginning again


def test_a_kill_does_not_clear_the_record() -> None:
    bench = Bench()
    _, second = bench.running()
    for seconds in (1.0, 2.0):
        bench.policy.on_exit(second.worker, 1)
        (second,) = spawns(bench.pass_time(seconds))
    bench.policy.on_ready(second.worker)
    (second,) = spawns(bench.acts(bench.policy.on_exit(second.worker, SIGKILL)))
    bench.policy.on_exit(second.worker, 1)
    assert bench.policy.next_deadline() == bench.now + 4.0


def test_the_only_worker_is_never_further_away_than_a_second() -> None:
    bench = Bench(1, dice=1.0)
    (only,) = bench.running(1)
    for _ in range(12):
        assert bench.acts(bench.policy.on_exit(only.worker, 1)) == []
        (only,) = spawns(bench.pass_time(1.0))


def test_when_no_worker_is_left_the_nearest_comes_within_a_second() -> None:
    bench = Bench()
    first, second = bench.running()
    for seconds in (1.0, 2.0, 4.0, 8.0):
        bench.policy.on_exit(second.worker, 1)
        (second,) = spawns(bench.pass_time(seconds))
    bench.policy.on_exit(second.worker, 1)
    assert bench.policy.next_deadline() == bench.now + 16.0
    for _ in range(8):  # the first one crashes too, again and again: it is the only one that could serve
        bench.policy.on_exit(first.worker, 1)
        deadline = bench.policy.next_deadline()
        assert deadline is not None
        assert deadline <= bench.now + 1.0
        (first,) = spawns(bench.pass_time(1.0))[:1]
        if first.number == 2:
            break


def test_a_worker_that_could_not_import_its_filter_is_replaced_once_others_could() -> None:
    bench = Bench(dice=0.5)
    first, second = bench.running()
    (second,) = spawns(bench.acts(bench.policy.on_exit(second.worker, SIGKILL)))
    assert bench.acts(bench.policy.on_exit(second.worker, 78)) == []
    assert "could not use the configuration: starting another in 1.0 s" in bench.said[-1][1]
    (second,) = spawns(bench.pass_time(1.0))
    # Nor does the end of the last one end the server: the next is at most a second away, as often as it takes.
    bench.policy.on_exit(second.worker, 78)
    (first,) = spawns(bench.acts(bench.policy.on_exit(first.worker, SIGKILL)))
    for _ in range(12):
        assert bench.acts(bench.policy.on_exit(first.worker, 78)) == []
        (first,) = spawns(bench.pass_time(1.0))[:1]


def test_workers_that_are_missing_are_started_when_a_reload_is_refused() -> None:
    bench = Bench()
    bench.running()
    assert bench.acts(bench.policy.refuse_reload()) == [], "none is missing"
    follower = Bench()
    follower.policy.adopt([record for record in bench.policy.workers() if record.number == 1], 1, 2)
    assert [spawn.number for spawn in spawns(follower.acts(follower.policy.refuse_reload()))] == [2]


def test_a_worker_that_lets_go_of_its_channel_must_end_soon() -> None:
    bench = Bench()
    _, second = bench.running()
    assert bench.policy.on_lost(second.worker) == []
    assert bench.pass_time(KILL_GRACE_S) == [Kill(second.worker)]
    assert "let go of its channel" in bench.said[-1][1]
    assert len(spawns(bench.acts(bench.policy.on_exit(second.worker, SIGKILL)))) == 1


def test_news_of_a_worker_nobody_knows_are_ignored() -> None:
    bench = Bench()
    bench.running()
    assert bench.policy.on_exit(99, 0) == bench.policy.on_ready(99) == bench.policy.on_lost(99) == []
    assert bench.policy.on_ready(1) == []  # said twice


# -- stopping -------------------------------------------------------------------------------------------------------


def test_stop_closes_the_listeners_drains_and_leaves_when_the_last_is_gone() -> None:
    bench = Bench()
    first, second = bench.running()
    assert bench.acts(bench.policy.on_stop()) == [
        CloseListeners(),
        SendDrain(first.worker, STOP),
        SendDrain(second.worker, STOP),
    ]
    assert bench.acts(bench.policy.on_exit(second.worker, 0)) == []
    assert bench.acts(bench.policy.on_exit(first.worker, 0)) == [Leave(0)]


def test_the_second_stop_means_now() -> None:
    bench = Bench()
    first, second = bench.running()
    bench.policy.on_stop()
    assert bench.acts(bench.policy.on_stop()) == [SendStopNow(first.worker), SendStopNow(second.worker)]
    assert bench.pass_time(KILL_GRACE_S) == [Kill(first.worker), Kill(second.worker)]
    assert bench.acts(bench.policy.on_exit(first.worker, SIGKILL)) == []
    assert bench.acts(bench.policy.on_exit(second.worker, SIGKILL)) == [Leave(0)]


def test_stop_now_without_a_stop_before() -> None:
    bench = Bench(1)
    (only,) = bench.running(1)
    done = bench.acts(bench.policy.on_stop_now())
    assert done[0] == CloseListeners()
    assert SendStopNow(only.worker) in done
    assert bench.acts(bench.policy.on_exit(only.worker, 0)) == [Leave(0)]


def test_a_worker_that_does_not_leave_in_time_is_killed_and_the_status_tells() -> None:
    bench = Bench(1)
    (only,) = bench.running(1)
    bench.policy.on_stop()
    assert bench.pass_time(STOP[2] + DRAIN_GRACE_S - 0.1) == []
    assert bench.pass_time(0.1) == [Kill(only.worker)]
    assert bench.acts(bench.policy.on_exit(only.worker, SIGKILL)) == [Leave(70)]


def test_a_worker_that_not_even_a_kill_ends_does_not_hold_the_server_up() -> None:
    bench = Bench(1)
    (only,) = bench.running(1)
    bench.policy.on_stop()
    bench.pass_time(STOP[2] + DRAIN_GRACE_S)
    assert bench.pass_time(KILL_GRACE_S) == [Leave(70)]
    assert bench.policy.on_exit(only.worker, SIGKILL) == []  # it did end, later


def test_a_worker_that_is_starting_when_the_server_stops_has_little_time() -> None:
    bench = Bench(2)
    (first,) = spawns(bench.acts(bench.policy.start()))
    assert bench.acts(bench.policy.on_stop()) == [CloseListeners(), SendDrain(first.worker, STOP)]
    assert bench.pass_time(KILL_GRACE_S) == [Kill(first.worker)]
    assert bench.acts(bench.policy.on_exit(first.worker, SIGKILL)) == [Leave(0)]


def test_but_if_it_becomes_ready_meanwhile_it_may_finish() -> None:
    bench = Bench(1)
    (first,) = spawns(bench.acts(bench.policy.start()))
    bench.policy.on_stop()
    assert bench.policy.on_ready(first.worker) == []
    assert bench.pass_time(STOP[2] + DRAIN_GRACE_S - 0.1) == []
    assert bench.acts(bench.policy.on_exit(first.worker, 0)) == [Leave(0)]


def test_nothing_is_started_any_more_once_the_server_stops() -> None:
    bench = Bench()
    first, second = bench.running()
    bench.policy.on_exit(second.worker, 1)  # its successor is planned
    bench.policy.on_stop()
    for order in (bench.policy.on_reload, bench.policy.on_more, bench.policy.on_fewer):
        assert bench.acts(order()) == []
    assert bench.acts(bench.policy.begin_reload(2, LIMITS)) == []
    assert bench.pass_time(50.0) == []
    assert bench.acts(bench.policy.on_exit(first.worker, 0)) == [Leave(0)]


def test_stop_without_any_worker_leaves_at_once() -> None:
    bench = Bench(1)
    (only,) = bench.running(1)
    bench.policy.on_exit(only.worker, 1)
    assert bench.acts(bench.policy.on_stop()) == [CloseListeners(), Leave(0)]


# -- whatever happens -----------------------------------------------------------------------------------------------


class AnyLife(RuleBasedStateMachine):
    """Any order of events: what must hold in each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(2, capacity=40)
        self.alive: dict[int, Spawn] = {}
        self.ready: set[int] = set()
        self.drained: set[int] = set()
        self.leave: int | None = None
        self.reloads = 0
        self.trying = False
        self.do(self.bench.policy.start())

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            assert self.leave is None, "nothing happens after the end"
            match action:
                case Spawn():
                    assert not self.bench.policy.stopping
                    assert action.slot not in {spawn.slot for spawn in self.alive.values()}
                    self.alive[action.worker] = action
                case SendDrain(worker, _):
                    assert worker in self.alive
                    self.drained.add(worker)
                case SendStopNow(worker) | Kill(worker):
                    assert worker in self.alive
                case PrepareReload():
                    self.reloads += 1
                    self.do(self.bench.policy.begin_reload(1 + self.reloads % 3, LIMITS))
                case PrepareUpgrade():
                    self.trying = True
                case Leave(status):
                    assert not self.alive
                    self.leave = status

    def dies(self, worker: int, status: int) -> None:
        del self.alive[worker]
        self.ready.discard(worker)
        self.drained.discard(worker)
        self.do(self.bench.policy.on_exit(worker, status))

    @precondition(lambda self: self.leave is None and len(self.alive) > len(self.ready))
    @rule(data=st.data())
    def becomes_ready(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(set(self.alive) - self.ready)))
        self.ready.add(worker)
        self.do(self.bench.policy.on_ready(worker))

    @precondition(lambda self: self.leave is None and self.alive)
    @rule(data=st.data(), status=st.sampled_from([0, 1, 70, 78, SIGKILL, SIGSEGV]))
    def ends(self, data: st.DataObject, status: int) -> None:
        self.dies(data.draw(st.sampled_from(sorted(self.alive))), status)

    @precondition(lambda self: self.leave is None)
    @rule(order=st.sampled_from(["on_reload", "on_reload", "on_more", "on_fewer", "on_upgrade"]))
    def is_told(self, order: str) -> None:
        self.do(getattr(self.bench.policy, order)())

    @precondition(lambda self: self.leave is None and self.ready)
    @rule(data=st.data(), reason=st.sampled_from(Reason))
    def asks_for_a_successor(self, data: st.DataObject, reason: Reason) -> None:
        self.do(self.bench.policy.on_retire(data.draw(st.sampled_from(sorted(self.ready))), reason))

    @precondition(lambda self: self.leave is None and self.trying)
    @rule()
    def the_new_code_is_found_good(self) -> None:
        self.trying = False
        if self.bench.policy.may_be_followed:
            self.bench.policy = next_master(self.bench)
            self.do(self.bench.policy.on_reload())
        else:
            self.do(self.bench.policy.on_upgrade())

    @precondition(lambda self: self.leave is None and len(self.alive) < 30)
    @rule(seconds=st.sampled_from([0.5, 5.0, 61.0, 2000.0]))
    def time_passes(self, seconds: float) -> None:
        end = self.bench.now + seconds
        while self.leave is None and (at := self.bench.policy.next_deadline()) is not None and at <= end:
            self.bench.now = max(self.bench.now, at)
            actions = self.bench.policy.on_time()
            self.do(actions)
            for kill in [action for action in actions if isinstance(action, Kill)]:
                self.dies(kill.worker, SIGKILL)
        self.bench.now = max(self.bench.now, end)

    @precondition(lambda self: self.leave is None)
    @rule()
    def stops(self) -> None:
        self.do(self.bench.policy.on_stop())

    @precondition(lambda self: self.leave is not None)
    @rule()
    def is_over(self) -> None:
        assert self.bench.policy.on_time() == []
        assert self.bench.policy.next_deadline() is None

    @invariant()
    def at_most_two_generations_serve(self) -> None:
        serving = {spawn.generation for worker, spawn in self.alive.items() if worker not in self.drained}
        assert len(serving) <= 2
        assert len({spawn.generation for spawn in self.alive.values()}) <= 2

    @invariant()
    def there_is_always_a_next_step(self) -> None:
        """Never stuck: a worker lives or is planned, or the server has ended."""
        assert self.leave is not None or self.alive or self.bench.policy.next_deadline() is not None

    @invariant()
    def no_outage_lasts(self) -> None:
        if self.leave is None and not self.alive and not self.bench.policy.stopping:
            deadline = self.bench.policy.next_deadline()
            assert deadline is not None
            assert deadline <= self.bench.now + 1.0

    @invariant()
    def every_worker_that_leaves_has_a_deadline(self) -> None:
        if self.drained:
            assert self.bench.policy.next_deadline() is not None


AnyLife.TestCase.settings = hypothesis_settings(max_examples=200, stateful_step_count=40, deadline=None)
TestAnyLife = AnyLife.TestCase


# -- any number of workers -------------------------------------------------------------------------------------------


def test_scaling_to_a_number() -> None:
    bench = Bench(2)
    bench.running()
    assert len(spawns(bench.acts(bench.policy.on_scale(5)))) == 3
    assert bench.policy.wanted == 5
    bench.acts(bench.policy.on_scale(0))
    bench.acts(bench.policy.on_scale(10**6))
    assert bench.policy.wanted == 5
    assert bench.said[-1] == (logging.INFO, "the number of workers stays 5")
