"""A milter that cannot run here fails its tests where somebody insists, and is skipped and said otherwise."""

from __future__ import annotations

import pytest

from . import conftest
from .conftest import need

REASONS = ["opendkim is not installed"]


@pytest.mark.parametrize("variable", ["CI", "FASTMILTER_REQUIRE_MTA"])
def test_loud_where_somebody_insists(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(pytest.fail.Exception, match=r"opendkim is not installed \(see tests/milters/install\.sh\)"):
        need("opendkim over unix", REASONS)


def test_skipped_and_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("FASTMILTER_REQUIRE_MTA", "0")
    said: set[str] = set()
    monkeypatch.setattr(conftest, "_skipped", said)
    with pytest.raises(pytest.skip.Exception):
        need("opendkim over unix", REASONS)
    assert said == {"opendkim over unix cannot run here: opendkim is not installed (see tests/milters/install.sh)"}


def test_nothing_is_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")
    need("opendkim over unix", [])
