"""Callbacks that wait: one beside others, many at once; no figure is asserted to be good."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bench import waiting
from bench.programs import BenchFailed
from bench.results import is_met
from bench.servers import Contestant, Cores, Server

SHORT = waiting.Effort(callback_s=3, runs=2, rounds=1)
LONGEST_S = 20.0


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "ONE", replace(waiting.ONE, seconds=0.1))
    for kind, crowd in waiting.CROWDS.items():
        monkeypatch.setitem(waiting.CROWDS, kind, replace(crowd, connections=40, options=("--threads", "40")))


@pytest.mark.parametrize("kind", list(waiting.BESIDE))
def test_a_connection_beside_one_that_waits(kind: str, cores: Cores) -> None:
    alone, beside = waiting.latencies(kind, SHORT, cores)
    assert len(alone) == len(beside) == 2
    assert all(p99 > 0 for p99 in (*alone, *beside))


@pytest.mark.parametrize("kind", list(waiting.BESIDE))
def test_a_callback_that_does_not_wait_is_noticed(kind: str, cores: Cores) -> None:
    with (
        Server(Contestant("fastmilter", waiting.BESIDE[kind], "unix"), cores.server) as server,
        pytest.raises(BenchFailed, match="ended before"),
        waiting.waiting_message(server.address, 0) as sent,
    ):
        assert sent.result(LONGEST_S) == (True, 3)


@pytest.mark.parametrize("kind", list(waiting.CROWDS))
def test_many_wait_at_once(kind: str, cores: Cores) -> None:
    answered, memory = waiting.crowd_aims(kind, cores)
    assert answered["job"] == memory["job"] == waiting.crowd_job(kind)
    assert answered["value"] == 40
    assert is_met(answered)
    assert 0 < memory["value"] < 1000


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["waiting", "--quick", "--json"])
    monkeypatch.setattr(waiting, "QUICK", SHORT)
    assert waiting.main() == 0
    aims = json.loads(capsys.readouterr().out)
    assert len(aims) == len(waiting.BESIDE) + 2 * len(waiting.CROWDS)
