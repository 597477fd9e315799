"""Workers that ask to be replaced, and masters that are."""

import json
import logging
import math

import pytest

from fastmilter.server.channel import Reason
from fastmilter.server.decisions import PrepareReload, PrepareUpgrade, Spawn
from fastmilter.server.policy import Policy
from fastmilter.server.roster import State, Worker
from tests.support.policy_bench import LIMITS, RELOAD, SIGKILL, STOP, Bench, drained, next_master, spawns

RECYCLED = (Reason.MESSAGES, Reason.AGE, Reason.MEMORY)


@pytest.mark.parametrize("reason", Reason)
def test_the_successor_comes_first(reason: Reason) -> None:
    bench = Bench()
    _, second = bench.running()
    (successor,) = bench.acts(bench.policy.on_retire(second.worker, reason))
    assert isinstance(successor, Spawn)
    assert (successor.number, successor.generation) == (2, 1)
    assert bench.said[-1][0] == (logging.WARNING if reason is Reason.STUCK else logging.INFO)
    assert drained(bench.acts(bench.policy.on_ready(successor.worker))) == {second.worker: RELOAD}


@pytest.mark.parametrize(("workers", "together"), [(1, 1), (4, 1), (7, 1), (8, 2), (40, 10)])
def test_a_quarter_at_a_time_is_recycled_and_the_others_wait_their_turn(workers: int, together: int) -> None:
    bench = Bench(workers, capacity=3 * workers)
    running = bench.running(workers)
    asked = [spawns(bench.acts(bench.policy.on_retire(each.worker, Reason.AGE))) for each in running]
    assert [len(spawned) for spawned in asked] == [1] * together + [0] * (workers - together)
    replaced = 0
    successors = [spawned[0] for spawned in asked[:together]]
    while successors:
        successor = successors.pop(0)
        (leaving,) = drained(bench.acts(bench.policy.on_ready(successor.worker)))
        # One that still drains counts too: its sessions are the load that the others do not have.
        replaced += 1
        successors += spawns(bench.acts(bench.policy.on_exit(leaving, 0)))
    assert replaced == workers


def test_a_worker_that_is_stuck_does_not_wait() -> None:
    bench = Bench(4)
    running = bench.running(4)
    assert len(spawns(bench.acts(bench.policy.on_retire(running[0].worker, Reason.AGE)))) == 1
    assert len(spawns(bench.acts(bench.policy.on_retire(running[1].worker, Reason.STUCK)))) == 1
    assert spawns(bench.acts(bench.policy.on_retire(running[2].worker, Reason.MEMORY))) == []


def test_a_worker_that_dies_while_its_successor_starts_is_not_replaced_twice() -> None:
    bench = Bench()
    first, _ = bench.running()
    (successor,) = spawns(bench.acts(bench.policy.on_retire(first.worker)))
    assert successor.slot != first.slot
    assert bench.acts(bench.policy.on_retire(first.worker)) == [], "asked again"
    assert bench.acts(bench.policy.on_exit(first.worker, SIGKILL)) == []
    assert bench.acts(bench.policy.on_ready(successor.worker)) == []


def test_who_leaves_anyway_is_not_replaced() -> None:
    bench = Bench()
    first, other = bench.running()
    bench.policy.on_fewer()
    assert bench.acts(bench.policy.on_retire(other.worker)) == []
    bench.policy.on_stop()
    assert bench.acts(bench.policy.on_retire(first.worker)) == []
    assert bench.acts(bench.policy.on_retire(4711)) == []


def test_a_successor_that_fails_is_tried_again_and_the_worker_serves_on() -> None:
    bench = Bench()
    _, second = bench.running()
    (successor,) = spawns(bench.acts(bench.policy.on_retire(second.worker, Reason.AGE)))
    assert bench.acts(bench.policy.on_exit(successor.worker, 1)) == []
    assert bench.policy.serving == 2
    (again,) = spawns(bench.pass_time(1.0))
    assert list(drained(bench.acts(bench.policy.on_ready(again.worker)))) == [second.worker]


def test_one_that_asks_during_a_reload_goes_with_it_or_after_it_failed() -> None:
    bench = Bench()
    first, _ = bench.running()
    assert bench.acts(bench.policy.on_reload()) == [PrepareReload()]
    (new,) = spawns(bench.acts(bench.policy.begin_reload(2, LIMITS)))
    assert bench.acts(bench.policy.on_retire(first.worker, Reason.AGE)) == []
    assert [spawn.number for spawn in spawns(bench.acts(bench.policy.on_exit(new.worker, 1)))] == [1]


# -- from one master to the next ------------------------------------------------------------------------------------


