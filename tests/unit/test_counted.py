"""What a worker shows of its guards: no count goes down, whatever becomes of a guard."""

import gc
import logging
import weakref

import pytest

from fastmilter import guard as guards
from fastmilter.guard import Guard, Unavailable
from fastmilter.server.counted import show_guards
from fastmilter.server.counters import MOST_GUARDS, Counters, Tally


@pytest.fixture(autouse=True)
def _no_other_guards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "_guards", weakref.WeakSet())


@pytest.fixture
def counters() -> Counters:
    return Counters(1)


@pytest.fixture
def tally(counters: Counters) -> Tally:
    return counters.tally(0)


def call(guard: Guard, times: int) -> None:
    for _ in range(times):
        with guard:
            pass


def shown(counters: Counters, tally: Tally) -> dict[str, tuple[int, int, int]]:
    """Show the guards; return of each how many workers know a state of it, the calls that run, and those there were."""
    show_guards(tally)
    return {name: (sum(each.states), each.running, each.counts[0]) for name, each in counters.guards(1).items()}


def test_every_count_of_a_guard_is_shown(counters: Counters, tally: Tally) -> None:
    guard = Guard("dns", failures=1)
    call(guard, 2)
    with pytest.raises(OSError, match="down"), guard:
        raise OSError("down")
    with pytest.raises(Unavailable), guard:
        pytest.fail("the block was entered")
    show_guards(tally)
    assert counters.guards(1) == {"dns": ((0, 0, 1), 0, (3, 1, 1, 1))}


def test_a_guard_that_is_gone_still_counts_and_leaves_the_others_in_their_places(
    counters: Counters, tally: Tally
) -> None:
    first, second = Guard("a"), Guard("b")
    call(first, 7)
    call(second, 10)
    assert shown(counters, tally) == {"a": (1, 0, 7), "b": (1, 0, 10)}
    del first
    gc.collect()
    assert shown(counters, tally) == {"a": (0, 0, 7), "b": (1, 0, 10)}
    before_b = Guard("aa")
    call(before_b, 1)
    assert shown(counters, tally) == {"a": (0, 0, 7), "aa": (1, 0, 1), "b": (1, 0, 10)}
    counters.retire(0)
    assert {name: each.counts[0] for name, each in counters.guards(1).items()} == {"a": 7, "aa": 1, "b": 10}


def test_a_guard_that_is_made_again_counts_on(counters: Counters, tally: Tally) -> None:
    former = Guard("dns")
    call(former, 10)
    assert shown(counters, tally) == {"dns": (1, 0, 10)}
    latest = Guard("dns")
    assert shown(counters, tally) == {"dns": (1, 0, 10)}
    call(latest, 12)
    with former, latest:
        assert shown(counters, tally) == {"dns": (1, 2, 24)}
    del former
    gc.collect()
    assert shown(counters, tally) == {"dns": (1, 0, 24)}
    del latest
    gc.collect()
    assert shown(counters, tally) == {"dns": (0, 0, 24)}
    third = Guard("dns")
    call(third, 1)
    assert shown(counters, tally) == {"dns": (1, 0, 25)}


def test_a_call_that_is_taken_back_is_no_number_that_goes_down(counters: Counters, tally: Tally) -> None:
    guard = Guard("dns")
    call(guard, 3)
    assert shown(counters, tally) == {"dns": (1, 0, 3)}
    guard._calls -= 1
    assert shown(counters, tally) == {"dns": (1, 0, 3)}
    call(guard, 2)
    assert shown(counters, tally) == {"dns": (1, 0, 4)}


def test_more_names_than_places_are_told_of_once(
    counters: Counters, tally: Tally, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    several = [Guard(f"guard {number:02}") for number in range(MOST_GUARDS)]
    assert len(shown(counters, tally)) == MOST_GUARDS
    assert not caplog.messages
    several += [Guard("another"), Guard("z")]
    assert sorted(shown(counters, tally)) == [guard.name for guard in several[:MOST_GUARDS]]
    shown(counters, tally)
    (message,) = caplog.messages
    assert message == "more than 16 names of guards: metrics and status lack those beyond, such as another"


def test_names_that_begin_alike_are_shown_as_one(counters: Counters, tally: Tally) -> None:
    """docs/monitoring.md says so."""
    east, west = Guard("x" * 32 + "east"), Guard("x" * 32 + "west")
    call(east, 2)
    call(west, 3)
    assert shown(counters, tally) == {"x" * 32: (2, 0, 5)}
