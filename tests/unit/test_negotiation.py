"""What is agreed: a pure function of the MTA's offer and the filter's wish."""

from dataclasses import replace
from typing import Any

import pytest

from fastmilter import codec
from fastmilter.constants import ALL_ACTIONS, ALL_PROTOCOL, STEPS, Action, ProtocolFlag, Step
from fastmilter.errors import NotNegotiated, RemoteProtocolError
from fastmilter.negotiation import (
    DEFAULT_MACROS,
    STEP_NUMBERS,
    Agreement,
    Offer,
    Wish,
    negotiate,
    normalise_macro,
    request_of,
)

V6 = Offer(6, ALL_ACTIONS, ALL_PROTOCOL)
V2 = Offer(2, Action(0x3F), ProtocolFlag(0x7F))
EVERY_STEP = frozenset(STEPS)
SUPPRESSIBLE = [step for step, facts in STEPS.items() if facts.suppress and step is not Step.MAIL]
SILENCEABLE = [step for step, facts in STEPS.items() if facts.no_reply]


def answer(agreement: Agreement) -> codec.Negotiate:
    """What goes back to the MTA."""
    message = codec.decode_response(agreement.packet[4:])
    assert isinstance(message, codec.Negotiate)
    return message


def test_steps_are_numbered_in_the_order_of_a_session() -> None:
    assert list(STEP_NUMBERS.values()) == list(range(10))
    assert list(STEP_NUMBERS) == list(STEPS)


def test_the_packet_says_what_the_agreement_says() -> None:
    agreement = negotiate(V6, Wish(never=frozenset({Step.BODY}), no_reply=frozenset({Step.HELO})))
    sent = answer(agreement)
    assert (sent.version, sent.actions, sent.protocol, sent.macros) == (6, 0xFF, 0x10 | 0x2000, ())
    assert (agreement.version, agreement.actions, agreement.protocol) == (6, 0xFF, 0x2010)


@pytest.mark.parametrize(("offered", "agreed"), [(2, 2), (3, 3), (5, 5), (6, 6), (7, 6), (100, 6), (0xFFFFFFFF, 6)])
def test_versions(offered: int, agreed: int) -> None:
    assert negotiate(replace(V6, version=offered), Wish()).version == agreed


@pytest.mark.parametrize("version", [0, 1])
def test_versions_that_nobody_speaks(version: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"version {version}; 2 or higher"):
        negotiate(replace(V6, version=version), Wish())


@pytest.mark.parametrize("step", SUPPRESSIBLE)
def test_a_step_that_is_not_wanted(step: Step) -> None:
    agreement = negotiate(V6, Wish(never=frozenset({step})))
    assert agreement.protocol & STEPS[step].suppress
    assert all(agreement.replies), "what comes all the same is answered"


@pytest.mark.parametrize("step", SILENCEABLE)
def test_a_step_without_a_reply(step: Step) -> None:
    agreement = negotiate(V6, Wish(no_reply=frozenset({step})))
    assert agreement.protocol & ~int(ProtocolFlag.SKIP) == STEPS[step].no_reply
    assert [name for name, replies in zip(STEPS, agreement.replies, strict=True) if not replies] == [step]


@pytest.mark.parametrize("step", STEPS)
def test_what_is_not_offered_is_not_asked_for_and_answered(step: Step) -> None:
    nothing = Offer(6, ALL_ACTIONS, ProtocolFlag.LEADING_SPACE)  # not 0, which would mean version 1's bits
    agreement = negotiate(nothing, Wish(never=frozenset({step}), no_reply=frozenset({step})))
    assert agreement.protocol == 0
    assert all(agreement.replies)


def test_mail_and_the_end_of_the_message_always_come() -> None:
    agreement = negotiate(V6, Wish(never=EVERY_STEP))
    assert not agreement.protocol & ProtocolFlag.NO_MAIL
    assert agreement.protocol & 0x37F == 0x37F & ~0x4


def test_not_wanted_wins_over_no_reply() -> None:
    both = frozenset({Step.RCPT})
    agreement = negotiate(V6, Wish(never=both, no_reply=both))
    assert agreement.protocol & (ProtocolFlag.NO_RCPT | ProtocolFlag.NR_RCPT) == ProtocolFlag.NO_RCPT


@pytest.mark.parametrize("wish", [Wish(), Wish(never=EVERY_STEP), Wish(no_reply=EVERY_STEP, leading_space=True)])
@pytest.mark.parametrize(
    "offer", [V2, Offer(3, Action(0x3F), ProtocolFlag(0x17F)), Offer(4, Action(1), ProtocolFlag(0x3FF))]
)
def test_no_bit_outside_the_offer(offer: Offer, wish: Wish) -> None:
    agreement = negotiate(offer, replace(wish, rejected_recipients=True, macros=((Step.RCPT, ("x",)),)))
    assert agreement.protocol & ~offer.protocol == 0
    assert agreement.actions & ~offer.actions == 0
    assert answer(agreement).macros == ()
    assert agreement.version == offer.version


def test_offers_of_nothing_mean_version_1() -> None:
    wish = Wish(never=EVERY_STEP, no_reply=EVERY_STEP)
    agreement = negotiate(Offer(2, Action(0), ProtocolFlag(0)), wish)
    assert (agreement.actions, agreement.protocol) == (0x0F, 0x3F & ~0x4)


def test_skip_only_where_the_body_is_answered() -> None:
    assert negotiate(V6, Wish()).skip
    assert not negotiate(V6, Wish(no_reply=frozenset({Step.BODY}))).skip
    assert not negotiate(V6, Wish(never=frozenset({Step.BODY}))).skip
    assert not negotiate(V2, Wish()).skip


