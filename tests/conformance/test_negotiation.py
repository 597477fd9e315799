"""Conformance cases of the negotiation, by their numbers (see README.md)."""

import pytest

from fastmilter import REJECT, Action, Filter, codec, no_reply
from fastmilter.errors import NotNegotiated, RemoteProtocolError
from tests.support.playing import (
    BODY,
    CONNECT,
    CONTENT,
    DATA,
    EOH,
    EOM,
    GREETING,
    HEADER,
    MAIL,
    MESSAGE,
    NO_BITS,
    RCPT,
    UNKNOWN,
    V2,
    V4,
    V6,
    Mta,
    everything,
    letters,
    made,
)

V3 = codec.Negotiate(3, 0x3F, 0x17F)


def agreed(filter_class: type[Filter], offer: codec.Negotiate) -> codec.Negotiate:
    (answer,) = Mta(filter_class, offer).agreed
    assert isinstance(answer, codec.Negotiate)
    return answer


def test_case_13_only_the_end_of_the_message() -> None:
    """Not libmilter's 0x37f: CONNECT, HELO and RCPT come unanswered and MAIL answered, see design 4.1."""
    answer = agreed(made(on_end_of_message=None), V6)
    no_data_headers_eoh_body_unknown = 0x200 | 0x20 | 0x40 | 0x10 | 0x100
    nr_connect_helo_rcpt = 0x1000 | 0x2000 | 0x8000
    assert answer == codec.Negotiate(6, 0xFF, no_data_headers_eoh_body_unknown | nr_connect_helo_rcpt)


@pytest.mark.parametrize("filter_class", [made(), everything(), everything("no_reply"), everything("early_verdict")])
@pytest.mark.parametrize("offer", [V2, V3, V4])
def test_case_14_old_masks(offer: codec.Negotiate, filter_class: type[Filter]) -> None:
    answer = agreed(filter_class, offer)
    assert answer.version == offer.version
    assert answer.actions & ~offer.actions == 0
    assert answer.protocol & ~offer.protocol == 0
    assert answer.macros == ()


@pytest.mark.parametrize("version", [7, 100, 0x01000001])
def test_case_15_later_versions(version: int) -> None:
    assert agreed(made(), codec.Negotiate(version, 0x1FF, 0x1FFFFF)).version == 6


@pytest.mark.parametrize("version", [0, 1])
def test_case_16_versions_of_the_past(version: int) -> None:
    mta = Mta(made(on_close=None), codec.Negotiate(version, 0xF, 0x3F))
    assert mta.agreed == []
    assert isinstance(mta.session.error, RemoteProtocolError)
    assert mta.names == ["on_close"]


def test_case_17_offers_of_nothing() -> None:
    answer = agreed(made(), codec.Negotiate(2, 0, 0))
    assert answer.actions == 0x0F
    assert answer.protocol == 0x10 | 0x20, "of version 1's bits: no body, no headers"


def test_case_18_length_of_the_offer() -> None:
    words = (6).to_bytes(4, "big") + (0x1FF).to_bytes(4, "big") + (0x1FFFFF).to_bytes(4, "big")
    short, long = Mta(made(), None), Mta(made(), None)
    assert short.feed((12).to_bytes(4, "big") + b"O" + words[:11]) == []
    assert isinstance(short.session.error, RemoteProtocolError)
    assert long.feed((21).to_bytes(4, "big") + b"O" + words + b"whatever") == Mta(made()).agreed


def test_case_19_a_required_action_that_is_not_offered() -> None:
    mta = Mta(made(requires=Action.CHANGE_SENDER, on_close=None), V2)
    assert mta.agreed == []
    assert isinstance(mta.session.error, NotNegotiated)
    assert mta.names == ["on_close"]


@pytest.mark.parametrize("offer", [V2, V3, V4, NO_BITS])
def test_case_20_no_reply_that_is_not_offered(offer: codec.Negotiate) -> None:
    mta = Mta(everything("no_reply"), offer)
    assert mta.session.agreement.protocol & 0xFF080 == 0
    assert mta.each(*GREETING, *MESSAGE) == ["c"] * 9


