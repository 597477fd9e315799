"""Code that is said to return nothing never returns anything, whatever way is taken through it."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fastmilter.plan import returns_nothing

WAYS = 40


class Fault(Exception):
    """What happens anywhere."""


class World:
    """What the code under test asks: each answer is drawn, and so is whether there is a fault instead."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.asked = 0

    def choose(self) -> bool:
        """Yes or no; no after some time, so that every loop ends."""
        self.asked += 1
        return self.asked < WAYS and bool(self.data.draw(st.booleans()))

    def act(self) -> None:
        if self.choose() and self.choose():
            raise Fault

    def value(self) -> str:
        self.act()
        return "a verdict"

    def __enter__(self) -> "World":
        self.act()
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        return kind is Fault and self.choose()


NOTHING = ["return", "return None"]
SOMETHING = [
    "return w.value()",
    "return 5",
    "return 0.25",
    "return False",
    "return w.value() if w.choose() else None",
    "return None if w.choose() else 5",
    "return w.choose() and w.value() or None",
    "x = None; x = w.choose() and 5; return x",
    "return (w.act(), None)[0] if w.choose() else ''",
    "return lambda: None",
]
PLAIN = ["w.act()", "pass", "y = w.value()", "z = [x for x in (1, 2) if w.choose()]", "k = lambda: w.value()"]
IN_LOOP = ["break", "continue"]


def block(lines: list[str]) -> list[str]:
    return ["    " + line for line in lines]


@st.composite
def statements(draw: st.DrawFn, returns: list[str], depth: int, in_loop: bool) -> list[str]:
    """A few lines of code that may return as ``returns`` say."""
    lines: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        simple = [*PLAIN, *returns, *(IN_LOOP if in_loop else [])]
        kinds = ["simple", "simple", "if", "while", "for", "with", "try", "match", "def"] if depth else ["simple"]
        kind = draw(st.sampled_from(kinds))

        def inner(loop: bool = in_loop) -> list[str]:
            return block(draw(statements(returns, depth - 1, loop)))

        if kind == "simple":
            lines.append(draw(st.sampled_from(simple)))
        elif kind == "if":
            lines += ["if w.choose():", *inner()]
            lines += ["else:", *inner()] if draw(st.booleans()) else []
        elif kind == "while":
            lines += ["while w.choose():", *inner(True)]
        elif kind == "for":
            lines += ["for v in (1, 2):", *inner(True)]
            lines += ["else:", *inner()] if draw(st.booleans()) else []
        elif kind == "with":
            lines += ["with w as v, w:", *inner()]
        elif kind == "match":
            lines += ["match w.choose(), w.choose():"]
            lines += block(["case (True, x):", *inner(), "case [False, *x] if w.choose():", *inner()])
        elif kind == "def":
            lines += ["def nested(w):", *block([*draw(statements(SOMETHING, 0, False))]), "w.act()"]
        else:
            lines += ["try:", *inner()]
            ends = draw(st.sampled_from(["e", "ef", "f", "el", "elf"]))
            lines += ["except Fault as error:", *inner()] if "e" in ends else []
            lines += ["else:", *inner()] if "l" in ends else []
            # Leaving a finally by break or continue is a warning from Python 3.14 on.
            lines += ["finally:", *block(draw(statements(returns, depth - 1, False)))] if "f" in ends else []
    return lines


def function(lines: list[str]) -> Any:
    scope: dict[str, Any] = {"Fault": Fault}
    exec("\n".join(["def f(w):", *block(lines)]), scope)
    return scope["f"]


@settings(max_examples=200)
@given(statements(NOTHING, 2, False))
def test_code_without_a_value_to_return_is_said_to_return_nothing(lines: list[str]) -> None:
    assert returns_nothing(function(lines))


@settings(max_examples=200)
@given(statements(NOTHING + SOMETHING, 2, False), st.data())
def test_what_returned_something_is_not_said_to_return_nothing(lines: list[str], data: st.DataObject) -> None:
    made = function(lines)
    for _ in range(3):
        try:
            result = made(World(data))
        except Fault:
            continue
        assert result is None or not returns_nothing(made)
