"""A few seconds of what ``make soak`` does for a minute."""

from pathlib import Path

import pytest

from tests.soak.stress import MODELS, Stress


@pytest.mark.parametrize("model", MODELS)
def test_a_short_run(model: str, tmp_path: Path) -> None:
    stress = Stress(tmp_path, model, 6, seed=1)
    try:
        stress.run()
    finally:
        stress.server.kill_all()
        print(stress.server.log()[-20000:])  # shown where a test fails
