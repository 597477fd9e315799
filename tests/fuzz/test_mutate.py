"""A short run of the fuzzer, and proof that it would notice what it looks for."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.fuzz import mutate
from tests.fuzz.targets import TARGETS
from tests.support.recordings import Direction

ROOT = Path(__file__).parents[2]


def fresh(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own: in this one, what other tests have freed would hide memory that grows."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_mutated_recordings_only_ever_give_the_named_error(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = fresh("-m", "tests.fuzz.mutate", "--count", "30000", "--target", target)
    assert done.returncode == 0, done.stderr
    with capsys.disabled():
        print(f"\n{done.stdout}", end="")


def test_every_kind_of_refusal_is_reached() -> None:
    figures = mutate.run(TARGETS["codec"], 30000, seed=1)
    text = "\n".join(figures.reasons)
    for words in ("no NUL ends", "field name is empty", "too many at the end", "unknown command", "unknown response"):
        assert words in text
    for words in (
        "length : ",
        "above the limit",
        "expected at least",
        "expected at most",
        "family",
        "port and address",
    ):
        assert words in text
    assert figures.messages > figures.packets / 2


def test_an_exception_is_a_finding_and_can_be_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    def brittle(direction: Direction, pieces: Sequence[bytes]) -> tuple[int, str]:
        if b"\xff" in b"".join(pieces):
            raise ValueError("cannot cope")
        return 0, ""

    TARGETS["brittle"] = brittle
    try:
        found = []
        for _ in range(2):
            assert mutate.main(["--count", "5000", "--seed", "7", "--target", "brittle"]) == 1
            found.append(capsys.readouterr().err)
    finally:
        del TARGETS["brittle"]
    assert found[0] == found[1]
    assert "seed 7, stream " in found[0]
    assert "ValueError: cannot cope" in found[0]


HOARDING = """
from tests.fuzz import mutate
from tests.fuzz.targets import TARGETS

kept = []

def hoarding(direction, pieces):
    kept.append(b"x" * 20000)
    return 0, ""

TARGETS["hoarding"] = hoarding
raise SystemExit(mutate.main(["--count", "5000", "--seed", "1", "--target", "hoarding"]))
"""


def test_growing_memory_is_a_finding() -> None:
    done = fresh("-c", HOARDING)
    assert done.returncode == 1
    assert "memory grew from" in done.stderr
