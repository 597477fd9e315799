"""What a line of the log may hold: whatever a filter is sent and logs, no line is forged, and no parser fails."""

import json
import logging
import re
import sys

import pytest

from fastmilter.commands import JsonFormat, LogFormat

FORGED = "2026-11-22T22:04:51.123+0000 info fastmilter.message: qid='4Forged'"
BEGIN = r"\d{4}-\d\d-\d\dT\S+ warning tagger: "
MOST_BYTES = 1000


def record(text: str, **more: object) -> logging.LogRecord:
    made = logging.LogRecord("tagger", logging.WARNING, __file__, 0, text, None, None)
    made.__dict__.update(more)
    return made


def failed(text: str) -> logging.LogRecord:
    """A record with the traceback of an exception that says ``text``."""
    try:
        raise ValueError(text)
    except ValueError:
        return record("failed", exc_info=sys.exc_info())


def strictly(line: str) -> dict[str, object]:
    """Read a line as strict parsers do: no lone surrogate in it."""
    fields = json.loads(line)
    assert isinstance(fields, dict)
    json.dumps(fields, ensure_ascii=False).encode()
    return fields


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x1e", "\x85", "\u2028", "\u2029"])
@pytest.mark.parametrize("make", [record, failed])
def test_no_line_is_forged(make: object, end: str) -> None:
    assert callable(make)
    text = LogFormat().format(make(f"hi{end}{FORGED}"))
    first, *others = text.splitlines()
    assert re.match(BEGIN, first)
    assert all(line.startswith("  ") for line in others)
    assert FORGED in text


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[31m", r"\x1b[31m"),
        ("\0\x7f\x9b", r"\x00\x7f\x9b"),
        ("\u202e\u2066", r"\u202e\u2066"),
        ("caf\udce9", r"caf\udce9"),
        ("caf\u00e9 \u3000\U0001f4e8\tx", "caf\u00e9 \u3000\U0001f4e8\tx"),
    ],
)
def test_what_is_no_text_is_shown_as_an_escape(raw: str, shown: str) -> None:
    for made in (record(raw), failed(raw)):
        assert LogFormat(stamped=False).format(made).endswith(shown)
    named = record("text")
    named.name = raw
    assert LogFormat(stamped=False).format(named) == f"warning {shown}: text"


def test_a_traceback_is_below_its_record() -> None:
    lines = LogFormat(stamped=False).format(failed("one\ntwo")).split("\n")
    assert lines[:2] == ["warning tagger: failed", "  Traceback (most recent call last):"]
    assert lines[-2:] == ["  ValueError: one", "  two"]


def test_json_has_no_lone_surrogates() -> None:
    fields = strictly(JsonFormat().format(record("caf\udce9 \U0001f4e8", about={"qid": "4\udcff"})))
    assert (fields["message"], fields["qid"]) == ("caf\\udce9 \U0001f4e8", "4\\udcff")
    assert str(strictly(JsonFormat().format(failed("\udcff")))["exception"]).endswith("ValueError: \\udcff")


def test_json_has_the_stack_that_was_asked_for() -> None:
    fields = strictly(JsonFormat().format(record("here", stack_info="Stack (most recent call last):\n  File ...")))
    assert fields["stack"] == "Stack (most recent call last):\n  File ..."
    assert "stack" not in strictly(JsonFormat().format(record("here")))


@pytest.mark.parametrize("character", ["x", "\n", "\x01", "\u00e9", "\U0001f4e8", "\udcff"])
@pytest.mark.parametrize("both", [False, True])
def test_json_is_cut_within_its_texts(character: str, both: bool) -> None:
    long = f"begin {character * 5000} end"
    made = failed(long)
    made.msg = long if both else "failed"
    made.__dict__["about"] = {"qid": "4ZkT9c"}
    line = JsonFormat(most_bytes=MOST_BYTES).format(made)
    fields = strictly(line)
    assert MOST_BYTES - 24 <= len(line) <= MOST_BYTES
    assert (fields["qid"], fields["level"], fields["logger"]) == ("4ZkT9c", "warning", "tagger")
    exception = str(fields["exception"])
    assert exception.startswith("Traceback (most")
    assert "..." in exception
    assert exception.endswith(" end")
    message = str(fields["message"])
    assert ("..." in message) is both
    assert (message == "failed") is not both
    if both:
        assert message.startswith("begin ")
        assert message.endswith(" end")


def test_json_that_is_short_enough_is_not_cut() -> None:
    made = record("x" * 5000)
    line = JsonFormat().format(made)
    assert strictly(line)["message"] == "x" * 5000
    assert JsonFormat(most_bytes=len(line)).format(made) == line
    assert len(JsonFormat(most_bytes=len(line) - 1).format(made)) == len(line) - 1
