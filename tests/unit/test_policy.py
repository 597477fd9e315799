"""When workers are started, drained and given up; with a clock and dice that the tests hold in their hands."""

import logging
import signal

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fastmilter.server.policy import (
    DRAIN_GRACE_S,
    HEALTHY_AFTER_S,
    KILL_GRACE_S,
    Action,
    CloseListeners,
    EndReload,
    Kill,
    Leave,
    Limits,
    Policy,
    PrepareReload,
    Say,
    SendDrain,
    SendStopNow,
    Spawn,
)

STOP = (20.0, 40.0, 60.0)
RELOAD = (600.0, 900.0, 1200.0)
LIMITS = Limits(60.0, STOP, RELOAD)
SIGKILL, SIGSEGV = -signal.SIGKILL, -signal.SIGSEGV


class Bench:
    """A policy, its clock, and what it did."""

    def __init__(self, workers: int = 2, *, capacity: int = 64, dice: float = 0.5) -> None:
        self.now = 1000.0
        self.policy = Policy(workers, LIMITS, capacity=capacity, clock=lambda: self.now, dice=lambda: dice)
        self.said: list[tuple[int, str]] = []

    def acts(self, actions: list[Action]) -> list[Action]:
        """Return what was decided, without what was only said."""
        self.said += [(action.level, action.text) for action in actions if isinstance(action, Say)]
        return [action for action in actions if not isinstance(action, Say)]

    def pass_time(self, seconds: float) -> list[Action]:
        """Let the clock run, calling the policy exactly when it asks for it."""
        end, done = self.now + seconds, list[Action]()
        while (deadline := self.policy.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            done += self.acts(self.policy.on_time())
        self.now = end
        return done

    def running(self, workers: int = 2) -> list[Spawn]:
        """Start, and make all workers ready."""
        (first,) = spawns(self.acts(self.policy.start()))
        others = spawns(self.acts(self.policy.on_ready(first.worker)))
        for spawn in others:
            assert self.acts(self.policy.on_ready(spawn.worker)) == []
        assert len(others) == workers - 1
        return [first, *others]

    def reloaded(self, workers: int = 2) -> tuple[list[Spawn], list[Action]]:
        """Reload to the end; return the new workers, and what was done to the old ones."""
        assert self.acts(self.policy.on_reload()) == [PrepareReload()]
        new = spawns(self.acts(self.policy.begin_reload(workers, LIMITS)))
        done: list[Action] = []
        place = 0
        while place < len(new):
            done = self.acts(self.policy.on_ready(new[place].worker))
            new += spawns(done)
            place += 1
        return new, done


def spawns(actions: list[Action]) -> list[Spawn]:
    return [action for action in actions if isinstance(action, Spawn)]


def drained(actions: list[Action]) -> dict[int, tuple[float, float, float]]:
    return {action.worker: action.limits for action in actions if isinstance(action, SendDrain)}


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


def test_a_worker_that_cannot_use_the_configuration_is_not_replaced() -> None:
    bench = Bench()
    first, second = bench.running()
    (second,) = spawns(bench.acts(bench.policy.on_exit(second.worker, SIGKILL)))
    assert bench.acts(bench.policy.on_exit(second.worker, 78)) == []
    assert bench.policy.next_deadline() is None
    assert "not replaced before the next reload" in bench.said[-1][1]
    # The last one keeps the server up; when it is gone too, nothing ever comes again.
    (first,) = spawns(bench.acts(bench.policy.on_exit(first.worker, SIGKILL)))
    assert bench.acts(bench.policy.on_exit(first.worker, 78)) == [CloseListeners(), Leave(78)]


def test_a_reload_brings_back_what_was_given_up() -> None:
    bench = Bench()
    _, second = bench.running()
    (second,) = spawns(bench.acts(bench.policy.on_exit(second.worker, SIGKILL)))
    bench.policy.on_exit(second.worker, 78)
    new, _ = bench.reloaded()
    assert [spawn.number for spawn in new] == [1, 2]


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


# -- reloading ------------------------------------------------------------------------------------------------------


def test_the_old_workers_drain_only_when_every_new_one_is_ready() -> None:
    bench = Bench()
    first, second = bench.running()
    assert bench.acts(bench.policy.on_reload()) == [PrepareReload()]
    (third,) = bench.acts(bench.policy.begin_reload(2, LIMITS))
    assert third == Spawn(worker=3, number=1, slot=2, generation=2)
    (fourth,) = bench.acts(bench.policy.on_ready(3))
    assert fourth == Spawn(worker=4, number=2, slot=3, generation=2)
    assert bench.acts(bench.policy.on_ready(4)) == [
        EndReload(2),
        SendDrain(first.worker, RELOAD),
        SendDrain(second.worker, RELOAD),
    ]
    assert bench.acts(bench.policy.on_exit(first.worker, 0)) == []
    assert bench.acts(bench.policy.on_exit(second.worker, 0)) == []
    assert bench.policy.next_deadline() is None


def test_a_new_worker_that_fails_ends_the_reload_and_the_old_ones_stay() -> None:
    bench = Bench()
    bench.running()
    bench.policy.on_reload()
    bench.policy.begin_reload(2, LIMITS)
    assert bench.acts(bench.policy.on_exit(3, 78)) == [EndReload(1)]
    assert bench.said[-1] == (
        logging.ERROR,
        "reload failed, the old workers stay: worker 1 of the new generation could not use the configuration",
    )
    assert bench.policy.next_deadline() is None
    # And the next one may try again.
    new, done = bench.reloaded()
    assert [spawn.generation for spawn in new] == [3, 3]
    assert drained(done) == {1: RELOAD, 2: RELOAD}


def test_if_a_later_new_worker_fails_those_that_serve_already_drain() -> None:
    bench = Bench(3)
    bench.running(3)
    bench.policy.on_reload()
    bench.policy.begin_reload(3, LIMITS)
    assert len(spawns(bench.acts(bench.policy.on_ready(4)))) == 2
    done = bench.acts(bench.policy.on_exit(6, 1))
    assert drained(done) == {4: STOP, 5: STOP}
    assert done[-1] == EndReload(1)
    assert bench.pass_time(KILL_GRACE_S) == [Kill(5)]  # it never was ready


def test_a_new_worker_that_hangs_ends_the_reload() -> None:
    bench = Bench()
    bench.running()
    bench.policy.on_reload()
    bench.policy.begin_reload(2, Limits(7.0, STOP, RELOAD))
    assert bench.pass_time(7.0) == [Kill(3)]
    assert "within 7 s" in bench.said[-1][1]
    assert bench.acts(bench.policy.on_exit(3, SIGKILL)) == [EndReload(1)]


def test_a_new_worker_that_somebody_kills_is_replaced_and_the_reload_goes_on() -> None:
    bench = Bench()
    bench.running()
    bench.policy.on_reload()
    bench.policy.begin_reload(2, LIMITS)
    bench.policy.on_ready(3)
    (again,) = spawns(bench.acts(bench.policy.on_exit(3, SIGKILL)))
    assert (again.number, again.generation) == (1, 2)
    assert bench.acts(bench.policy.on_ready(4)) == []
    assert EndReload(2) in bench.acts(bench.policy.on_ready(again.worker))


def test_an_old_worker_that_dies_during_the_reload_is_replaced_too() -> None:
    bench = Bench()
    first, _ = bench.running()
    bench.policy.on_reload()
    bench.policy.begin_reload(2, LIMITS)
    (again,) = spawns(bench.acts(bench.policy.on_exit(first.worker, SIGKILL)))
    assert again.generation == 1


def test_a_reload_during_a_reload_is_remembered_and_makes_the_oldest_hurry() -> None:
    bench = Bench(1)
    bench.running(1)
    bench.policy.on_reload()
    bench.policy.begin_reload(1, LIMITS)
    assert bench.acts(bench.policy.on_reload()) == []
    assert bench.acts(bench.policy.on_reload()) == []  # any number of them is one
    done = bench.acts(bench.policy.on_ready(2))
    assert done == [EndReload(2), SendDrain(1, RELOAD), SendDrain(1, STOP)]
    assert bench.acts(bench.policy.on_exit(1, 0)) == [PrepareReload()]
    assert len(spawns(bench.acts(bench.policy.begin_reload(1, LIMITS)))) == 1
    assert bench.acts(bench.policy.on_ready(3)) == [EndReload(3), SendDrain(2, RELOAD)]
    assert bench.acts(bench.policy.on_exit(2, 0)) == []


def test_a_reload_while_the_old_generation_drains_makes_it_hurry() -> None:
    bench = Bench()
    bench.running()
    bench.reloaded()
    bench.pass_time(100.0)
    assert drained(bench.acts(bench.policy.on_reload())) == {1: STOP, 2: STOP}
    assert bench.acts(bench.policy.on_reload()) == []  # told once
    bench.policy.on_exit(1, 0)
    assert bench.acts(bench.policy.on_exit(2, 0)) == [PrepareReload()]


def test_a_reload_while_the_server_starts_waits_for_the_first_worker() -> None:
    bench = Bench()
    bench.policy.start()
    assert bench.acts(bench.policy.on_reload()) == []
    assert PrepareReload() in bench.acts(bench.policy.on_ready(1))


def test_a_reload_whose_settings_cannot_be_read_changes_nothing() -> None:
    bench = Bench()
    bench.running()
    assert bench.acts(bench.policy.on_reload()) == [PrepareReload()]
    assert bench.acts(bench.policy.on_reload()) == [PrepareReload()]  # begin_reload was never called


def test_stop_during_a_reload_drains_both_generations() -> None:
    bench = Bench()
    bench.running()
    bench.policy.on_reload()
    bench.policy.begin_reload(2, LIMITS)
    assert drained(bench.acts(bench.policy.on_stop())) == {1: STOP, 2: STOP, 3: STOP}
    for worker in (3, 1):
        assert bench.acts(bench.policy.on_exit(worker, 0)) == []
    assert bench.acts(bench.policy.on_exit(2, 0)) == [Leave(0)]


def test_stop_while_old_workers_drain_makes_them_hurry() -> None:
    bench = Bench(1)
    bench.running(1)
    bench.reloaded(1)
    assert drained(bench.acts(bench.policy.on_stop())) == {1: STOP, 2: STOP}


def test_an_old_worker_that_crashes_while_it_drains_is_not_replaced() -> None:
    bench = Bench()
    bench.running()
    bench.reloaded()
    assert bench.acts(bench.policy.on_exit(1, SIGSEGV)) == []
    assert bench.acts(bench.policy.on_exit(2, 1)) == []
    assert bench.policy.next_deadline() is None


def test_the_new_limits_count_from_the_reload_on() -> None:
    bench = Bench(1)
    bench.running(1)
    bench.policy.on_reload()
    bench.policy.begin_reload(1, Limits(60.0, (1.0, 1.0, 1.0), (2.0, 2.0, 2.0)))
    assert drained(bench.acts(bench.policy.on_ready(2))) == {1: (2.0, 2.0, 2.0)}


# -- more and fewer -------------------------------------------------------------------------------------------------


def test_more_and_fewer() -> None:
    bench = Bench()
    bench.running()
    assert bench.acts(bench.policy.on_more()) == [Spawn(3, 3, 2, 1)]
    bench.policy.on_ready(3)
    assert bench.acts(bench.policy.on_fewer()) == [SendDrain(3, RELOAD)]
    assert bench.acts(bench.policy.on_fewer()) == [SendDrain(2, RELOAD)]
    assert bench.acts(bench.policy.on_fewer()) == []  # never the last one
    assert bench.said[-1] == (logging.INFO, "the number of workers stays 1")
    # While the old number 2 drains, a new one may come, in a slot of its own.
    assert bench.acts(bench.policy.on_more()) == [Spawn(4, 2, 3, 1)]
    bench.policy.on_exit(2, 0)
    bench.policy.on_exit(3, 0)
    assert bench.acts(bench.policy.on_more()) == [Spawn(5, 3, 1, 1)]
    assert bench.policy.wanted == 3


def test_fewer_keeps_the_last_worker_that_serves() -> None:
    bench = Bench()
    first, second = bench.running()
    (first,) = spawns(bench.acts(bench.policy.on_exit(first.worker, SIGKILL)))
    bench.policy.on_exit(first.worker, 78)  # given up
    assert bench.acts(bench.policy.on_fewer()) == []
    assert bench.acts(bench.policy.on_exit(second.worker, 78)) == [CloseListeners(), Leave(78)]


def test_fewer_forgets_a_worker_that_was_to_be_replaced() -> None:
    bench = Bench()
    bench.running()
    bench.policy.on_exit(2, 1)
    assert bench.acts(bench.policy.on_fewer()) == []
    assert bench.policy.next_deadline() is None


def test_a_change_of_size_during_a_reload_counts_for_the_new_generation() -> None:
    bench = Bench()
    bench.running()
    bench.policy.on_reload()
    bench.policy.begin_reload(2, LIMITS)
    assert bench.acts(bench.policy.on_more()) == []  # worker 1 is still being tried
    assert [spawn.number for spawn in spawns(bench.acts(bench.policy.on_ready(3)))] == [2, 3]
    bench.policy.on_ready(4)
    assert drained(bench.acts(bench.policy.on_ready(5))) == {1: RELOAD, 2: RELOAD}


def test_fewer_can_complete_a_reload() -> None:
    bench = Bench()
    bench.running()
    bench.policy.on_reload()
    bench.policy.begin_reload(2, LIMITS)
    bench.policy.on_ready(3)
    done = bench.acts(bench.policy.on_fewer())
    assert EndReload(2) in done
    assert drained(done) == {4: RELOAD, 1: RELOAD, 2: RELOAD}


def test_after_a_failed_reload_the_old_generation_gets_the_new_size() -> None:
    bench = Bench()
    bench.running()
    bench.policy.on_reload()
    bench.policy.begin_reload(2, LIMITS)
    bench.policy.on_more()
    assert [(spawn.number, spawn.generation) for spawn in spawns(bench.acts(bench.policy.on_exit(3, 1)))] == [(3, 1)]


def test_without_a_free_slot_a_worker_waits() -> None:
    bench = Bench(2, capacity=2)
    bench.running()
    assert bench.acts(bench.policy.on_more()) == []
    assert "cannot start" in bench.said[-1][1]
    bench.policy.on_exit(2, 1)
    assert len(spawns(bench.pass_time(1.0))) == 1  # number 2 again, in its slot
    assert bench.acts(bench.policy.on_fewer()) == []
    assert bench.policy.next_deadline() == bench.now + LIMITS.ready  # number 3 is forgotten


def test_a_suspended_master_is_not_a_hung_worker() -> None:
    bench = Bench()
    bench.policy.start()
    deadline = bench.policy.next_deadline()
    assert deadline is not None
    bench.now += 3600.0
    bench.policy.shift(3600.0)
    assert bench.acts(bench.policy.on_time()) == []
    assert bench.policy.next_deadline() == deadline + 3600.0


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
    @rule(order=st.sampled_from(["on_reload", "on_reload", "on_more", "on_fewer"]))
    def is_told(self, order: str) -> None:
        self.do(getattr(self.bench.policy, order)())

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
