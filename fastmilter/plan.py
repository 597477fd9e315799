"""What follows from a filter class, worked out and checked once when the class is made.

The class is the negotiation: a callback that is not overridden is not asked for, or asked for without a reply where
the connection or the message must be known in full. Every mistake that can be seen without running the class is a
``TypeError`` here.
"""

import difflib
import dis
import inspect
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import FunctionType, SimpleNamespace, UnionType
from typing import Any, Final, TypeVar

from fastmilter import codec
from fastmilter.constants import STEPS, Action, Step
from fastmilter.errors import ConfigError
from fastmilter.negotiation import STEP_NUMBERS, Agreement, Offer, Wish, negotiate, request_of
from fastmilter.replies import Verdict, VerdictKind

F = TypeVar("F", bound=Callable[..., Any])

_REPLY_MARK: Final = "_fastmilter_reply"

CALLBACKS: Final[dict[str, int]] = {
    "on_negotiate": 1,
    "on_connect": 2,
    "on_helo": 1,
    "on_mail": 2,
    "on_rcpt": 2,
    "on_rejected_rcpt": 3,
    "on_data": 0,
    "on_header": 2,
    "on_end_of_headers": 0,
    "on_body": 1,
    "on_end_of_message": 0,
    "on_unknown": 1,
    "on_abort": 0,
    "on_close": 0,
    "on_message_end": 1,
    "on_error": 2,
    "on_timeout": 1,
}
"""Every callback and how many arguments it is called with."""

HOOKS: Final[dict[str, int]] = {"worker_started": 1, "worker_stopped": 0}
"""Class methods that the worker calls, and how many arguments they get."""

CONTENT_STEPS: Final = frozenset({Step.HEADER, Step.END_OF_HEADERS, Step.BODY})
"""No SMTP client sees an answer here before the end of the message, so by default none is asked for."""

ENVELOPE_STEPS: Final = frozenset({Step.CONNECT, Step.HELO, Step.MAIL, Step.RCPT, Step.DATA})
"""Where ``@no_reply`` may stand."""

UNANSWERED_WHEN_MUTE: Final = frozenset({Step.CONNECT, Step.HELO, Step.DATA})
"""Asked for without a reply where the callback cannot return a verdict: the round trip would be for nothing.

Not MAIL, where a drain needs the answer, and not RCPT, where a refusal that is raised could not be told for the one
recipient it means."""

KEPT_WHEN_PLAIN: Final = frozenset({Step.CONNECT, Step.HELO, Step.RCPT})
"""Asked for without a reply where not overridden, so that ``connection`` and ``message`` are complete."""

# A call of such a function gives an object, whatever the function returns.
_GENERATOR: Final = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR

_CACHED_AGREEMENTS: Final = 16  # a peer may offer what it likes; real MTAs make one or two different offers


@dataclass(frozen=True)
class Plan:
    """What a filter class asks for and which of its callbacks are called."""

    filter_class: Any
    wish: Wish
    overridden: frozenset[str]
    """The names of the callbacks to call."""
    steps: int
    """The steps whose callbacks are to be called, bit n for ``STEP_NUMBERS`` n."""
    state_class: type
    async_callbacks: frozenset[str]
    """The names of the callbacks to be awaited."""
    is_async: bool
    """Whether anything of the class is ``async``: then all of it is served on an event loop."""
    agreements: dict[tuple[int, int, int], Agreement]
    """Agreements already worked out; one object serves many connections."""

    def agreement(self, message: codec.Negotiate) -> Agreement:
        """Return what the class and an MTA that sent ``message`` agree on; errors as ``negotiate``."""
        key = (message.version, message.actions, message.protocol)
        agreement = self.agreements.get(key)
        if agreement is None:
            agreement = negotiate(Offer.of(message), self.wish)
            if len(self.agreements) < _CACHED_AGREEMENTS:
                self.agreements[key] = agreement
        return agreement


def mark_reply(callback: F, wanted: bool) -> F:
    """Note on ``callback`` whether its step is to be answered."""
    if not callable(callback):
        raise TypeError("@no_reply and @early_verdict stand on a callback such as on_helo")
    setattr(callback, _REPLY_MARK, wanted)
    return callback


def callback_name(step: Step) -> str:
    """Return the name of the callback of ``step``."""
    return f"on_{step}"