def test_case_21_no_reply_that_was_agreed() -> None:
    """Nothing is sent whatever the callback returns; the verdict is not lost but kept."""
    mta = Mta(everything("no_reply", on_data=REJECT))
    assert mta.each(*GREETING, *MESSAGE) == [""] * 8 + ["r"]
    raising = Mta(everything("no_reply", on_header=KeyError("lost")))
    assert raising.each(*GREETING, *MESSAGE) == [""] * 8 + ["t"]
    assert raising.failed == ["on_header"]


@pytest.mark.parametrize("offer", [V2, V3])
def test_case_22_data_and_unknown_that_cannot_be_declined(offer: codec.Negotiate) -> None:
    mta = Mta(made(), offer)
    assert mta.each(CONNECT, UNKNOWN, MAIL, RCPT, DATA, EOM) == ["c"] * 6


@pytest.mark.parametrize("offer", [V6, V4, V2])
def test_case_23_what_was_declined_comes_all_the_same(offer: codec.Negotiate) -> None:
    mta = Mta(made(), offer)
    mta.send(*GREETING, MAIL, RCPT)
    assert mta.each(UNKNOWN, DATA, HEADER, HEADER, EOH, BODY, EOM) == ["c"] * 7


@pytest.mark.parametrize("command", [CONNECT, MAIL, codec.Macros(b"C"), codec.Abort()])
def test_case_24_a_command_before_the_negotiation(command: codec.Command) -> None:
    mta = Mta(made(on_close=None), None)
    assert mta.send(command, V6, MAIL) == []
    assert "before the negotiation" in str(mta.session.error)
    assert mta.names == ["on_close"]


def test_case_25_a_second_negotiation() -> None:
    mta = Mta(made(on_mail=None, on_abort=None, on_close=None))
    assert letters(mta.send(MAIL, V6, RCPT)) == "c"
    assert "second time" in str(mta.session.error)
    assert mta.names == ["on_mail", "on_abort", "on_close"]


def test_case_26_macro_lists() -> None:
    wanted = made(request_macros={"data": ["x"], "connect": ["{client_port}"], "rcpt": ["{long_name}"]})
    lists = agreed(wanted, V6).macros
    assert [stage for stage, _ in lists] == [0, 3, 4]
    assert lists[0][1].split()[-1] == b"{client_port}"
    assert agreed(wanted, V6).actions & Action.REQUEST_MACROS
    assert agreed(wanted, V4).macros == ()
    assert not agreed(wanted, V4).actions & Action.REQUEST_MACROS


@pytest.mark.parametrize("step", ["end_of_message", "end_of_headers"])
def test_case_27_end_of_message_with_end_of_headers(step: str) -> None:
    lists = agreed(made(request_macros={step: ["x"]}), V6).macros
    assert [stage for stage, _ in lists] == [5, 6]
    assert all(b"i" in names.split() for _, names in lists), "the defaults stay"


@pytest.mark.parametrize("offered", [0, 0x10000000, 0x20000000, 0x30000000, 0x70000000])
def test_case_28_large_packets(offered: int) -> None:
    answer = agreed(everything(), codec.Negotiate(6, 0x1FF, 0x1FFFFF | offered))
    bits = answer.protocol & 0xF0000000
    assert bits in (0, 0x10000000, 0x20000000)
    assert bits & ~offered == 0
    assert bool(bits) == bool(offered)


def test_no_reply_at_mail_is_the_authors_choice_alone() -> None:
    """Sendmail sends no ABORT after RSET if MAIL is unanswered (design 4.1)."""
    assert not agreed(everything(), V6).protocol & 0x4000

    class Quiet(Filter):
        @no_reply
        def on_mail(self, sender: object, params: object) -> None: ...

    assert agreed(Quiet, V6).protocol & 0x4000
    assert Mta(Quiet).each(MAIL, RCPT, *CONTENT)[-1] == "c"