def test_rejected_recipients_and_leading_space() -> None:
    agreement = negotiate(V6, Wish(rejected_recipients=True, leading_space=True))
    assert agreement.rejected_recipients
    assert agreement.leading_space
    assert agreement.protocol == ProtocolFlag.REJECTED_RCPT | ProtocolFlag.LEADING_SPACE | ProtocolFlag.SKIP
    plain = negotiate(V2, Wish(rejected_recipients=True, leading_space=True))
    assert not plain.rejected_recipients
    assert not plain.leading_space


def test_headers_shown() -> None:
    assert negotiate(V6, Wish()).headers_shown
    assert not negotiate(V6, Wish(never=frozenset({Step.HEADER}))).headers_shown


def test_actions_are_narrowed() -> None:
    agreement = negotiate(V6, Wish(actions=Action.ADD_HEADERS | Action.QUARANTINE))
    assert agreement.can(Action.ADD_HEADERS)
    assert agreement.can(Action.ADD_HEADERS | Action.QUARANTINE)
    assert not agreement.can(Action.ADD_HEADERS | Action.CHANGE_BODY)
    assert answer(agreement).actions == 0x21


def test_required_actions() -> None:
    wish = Wish(actions=Action(0), requires=Action.CHANGE_SENDER)
    assert negotiate(V6, wish).can(Action.CHANGE_SENDER)
    with pytest.raises(NotNegotiated, match="does not offer what this filter requires: CHANGE_SENDER"):
        negotiate(V2, wish)


@pytest.mark.parametrize(
    ("bits", "agreed", "size"),
    [
        (ProtocolFlag.MDS_1M, ProtocolFlag.MDS_1M, 1048575),
        (ProtocolFlag.MDS_256K, ProtocolFlag.MDS_256K, 262143),
        (ProtocolFlag.MDS_256K | ProtocolFlag.MDS_1M, ProtocolFlag.MDS_1M, 1048575),
        (ProtocolFlag(0), ProtocolFlag(0), 65535),
        (ProtocolFlag.INTERNAL | ProtocolFlag.TEST, ProtocolFlag(0), 65535),
    ],
)
def test_packet_sizes(bits: ProtocolFlag, agreed: ProtocolFlag, size: int) -> None:
    agreement = negotiate(replace(V6, protocol=ALL_PROTOCOL | bits), Wish())
    assert agreement.protocol & 0xF0000000 == agreed
    assert agreement.max_data == size


def test_large_packets_are_not_asked_for_without_bodies() -> None:
    offer = replace(V6, protocol=ALL_PROTOCOL | ProtocolFlag.MDS_1M)
    agreement = negotiate(offer, Wish(never=frozenset({Step.BODY})))
    assert agreement.max_data == 65535
    assert not agreement.protocol & ProtocolFlag.MDS_1M


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("i", "i"), ("{i}", "i"), ("client_port", "{client_port}"), ("{client_port}", "{client_port}"), ("_", "_")],
)
def test_spelling_of_macros(given: str, wanted: str) -> None:
    assert normalise_macro(given) == wanted


def test_a_request_adds_to_the_defaults() -> None:
    ((step, names),) = request_of({Step.RCPT: ("client_port", "{rcpt_addr}")})
    assert step is Step.RCPT
    assert names == (*DEFAULT_MACROS[Step.RCPT], "{client_port}")
    assert request_of({}) == ()


@pytest.mark.parametrize("step", [Step.END_OF_HEADERS, Step.END_OF_MESSAGE])
def test_end_of_headers_and_end_of_message_go_together(step: Step) -> None:
    wanted = dict(request_of({step: ("x",)}))
    assert set(wanted) == {Step.END_OF_HEADERS, Step.END_OF_MESSAGE}
    assert "x" in wanted[step]


def test_macro_lists_go_out_in_the_order_of_their_stages() -> None:
    wanted = dict.fromkeys([Step.END_OF_MESSAGE, Step.RCPT, Step.CONNECT], ("{x}", "y"))
    agreement = negotiate(V6, Wish(actions=Action(0), macros=tuple(wanted.items())))
    assert answer(agreement).actions == Action.REQUEST_MACROS
    assert answer(agreement).macros == ((0, b"{x} y"), (3, b"{x} y"), (5, b"{x} y"))


def test_macros_are_not_requested_unless_wanted() -> None:
    agreement = negotiate(V6, Wish())
    assert not agreement.can(Action.REQUEST_MACROS)
    assert answer(agreement).macros == ()


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"never": None}, TypeError),
        ({"never": {"bogus"}}, ValueError),
        ({"no_reply": {5}}, ValueError),
        ({"actions": "all"}, TypeError),
        ({"macros": ((Step.RCPT, "x"),)}, TypeError),
        ({"macros": (("bogus", ("x",)),)}, ValueError),
        ({"macros": ((Step.RCPT, (5,)),)}, TypeError),
    ],
)
def test_a_wish_that_cannot_be_negotiated_cannot_be_made(fields: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Wish(**fields)


def test_offers_with_unknown_bits_are_read() -> None:
    offer = Offer.of(codec.Negotiate(6, 0xFFFFFFFF, 0xFFFFFFFF))
    agreement = negotiate(offer, Wish())
    assert agreement.actions == 0xFF
    assert agreement.protocol == ProtocolFlag.SKIP | ProtocolFlag.MDS_1M
