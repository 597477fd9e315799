"""What both sides agree on when a connection opens: a pure function of the MTA's offer and the filter's wish.

Masks decide, not version numbers: a bit that was not offered is never asked for. Where the MTA cannot leave a step
out or unanswered, the step comes and is answered; ``Agreement.replies`` says for each step what is due.

Errors: ``RemoteProtocolError`` for an offer that nobody can answer, ``NotNegotiated`` where the MTA does not offer
what the filter requires.

Sources: ``libmilter/engine.c`` (st_optionneg), Sendmail ``sendmail/milter.c`` (milter_negotiate), Postfix
``src/milter/milter8.c`` (milter8_connect).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fastmilter import codec
from fastmilter._text import to_bytes
from fastmilter.constants import (
    ALL_ACTIONS,
    MAX_DATA_BYTES,
    MAX_DATA_BYTES_1M,
    MAX_DATA_BYTES_256K,
    MIN_PROTOCOL_VERSION,
    POSTFIX_MACROS,
    PROTOCOL_VERSION,
    SENDMAIL_MACROS,
    STEPS,
    VERSION_1_ACTIONS,
    VERSION_1_PROTOCOL,
    Action,
    ProtocolFlag,
    Step,
)
from fastmilter.errors import NotNegotiated, RemoteProtocolError

NO_ACTIONS: Final = Action(0)

STEP_NUMBERS: Final[dict[Step, int]] = {step: number for number, step in enumerate(STEPS)}
"""Each step's place in the tuples of an ``Agreement``."""

CONNECT, HELO, MAIL, RCPT, DATA, HEADER, END_OF_HEADERS, BODY, END_OF_MESSAGE, UNKNOWN = STEP_NUMBERS.values()

DEFAULT_MACROS: Final[dict[Step, tuple[str, ...]]] = {
    step: tuple(dict.fromkeys(SENDMAIL_MACROS.get(step, ()) + POSTFIX_MACROS[step]))
    for step, facts in STEPS.items()
    if facts.macro_stage is not None
}
"""What Sendmail and Postfix send by default, together.

A request replaces the MTA's list of a step, so these are asked for along with what the filter wants.
"""


@dataclass(frozen=True)
class Offer:
    """What an MTA offers when it connects; the argument of ``Filter.on_negotiate``."""

    version: int
    actions: Action
    protocol: ProtocolFlag

    @classmethod
    def of(cls, message: codec.Negotiate) -> "Offer":
        """Return what the MTA offers in ``message``."""
        return cls(message.version, Action(message.actions), ProtocolFlag(message.protocol))


