"""How many connections a worker accepts at a turn of its loop, from a real listener."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fastmilter.server import channel
from fastmilter.server.pace import ACCEPTS_TOGETHER
from tests.support.turns import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack, tmp_path / "m")


def test_a_burst_is_accepted_in_few_turns(bench: Bench) -> None:
    bench.come(100)
    assert [bench.turn() for _ in range(10)] == [1, 2, 4, 8, 16, 16, 16, 16, 16, 5]
    assert ACCEPTS_TOGETHER == 16
    assert bench.turn() == 0


def test_connections_that_come_apart_are_accepted_one_at_a_turn(bench: Bench) -> None:
    """Nobody asks for a second one: that would be a system call for nothing with each connection."""
    for _ in range(5):
        bench.come(1)
        assert bench.turn() == 1
        assert bench.turn() == 0
    bench.come(3)
    assert [bench.turn() for _ in range(3)] == [1, 2, 0]


def test_a_burst_that_ended_begins_anew_with_one(bench: Bench) -> None:
    bench.come(7)
    assert [bench.turn() for _ in range(4)] == [1, 2, 4, 0]
    bench.come(7)
    assert [bench.turn() for _ in range(4)] == [1, 2, 4, 0]


def test_what_comes_less_densely_is_asked_for_less(bench: Bench) -> None:
    bench.come(4)
    assert [bench.turn(), bench.turn(), bench.turn()] == [1, 2, 1], "the third turn asked for four"
    bench.come(3)
    assert [bench.turn(), bench.turn()] == [2, 1], "after a turn that was left short it is one again, then two"


def test_no_more_are_accepted_than_a_worker_may_have(tmp_path: Path) -> None:
    with ExitStack() as stack:
        bench = Bench(stack, tmp_path / "m", max_connections_per_worker=5)
        bench.come(10)
        assert [bench.turn() for _ in range(4)] == [1, 2, 2, 0]


def test_a_worker_beside_others_takes_its_share_of_a_burst(tmp_path: Path) -> None:
    with ExitStack() as stack:
        bench = Bench(stack, tmp_path / "m")
        bench.slots.claim(1, pid=2, generation=1)
        bench.slots.set_listening(1, True)
        bench.slots.set_polling(1, True)
        bench.come(20)
        assert sum([bench.turn() for _ in range(6)]) == 3, "the first beyond the mean of both and one makes it leave"
        bench.slots.set_connections(1, 20)
        bench.slots.ring()
        assert sum([bench.turn() for _ in range(9)]) == 17


LONG = channel.Drain((600.0, 900.0, 1200.0))


@pytest.mark.parametrize("order_first", [False, True])
def test_a_worker_that_leaves_takes_what_came_as_its_order_did(bench: Bench, order_first: bool) -> None:
    """It may be the only one who was woken for that."""
    bench.come(1)
    bench.turn()
    if order_first:
        bench.master.send(channel.encode(LONG))
    bench.come(40)
    if not order_first:
        bench.master.send(channel.encode(LONG))
    assert bench.turn() == 40
    assert bench.turn() == 0
    with pytest.raises(OSError, match="refused"):
        bench.come(1)


def test_a_worker_that_leaves_takes_no_more_than_it_may_have(tmp_path: Path) -> None:
    with ExitStack() as stack:
        bench = Bench(stack, tmp_path / "m", max_connections_per_worker=5)
        bench.come(10)
        bench.master.send(channel.encode(LONG))
        assert bench.turn() == 5


def test_a_worker_that_had_left_takes_nothing_at_its_end(tmp_path: Path) -> None:
    """What waits then has woken others."""
    with ExitStack() as stack:
        bench = Bench(stack, tmp_path / "m")
        bench.slots.claim(1, pid=2, generation=1)
        bench.slots.set_listening(1, True)
        bench.slots.set_polling(1, True)
        bench.come(20)
        assert sum([bench.turn() for _ in range(6)]) == 3
        bench.master.send(channel.encode(LONG))
        assert bench.turn() == 0


def test_stop_now_is_heard_in_a_burst(bench: Bench) -> None:
    bench.come(50)
    bench.turn()
    bench.master.send(channel.encode(channel.StopNow()))
    bench.turn()
    assert bench.worker._stop_now
