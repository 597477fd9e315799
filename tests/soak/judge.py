"""Whether a soak went as it should: every connection that broke, every 421 and every worker that ended is explained."""

import re
from collections import Counter, defaultdict
from typing import Any

from tests.soak.account import Account, Broken, Fault
from tests.soak.filters import CONNECTIONS, COUNTS
from tests.soak.server import SoakedServer
from tests.soak.storm import Asker, Storm

NEEDED = ("answers continue", "answers reply", "answers tempfail", "aborted", "hung up", "cut off in a packet")


class Judge:
    """Looks at what a server left."""

    def __init__(self, server: SoakedServer, account: Account, storm: Storm, final: dict[str, Any]) -> None:
        """``final`` is the status when the clients had ended, and nothing else had happened since."""
        self._log = server.log()
        self._late = server.late
        self._account = account
        self._storm = storm
        self._final = final
        self._workers: dict[str, int] = {}
        """The worker of each connection, by its name."""
        for path in (server.directory / CONNECTIONS).iterdir():
            self._workers.update(dict.fromkeys(path.read_text().split(), int(path.name)))
        self._counts: dict[int, Counter[str]] = defaultdict(Counter)
        """What the workers that ended by themselves counted."""
        for line in (server.directory / COUNTS).read_text().splitlines():
            numbers = {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", line)}
            self._counts[numbers.pop("pid")].update(numbers)

    def judge(self, status: int, asker: Asker) -> None:
        """Raise ``Fault`` for what nothing explains."""
        if status != 0:
            raise Fault(f"the server ended with status {status}")
        self._judge_log()
        self._judge_workers()
        for broken in self._account.broken:
            self._judge_broken(broken)
        self._judge_moved()
        for at in asker.failed:
            if not any(start <= at <= end for start, end in self._storm.upgrades):
                raise Fault("the monitor did not answer, and no upgrade was under way")
        missing = [what for what in NEEDED if not self._account.seen[what]]
        if missing:
            raise Fault(f"too little happened, there is no {missing}: {dict(self._account.seen)}")

    def _judge_log(self) -> None:
        wrong = re.findall(r".*(?:internal error|are left without|asyncio: |suspended for).*", self._log)
        wrong += re.findall(r"(?:(?<=\n)|^) *[\w.]*(?:Error|Exception)\b.*", self._log)
        wrong += re.findall(r".* error fastmilter.*", self._log)
        if wrong:
            raise Fault(f"the log says: {wrong[0].strip()}")

    def _judge_workers(self) -> None:
        ends = {int(pid): int(status) for pid, status in re.findall(r" ended pid=(\d+) .*status=(-?\d+)", self._log)}
        for pid in map(int, re.findall(r"worker \d+ started pid=(\d+)", self._log)):
            if pid in self._storm.killed:
                continue
            if ends.get(pid) != 0:
                raise Fault(f"worker {pid}, which nobody killed, ended with {ends.get(pid, 'nothing in the log')}")
            if pid not in self._counts:
                raise Fault(f"worker {pid}, which nobody killed, did not tell what it had")
        for pid, counts in self._counts.items():
            if counts["opened"] != counts["closed"] or counts["begun"] != counts["ended"]:
                raise Fault(f"worker {pid}: not everything that began has ended: {dict(counts)}")
            if counts["overlaps"]:
                raise Fault(f"worker {pid}: {counts['overlaps']} callbacks ran beside another of their connection")

    def _judge_broken(self, broken: Broken) -> None:
        if self._why(broken) is None:
            worker = self._workers.get(broken.name)
            life = f"{broken.at - broken.opened:.1f} s old, {'idle' if broken.was_idle else 'busy'}"
            raise Fault(f"{broken.name}, {life}, of worker {worker}, which nobody killed then: {broken.what}")

    def _why(self, broken: Broken) -> str | None:
        """Return why a connection broke, ``None`` if nothing explains it."""
        worker = self._workers.get(broken.name)
        if worker is None:  # broke before its filter knew it: a worker must have been killed in that time
            killed = any(broken.opened <= at <= broken.at for at in self._storm.killed.values())
            return "killed before CONNECT" if killed else None
        if worker in self._storm.killed and self._storm.killed[worker] <= broken.at:
            return "its worker was killed"
        # Nothing was under way for long, and the worker has drained and left.
        return "idle at the end of a drain" if broken.was_idle and worker in self._counts else None

    def reasons(self) -> Counter[str]:
        """Return why connections broke, and how many."""
        return Counter(self._why(broken) or "not explained" for broken in self._account.broken)

    def _judge_moved(self) -> None:
        """What time explains must be told by the log: that a worker left, or that a callback was out of time.

        Where a callback still runs, though its time is up, the next message of its connection is told 421.
        """
        serving = {each["pid"] for each in self._final["workers"] if each["state"] == "serving"}
        for moved in self._account.moved:
            if self._workers.get(moved.name) in serving and moved.client not in self._late:
                raise Fault(f"{moved.name} was told 421 at {moved.step} by a worker that did not leave")
        unexplained = self._account.late - self._late
        if unexplained:
            raise Fault(f"{min(unexplained)} was answered as if a callback was out of time, and the log knows of none")

    def totals(self) -> Counter[str]:
        """Return what all workers that ended by themselves counted together."""
        return sum(self._counts.values(), Counter())
