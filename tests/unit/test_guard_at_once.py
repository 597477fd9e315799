"""Guards in many threads and tasks at once: who waits, who is refused, what becomes of slots of cancelled calls."""

import asyncio
import functools
import random
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from fastmilter.guard import OUT_OF_TIME, Guard, Unavailable, give_up_thread
from tests.support.guarding import Clock, fail

PATIENCE_S = 30.0


# -- threads -------------------------------------------------------------------------------------------------------


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def waiting(guard: Guard, count: int) -> Callable[[], bool]:
    return lambda: len(guard._queue) == count


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    tick = threading.Event()
    for _ in range(int(PATIENCE_S * 1000)):
        if condition():
            return
        tick.wait(0.001)
    pytest.fail("it did not happen")


def enter(guard: Guard) -> str:
    try:
        with guard:
            return "called"
    except Unavailable:
        return "refused"


def test_a_thread_waits_for_a_slot(pool: ThreadPoolExecutor) -> None:
    guard = Guard("scanner", limit=1, wait=PATIENCE_S)
    with guard:
        results = [pool.submit(enter, guard) for _ in range(3)]
        until(waiting(guard, 3))
    assert [result.result(PATIENCE_S) for result in results] == ["called"] * 3
    assert guard.statistics()[2:6] == (0, 4, 0, 0)


def test_a_thread_does_not_wait_for_ever(pool: ThreadPoolExecutor) -> None:
    guard = Guard("scanner", limit=1, wait=0.01)
    with guard:
        assert pool.submit(enter, guard).result(PATIENCE_S) == "refused"
    assert not guard._queue
    assert guard.statistics()[2:6] == (0, 1, 0, 1)


def test_those_who_wait_are_refused_when_it_opens(pool: ThreadPoolExecutor) -> None:
    guard = Guard("scanner", limit=1, wait=PATIENCE_S, failures=1)
    results: list[Future[str]] = []

    def break_down() -> None:
        with guard:
            results.extend(pool.submit(enter, guard) for _ in range(3))
            until(waiting(guard, 3))
            raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        break_down()
    assert [result.result(PATIENCE_S) for result in results] == ["refused"] * 3
    assert guard.statistics()[2:6] == (0, 1, 1, 3)


def test_a_thread_that_is_given_up_has_failed_and_keeps_its_slot(pool: ThreadPoolExecutor) -> None:
    clock = Clock()
    guard, outer = Guard("scanner", limit=1, failures=1, recovery=10, clock=clock), Guard("outer", failures=1)
    inside, leave, numbers = threading.Event(), threading.Event(), []

    def hold() -> None:
        with outer, guard:
            numbers.append(threading.get_ident())
            inside.set()
            assert leave.wait(PATIENCE_S)

    late = pool.submit(hold)
    assert inside.wait(PATIENCE_S)
    for _ in range(2):
        give_up_thread(numbers[0])
        assert (guard.state, outer.state) == ("open", "open")
    assert guard.statistics()[2:] == (1, 1, 1, 0, 1)
    clock.now += 10
    assert enter(guard) == "refused", "there is no slot"
    leave.set()
    late.result(PATIENCE_S)
    assert guard.statistics()[2:] == (0, 1, 1, 1, 1)
    assert (guard.state, outer.state) == ("open", "open"), "it comes too late to have a say"
    give_up_thread(numbers[0])
    assert guard.statistics().failures == 1, "it is in no call any more"
    assert enter(guard) == "called"
    assert guard.state == "closed"


def test_many_threads(pool: ThreadPoolExecutor) -> None:
    clock = Clock()
    guard = Guard("scanner", limit=3, wait=0.001, failures=4, recovery=1, clock=clock)
    inside, most, counts, lock = 0, 0, Counter[str](), threading.Lock()

    def work(seed: int) -> None:
        nonlocal inside, most
        chance = random.Random(seed)
        for _ in range(400):
            clock.now += 0.05
            try:
                with guard:
                    with lock:
                        inside += 1
                        most = max(most, inside)
                    try:
                        if chance.random() < 0.5:
                            raise OSError
                    finally:
                        with lock:
                            inside -= 1
            except Unavailable:
                result = "refused"
            except OSError:
                result = "failed"
            else:
                result = "worked"
            with lock:
                counts[result] += 1

    for future in [pool.submit(work, seed) for seed in range(8)]:
        future.result(PATIENCE_S)
    numbers = guard.statistics()
    assert most <= 3
    assert numbers.running == 0
    assert not guard._queue
    assert (numbers.refused, numbers.failures) == (counts["refused"], counts["failed"])
    assert numbers.calls == counts["failed"] + counts["worked"]
    assert numbers.opened


# -- tasks ---------------------------------------------------------------------------------------------------------


