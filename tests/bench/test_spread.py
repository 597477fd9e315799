"""Connections over workers: all of them are counted, whatever goes on beside; no figure is asserted to be good."""

from __future__ import annotations

import json

import pytest

from bench import spread
from bench.results import is_met

FEW = 40


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_all_connections_are_counted(transport: str, built: None) -> None:
    with spread.serving(transport) as (address, workers):
        for manner in spread.MANNERS:
            counts = spread.spread(address, workers, manner, FEW)
            assert len(counts) == spread.WORKERS
            assert sum(counts) == FEW
            assert sum(workers.held()) == 0
        times = spread.accept_ms(address, 5)
        assert len(times) == 5
        assert times == sorted(times)
        assert times[0] > 0


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(spread, "QUICK", spread.Effort(runs=1, singles=3))
    assert spread.main(["--quick", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said["aims"]) == 10
    for transport in ("unix", "tcp"):
        for runs in said["measured"][transport]["spreads"].values():
            assert [sum(counts) for counts in runs] == [spread.CONNECTIONS]


def test_the_worst_run_is_judged() -> None:
    figures = spread.Measured(
        {"at once": [[100, 100, 100, 100], [130, 90, 90, 90]], "one by one": [[112, 100, 98, 90]]},
        {spread.RAW: [0.1, 0.1, 0.3], spread.EMPTY: [0.1, 0.2, 9.0], spread.HOLDING: [1.1, 1.3, 1.4]},
    )
    aims = spread.aims_of({"unix": figures})
    assert [aim["value"] for aim in aims] == pytest.approx([1.3, 1.12, 0.1, 1.2])
    assert [is_met(aim) for aim in aims] == [False, True, True, False]
    assert "130 90 90 90" in aims[0]["shown"]
    assert "130 90 90 90" not in spread.tables({"unix": figures})
    assert "1.00 1.30" in spread.tables({"unix": figures})


def test_what_cannot_be_measured_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert spread.main([]) == 1
    assert "apt-get install gcc" in capsys.readouterr().err
