"""Verdicts and SMTP replies: what can be made can be sent, and means what its author meant."""

import copy
import dataclasses
import pickle
from typing import Any

import pytest

from fastmilter import codec
from fastmilter.errors import RemoteProtocolError
from fastmilter.replies import (
    ACCEPT,
    CONTINUE,
    DISCARD,
    REJECT,
    SKIP,
    TEMPFAIL,
    Answer,
    Verdict,
    VerdictKind,
    reply,
    verdict_of,
)

PLAIN = {CONTINUE: b"c", ACCEPT: b"a", REJECT: b"r", TEMPFAIL: b"t", DISCARD: b"d", SKIP: b"s"}


def text_of(verdict: Verdict) -> bytes:
    """The text of a reply as it is on the wire, without its NUL."""
    message = codec.decode_response(verdict.packet[4:])
    assert isinstance(message, codec.ReplyCode)
    return message.text


@pytest.mark.parametrize(("verdict", "letter"), PLAIN.items(), ids=str)
def test_a_plain_verdict_is_one_letter(verdict: Verdict, letter: bytes) -> None:
    assert verdict.packet == b"\0\0\0\1" + letter
    assert (verdict.code, verdict.enhanced, verdict.text) == (None, None, None)
    assert str(verdict) == verdict.kind.value


@pytest.mark.parametrize(("verdict", "letter"), PLAIN.items(), ids=str)
def test_a_plain_verdict_made_by_hand_can_be_sent(verdict: Verdict, letter: bytes) -> None:
    made = Verdict(verdict.kind)
    assert made == verdict
    assert hash(made) == hash(verdict)
    assert made.packet == verdict.packet
    from_text: Any = verdict.kind.value
    assert Verdict(from_text).kind is verdict.kind


def test_a_reply_made_by_hand_is_held_to_the_same_rules() -> None:
    made = Verdict(VerdictKind.REPLY, 550, "5.7.1", "no")
    assert made == reply(550, "5.7.1", "no")
    assert made.packet == reply(550, "5.7.1", "no").packet
    with pytest.raises(ValueError, match="must be a number from 400"):
        Verdict(VerdictKind.REPLY, 250, None, "fine")
    with pytest.raises(ValueError, match="has a code and a text"):
        Verdict(VerdictKind.REPLY)
    with pytest.raises(ValueError, match="no code and text"):
        Verdict(VerdictKind.REJECT, 550, None, "no")


def test_a_verdict_is_a_value() -> None:
    first, second = reply(550, "5.7.1", "no"), reply(550, "5.7.1", "no")
    assert first == second
    assert len({first, second, REJECT}) == 2
    assert first != reply(550, "5.7.2", "no")
    assert first != REJECT
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.code = 551  # type: ignore[misc]
    for twin in (copy.copy(first), pickle.loads(pickle.dumps(first))):
        assert twin == first
        assert twin.packet == first.packet


def test_reply_on_the_wire() -> None:
    verdict = reply(550, "5.7.1", "no thanks")
    assert verdict.packet == b"\0\0\0\x15y550 5.7.1 no thanks\0"
    assert (verdict.kind, verdict.code, verdict.enhanced, verdict.text) == ("reply", 550, "5.7.1", "no thanks")
    assert str(verdict) == "550 5.7.1 no thanks"


@pytest.mark.parametrize("code", [400, 421, 451, 499, 500, 550, 599])
def test_codes_that_are_refusals(code: int) -> None:
    verdict = reply(code, None, "no")
    assert text_of(verdict) == b"%d no" % code
    assert verdict.is_refusal
    assert verdict.is_temporary is (code < 500)


@pytest.mark.parametrize("code", [0, 250, 354, 399, 600, -550, 5500, True, "550", 550.0, None])
def test_codes_that_are_none(code: Any) -> None:
    with pytest.raises(ValueError, match="reply code"):
        reply(code, None, "no")


@pytest.mark.parametrize(
    ("code", "enhanced"),
    [(550, "4.7.1"), (450, "5.7.1"), (550, "2.1.5"), (550, "5.7"), (550, "5.7.1.1"), (550, "5.7777.1"), (550, "x")],
)
def test_enhanced_codes_that_do_not_fit(code: int, enhanced: str) -> None:
    with pytest.raises(ValueError, match="enhanced status code"):
        reply(code, enhanced, "no")


def test_no_enhanced_code() -> None:
    assert reply(550, None, "no") == reply(550, "", "no")
    assert text_of(reply(550, None, "no")) == b"550 no"


@pytest.mark.parametrize("text", ["1 day", "5.7.1 is not a code", "4.2.1 nor this"])
def test_digits_after_the_code_are_no_enhanced_code(text: str) -> None:
    """Postfix demands the class of the reply of a digit there, and answers 451 4.3.5 if it is another."""
    assert text_of(reply(550, None, text)) == b"550  " + text.encode()
    assert reply(550, None, text).text == text
    assert text_of(reply(550, "5.7.1", text)) == b"550 5.7.1 " + text.encode()


def test_lines() -> None:
    verdict = reply(550, "5.7.1", "one\ntwo\r\nthree\n")
    assert text_of(verdict) == b"550-5.7.1 one\r\n550-5.7.1 two\r\n550 5.7.1 three"
    assert verdict.text == "one\ntwo\nthree"
    assert text_of(reply(451, None, "a\n\n2 b")) == b"451-a\r\n451-\r\n451  2 b"


def test_thirty_two_lines_and_no_more() -> None:
    assert text_of(reply(550, None, "\n".join("x" * 32))).count(b"\r\n") == 31
    with pytest.raises(ValueError, match="has 33 lines; an SMTP reply holds at most 32"):
        reply(550, None, "\n".join("x" * 33))
    with pytest.raises(ValueError, match="at most 32"):
        reply(550, None, "word " * 5000)


