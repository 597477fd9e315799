"""Reloads, and more or fewer workers."""

import logging

from fastmilter.server.decisions import (
    EndReload,
    Kill,
    Leave,
    LogAsBefore,
    PrepareReload,
    SendDrain,
    Spawn,
)
from fastmilter.server.policy import KILL_GRACE_S
from fastmilter.server.roster import Limits
from tests.support.policy_bench import LIMITS, RELOAD, SIGKILL, SIGSEGV, STOP, Bench, drained, spawns

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
    assert bench.acts(bench.policy.on_exit(3, 78)) == [LogAsBefore(), EndReload(1)]
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
    assert bench.acts(bench.policy.on_exit(3, SIGKILL)) == [LogAsBefore(), EndReload(1)]


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
    bench.policy.on_exit(first.worker, 78)
    assert bench.acts(bench.policy.on_fewer()) == []
    (first,) = spawns(bench.pass_time(2.0))
    assert [act for act in bench.acts(bench.policy.on_ready(first.worker)) if isinstance(act, SendDrain)] == [
        SendDrain(second.worker, RELOAD)
    ]


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
