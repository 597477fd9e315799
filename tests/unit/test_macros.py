"""Macros: libmilter's lifetime and order of look-up."""

import pytest

from fastmilter import codec
from fastmilter.macros import (
    CONNECTION_STAGES,
    NO_STAGES,
    STAGE_OF_LETTER,
    Macros,
    Stages,
    clear,
    cleared,
    for_message,
    stored,
)


def sets(**values: str) -> Stages:
    """Sets by the letter of their stage, each with the macro x."""
    stages: Stages = list(NO_STAGES)
    for letter, value in values.items():
        stages = stored(stages, codec.Macros(letter.encode(), ((b"{x}", value.encode()),)))
    return stages


def test_the_latest_step_wins() -> None:
    assert Macros(sets(C="c", H="h", M="m", R="r", T="t", N="n", E="e"))["x"] == "e"
    assert Macros(sets(C="c", N="n", T="t"))["x"] == "n"
    assert Macros(sets(C="c"))["x"] == "c"


def test_seven_stages_in_order() -> None:
    assert [*STAGE_OF_LETTER] == [b"C", b"H", b"M", b"R", b"T", b"N", b"E"]
    assert [*STAGE_OF_LETTER.values()] == list(range(7))
    assert STAGE_OF_LETTER[b"M"] == CONNECTION_STAGES


@pytest.mark.parametrize("spelled", [b"i", b"{i}"])
@pytest.mark.parametrize("asked", ["i", "{i}"])
def test_braces_do_not_matter(spelled: bytes, asked: str) -> None:
    macros = Macros([codec.Macros(b"M", ((spelled, b"4F"),))])
    assert macros[asked] == "4F"
    assert asked in macros
    assert macros.get(asked) == "4F"


def test_what_was_not_sent() -> None:
    macros = Macros(NO_STAGES)
    with pytest.raises(KeyError, match="client_addr"):
        macros["client_addr"]
    assert macros.get("i") is None
    assert macros.get("i", "none") == "none"
    assert "i" not in macros
    assert (len(macros), dict(macros), repr(macros)) == (0, {}, "Macros({})")


def test_an_empty_value_is_there() -> None:
    macros = Macros([codec.Macros(b"M", ((b"{a}", b""), (b"{b}", b"2")))])
    assert (macros["a"], macros["b"]) == ("", "2")


def test_every_byte_survives() -> None:
    macros = Macros([codec.Macros(b"M", ((b"{\xff}", b"\xe4\xc3\xa4"),))])
    assert macros["\udcff"].encode("utf-8", "surrogateescape") == b"\xe4\xc3\xa4"


def test_as_a_mapping() -> None:
    macros = Macros(
        [
            codec.Macros(b"C", ((b"j", b"mx"), (b"{x}", b"old"))),
            None,
            codec.Macros(b"M", ((b"{x}", b"new"), (b"i", b"4F"))),
        ]
    )
    assert dict(macros) == {"j": "mx", "x": "new", "i": "4F"}
    assert len(macros) == 3


def test_the_first_of_two_values_wins_in_one_set() -> None:
    assert Macros([codec.Macros(b"M", ((b"i", b"1"), (b"{i}", b"2")))])["i"] == "1"


def test_a_packet_replaces_the_set_and_an_empty_one_keeps_it() -> None:
    stages = stored(NO_STAGES, codec.Macros(b"M", ((b"a", b"1"), (b"b", b"1"))))
    stages = stored(stages, codec.Macros(b"M"))
    assert dict(Macros(stages)) == {"a": "1", "b": "1"}
    stages = stored(stages, codec.Macros(b"M", ((b"a", b"2"),)))
    assert dict(Macros(stages)) == {"a": "2"}


@pytest.mark.parametrize("letter", [b"L", b"B", b"U", b"A", b"O", b"\xff", b"\0"])
def test_other_stages_are_ignored(letter: bytes) -> None:
    assert stored(NO_STAGES, codec.Macros(letter, ((b"x", b"1"),))) is NO_STAGES


@pytest.mark.parametrize("letter", [b"C", b"H", b"M"])
def test_what_comes_before_a_message_does_not_reach_the_message_before(letter: bytes) -> None:
    before = for_message(NO_STAGES)
    after = stored(before, codec.Macros(letter, ((b"x", b"1"),)))
    assert dict(Macros(before)) == {}
    assert dict(Macros(after)) == {"x": "1"}


@pytest.mark.parametrize("letter", [b"R", b"T", b"N", b"E"])
def test_what_comes_within_a_message_reaches_it(letter: bytes) -> None:
    stages = for_message(NO_STAGES)
    assert stored(stages, codec.Macros(letter, ((b"x", b"1"),))) is stages
    assert dict(Macros(stages)) == {"x": "1"}


def test_clearing() -> None:
    full = sets(C="c", H="h", M="m", R="r", T="t", N="n", E="e")
    shorter = cleared(full, STAGE_OF_LETTER[b"R"])
    assert Macros(shorter)["x"] == "m"
    assert Macros(for_message(full))["x"] == "m"
    assert Macros(full)["x"] == "e"
    clear(full, STAGE_OF_LETTER[b"T"])
    assert Macros(full)["x"] == "r"
    clear(NO_STAGES, 0)
    assert len(full) == len(shorter) == len(NO_STAGES) == 7
