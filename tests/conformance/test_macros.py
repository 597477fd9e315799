"""Conformance cases of macros, by their numbers (see README.md)."""

from typing import Any

import pytest

from fastmilter import CONTINUE, Verdict, codec
from tests.support.playing import ABORT, CONNECT, DATA, EOM, HELO, MAIL, RCPT, Mta, everything, letters


def macros(letter: str, **values: str) -> codec.Macros:
    return codec.Macros(letter.encode(), tuple((name.encode(), value.encode()) for name, value in values.items()))


def looking(*names: str) -> tuple[Mta, list[tuple[str, ...]]]:
    """A filter that looks names up at every step, and what it found."""
    found: list[tuple[str, ...]] = []

    def look(self: Any, *arguments: Any) -> Verdict:
        found.append(tuple(self.macros.get(name, "-") for name in names))
        return CONTINUE

    steps = ["on_connect", "on_helo", "on_mail", "on_rcpt", "on_data", "on_end_of_message"]
    return Mta(everything(**dict.fromkeys(steps, look))), found


def test_case_59_a_stage_and_nothing_else() -> None:
    mta, _ = looking()
    mta.send(CONNECT)
    assert mta.feed(b"\0\0\0\x02DH") == []
    assert letters(mta.send(HELO)) == "c"


@pytest.mark.parametrize("tail", [b"dangling\0", b"dangling", b"dangling\0half"])
def test_case_60_an_odd_number_of_strings(tail: bytes) -> None:
    mta, found = looking("a", "dangling")
    data = b"Ma\x001\0" + tail
    mta.feed((1 + len(data)).to_bytes(4, "big") + b"D" + data)
    mta.send(MAIL)
    assert found == [("1", "-")]
    assert mta.session.error is None


@pytest.mark.parametrize("stage", [b"L", b"B", b"U", b"A", b"\xff", b"\0"])
def test_case_61_other_stages(stage: bytes) -> None:
    mta, found = looking("i")
    assert letters(mta.send(codec.Macros(stage, ((b"i", b"4F"),)), CONNECT)) == "c"
    assert mta.session.error is None
    assert found == [("-",)], "ignored, as libmilter does"


@pytest.mark.parametrize(
    ("sent", "asked"), [("i", "{i}"), ("{i}", "i"), ("{i}", "{i}"), ("client_port", "{client_port}")]
)
def test_case_62_braces(sent: str, asked: str) -> None:
    """Documented: braces are optional everywhere, so client_port and {client_port} are one name."""
    mta, found = looking(asked)
    mta.send(codec.Macros(b"M", ((sent.encode(), b"4F"),)), MAIL)
    assert found == [("4F",)]


def test_case_63_a_name_at_two_stages() -> None:
    mta, found = looking("x")
    mta.send(macros("C", x="early"), CONNECT, MAIL, RCPT, DATA, macros("E", x="late"), EOM)
    assert found == [("early",)] * 4 + [("late",)]


def test_case_64_a_set_is_replaced() -> None:
    mta, found = looking("x", "y")
    mta.send(macros("M", x="1", y="1"), MAIL, ABORT, macros("M", y="2"), MAIL)
    assert found == [("1", "1"), ("-", "2")]


def test_case_65_mail_clears_what_came_after_it() -> None:
    mta, found = looking("c", "h", "m", "r", "t", "e")
    mta.send(macros("C", c="1"), CONNECT, macros("H", h="1"), HELO, macros("M", m="1"), MAIL)
    mta.send(macros("R", r="1"), RCPT, macros("T", t="1"), DATA, macros("E", e="1"), EOM)
    found.clear()
    mta.send(MAIL)
    assert found == [("1", "1", "1", "-", "-", "-")]


def test_case_66_abort_keeps_what_helo_told() -> None:
    mta, found = looking("{tls_version}", "i")
    mta.send(CONNECT, macros("H", tls_version="TLSv1.3"), HELO, macros("M", i="1"), MAIL, RCPT, EOM, ABORT, ABORT, MAIL)
    assert found[-1] == ("TLSv1.3", "1")


def test_case_67_the_second_recipient() -> None:
    mta, found = looking("rcpt_addr")
    mta.send(MAIL, macros("R", rcpt_addr="a@x"), RCPT, macros("R", rcpt_addr="b@x"), RCPT, RCPT)
    assert found == [("-",), ("a@x",), ("b@x",), ("b@x",)]


def test_case_68_an_empty_value() -> None:
    mta, found = looking("a", "b")
    mta.send(macros("M", a="", b="2"), MAIL)
    assert found == [("", "2")]


def test_case_69_two_packets_in_a_row() -> None:
    mta, found = looking("x", "y")
    assert letters(mta.send(macros("C", x="1"), macros("H", y="1"), macros("C", x="2"), CONNECT, HELO)) == "cc"
    assert found == [("2", "-"), ("2", "-")], "CONNECT clears what came for HELO before it, as libmilter does"


def test_a_set_that_comes_for_a_step_that_never_comes_harms_nothing() -> None:
    """Sendmail sends the sets of steps that are suppressed (protocol.md 5.4)."""
    mta, found = looking("i")
    mta.send(macros("C", i="0"), macros("H"), macros("M", i="1"), macros("R", i="2"), MAIL)
    assert found == [("1",)]