def make_plan(cls: Any, base: type) -> Plan:
    """Check the filter class ``cls`` and return what follows from it; ``TypeError`` for its mistakes."""
    _check_names(cls, base)
    _check_settings(cls)
    overridden = frozenset(name for name in CALLBACKS if getattr(cls, name, None) is not getattr(base, name, None))
    for name in overridden:
        _check_arguments(cls, name, CALLBACKS[name])
    for name, count in HOOKS.items():
        _check_hook(cls, name, count)
    try:
        inspect.signature(cls.__init__).bind(None)
    except TypeError:
        raise TypeError(
            f"{cls.__name__}.__init__ must work without arguments: it is called once a connection"
        ) from None
    async_callbacks = frozenset(name for name in overridden if inspect.iscoroutinefunction(getattr(cls, name)))
    return Plan(
        filter_class=cls,
        wish=_wish(cls, overridden),
        overridden=overridden,
        steps=sum(1 << number for step, number in STEP_NUMBERS.items() if callback_name(step) in overridden),
        state_class=_state_class(cls, base),
        async_callbacks=async_callbacks,
        is_async=bool(async_callbacks) or any(inspect.iscoroutinefunction(getattr(cls, name)) for name in HOOKS),
        agreements={},
    )


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean ...?"`` if something known looks like ``name``, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _check_names(cls: type, base: type) -> None:
    for owner in cls.__mro__:
        if owner is base:
            break
        for name, value in vars(owner).items():
            function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
            if name.startswith("on_") and callable(function):
                if name not in CALLBACKS:
                    raise TypeError(
                        f"{cls.__name__}.{name} is not a callback{suggestion(name, CALLBACKS)} "
                        f"(callbacks: {', '.join(CALLBACKS)})"
                    )
                if function is not value:
                    raise TypeError(f"{cls.__name__}.{name} must be a plain method, not {type(value).__name__}")
            elif name in CALLBACKS:
                raise TypeError(f"{cls.__name__}.{name} must be a method, not {value!r}")
            elif name in ("keep_headers", "keep_body"):
                raise TypeError(f"{cls.__name__}.{name} is reserved for a later version")


def _check_arguments(cls: type, name: str, count: int) -> None:
    signature = inspect.signature(getattr(cls, name))
    try:
        signature.bind(*[None] * (count + 1))
    except TypeError:
        raise TypeError(
            f"{cls.__name__}.{name}{signature} has the wrong arguments: it is called with self and {count} more"
        ) from None


def _check_hook(cls: type, name: str, count: int) -> None:
    hook = inspect.getattr_static(cls, name)
    if not isinstance(hook, classmethod | staticmethod):
        raise TypeError(f"{cls.__name__}.{name} must be a @classmethod: it is called once a worker")
    signature = inspect.signature(getattr(cls, name))
    try:
        signature.bind(*[None] * count)
    except TypeError:
        raise TypeError(
            f"{cls.__name__}.{name}{signature} has the wrong arguments: it is called with {count}"
        ) from None


def _check_settings(cls: Any) -> None:
    for name in ("error_verdict", "timeout_verdict"):
        verdict = getattr(cls, name)
        if not isinstance(verdict, Verdict) or verdict.kind is VerdictKind.SKIP:
            raise TypeError(f"{cls.__name__}.{name} must be a verdict such as TEMPFAIL, not {verdict!r}")
    for name in ("blocking", "leading_space"):
        if not isinstance(getattr(cls, name), bool):
            raise TypeError(f"{cls.__name__}.{name} must be True or False, not {getattr(cls, name)!r}")
    for name in ("actions", "requires"):
        if not isinstance(getattr(cls, name), Action):
            raise TypeError(f"{cls.__name__}.{name} must be made of Action flags, not {getattr(cls, name)!r}")
    _check_deadline(cls)
    _requested_macros(cls)
    options = getattr(cls, "Options", None)
    if options is not None and not is_dataclass(options):
        raise TypeError(f"{cls.__name__}.Options must be a dataclass")


def _check_deadline(cls: Any) -> None:
    deadline = cls.deadline
    by_step = deadline if isinstance(deadline, Mapping) else {Step.CONNECT: deadline}
    for step, seconds in by_step.items():
        if step not in STEPS:
            raise TypeError(f"{cls.__name__}.deadline: {step!r} is not a step{suggestion(str(step), STEPS)}")
        number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if seconds is not None and not (number and seconds > 0):
            raise TypeError(f"{cls.__name__}.deadline must be a number of seconds above 0 or None, not {seconds!r}")


