"""A worker that asks to be replaced: its successor first, and nothing is replaced twice."""

from fastmilter.server.policy import SendDrain
from tests.support.policy_bench import RELOAD, SIGKILL, Bench, spawns


def test_the_successor_starts_first_and_then_the_worker_drains() -> None:
    bench = Bench()
    first, _ = bench.running()
    (successor,) = spawns(bench.acts(bench.policy.on_retire(first.worker)))
    assert (successor.number, successor.generation) == (first.number, first.generation)
    assert successor.slot != first.slot
    assert bench.acts(bench.policy.on_retire(first.worker)) == [], "asked again"
    assert bench.acts(bench.policy.on_ready(successor.worker)) == [SendDrain(first.worker, RELOAD)]
    assert bench.acts(bench.policy.on_exit(first.worker, 0)) == []


def test_a_worker_that_dies_while_its_successor_starts_is_not_replaced_twice() -> None:
    bench = Bench()
    first, _ = bench.running()
    (successor,) = spawns(bench.acts(bench.policy.on_retire(first.worker)))
    assert bench.acts(bench.policy.on_exit(first.worker, SIGKILL)) == []
    assert bench.acts(bench.policy.on_ready(successor.worker)) == []


def test_a_successor_that_fails_is_tried_again_while_the_worker_serves_on() -> None:
    bench = Bench()
    first, _ = bench.running()
    (successor,) = spawns(bench.acts(bench.policy.on_retire(first.worker)))
    assert spawns(bench.acts(bench.policy.on_exit(successor.worker, 1))) == []
    (second,) = spawns(bench.pass_time(5))
    assert second.number == first.number
    assert bench.acts(bench.policy.on_ready(second.worker)) == [SendDrain(first.worker, RELOAD)]


def test_who_leaves_anyway_is_not_replaced() -> None:
    bench = Bench()
    first, other = bench.running()
    bench.policy.on_fewer()
    assert bench.acts(bench.policy.on_retire(other.worker)) == []
    bench.policy.on_stop()
    assert bench.acts(bench.policy.on_retire(first.worker)) == []
    assert bench.acts(bench.policy.on_retire(4711)) == []
