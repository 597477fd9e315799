"""What is told of a worker, from what stands in its slot."""

import pytest

from fastmilter.server.slots import Slots
from fastmilter.server.status import state_of, worker


@pytest.mark.parametrize(("now", "age"), [(12.5, 2.5), (10.0, 0.0), (9.9, 0.0)])
def test_a_loop_that_turned_after_one_looked_at_the_clock_is_not_younger_than_nothing(now: float, age: float) -> None:
    slots = Slots(1)
    slots.claim(0, pid=1, generation=1)
    assert worker(slots, 0, now)["loop_age"] is None
    slots.beat(0, 10.0)
    assert worker(slots, 0, now)["loop_age"] == age


def test_the_states_of_a_worker_from_its_birth_to_the_next_one() -> None:
    slots = Slots(1)
    slots.clear(0)
    slots.claim(0, pid=1, generation=1)
    assert state_of(slots, 0) == "starting"
    slots.set_listening(0, True)
    assert state_of(slots, 0) == "serving", "before its loop first turns"
    slots.beat(0, 1.0)
    assert state_of(slots, 0) == "serving"
    slots.set_listening(0, False)
    assert state_of(slots, 0) == "draining"
    slots.beat(0, 0.0)
    assert state_of(slots, 0) == "draining", "its loop has ended, and it writes its log or stops the filter"
    slots.clear(0)
    slots.claim(0, pid=2, generation=1)
    assert state_of(slots, 0) == "starting"
