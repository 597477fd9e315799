"""A few seconds of what ``make soak`` does for a minute."""

import pytest

from tests.soak.stress import MODELS, run_side_by_side


def test_a_short_run(capfd: pytest.CaptureFixture[str]) -> None:
    """What is printed is shown where it fails: what is wrong, and the log."""
    assert run_side_by_side(MODELS, seconds=6, seed=1) == 0
    assert capfd.readouterr().out.count(": as it should be (seed 1)") == len(MODELS)
