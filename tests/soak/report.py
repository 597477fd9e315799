"""What a soak prints at its end, and the bounds of what is measured."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from tests.soak.account import Account
from tests.soak.judge import Judge
from tests.soak.measuring import SHORT_WARM_UP_S, WARM_UP_S, Slope, Track, Usage, slope_of
from tests.soak.server import THREADS
from tests.soak.storm import Asker, Storm

LONG_ENOUGH_S: Final = 60.0
"""A slope of less time says nothing: one page more or less is a slope then."""
STEEPEST_KB: Final = {"master": 40.0, "monitor": 40.0, "worker": 100.0}
"""KB per minute and process. A run without a leak shows -10 to +10, with threads up to +50 while heaps fill up.

A worker has 2,000 messages and more in a minute: 100 KB are 50 bytes of each, and whoever leaks a message, a task or a
buffer keeps hundreds. A monitor is asked 500 times in a minute, and a master has ten changes of generations in a minute
of storm, of which each makes objects for two or three workers.
"""


class Figures:
    """The measurements of a run."""

    def __init__(self, tracks: Iterable[Track], before: list[Usage], after: list[Usage]) -> None:
        self._tracks = list(tracks)
        self.before = before
        self.after = after

    def slope(self, role: str) -> Slope | None:
        """Return what the memory of processes does: of workers in the calm, of the others all the time."""
        is_worker = role == "worker"
        warm_up = WARM_UP_S if is_worker else SHORT_WARM_UP_S
        return slope_of(
            track.steady(calm_only=is_worker, warm_up=warm_up) for track in self._tracks if track.role == role
        )

    def of_each_worker(self) -> list[tuple[Track, Slope]]:
        """Return the workers that lived long enough for a slope of their own."""
        found = []
        for track in self._tracks:
            slope = slope_of([track.steady(calm_only=True, warm_up=WARM_UP_S)]) if track.role == "worker" else None
            if slope is not None and slope.longest_s >= LONG_ENOUGH_S:
                found.append((track, slope))
        return found

    def faults(self) -> list[str]:
        """Return what is beyond its bound."""
        found = []
        for role, most in STEEPEST_KB.items():
            slope = self.slope(role)
            if slope is not None and slope.longest_s >= LONG_ENOUGH_S and slope.kb_per_minute > most:
                found.append(
                    f"the memory of the {role} grows by {slope.kb_per_minute:.0f} KB/min, more than {most:.0f}"
                )
        for role in STEEPEST_KB:
            early, late = ([each for each in usages if each.role == role] for usages in (self.before, self.after))
            if not early or len(early) != len(late):
                found.append(f"there were {len(early)} processes of the kind {role}, and there are {len(late)}")
            elif max(each.descriptors for each in late) > max(each.descriptors for each in early):
                found.append(f"descriptors of the {role}: {_numbers(early, 1)} before, {_numbers(late, 1)} after")
            elif max(each.threads for each in late) > max(each.threads for each in early) + _more_threads(role):
                found.append(f"threads of the {role}: {_numbers(early, 2)} before, {_numbers(late, 2)} after")
        return found

    def lines(self) -> list[str]:
        """Return them for people."""
        found = [f"  {'':<9}{'KB/min':>8}  {'MB':<22}{'descriptors':<16}threads"]
        for role in STEEPEST_KB:
            slope = self.slope(role)
            shown = "-" if slope is None or slope.longest_s < LONG_ENOUGH_S else f"{slope.kb_per_minute:+.1f}"
            early, late = ([each for each in usages if each.role == role] for usages in (self.before, self.after))
            found.append(
                f"  {role:<9}{shown:>8}  {self._range(role):<22}{_numbers(early, 1) + ' -> ' + _numbers(late, 1):<16}"
                f"{_numbers(early, 2)} -> {_numbers(late, 2)}"
            )
        each = self.of_each_worker()
        for track, slope in each:
            found.append(
                f"    worker {track.pid}: {slope.kb_per_minute:+.1f} KB/min over {slope.longest_s:.0f} s of calm"
            )
            found.append(f"      MB by the minute: {' '.join(f'{size:.2f}' for size in _by_the_minute(track))}")
        if each:
            found.append(f"    these together: {sum(slope.kb_per_minute for _, slope in each):+.1f} KB/min")
        return found

    def _range(self, role: str) -> str:
        sizes = [
            sample.resident / (1 << 20) for track in self._tracks if track.role == role for sample in track.samples
        ]
        return f"{min(sizes):.1f} to {max(sizes):.1f}" if sizes else "-"


def _by_the_minute(track: Track) -> list[float]:
    """Return how large a process was when it was seen first, and each minute later."""
    start, found = track.samples[0].at, list[float]()
    for sample in track.samples:
        if sample.at >= start + 60 * len(found):
            found.append(sample.resident / (1 << 20))
    return found


def _numbers(usages: list[Usage], place: int) -> str:
    return "/".join(str(each[place]) for each in usages)


def _more_threads(role: str) -> int:
    """Return how many threads a process may have more at the end: callbacks keep theirs, and asyncio has a pool too."""
    return 2 * THREADS if role == "worker" else 0


def _listed(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{what} {number}" for what, number in numbers.items()) or "none"


def account_lines(
    account: Account, storm: Storm, asker: Asker, final: dict[str, Any], judge: Judge, recycled: int
) -> list[str]:
    """Return what happened, for people."""
    done = {**storm.done, "recycled": recycled, "generations": final["generation"]}
    metric = "fastmilter_connections_accepted_total"
    return [
        f"  clients: {_listed(dict(sorted(account.seen.items())))}",
        f"  server: {_listed(done)}",
        f"  connections: {account.seen['connections']} opened by the clients, {asker.of(metric)} accepted",
        f"  connections that broke: {_listed(judge.reasons())}",
        f"  workers that ended by themselves: {_listed(judge.totals())}",
        f"  monitor: {len(asker.failed)} questions without an answer",
    ]