@pytest.mark.parametrize("text", ["", "\n", " ", "\r\n\r\n", " \n "])
def test_an_empty_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        reply(550, None, text)


@pytest.mark.parametrize("text", [b"no", None, 5])
def test_the_text_is_str(text: Any) -> None:
    with pytest.raises(ValueError, match="must be str"):
        reply(550, None, text)


def test_control_characters_become_question_marks() -> None:
    controls = "".join(map(chr, [*range(10), *range(11, 32), 127]))
    assert text_of(reply(550, None, f"a{controls}b")) == b"550 a" + b"?" * len(controls) + b"b"


def test_percent_is_doubled_and_wrapped_in_pairs() -> None:
    assert text_of(reply(550, None, "a 100% %s %%")) == b"550 a 100%% %%s %%%%"
    assert reply(550, None, "100%").text == "100%"
    for line in text_of(reply(550, "5.7.1", "%" * 2000)).split(b"\r\n"):
        assert len(line) <= 980
        assert line.count(b"%") % 2 == 0


@pytest.mark.parametrize("enhanced", [None, "5.7.1", "5.123.123"])
@pytest.mark.parametrize("text", ["x" * 3000, "9" * 3000, "word " * 600, "ä" * 1500, "€\udcff" * 700, "% " * 1000])
def test_long_lines_are_wrapped_between_characters(text: str, enhanced: str | None) -> None:
    verdict = reply(550, enhanced, text)
    assert verdict.text == text
    pieces = []
    for line in text_of(verdict).split(b"\r\n"):
        sent = line.replace(b"%%", b"%")
        assert len(sent) + 2 <= 512, "RFC 5321 section 4.5.3.1.5"
        assert len(line) <= 980, "libmilter's MAXREPLYLEN"
        pieces.append(sent[4 + (len(enhanced) + 1 if enhanced else 0) :])
    together = "".join(piece.decode("utf-8", "surrogateescape").strip(" ") for piece in pieces)
    assert together == text.replace(" ", "") or "".join(together.split()) == "".join(text.split())


def test_a_wrapped_line_breaks_at_a_space() -> None:
    lines = text_of(reply(550, None, "word " * 200)).split(b"\r\n")
    assert len(lines) == 2
    assert all(line.endswith(b"word") or line.endswith(b"word ") for line in lines)


@pytest.mark.parametrize(
    "text",
    ["% \r\n250 2.0.0 ok", "a\0b", "%s%n", "451-x\n250 y", "\r\n.\r\nQUIT", "x" * 511 + "%" * 20, "\udc80\udcff"],
)
@pytest.mark.parametrize("code", [450, 550])
def test_text_of_a_client_cannot_change_the_class(code: int, text: str) -> None:
    """Read as both MTAs read it: every line begins with the code, and only the last one ends the reply."""
    lines = text_of(reply(code, None, text)).split(b"\r\n")
    assert [line[:4] for line in lines] == [b"%d-" % code] * (len(lines) - 1) + [b"%d " % code]
    assert all(b"\r" not in line and b"\n" not in line and b"\0" not in line for line in lines)
    assert verdict_of(codec.decode_response(reply(code, None, text).packet[4:])).code == code


def test_a_lone_surrogate_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        reply(550, None, "\ud800")


def test_answer_takes_a_verdict() -> None:
    assert Answer(REJECT).verdict is REJECT
    wrong: Any
    for wrong in ("reject", None, 550):
        with pytest.raises(TypeError, match="Answer takes a verdict"):
            Answer(wrong)


# -- what a client reads ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("verdict", "letter"), PLAIN.items(), ids=str)
def test_reading_a_plain_verdict(verdict: Verdict, letter: bytes) -> None:
    assert verdict_of(codec.decode_response(letter)) is verdict


@pytest.mark.parametrize(
    "made", [reply(550, "5.7.1", "no"), reply(451, None, "a\nb"), reply(421, "4.7.0", "100% %s"), reply(550, None, "x")]
)
def test_reading_what_reply_made(made: Verdict) -> None:
    assert verdict_of(codec.decode_response(made.packet[4:])) == made


@pytest.mark.parametrize(
    ("text", "code", "enhanced", "read"),
    [
        (b"550 5.7.1 no", 550, "5.7.1", "no"),
        (b"550 no", 550, None, "no"),
        (b"550-5.7.1 a\r\n550 5.7.1 b", 550, "5.7.1", "a\nb"),
        (b"550-5.7.1 a\n550 5.7.1 b", 550, "5.7.1", "a\nb"),
        (b"550 50% off", 550, None, "50 off"),
        (b"550 50%% off", 550, None, "50% off"),
        (b"550 5.7.1", 550, "5.7.1", ""),
        (b"550 \xff", 550, None, "\udcff"),
    ],
)
def test_reading_a_reply_as_postfix_does(text: bytes, code: int, enhanced: str | None, read: str) -> None:
    verdict = verdict_of(codec.ReplyCode(text))
    assert (verdict.code, verdict.enhanced, verdict.text) == (code, enhanced, read)


@pytest.mark.parametrize("text", [b"", b"250 ok", b"550", b"550x", b"5500 no", b"550 4.7.1 no", b"550 2.0.0 no", b"no"])
def test_reading_a_reply_that_postfix_refuses(text: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="malformed SMTP reply"):
        verdict_of(codec.ReplyCode(text))


def test_reading_what_is_no_verdict() -> None:
    for response in (codec.Progress(), codec.Shutdown(), codec.Quarantine(b"x"), codec.Negotiate(6, 0, 0)):
        with pytest.raises(RemoteProtocolError, match="is not a verdict"):
            verdict_of(response)