@dataclass(frozen=True)
class Wish:
    """What a filter asks for. A class's own wish is ``Filter.wish()``; change it with ``dataclasses.replace``.

    ``never``: steps that are not wanted; ``no_reply``: steps that are wanted unanswered. MAIL and the end of the
    message are always sent. ``macros``: names to ask for, by step.
    """

    actions: Action = ALL_ACTIONS
    requires: Action = NO_ACTIONS
    never: frozenset[Step] = frozenset()
    no_reply: frozenset[Step] = frozenset()
    rejected_recipients: bool = False
    leading_space: bool = False
    macros: tuple[tuple[Step, tuple[str, ...]], ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be negotiated where it is written, since ``on_negotiate`` may make one."""
        if not isinstance(self.actions, int) or not isinstance(self.requires, int):
            raise TypeError("the actions of a Wish must be made of Action flags")
        steps = [*self.never, *self.no_reply, *(step for step, _ in self.macros)]
        unknown = [step for step in steps if step not in STEPS]
        if unknown:
            raise ValueError(f"a Wish names what is not a step: {unknown[0]!r}")
        if any(isinstance(names, str) or not all(isinstance(name, str) for name in names) for _, names in self.macros):
            raise TypeError("the macros of a Wish must be pairs of a step and a tuple of names")


@dataclass(frozen=True)
class Agreement:
    """What holds for a connection; one object serves all connections with the same offer and wish."""

    version: int
    actions: int
    protocol: int
    answered: int
    """The steps that get a reply, bit n for ``STEP_NUMBERS`` n; those that were not asked for too, should they come."""
    skip: bool
    rejected_recipients: bool
    leading_space: bool
    headers_shown: bool
    max_data: int
    packet: bytes
    """The answer to the offer as it goes on the wire."""

    @property
    def replies(self) -> tuple[bool, ...]:
        """Whether each step gets a reply, by ``STEP_NUMBERS``."""
        return tuple(bool(self.answered >> number & 1) for number in range(len(STEPS)))

    @property
    def suppressed(self) -> int:
        """The steps that were not asked for, a bit each."""
        return sum(1 << number for number, facts in enumerate(STEPS.values()) if self.protocol & facts.suppress)

    def can(self, action: Action) -> bool:
        """Whether the MTA granted ``action``."""
        wanted = int(action)  # arithmetic of flags costs thirty times that of numbers
        return self.actions & wanted == wanted


def normalise_macro(name: str) -> str:
    """Return a macro's name as it goes into a request: one letter bare, longer names in braces."""
    bare = name[1:-1] if name[:1] == "{" and name[-1:] == "}" else name
    return bare if len(bare) == 1 else "{" + bare + "}"


def request_of(wanted: Mapping[Step, tuple[str, ...]]) -> tuple[tuple[Step, tuple[str, ...]], ...]:
    """Return a macro request for what a filter wants beyond each step's defaults, ready for ``Wish.macros``.

    End of headers and end of message go together: Sendmail picks the list of the one by a flag of the other.
    """
    steps = set(wanted)
    if steps & {Step.END_OF_HEADERS, Step.END_OF_MESSAGE}:
        steps |= {Step.END_OF_HEADERS, Step.END_OF_MESSAGE}
    request = []
    for step in STEPS:
        if step in steps:
            names = DEFAULT_MACROS[step] + tuple(normalise_macro(name) for name in wanted.get(step, ()))
            request.append((step, tuple(dict.fromkeys(names))))
    return tuple(request)


def negotiate(offer: Offer, wish: Wish) -> Agreement:
    """Return what is agreed between ``offer`` and ``wish``.

    >>> negotiate(Offer(2, Action(0x3F), ProtocolFlag(0x7F)), Wish(never=frozenset({Step.BODY}))).protocol
    16
    """
    if offer.version < MIN_PROTOCOL_VERSION:
        raise RemoteProtocolError(
            f"the MTA speaks milter protocol version {offer.version}; {MIN_PROTOCOL_VERSION} or higher is needed"
        )
    offered_actions = int(offer.actions) or int(VERSION_1_ACTIONS)
    offered_protocol = int(offer.protocol) or int(VERSION_1_PROTOCOL)
    missing = int(wish.requires) & ~offered_actions
    if missing:
        names = ", ".join(flag.name or hex(flag) for flag in Action(missing))
        raise NotNegotiated(f"the MTA does not offer what this filter requires: {names}")

    protocol = 0
    replies = []
    for step, facts in STEPS.items():
        # MAIL always comes: a message begins with it.
        suppressed = step in wish.never and step is not Step.MAIL and facts.suppress & offered_protocol
        silent = not suppressed and step in wish.no_reply and facts.no_reply & offered_protocol
        protocol |= (facts.suppress if suppressed else 0) | (facts.no_reply if silent else 0)
        replies.append(not silent)
    if replies[STEP_NUMBERS[Step.BODY]] and not protocol & ProtocolFlag.NO_BODY:
        protocol |= ProtocolFlag.SKIP & offered_protocol
    if wish.rejected_recipients:
        protocol |= ProtocolFlag.REJECTED_RCPT & offered_protocol
    if wish.leading_space:
        protocol |= ProtocolFlag.LEADING_SPACE & offered_protocol
    mds_bit, max_data = _data_size(offered_protocol, protocol)
    protocol |= mds_bit

    actions = int(wish.actions | wish.requires) & offered_actions & ~int(Action.REQUEST_MACROS)
    macros: tuple[tuple[int, bytes], ...] = ()
    if wish.macros and offered_actions & Action.REQUEST_MACROS:
        actions |= int(Action.REQUEST_MACROS)
        macros = _macro_lists(wish)
    version = min(PROTOCOL_VERSION, offer.version)
    return Agreement(
        version=version,
        actions=actions,
        protocol=int(protocol),
        answered=sum(1 << step for step, replied in enumerate(replies) if replied),
        skip=bool(protocol & ProtocolFlag.SKIP),
        rejected_recipients=bool(protocol & ProtocolFlag.REJECTED_RCPT),
        leading_space=bool(protocol & ProtocolFlag.LEADING_SPACE),
        headers_shown=not protocol & ProtocolFlag.NO_HEADERS,
        max_data=max_data,
        packet=codec.encode(codec.Negotiate(version, actions, int(protocol), macros)),
    )


def _data_size(offered: int, protocol: int) -> tuple[int, int]:
    """Take the largest packet size on offer, one bit at most, where bodies are wanted at all."""
    if protocol & ProtocolFlag.NO_BODY:
        return 0, MAX_DATA_BYTES
    if offered & ProtocolFlag.MDS_1M:
        return int(ProtocolFlag.MDS_1M), MAX_DATA_BYTES_1M
    if offered & ProtocolFlag.MDS_256K:
        return int(ProtocolFlag.MDS_256K), MAX_DATA_BYTES_256K
    return 0, MAX_DATA_BYTES


def max_data_of(protocol: int) -> int:
    """Return the most bytes of data in a packet where both sides agreed to these bits."""
    if protocol & ProtocolFlag.MDS_1M:
        return MAX_DATA_BYTES_1M
    return MAX_DATA_BYTES_256K if protocol & ProtocolFlag.MDS_256K else MAX_DATA_BYTES


def _macro_lists(wish: Wish) -> tuple[tuple[int, bytes], ...]:
    """Return the lists in ascending order of their stage, as libmilter sends them."""
    lists = []
    for step, names in wish.macros:
        stage = STEPS[step].macro_stage
        if stage is not None:
            lists.append((int(stage), to_bytes(" ".join(names))))
    return tuple(sorted(lists))