def _requested_macros(cls: Any) -> dict[Step, tuple[str, ...]]:
    wanted = cls.request_macros
    if not isinstance(wanted, Mapping):
        raise TypeError(f"{cls.__name__}.request_macros must be a mapping of steps to names, not {wanted!r}")
    steps = [step for step, facts in STEPS.items() if facts.macro_stage is not None]
    checked: dict[Step, tuple[str, ...]] = {}
    for step, names in wanted.items():
        if step not in steps:
            raise TypeError(
                f"{cls.__name__}.request_macros: the MTA sends no macros by request at {step!r}"
                f"{suggestion(str(step), steps)} (steps: {', '.join(steps)})"
            )
        is_list = isinstance(names, Collection) and not isinstance(names, str)
        if not is_list or not all(isinstance(name, str) for name in names):
            raise TypeError(f"{cls.__name__}.request_macros[{step!r}] must be a list of names, not {names!r}")
        for name in names:
            if not name or any(character in " ,\0" or not character.isprintable() for character in name):
                raise TypeError(f"{cls.__name__}.request_macros[{step!r}]: {name!r} is no name of a macro")
        checked[Step(step)] = tuple(names)
    return checked


def _reply_marks(cls: Any) -> dict[str, bool]:
    """Return what ``@early_verdict`` (true) and ``@no_reply`` (false) say, by the name of the callback."""
    marks: dict[str, bool] = {}
    for name in CALLBACKS:
        mark = getattr(getattr(cls, name, None), _REPLY_MARK, None)
        if mark is not None:
            allowed = [callback_name(step) for step in STEPS if step in (CONTENT_STEPS if mark else ENVELOPE_STEPS)]
            if name not in allowed:
                decorator = "@early_verdict" if mark else "@no_reply"
                raise TypeError(
                    f"{decorator} cannot stand on {cls.__name__}.{name}; it may stand on {', '.join(allowed)}"
                )
            marks[name] = mark
    return marks


def _wish(cls: Any, overridden: frozenset[str]) -> Wish:
    never, no_reply = set(), set()
    marks = _reply_marks(cls)
    for step in STEPS:
        name = callback_name(step)
        mark = marks.get(name)
        if step in (Step.MAIL, Step.END_OF_MESSAGE) or name in overridden:
            mute = step in UNANSWERED_WHEN_MUTE and returns_nothing(getattr(cls, name))
            if mark is False or mute or (step in CONTENT_STEPS and not mark):
                no_reply.add(step)
        elif step in KEPT_WHEN_PLAIN:
            no_reply.add(step)
        else:
            never.add(step)
    return Wish(
        actions=cls.actions,
        requires=cls.requires,
        never=frozenset(never),
        no_reply=frozenset(no_reply),
        rejected_recipients="on_rejected_rcpt" in overridden,
        leading_space=cls.leading_space,
        macros=request_of(_requested_macros(cls)),
    )


def returns_nothing(callback: Any) -> bool:
    """Tell whether the code of a callback has no way to return anything but ``None``.

    A verdict raised from deeper inside (``Answer``), and the one for an exception, are kept where no reply is due. Only
    plain functions can be looked into; of anything else, and where it is not plain to see, the answer is no.

    >>> def note(self, name): self.name = name
    >>> def check(self, name): return self.policy(name)
    >>> returns_nothing(note), returns_nothing(check)
    (True, False)
    """
    if not isinstance(callback, FunctionType) or callback.__code__.co_flags & _GENERATOR:
        return False
    before = None
    for instruction in dis.get_instructions(callback.__code__):
        if instruction.opname == "RETURN_CONST" and instruction.argval is not None:
            return False
        if instruction.opname == "RETURN_VALUE" and (instruction.is_jump_target or before != ("LOAD_CONST", None)):
            return False  # a jump brings a value of its own
        before = instruction.opname, instruction.argval
    return True


def _state_class(cls: type, base: type) -> type:
    """Return the ``S`` of ``class Grey(Filter[S])``, or a plain namespace."""
    state = _generic_argument(cls, base)
    # Filter[Any] is what a type checker has one write who wants no class of his own.
    if state is None or state is Any or isinstance(state, TypeVar):
        return SimpleNamespace
    made = typing.get_origin(state) or state  # dict[str, int] makes a dict
    if not isinstance(made, type) or made is UnionType:
        raise TypeError(f"{cls.__name__}: Filter[{state!r}] must name a class, which is called for each message")
    try:
        inspect.signature(made).bind()
    except TypeError:
        raise TypeError(
            f"{cls.__name__}: {made.__name__} must work without arguments: it is called for each message"
        ) from None
    except ValueError:
        pass  # a class of C that does not tell its arguments
    return made


