"""Which callbacks are seen to return nothing: their code is looked at once, when the class is made.

The shapes are sources, since a formatter and a linter would make most of them into one another.
"""

import functools
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import pytest

from fastmilter import CONTINUE, REJECT, Filter, Step, Verdict
from fastmilter.message import Connection
from fastmilter.plan import returns_nothing

MUTE = {
    "no statement": "def f(s): pass",
    "docstring": "def f(s):\n 'Note it.'",
    "a call": "def f(s): s.note()",
    "bare return": "def f(s):\n if s.known: return\n s.note()",
    "return None": "def f(s):\n if s.known: return None\n s.note()\n return None",
    "only raises": "def f(s): raise s.error",
    "assert": "def f(s): assert s.known, s.name",
    "and": "def f(s): s.known and s.note()",
    "walrus": "def f(s):\n if (found := s.look()): return\n s.note(found)",
    "global, nonlocal": "def g():\n z = 1\n def f(s):\n  global y\n  nonlocal z\n  y = z = s\n return f\nf = g()",
    "while": "def f(s):\n while True:\n  if s.known: return\n  if s.late: break",
    "for with else": "def f(s):\n for x in s.all:\n  if x: break\n else:\n  return\n s.note()",
    "try, finally": "def f(s):\n try:\n  return\n finally:\n  s.close()",
    "try, except, else, finally": (
        "def f(s):\n try:\n  s.look()\n  return None\n except ValueError as e:\n  return\n"
        " except OSError:\n  raise\n else:\n  return None\n finally:\n  s.close()"
    ),
    "return in finally": "def f(s):\n try: s.look()\n finally:\n  return",
    "except*": "def f(s):\n try: s.look()\n except* ValueError: s.note()",
    "with": "def f(s):\n with s.open() as x, s.lock:\n  if x: return None\n  s.note(x)",
    "with, try, loop": (
        "def f(s):\n for x in s.all:\n  with x:\n   if x: return\n   try:\n    return None\n   finally:\n    s.close()"
    ),
    "match": (
        "def f(s):\n match s.name:\n  case 'a' | 'b': return\n  case [x, *y] if x: s.note(y)\n"
        "  case {'n': None}: return None\n  case _: pass"
    ),
    "nested functions that return": "def f(s):\n def g():\n  return s.name\n async def h(): return 1\n s.note(g, h)",
    "nested lambda": "def f(s): s.note(lambda: s.name)",
    "nested class": "def f(s):\n class K:\n  def m(self): return 1\n s.note(K)",
    "comprehensions": "def f(s):\n s.note([x for x in s.all], {x: 1 for x in s.all}, (y for y in s.all))",
    "super without return": "def f(s): super(type(s), s).on_helo('')",
    "lambda": "f = lambda s: None",
    "async": "async def f(s):\n async with s.open():\n  async for x in s.all:\n   if x: return\n await s.note()",
    "more constants than fit a byte": "def f(s):\n " + "\n ".join(f"s.n({n}.5)" for n in range(600)) + "\n return None",
    "many returns": "def f(s):\n " + "\n ".join(f"if s.n({n}.5): return" for n in range(600)),
    "never reached": "def f(s):\n if False: return CONTINUE\n return\n return CONTINUE",
}

TELLING = {
    "CONTINUE": "def f(s): return CONTINUE",
    "in a branch": "def f(s):\n if s.known: return CONTINUE",
    "a constant": "def f(s): return 5",
    "False": "def f(s): return False",
    "an empty string": "def f(s): return ''",
    "the last of many constants": "def f(s):\n " + "\n ".join(f"s.n({n}.5)" for n in range(600)) + "\n return 7.25",
    "a call": "def f(s): return s.look()",
    "an attribute": "def f(s): return s.verdict",
    "x if c else None": "def f(s): return s.verdict if s.known else None",
    "None if c else x": "def f(s): return None if s.known else s.verdict",
    "5 if c else None": "def f(s): return 5 if s.known else None",
    "None if c else 5": "def f(s): return None if s.known else 5",
    "or None": "def f(s): return s.verdict or None",
    "and None": "def f(s): return s.verdict and None",
    "None or": "def f(s): return None or s.verdict",
    "a local name": "def f(s):\n x = None\n if s.known: x = REJECT\n return x",
    "walrus": "def f(s): return (x := s.verdict)",
    "for": "def f(s):\n for x in s.all:\n  if x: return x",
    "a constant out of with and while": "def f(s):\n while s.more():\n  with s.lock:\n   return 5",
    "with": "def f(s):\n with s.open() as x: return x",
    "try, finally": "def f(s):\n try: return s.look()\n finally: s.close()",
    "a constant, finally": "def f(s):\n try: return 5\n finally: s.close()",
    "except": "def f(s):\n try: s.look()\n except ValueError as e: return REJECT",
    "finally overrides None": "def f(s):\n try: return None\n finally:\n  return REJECT",
    "finally in a branch": "def f(s):\n try: s.look()\n finally:\n  if s.known: return 5",
    "match": "def f(s):\n match s.name:\n  case 'a': return REJECT\n  case _: return None",
    "if True": "def f(s):\n if True: return CONTINUE",
    "super": "def f(s): return super(type(s), s).on_helo('')",
    "lambda": "f = lambda s: s.look()",
    "a lambda is returned": "def f(s): return lambda: None",
    "a tuple": "def f(s): return (None,)",
    "async": "async def f(s): return await s.look()",
    "async, or None": "async def f(s): return await s.look() or None",
    # A call of these gives an object, which is no verdict: better the MTA hears of that mistake at once.
    "generator": "def f(s):\n yield 1",
    "generator that never yields": "def f(s):\n if 0: yield",
    "yield from": "def f(s): yield from s.all",
    "async generator": "async def f(s):\n yield 1",
}