def followed(bench: Bench) -> Bench:
    """Return a bench with the policy of the next master, after the way of its state through JSON."""
    after = Bench(bench.policy.wanted)
    after.now = bench.now
    after.policy = next_master(bench, clock=lambda: after.now)
    return after


def test_the_next_master_replaces_all_workers_as_in_a_reload() -> None:
    bench = Bench()
    old = bench.running()
    assert bench.policy.may_be_followed
    assert bench.acts(bench.policy.on_upgrade()) == [PrepareUpgrade()]
    after = followed(bench)
    new, done = after.reloaded()
    assert {spawn.generation for spawn in new} == {2}
    assert not {spawn.worker for spawn in new} & {spawn.worker for spawn in old}
    assert not {spawn.slot for spawn in new} & {spawn.slot for spawn in old}
    assert drained(done) == {spawn.worker: RELOAD for spawn in old}


def test_if_the_new_generation_fails_the_workers_of_the_former_master_stay_and_are_replaced() -> None:
    bench = Bench()
    _, second = bench.running()
    after = followed(bench)
    assert after.acts(after.policy.on_reload()) == [PrepareReload()]
    (new,) = spawns(after.acts(after.policy.begin_reload(2, LIMITS)))
    after.policy.on_exit(new.worker, 78)
    assert after.policy.serving == 2
    (third,) = spawns(after.acts(after.policy.on_exit(second.worker, SIGKILL)))
    assert (third.number, third.generation) == (2, 1)


def test_what_was_under_way_goes_on() -> None:
    bench = Bench(1)
    (only,) = bench.running(1)
    (successor,) = spawns(bench.acts(bench.policy.on_retire(only.worker, Reason.AGE)))
    after = followed(bench)
    assert after.policy.next_deadline() == bench.policy.next_deadline()
    assert after.policy.workers() == bench.policy.workers()
    assert list(drained(after.acts(after.policy.on_ready(successor.worker)))) == [only.worker]


def test_an_upgrade_waits_until_older_workers_are_gone_and_makes_them_hurry() -> None:
    bench = Bench()
    old = bench.running()
    bench.reloaded()
    assert not bench.policy.may_be_followed
    assert drained(bench.acts(bench.policy.on_upgrade())) == {spawn.worker: STOP for spawn in old}
    assert bench.acts(bench.policy.on_exit(old[0].worker, 0)) == []
    assert bench.acts(bench.policy.on_exit(old[1].worker, 0)) == [PrepareUpgrade()]
    assert bench.policy.settled


def test_a_reload_remembered_beside_an_upgrade_comes_if_that_fails() -> None:
    bench = Bench()
    old = bench.running()
    bench.reloaded()
    bench.policy.on_reload()
    bench.policy.on_upgrade()
    bench.policy.on_exit(old[0].worker, 0)
    assert bench.acts(bench.policy.on_exit(old[1].worker, 0)) == [PrepareUpgrade()]
    assert bench.acts(bench.policy.on_upgrade_failed()) == [PrepareReload()]
    assert bench.acts(bench.policy.on_upgrade_failed()) == []


def test_an_upgrade_alone_that_fails_is_no_reload() -> None:
    bench = Bench()
    bench.running()
    assert bench.acts(bench.policy.on_upgrade()) == [PrepareUpgrade()]
    assert bench.acts(bench.policy.on_upgrade_failed()) == []


def test_a_server_is_settled_when_nothing_is_under_way() -> None:
    bench = Bench()
    assert not bench.policy.settled
    bench.running()
    assert bench.policy.settled
    bench.policy.on_reload()
    bench.policy.begin_reload(2, LIMITS)
    assert not bench.policy.settled
    bench.policy.on_stop()
    assert not bench.policy.settled


def test_a_record_survives_the_way() -> None:
    record = Worker(7, 2, 5, 3, 12.5, State.DRAINING, 10.0, 20.0, Reason.MEMORY, True, lost=True)
    assert Worker.from_state(json.loads(json.dumps(record.to_state()))) == record
    fresh = Worker(7, 2, 5, 3, math.inf, State.SERVING)
    assert Worker.from_state(json.loads(json.dumps(fresh.to_state()))) == fresh


def test_a_policy_that_adopted_nobody_starts_the_generation_anew() -> None:
    policy = Policy(1, LIMITS, capacity=4, clock=lambda: 0.0)
    policy.adopt([], 4, 1)
    assert [action for action in policy.on_reload() if isinstance(action, PrepareReload)]
    assert [spawn.generation for spawn in spawns(policy.begin_reload(1, LIMITS))] == [5]
