"""What the soak measures is found where it is, and nowhere else."""

import subprocess
import sys

import pytest

from tests.soak.measuring import WARM_UP_S, Sample, Track, Usage, slope_of, usage_of
from tests.soak.report import STEEPEST_KB, Figures

MB = 1 << 20
USAGES = [Usage("master", 23, 1), Usage("monitor", 9, 1), Usage("worker", 11, 1), Usage("worker", 11, 1)]


def track(role: str, kb_per_minute: float, *, size: int = 20 * MB, stormy_s: int = 0) -> Track:
    """A process that grows evenly for ten minutes, at first in a storm, in which it is large."""
    samples = [
        Sample(1000.0 + second, size + (5 * MB if second < stormy_s else int(second * kb_per_minute * 1024 / 60)), True)
        for second in range(600)
    ]
    return Track(role, 1, [each._replace(is_calm=place >= stormy_s) for place, each in enumerate(samples)])


def figures(*tracks: Track, after: list[Usage] = USAGES) -> list[str]:
    return Figures(tracks, USAGES, after).faults()


def test_a_slope_is_that_of_each_process_whatever_their_sizes() -> None:
    early, late = track("worker", 30.0), track("worker", 30.0, size=80 * MB)
    slope = slope_of(each.steady(calm_only=True, warm_up=WARM_UP_S) for each in (early, late))
    assert slope is not None
    assert slope.kb_per_minute == pytest.approx(30.0, abs=0.1)
    assert (slope.longest_s, slope.processes) == (599 - WARM_UP_S, 2)
    assert slope_of([[]]) is None


@pytest.mark.parametrize("role", STEEPEST_KB)
def test_a_leak_is_a_fault(role: str) -> None:
    assert figures(track(role, STEEPEST_KB[role] - 1)) == []
    (fault,) = figures(track(role, STEEPEST_KB[role] + 1))
    assert fault.startswith(f"the memory of the {role} grows by")


def test_a_worker_is_looked_at_in_the_calm_alone() -> None:
    assert Figures([track("worker", 0.0, stormy_s=200)], USAGES, USAGES).slope("worker") == (0.0, 279.0, 1)


@pytest.mark.parametrize("place", range(len(USAGES)))
def test_descriptors_and_processes_that_stay_are_faults(place: int) -> None:
    more = USAGES[place]._replace(descriptors=30)
    after = sorted([*USAGES[:place], more, *USAGES[place + 1 :]])
    (fault,) = figures(after=after)
    assert fault.startswith(f"descriptors of the {more.role}")
    (fault,) = figures(after=[*USAGES, more])
    assert fault.startswith("there were")


def test_threads_that_stay_are_faults_but_for_those_of_callbacks() -> None:
    assert figures(after=[*USAGES[:3], Usage("worker", 11, 17)]) == []
    (fault,) = figures(after=[*USAGES[:3], Usage("worker", 11, 100)])
    assert fault.startswith("threads of the worker")
    (fault,) = figures(after=[USAGES[0]._replace(threads=2), *USAGES[1:]])
    assert fault.startswith("threads of the master")


def test_what_is_no_process_of_a_server_does_not_count() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        assert usage_of(stranger.pid) == []
        stranger.communicate(b"\n")
