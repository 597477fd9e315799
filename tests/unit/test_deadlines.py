"""How long a callback may take, by class, step and MTA."""

import math
from typing import Any

import pytest

from fastmilter import Filter, Step
from fastmilter.constants import STEPS
from fastmilter.server.deadlines import COMMAND_S, CONTENT_S, POSTFIX_COMMAND_S, Deadlines

ALL = (1 << len(STEPS)) - 1
NUMBER = {step: number for number, step in enumerate(STEPS)}


@pytest.mark.parametrize(
    ("mta", "command", "content"),
    [("sendmail", COMMAND_S, COMMAND_S), (None, COMMAND_S, COMMAND_S), ("postfix", POSTFIX_COMMAND_S, CONTENT_S)],
)
def test_the_defaults_leave_a_margin_of_the_mtas_own(mta: str | None, command: float, content: float) -> None:
    limits = Deadlines(None).of(mta, ALL)
    by_step = {step: limits[number] for step, number in NUMBER.items()}
    assert by_step.pop(Step.END_OF_MESSAGE) == CONTENT_S < 300
    for step, limit in by_step.items():
        assert limit == (content if step in (Step.HEADER, Step.END_OF_HEADERS, Step.BODY) else command)
    assert command < (30 if mta == "postfix" else 10)


def test_nobody_waits_for_a_step_without_an_answer() -> None:
    assert Deadlines(None).of("sendmail", 0) == (CONTENT_S,) * len(STEPS)


@pytest.mark.parametrize(
    ("deadline", "mail", "header"),
    [
        (3, 3, 3),
        (2.5, 2.5, 2.5),
        (math.inf, math.inf, math.inf),
        ({"mail": 3}, 3, COMMAND_S),
        ({Step.MAIL: 3.5, "header": None}, 3.5, COMMAND_S),
        ({}, COMMAND_S, COMMAND_S),
    ],
)
def test_what_the_class_says_goes_first(deadline: Any, mail: float, header: float) -> None:
    limits = Deadlines(deadline).of(None, ALL)
    assert (limits[NUMBER[Step.MAIL]], limits[NUMBER[Step.HEADER]]) == (mail, header)


@pytest.mark.parametrize("deadline", [0, -1, "3", True, {"mail": 0}, {"maill": 3}])
def test_mistakes_are_caught_with_the_class(deadline: Any) -> None:
    with pytest.raises(TypeError, match="deadline"):
        type("Wrong", (Filter,), {"deadline": deadline})
