"""Callbacks are called by their names as Python calls them, without an object in between."""

import sys
from typing import Any

import pytest

from fastmilter._call import call_method
from fastmilter.plan import CALLBACKS

MOST = 4


class Target:
    def take(self, *arguments: Any) -> tuple[Any, ...]:
        return self, *arguments

    @staticmethod
    def plain(*arguments: Any) -> tuple[Any, ...]:
        return arguments

    def fail(self) -> None:
        raise KeyError("lost")


@pytest.mark.parametrize("count", range(MOST + 1))
def test_the_target_and_its_arguments(count: int) -> None:
    target, arguments = Target(), tuple(range(count))
    assert call_method(target, "take", arguments) == (target, *arguments)
    assert call_method(target, "plain", arguments) == arguments


def test_no_callback_has_more_arguments() -> None:
    assert max(CALLBACKS.values()) <= MOST
    with pytest.raises(ValueError, match="5 arguments, expected at most 4"):
        call_method(Target(), "take", (1, 2, 3, 4, 5))


def test_a_callback_of_the_object_itself() -> None:
    target: Any = Target()
    target.take = lambda *arguments: arguments
    assert call_method(target, "take", (1, 2)) == (1, 2)


def test_what_is_raised_comes_through() -> None:
    with pytest.raises(KeyError, match="lost"):
        call_method(Target(), "fail", ())
    with pytest.raises(AttributeError, match="missing"):
        call_method(Target(), "missing", ())
    with pytest.raises(TypeError, match="positional argument"):
        call_method(Target(), "fail", (1,))


def test_nothing_is_kept() -> None:
    target, argument = Target(), object()
    before = sys.getrefcount(target), sys.getrefcount(argument)
    for _ in range(100):
        call_method(target, "take", (argument,))
        with pytest.raises(TypeError):
            call_method(target, "fail", (argument,))
    assert (sys.getrefcount(target), sys.getrefcount(argument)) == before
