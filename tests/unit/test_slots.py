"""Shared memory of the workers."""

import os
import select
import time

import pytest

from fastmilter.server.slots import CAPACITY, Slots


def test_fresh_slots_hold_nothing() -> None:
    slots = Slots(4)
    assert slots.active() == []
    assert slots.mean_connections() == 0.0
    assert slots.least_loaded() is None
    assert [slots.pid(slot) for slot in range(4)] == [0, 0, 0, 0]


def test_every_number_has_a_place_of_its_own() -> None:
    slots = Slots(3)
    slots.claim(1, pid=11, generation=12, number=17)
    slots.set_listening(1, True)
    slots.set_connections(1, 2**63)
    slots.beat(1, 16.5)
    assert (slots.pid(1), slots.generation(1), slots.listening(1), slots.connections(1)) == (11, 12, True, 2**63)
    assert slots.heartbeat(1) == 16.5
    assert slots.number(1) == 17
    assert not slots.stacks(1)
    slots.set_stacks(1)
    assert slots.stacks(1)
    assert slots.queue_id(1) == b""
    for neighbour in (0, 2):
        assert slots.pid(neighbour) == slots.connections(neighbour) == 0
        assert slots.heartbeat(neighbour) == 0.0
        assert not slots.stacks(neighbour)
        assert not slots.has_listened(neighbour)


def test_clear_empties_one_slot_only() -> None:
    slots = Slots(2)
    for slot in (0, 1):
        slots.claim(slot, pid=slot + 1, generation=1)
        slots.set_connections(slot, 5)
        slots.beat(slot, 1.0)
    slots.clear(0)
    assert (slots.pid(0), slots.connections(0), slots.heartbeat(0)) == (0, 0, 0.0)
    assert (slots.pid(1), slots.connections(1), slots.heartbeat(1)) == (2, 5, 1.0)
    assert slots.active() == [1]


def test_a_slot_remembers_that_its_worker_has_listened() -> None:
    slots = Slots(1)
    slots.claim(0, pid=1, generation=1)
    slots.set_listening(0, False)
    assert not slots.has_listened(0), "it never did"
    slots.set_listening(0, True)
    slots.set_listening(0, False)
    assert (slots.listening(0), slots.has_listened(0)) == (False, True)
    slots.clear(0)
    assert not slots.has_listened(0)


def test_loads_count_only_workers_that_take_new_connections() -> None:
    slots = Slots(8)
    for slot, connections in ((0, 10), (3, 4), (5, 100)):
        slots.claim(slot, pid=100 + slot, generation=1)
        slots.set_connections(slot, connections)
        slots.set_listening(slot, True)
    slots.set_listening(5, False)  # draining
    assert slots.active() == [0, 3, 5]
    assert slots.mean_connections() == 7.0
    assert slots.least_loaded() == 3
    slots.set_connections(0, 4)
    assert slots.least_loaded() == 0  # of two equal ones always the same


@pytest.mark.parametrize("slot", [-1, 4])
def test_a_slot_that_does_not_exist_is_an_error(slot: int) -> None:
    slots = Slots(4)
    with pytest.raises(IndexError):
        slots.set_connections(slot, 1)
    with pytest.raises(IndexError):
        slots.clear(slot)


def test_the_last_slot_is_within_the_memory() -> None:
    slots = Slots(CAPACITY)
    slots.clear(CAPACITY - 1)
    slots.claim(CAPACITY - 1, pid=1, generation=1)
    slots.beat(CAPACITY - 1, 2.0)
    assert slots.active() == [CAPACITY - 1]
    assert slots.heartbeat(CAPACITY - 1) == 2.0


def test_a_child_and_its_parent_see_the_same_numbers() -> None:
    slots = Slots(2)
    pid = os.fork()
    if pid == 0:
        slots.claim(1, pid=os.getpid(), generation=7)
        slots.set_connections(1, 42)
        slots.beat(1, time.monotonic())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (slots.pid(1), slots.generation(1), slots.connections(1)) == (pid, 7, 42)
    assert 0 < slots.heartbeat(1) <= time.monotonic()


def test_polling_is_apart_from_listening() -> None:
    slots = Slots(4)
    for slot in (0, 1):
        slots.clear(slot)
        slots.claim(slot, pid=10 + slot, generation=1)
        slots.set_listening(slot, True)
    slots.set_polling(1, True)
    assert slots.polling(1)
    assert not slots.polling(0)
    slots.clear(1)
    assert not slots.polling(1), "the dead do not poll"


def test_the_bell_wakes_everybody_once_for_each_ring() -> None:
    slots = Slots(2)
    assert slots.bell is not None
    waiting = [select.epoll(), select.epoll()]
    for epoll in waiting:
        epoll.register(slots.bell, select.EPOLLIN | select.EPOLLET)
        assert epoll.poll(0) == []
    for _ in range(2):
        slots.ring()
        assert [epoll.poll(0) for epoll in waiting] == [[(slots.bell, select.EPOLLIN)]] * 2
        assert [epoll.poll(0) for epoll in waiting] == [[], []]
    for epoll in waiting:
        epoll.close()
