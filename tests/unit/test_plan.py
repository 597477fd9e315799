"""What follows from a filter class, and its mistakes, which are caught when the class is made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from fastmilter import (
    ACCEPT,
    CONTINUE,
    REJECT,
    SKIP,
    Action,
    ConfigError,
    Filter,
    Step,
    Verdict,
    codec,
    early_verdict,
    no_reply,
)
from fastmilter.constants import STEPS
from fastmilter.plan import CALLBACKS, HOOKS, Plan, build_options, describe

ARGUMENTS = {count: ", ".join(f"a{n}" for n in range(count)) for count in range(4)}


def filter_with(*callbacks: str, returns: str = "None", **settings: Any) -> Any:
    """A filter class that overrides ``callbacks``, each with ``return <returns>``."""
    body: dict[str, Any] = dict(settings)
    for name in callbacks:
        scope: dict[str, Any] = {"CONTINUE": CONTINUE}
        exec(f"def {name}(self, {ARGUMENTS[CALLBACKS[name]]}): return {returns}", scope)
        body[name] = scope[name]
    return type("Made", (Filter,), body)


CONTENT = (Step.HEADER, Step.END_OF_HEADERS, Step.BODY)


def plan_of(cls: Any) -> Plan:
    plan = cls._fastmilter_plan
    assert isinstance(plan, Plan)
    return plan


# -- what is asked for ------------------------------------------------------------------------------------------------


def test_an_empty_filter_asks_for_what_connection_and_message_need() -> None:
    wish = filter_with().wish()
    assert wish.never == {Step.DATA, Step.HEADER, Step.END_OF_HEADERS, Step.BODY, Step.UNKNOWN}
    assert wish.no_reply == {Step.CONNECT, Step.HELO, Step.RCPT}
    assert (wish.rejected_recipients, wish.leading_space, wish.macros) == (False, False, ())
    assert (wish.actions, wish.requires) == (Action(0x1FF), Action(0))


@pytest.mark.parametrize("step", STEPS)
def test_a_callback_asks_for_its_step(step: Step) -> None:
    wish = filter_with(f"on_{step}", returns="CONTINUE").wish()
    assert step not in wish.never
    assert (step in wish.no_reply) == (step in CONTENT)


@pytest.mark.parametrize("step", STEPS)
def test_a_callback_that_returns_nothing_is_not_waited_for_where_nothing_else_needs_the_answer(step: Step) -> None:
    wish = filter_with(f"on_{step}").wish()
    assert step not in wish.never, "it is called all the same"
    assert (step in wish.no_reply) == (step in (Step.CONNECT, Step.HELO, Step.DATA, *CONTENT))


@pytest.mark.parametrize("name", ["on_header", "on_end_of_headers", "on_body"])
def test_early_verdict_asks_for_the_reply(name: str) -> None:
    plain = filter_with(name)
    made = type("Early", (Filter,), {name: early_verdict(vars(plain)[name])})
    step = Step(name.removeprefix("on_"))
    assert step not in plan_of(made).wish.no_reply | plan_of(made).wish.never


@pytest.mark.parametrize("name", ["on_connect", "on_helo", "on_mail", "on_rcpt", "on_data"])
def test_no_reply_drops_the_reply(name: str) -> None:
    made = type("Quiet", (Filter,), {name: no_reply(vars(filter_with(name))[name])})
    step = Step(name.removeprefix("on_"))
    assert step in plan_of(made).wish.no_reply
    assert step not in plan_of(made).wish.never


def test_settings_reach_the_wish() -> None:
    made = filter_with(
        "on_rejected_rcpt",
        actions=Action.ADD_HEADERS,
        requires=Action.QUARANTINE,
        leading_space=True,
        request_macros={"rcpt": ["{client_port}"], Step.END_OF_MESSAGE: ("x",)},
    )
    wish = made.wish()
    assert (wish.actions, wish.requires, wish.leading_space) == (Action.ADD_HEADERS, Action.QUARANTINE, True)
    assert wish.rejected_recipients
    macros = dict(wish.macros)
    assert "{client_port}" in macros[Step.RCPT]
    assert {"{rcpt_mailer}", "i"} <= set(macros[Step.RCPT]), "what our own accessors need stays"
    assert "{x}" not in macros[Step.RCPT]
    assert "x" in macros[Step.END_OF_MESSAGE]
    assert Step.END_OF_HEADERS in macros


def test_a_subclass_starts_from_its_parent() -> None:
    parent = filter_with("on_mail", "on_header")
    child = type("Child", (parent,), {"on_data": vars(filter_with("on_data"))["on_data"]})
    assert plan_of(child).overridden == {"on_mail", "on_header", "on_data"}
    assert plan_of(parent).overridden == {"on_mail", "on_header"}


def test_a_mixin_counts() -> None:
    class Logs:
        def on_close(self) -> None: ...

    class Both(Logs, Filter): ...

    assert plan_of(Both).overridden == {"on_close"}


def test_optional_callbacks_are_called_only_where_they_are() -> None:
    assert plan_of(filter_with()).overridden == set()
    assert plan_of(filter_with("on_error", "on_timeout")).overridden == {"on_error", "on_timeout"}


def test_async_is_seen() -> None:
    class Waits(Filter):
        async def on_mail(self, sender: object, params: object) -> None: ...

    class Opens(Filter):
        @classmethod
        async def worker_started(cls, options: object) -> None: ...

    class Negotiates(Filter):
        async def on_negotiate(self, offer: object) -> None: ...

    assert [plan_of(cls).is_async for cls in (Waits, Opens, Negotiates, filter_with("on_mail"))] == [
        True,
        True,
        True,
        False,
    ]


def test_agreements_are_shared_and_their_number_is_bounded() -> None:
    plan = plan_of(filter_with())
    first = plan.agreement(codec.Negotiate(6, 0x1FF, 0x1FFFFF))
    assert plan.agreement(codec.Negotiate(6, 0x1FF, 0x1FFFFF)) is first
    for actions in range(1, 100):
        assert plan.agreement(codec.Negotiate(6, actions, 0x1FFFFF)).actions == actions & 0xFF
    assert len(plan.agreements) <= 16


# -- the state class --------------------------------------------------------------------------------------------------

T = TypeVar("T")


class Score:
    def __init__(self) -> None:
        self.points = 0


class Greedy:
    def __init__(self, points: int) -> None: ...


def test_state_classes() -> None:
    class Plain(Filter): ...

    class Own(Filter[Score]): ...

    class Further(Own): ...

    class Between(Filter[T]): ...

    class Resolved(Between[Score]): ...

    class Unresolved(Between): ...  # type: ignore[type-arg]

    class Alias(Filter[dict[str, int]]): ...

    class Anything(Filter[Any]): ...

    class Mixin: ...

    class Mixed(Mixin, Own): ...

    classes = (Plain, Own, Further, Resolved, Unresolved, Alias, Anything, Mixed)
    assert [plan_of(cls).state_class for cls in classes] == [
        SimpleNamespace,
        Score,
        Score,
        Score,
        SimpleNamespace,
        dict,
        SimpleNamespace,
        Score,
    ]


def test_state_classes_that_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="Greedy must work without arguments"):

        class Needs(Filter[Greedy]): ...

    with pytest.raises(TypeError, match="must name a class"):

        class Union(Filter[int | None]): ...


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "suggested"),
    [("on_envfrom", ""), ("on_rcp", "on_rcpt"), ("on_end_of_mesage", "on_end_of_message"), ("on_hello", "on_helo")],
)
def test_an_unknown_callback(name: str, suggested: str) -> None:
    with pytest.raises(TypeError, match=rf"Made\.{name} is not a callback.*{suggested}"):
        type("Made", (Filter,), {name: lambda self: None})


@pytest.mark.parametrize("name", [*CALLBACKS, *HOOKS])
def test_a_wrong_number_of_arguments(name: str) -> None:
    count = {**CALLBACKS, **HOOKS}[name]
    for wrong in (count + 1, count - 1):
        if wrong < 0:
            continue
        scope: dict[str, Any] = {}
        exec(f"def {name}(self, {', '.join(f'a{n}' for n in range(wrong))}): return None", scope)
        function = classmethod(scope[name]) if name in HOOKS else scope[name]
        with pytest.raises(TypeError, match=rf"Made\.{name}.*has the wrong arguments"):
            type("Made", (Filter,), {name: function})


def test_defaults_and_star_arguments_are_fine() -> None:
    class Fine(Filter):
        def on_mail(self, *args: object) -> None: ...

        def on_helo(self, name: str, extra: int = 5) -> None: ...

    assert plan_of(Fine).overridden == {"on_mail", "on_helo"}


MISTAKES: list[tuple[str, dict[str, Any]]] = [
    ("error_verdict must be a verdict", {"error_verdict": "tempfail"}),
    ("error_verdict must be a verdict", {"error_verdict": SKIP}),
    ("timeout_verdict must be a verdict", {"timeout_verdict": None}),
    ("blocking must be True or False", {"blocking": 1}),
    ("leading_space must be True or False", {"leading_space": "yes"}),
    ("actions must be made of Action", {"actions": 5}),
    ("requires must be made of Action", {"requires": None}),
    ("deadline must be a number", {"deadline": "5"}),
    ("deadline must be a number", {"deadline": 0}),
    ("deadline must be a number", {"deadline": True}),
    ("deadline must be a number", {"deadline": {"mail": -1}}),
    ("'mial' is not a step; did you mean mail", {"deadline": {"mial": 5}}),
    ("request_macros must be a mapping", {"request_macros": ["i"]}),
    ("no macros by request at 'header'", {"request_macros": {"header": ["i"]}}),
    ("no macros by request at 'rcp'; did you mean rcpt", {"request_macros": {"rcp": ["i"]}}),
    (r"request_macros\['rcpt'\] must be a list", {"request_macros": {"rcpt": "{rcpt_addr}"}}),
    (r"request_macros\['rcpt'\] must be a list", {"request_macros": {"rcpt": 5}}),
    (r"request_macros\['rcpt'\] must be a list", {"request_macros": {"rcpt": [5]}}),
    (r"request_macros\['rcpt'\] must be a list", {"request_macros": {"rcpt": iter(["i"])}}),
    ("'a b' is no name of a macro", {"request_macros": {"rcpt": ["a b"]}}),
    ("'' is no name of a macro", {"request_macros": {"rcpt": [""]}}),
    ("Options must be a dataclass", {"Options": SimpleNamespace}),
    ("on_mail must be a method", {"on_mail": 5}),
    ("on_close must be a plain method", {"on_close": staticmethod(lambda: None)}),
    ("on_close must be a plain method", {"on_close": classmethod(lambda cls: None)}),
    ("worker_started must be a @classmethod", {"worker_started": lambda self, options: None}),
    ("keep_body is reserved", {"keep_body": True}),
    ("keep_headers is reserved", {"keep_headers": True}),
    ("__init__ must work without arguments", {"__init__": lambda self, pool: None}),
    ("@no_reply cannot stand on Made.on_header", {"on_header": no_reply(lambda self, name, value: None)}),
    ("@no_reply cannot stand on Made.on_end_of_message", {"on_end_of_message": no_reply(lambda self: None)}),
    ("@no_reply cannot stand on Made.on_close", {"on_close": no_reply(lambda self: None)}),
    ("@early_verdict cannot stand on Made.on_data", {"on_data": early_verdict(lambda self: None)}),
    ("@early_verdict cannot stand on Made.on_unknown", {"on_unknown": early_verdict(lambda self, command: None)}),
    ("@early_verdict cannot stand on Made.on_error", {"on_error": early_verdict(lambda self, step, error: None)}),
]


@pytest.mark.parametrize(("text", "body"), MISTAKES)
def test_mistakes_are_caught_when_the_class_is_made(text: str, body: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=text):
        type("Made", (Filter,), body)


@pytest.mark.parametrize("mark", [no_reply, early_verdict])
def test_a_mark_stands_on_a_function(mark: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="stand on a callback"):
        mark("on_helo")


def test_fine_settings() -> None:
    filter_with(error_verdict=ACCEPT, timeout_verdict=CONTINUE, deadline={"mail": 5, Step.BODY: None}, blocking=True)
    filter_with(error_verdict=REJECT, deadline=2.5)


# -- options ----------------------------------------------------------------------------------------------------------


class Configured(Filter):
    @dataclass
    class Options:
        limit: int
        names: list[str] = field(default_factory=list)
        tag: str = "x"

        def __post_init__(self) -> None:
            if self.limit < 0:
                raise ValueError("limit must not be negative")


def test_options() -> None:
    table: Mapping[str, Any] = {"limit": 5, "tag": "y"}
    assert build_options(Configured, table) == Configured.Options(5, [], "y")
    copied = build_options(filter_with(), table)
    assert copied == table
    assert copied is not table


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"limit": 5, "tga": "y"}, "unknown key 'tga'; did you mean tag"),
        ({}, "lacks the key 'limit'"),
        ({"limit": -1}, "limit must not be negative"),
    ],
)
def test_options_that_cannot_be_used(table: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        build_options(Configured, table)


# -- for the administrator --------------------------------------------------------------------------------------------


def test_describe() -> None:
    made = filter_with(
        "on_helo",
        "on_data",
        "on_body",
        "on_rejected_rcpt",
        requires=Action.QUARANTINE,
        request_macros={"rcpt": ["x"]},
        leading_space=True,
    )
    lines = describe(made)
    assert lines[: len(STEPS)] == [
        "connect: asked for, the MTA does not wait for an answer (no on_connect: noted only)",
        "helo: asked for, the MTA does not wait for an answer (on_helo returns none; one that it raises is kept for a "
        "later step)",
        "mail: asked for, the MTA waits for the answer (no on_mail: noted only)",
        "rcpt: asked for, the MTA does not wait for an answer (no on_rcpt: noted only)",
        "data: asked for, the MTA does not wait for an answer (on_data returns none; one that it raises is kept for a "
        "later step)",
        "header: not asked for",
        "end_of_headers: not asked for",
        "body: asked for, the MTA does not wait for an answer (the SMTP client hears none before the end of the "
        "message)",
        "end_of_message: asked for, the MTA waits for the answer (no on_end_of_message: noted only)",
        "unknown: not asked for",
    ]
    assert "required: quarantine" in lines
    assert "recipients that the MTA refuses: shown" in lines
    assert any(line.startswith("macros at rcpt: ") for line in lines)
    assert not any(line.startswith("warning") for line in lines)


def test_describe_says_where_the_mta_waits_and_why_not() -> None:
    lines = describe(filter_with("on_connect", "on_helo", "on_data", returns="CONTINUE"))
    assert [line for line in lines if line.endswith("waits for the answer")] == [
        f"{step}: asked for, the MTA waits for the answer" for step in ("connect", "helo", "data")
    ]

    class Quiet(Filter):
        @no_reply
        def on_connect(self, hostname: object, address: object) -> None: ...

        @no_reply
        def on_helo(self, name: object) -> Verdict:
            return REJECT

        @early_verdict
        def on_body(self, chunk: object) -> None: ...

    lines = describe(Quiet)
    assert "body: asked for, the MTA waits for the answer" in lines
    assert [line.partition(" (")[2] for line in lines if "(on_" in line] == [
        "on_connect is marked @no_reply; its verdict is kept for a later step)",
        "on_helo is marked @no_reply; its verdict is kept for a later step)",
    ]


def test_describe_warns() -> None:
    class Quiet(Filter):
        @no_reply
        def on_mail(self, sender: object, params: object) -> None: ...

        @no_reply
        def on_rcpt(self, recipient: object, params: object) -> None: ...

    warnings = [line for line in describe(Quiet) if line.startswith("warning: ")]
    assert len(warnings) == 2
    assert "on_mail" in warnings[0]
    assert "on_rcpt" in warnings[1]
