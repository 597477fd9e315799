"""Log records for a reader that may stand still: it is waited for once, and what it misses is counted."""

import io
import logging
import os
from collections.abc import Iterator

import pytest

from fastmilter.commands import LogFormat
from fastmilter.commands.log_handler import PatientHandler


@pytest.fixture
def pipe() -> Iterator[tuple[int, logging.Logger]]:
    """A pipe and a logger that writes to it."""
    source, sink = os.pipe()
    os.set_blocking(source, False)
    with open(sink, "w", buffering=1) as stream:
        handler = PatientHandler(stream, patience_s=0.05)
        handler.setFormatter(LogFormat())
        logger = logging.Logger("test")
        logger.addHandler(handler)
        yield source, logger
    os.close(source)


def texts(source: int) -> list[str]:
    data = b""
    try:
        while piece := os.read(source, 1 << 16):
            data += piece
    except BlockingIOError:
        pass
    return [line.split(" ", 1)[1] for line in data.decode().splitlines()]


def test_records_are_written_as_they_come(pipe: tuple[int, logging.Logger]) -> None:
    source, logger = pipe
    logger.warning("one")
    logger.error("two")
    assert texts(source) == ["warning test: one", "error test: two"]


def test_a_reader_that_stands_still_misses_records_and_is_told(pipe: tuple[int, logging.Logger]) -> None:
    source, logger = pipe
    for _ in range(100):
        logger.warning("x" * 1000)  # waits once, or this would take seconds
    written = len(texts(source))
    assert 0 < written < 100
    logger.warning("next")
    logger.warning("after it")
    assert texts(source) == [
        "warning fastmilter.commands.log_handler: standard error was full for more than 0 s: records are missing"
        f" lost={100 - written}",
        "warning test: next",
        "warning test: after it",
    ]


def test_a_stream_without_a_descriptor_will_do() -> None:
    stream = io.StringIO()
    logger = logging.Logger("test")
    logger.addHandler(PatientHandler(stream))
    logger.warning("text")
    assert stream.getvalue() == "text\n"