def awaited(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a test on an event loop."""

    @functools.wraps(test)
    def run_it() -> None:
        asyncio.run(asyncio.wait_for(test(), PATIENCE_S))

    return run_it


async def call(guard: Guard, begun: asyncio.Event | None = None, go: asyncio.Event | None = None) -> str:
    try:
        async with guard:
            if begun is not None:
                begun.set()
            if go is not None:
                await asyncio.wait_for(go.wait(), PATIENCE_S)
            return "called"
    except Unavailable:
        return "refused"


async def turns(count: int = 5) -> None:
    """Let the other tasks run as far as they come."""
    for _ in range(count):
        await asyncio.sleep(0)


@awaited
async def test_tasks_are_told_apart() -> None:
    clock = Clock()
    guard = Guard("scanner", failures=1, recovery=10, clock=clock)
    begun, go = asyncio.Event(), asyncio.Event()
    early = asyncio.create_task(call(guard, begun, go))
    await begun.wait()
    with pytest.raises(OSError, match="broken"):
        async with guard:
            raise OSError("broken")
    assert await call(guard) == "refused"
    go.set()
    assert await early == "called"
    assert guard.state == "open", "it began before that, and says nothing of what is now"
    clock.now += 10
    assert await call(guard) == "called"
    assert guard.state == "closed"


@awaited
async def test_a_dropped_message_is_no_failure_and_a_deadline_is_one() -> None:
    guard = Guard("scanner", limit=1, failures=1)
    for words, state in (((), "closed"), (("whatever",), "closed"), ((OUT_OF_TIME,), "open")):
        begun, never = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(call(guard, begun, never))
        await begun.wait()
        task.cancel(*words)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert guard.state == state
        assert guard.statistics().running == 0


@awaited
async def test_a_time_out_within_the_block_is_a_failure() -> None:
    guard = Guard("scanner", failures=1)
    with pytest.raises(TimeoutError):
        async with guard, asyncio.timeout(0.001):
            await asyncio.Event().wait()
    assert guard.state == "open"


@awaited
async def test_a_cancelled_try_lets_the_next_one_try() -> None:
    clock = Clock()
    guard = Guard("scanner", failures=1, recovery=10, clock=clock)
    fail(guard)
    clock.now += 10
    begun, never = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(call(guard, begun, never))
    await begun.wait()
    assert await call(guard) == "refused"
    task.cancel()
    await asyncio.wait([task])
    assert await call(guard) == "called"
    assert guard.state == "closed"


@awaited
async def test_a_task_waits_for_a_slot_and_holds_nobody_up() -> None:
    guard = Guard("scanner", limit=1, wait=PATIENCE_S)
    go = asyncio.Event()
    tasks = [asyncio.create_task(call(guard, None, go)) for _ in range(3)]
    await turns()
    assert len(guard._queue) == 2
    go.set()
    assert await asyncio.gather(*tasks) == ["called"] * 3
    assert guard.statistics()[2:6] == (0, 3, 0, 0)


@awaited
async def test_a_task_does_not_wait_for_ever() -> None:
    guard = Guard("scanner", limit=1, wait=0.01)
    async with guard:
        assert await asyncio.create_task(call(guard)) == "refused"
        with pytest.raises(Unavailable), guard:
            pytest.fail("entered beyond the limit")
    assert not guard._queue
    assert guard.statistics()[2:6] == (0, 1, 0, 2)


@awaited
async def test_a_task_that_is_cancelled_while_it_waits_leaves_no_trace() -> None:
    guard = Guard("scanner", limit=1, wait=PATIENCE_S)
    async with guard:
        task = asyncio.create_task(call(guard))
        await turns()
        task.cancel()
        await asyncio.wait([task])
        assert not guard._queue
    assert guard.statistics()[2:6] == (0, 1, 0, 0)


@awaited
async def test_a_slot_given_to_a_task_that_is_cancelled_goes_on_to_the_next() -> None:
    guard = Guard("scanner", limit=1, wait=PATIENCE_S)
    async with guard:
        first, second = asyncio.create_task(call(guard)), asyncio.create_task(call(guard))
        await turns()
        assert len(guard._queue) == 2
    first.cancel()  # the slot is its own already, but it has not run yet
    await asyncio.wait([first])
    assert first.cancelled()
    assert await second == "called"
    assert guard.statistics()[2:6] == (0, 2, 0, 0)


@awaited
async def test_threads_and_tasks_give_slots_to_each_other() -> None:
    guard = Guard("scanner", limit=1, wait=PATIENCE_S)
    entered, leave = threading.Event(), threading.Event()

    def hold() -> str:
        with guard:
            entered.set()
            assert leave.wait(PATIENCE_S)
        return "called"

    thread = asyncio.create_task(asyncio.to_thread(hold))
    await asyncio.to_thread(entered.wait, PATIENCE_S)
    task = asyncio.create_task(call(guard))
    await turns()
    leave.set()
    assert {await thread, await task} == {"called"}
    async with guard:
        other = asyncio.create_task(asyncio.to_thread(enter, guard))
        await asyncio.to_thread(until, waiting(guard, 1))
    assert await other == "called"
    assert guard.statistics()[2:6] == (0, 4, 0, 0)


def test_a_loop_that_has_gone_keeps_no_slot() -> None:
    guard = Guard("scanner", limit=1, wait=PATIENCE_S)
    loop = asyncio.new_event_loop()
    with guard:
        gone = loop.create_task(call(guard))
        loop.run_until_complete(turns())
        assert len(guard._queue) == 1
        loop.close()
    assert guard.statistics().running == 0
    gone._log_destroy_pending = False  # type: ignore[attr-defined]
    gone.get_coro().close()


@awaited
async def test_many_tasks_some_of_them_cancelled() -> None:
    clock = Clock()
    guard = Guard("scanner", limit=3, wait=0.001, failures=4, recovery=1, clock=clock)
    chance, inside = random.Random(7), 0

    async def work() -> None:
        nonlocal inside
        async with guard:
            inside += 1
            assert inside <= 3
            try:
                await turns(chance.randrange(4))
                if chance.random() < 0.4:
                    raise OSError
            finally:
                inside -= 1

    for _ in range(150):
        clock.now += 0.3
        tasks = [asyncio.create_task(work()) for _ in range(8)]
        await turns(chance.randrange(6))
        for task in chance.sample(tasks, 3):
            task.cancel(*chance.choice(((), (OUT_OF_TIME,))))
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(end) for end in ended} <= {type(None), OSError, Unavailable, asyncio.CancelledError}
        assert not guard._queue
        assert guard.statistics().running == 0
    numbers = guard.statistics()
    assert numbers.opened
    assert numbers.calls > numbers.failures > 0