def _generic_argument(cls: type, base: type) -> Any:
    """Return what ``cls`` puts for the parameter of ``base``, through generic classes between them; or ``None``."""
    for generic in cls.__dict__.get("__orig_bases__", ()):
        origin = typing.get_origin(generic)
        if origin is base:
            return typing.get_args(generic)[0]
        if isinstance(origin, type) and issubclass(origin, base):
            inner = _generic_argument(origin, base)
            if isinstance(inner, TypeVar):
                parameters = getattr(origin, "__parameters__", ())
                return typing.get_args(generic)[parameters.index(inner)]
            return inner
    for parent in cls.__bases__:
        if issubclass(parent, base) and parent is not base:
            return _generic_argument(parent, base)
    return None


def build_options(cls: Any, table: Mapping[str, Any]) -> Any:
    """Return the options of a filter class from the ``[filter]`` table of the configuration.

    The table itself, or an instance of the dataclass ``Options`` nested in the class; there unknown and missing keys
    are ``ConfigError``.
    """
    options = getattr(cls, "Options", None)
    if options is None:
        return dict(table)
    known = {field.name: field for field in fields(options) if field.init}
    for key in table:
        if key not in known:
            raise ConfigError(
                f"[filter] has an unknown key {key!r}{suggestion(key, known)} (known: {', '.join(known) or 'none'})"
            )
    for name, field in known.items():
        if name not in table and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"[filter] lacks the key {name!r}, which {cls.__name__} needs")
    try:
        return options(**table)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"[filter] cannot be used by {cls.__name__}: {error}") from error


def refuse_awaitable(cls: Any, hook: str, result: Any) -> None:
    """Raise ``ConfigError`` if a hook of a class without ``async def`` returned what nobody would wait for."""
    if not inspect.isawaitable(result):
        return
    if inspect.iscoroutine(result):
        result.close()
    raise ConfigError(f"{cls.__name__}.{hook} returns an awaitable: declare it with async def")


def describe(cls: Any) -> list[str]:
    """Return what the filter class ``cls`` asks of an MTA, line by line for an administrator; warnings come last."""
    plan: Plan = cls._fastmilter_plan
    wish = plan.wish
    marks = _reply_marks(cls)
    lines = []
    for step in STEPS:
        name = callback_name(step)
        noted = "" if name in plan.overridden else f"no {name}: noted only"
        if step in wish.never:
            lines.append(f"{step}: not asked for")
        elif step in wish.no_reply:
            why = noted or _why_unanswered(step, name in marks)
            lines.append(f"{step}: asked for, the MTA does not wait for an answer ({why})")
        else:
            lines.append(f"{step}: asked for, the MTA waits for the answer{noted and f' ({noted})'}")
    lines.append(f"actions: {_flag_names(wish.actions)}")
    if wish.requires:
        lines.append(f"required: {_flag_names(wish.requires)}")
    if wish.leading_space:
        lines.append("header values: as they are, with the space after the colon")
    if wish.rejected_recipients:
        lines.append("recipients that the MTA refuses: shown")
    lines += [f"macros at {step}: {' '.join(names)}" for step, names in wish.macros]
    if Step.MAIL in wish.no_reply:
        lines.append(
            "warning: @no_reply on on_mail: after RSET Sendmail sends no ABORT, and the server cannot be stopped or "
            "reloaded between two messages of an SMTP session"
        )
    if Step.RCPT in wish.no_reply and "on_rcpt" in plan.overridden:
        lines.append("warning: @no_reply on on_rcpt: a single recipient cannot be refused")
    return lines


def _why_unanswered(step: Step, is_marked: bool) -> str:
    """Return why nobody waits for a callback that is called, and where its verdict goes if it gives one."""
    if step in CONTENT_STEPS:
        return "the SMTP client hears none before the end of the message"
    why = "is marked @no_reply; its verdict" if is_marked else "returns none; one that it raises"
    return f"{callback_name(step)} {why} is kept for a later step"


def _flag_names(actions: Action) -> str:
    return ", ".join((flag.name or hex(flag)).lower() for flag in actions) or "none"