def made(source: str) -> Any:
    scope: dict[str, Any] = {"CONTINUE": CONTINUE, "REJECT": REJECT}
    exec(source, scope)
    return scope["f"]


@pytest.mark.parametrize("shape", MUTE)
def test_code_that_cannot_return_a_verdict(shape: str) -> None:
    assert returns_nothing(made(MUTE[shape]))


@pytest.mark.parametrize("shape", TELLING)
def test_code_that_can(shape: str) -> None:
    assert not returns_nothing(made(TELLING[shape]))


# -- what is no plain function ----------------------------------------------------------------------------------------


def passing_on(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        return function(*arguments)

    return wrapper


def swallowing(function: Callable[..., Any]) -> Callable[..., None]:
    @functools.wraps(function)
    def wrapper(*arguments: Any) -> None:
        function(*arguments)

    return wrapper


class Callback:
    """An object that can be called."""

    def __call__(self, name: str) -> None: ...


def note(self: Any, name: str) -> None: ...


def refuse(self: Any, name: str) -> Verdict:
    return REJECT


def test_a_decorated_function_is_what_is_called_and_not_what_it_wraps() -> None:
    assert [returns_nothing(passing_on(function)) for function in (note, refuse)] == [False, False]
    assert [returns_nothing(swallowing(function)) for function in (note, refuse)] == [True, True]


@pytest.mark.parametrize(
    "callback",
    [
        functools.partial(note, None),
        functools.partialmethod(note, "x"),
        functools.lru_cache(note),
        Callback(),
        Callback().__call__,
        Callback,
        attrgetter("name"),
        len,
        str.lower,
        Connection.can,  # compiled by Cython
        Filter.on_helo,
        staticmethod(note),
        None,
        5,
    ],
    ids=lambda callback: type(callback).__name__,
)
def test_what_cannot_be_looked_into_is_waited_for(callback: Any) -> None:
    assert not returns_nothing(callback)


# -- in a class -------------------------------------------------------------------------------------------------------


def unanswered(cls: Any) -> list[Step]:
    """Which of connect, helo and data are asked for without an answer."""
    return [step for step in (Step.CONNECT, Step.HELO, Step.DATA) if step in cls.wish().no_reply]


class Notes(Filter):
    def on_helo(self, name: str) -> Verdict | None:
        self.name = name
        return None

    def on_data(self) -> None:
        self.name = ""


class Refuses(Filter):
    def on_helo(self, name: str) -> Verdict:
        return REJECT


def test_each_class_by_its_own_callbacks() -> None:
    class Inherits(Notes): ...

    class Asks(Notes):
        def on_helo(self, name: str) -> Verdict | None:
            return super().on_helo(name)

    class Forgets(Refuses):
        def on_helo(self, name: str) -> None:  # type: ignore[override]
            super().on_helo(name)

    class Mixin:
        def on_helo(self, name: str) -> Verdict:
            return CONTINUE

    class Mixed(Mixin, Notes): ...

    class Compiled(Filter):
        on_helo = Connection.can  # type: ignore[assignment]

    class Decorated(Filter):
        on_helo = passing_on(note)
        on_data = lambda self: None  # noqa: E731 - people write that

    assert unanswered(Notes) == unanswered(Inherits) == [Step.CONNECT, Step.HELO, Step.DATA]
    assert Step.CONNECT in unanswered(Refuses), "not overridden: noted only"
    assert unanswered(Refuses) == unanswered(Compiled) == [Step.CONNECT]
    assert unanswered(Asks) == unanswered(Mixed) == unanswered(Decorated) == [Step.CONNECT, Step.DATA]
    assert unanswered(Forgets) == [Step.CONNECT, Step.HELO]


def test_the_code_is_looked_at_when_the_class_is_made() -> None:
    class Later(Filter):
        def on_helo(self, name: str) -> None: ...

    Later.on_helo = Refuses.on_helo  # type: ignore[method-assign, assignment]
    assert unanswered(Later) == [Step.CONNECT, Step.HELO]
