"""Servers with everything on, under clients of all kinds, while all is done to them that can be done.

``python -m tests.soak.stress --seconds 60``: the four kinds of filters side by side, each with a server and clients of
its own. Storms, in which the server is changed all the time, take turns with calms, in which there is load alone: in
those it shows whether memory grows. Ends with 1 if anything is not explained, or grows.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.soak.account import Account, Fault
from tests.soak.clients import Player
from tests.soak.judge import Judge
from tests.soak.measuring import Sampler, Usage, usage_of
from tests.soak.report import Figures, account_lines
from tests.soak.server import SoakedServer
from tests.soak.storm import Asker, Storm

CLIENTS: Final = 16
MODELS: Final = ("Plain", "Threaded", "Waiting", "Mixed")
HOLD_S: Final = 20.0
"""How long connections are idle, at most: longer than a worker drains."""
SHORT_HOLD_S: Final = 1.0
"""The same in a run of seconds: each reload waits until the one before has drained."""
MAX_MESSAGES: Final = 200
"""Messages after which a worker is replaced in a storm; in a calm none is."""
SHORT_MAX_MESSAGES: Final = 50
SHORT_S: Final = 60.0
STORMY: Final = 1 / 3
"""The share of the storms in the time."""
LONG_S: Final = 1200.0
"""From here on there are two storms and two calms, so that there are workers that came out of a storm."""


class Stress:
    """One run against one model."""

    def __init__(self, directory: Path, model: str, seconds: float, seed: int) -> None:
        """Prepare a run; ``seed`` says what the clients do."""
        self.account = Account(seed * 1_000_000)
        self.server = SoakedServer(directory, self.account)
        self.model = model
        self.seconds = seconds
        self.seed = seed
        self.report: list[str] = []
        self._before: list[Usage] = []

    def run(self) -> None:
        """Run it; raises ``Fault`` for the first thing that is wrong."""
        addresses = self.server.begin(self.model)
        self.server.wait_settled("the start")
        self.server.wait_for(self._monitor_rests, "the monitor has answered, and closed the connection")
        self._before = usage_of(self.server.pid)
        port = int(self.server.wait_log(r"metrics on http://127\.0\.0\.1:(\d+)/")[-1][1])
        sampler, asker = Sampler(self.server.pid), Asker(self.server, self.account, port)
        storm = Storm(self.server, self.account, sampler, random.Random(self.seed))
        in_time = self.model == "Plain"
        hold_s = HOLD_S if self.seconds >= SHORT_S else SHORT_HOLD_S
        players = [
            Player(self.account, place, addresses, self.seed, in_time=in_time, hold_s=hold_s)
            for place in range(CLIENTS)
        ]
        for thread in (sampler, asker, *players):
            thread.start()
        try:
            self._phases(storm, sampler)
        finally:
            self.account.over.set()
            for player in players:
                player.join()
            asker.over.set()
            sampler.over.set()
            asker.join()
            sampler.join()
        self._end(storm, sampler, asker, players)

    def _phases(self, storm: Storm, sampler: Sampler) -> None:
        rounds = 2 if self.seconds >= LONG_S else 1
        for _ in range(rounds):
            share = self.seconds / rounds
            end = time.monotonic() + share
            storm.renew(max_messages=MAX_MESSAGES if self.seconds >= SHORT_S else SHORT_MAX_MESSAGES)
            storm.rage(share * STORMY)
            storm.renew(max_messages=None)
            self.server.wait_alone("a calm begins")
            sampler.begin_calm()
            self.account.over.wait(max(0.0, end - time.monotonic()))
            sampler.end_calm()

    def _end(self, storm: Storm, sampler: Sampler, asker: Asker, players: Sequence[Player]) -> None:
        """See how the server is when the clients are gone, stop it, and judge."""
        if self.account.faults:
            raise Fault(self.account.faults[0])
        if not all(player.ended_well for player in players):
            raise Fault("a client broke down")
        self.server.wait_for(lambda: self.server.must_status()["connections"] == 0, "all connections are closed")
        final = self.server.must_status()
        asker.ask()
        figures = Figures(sampler.ended, self._before, self._settled_usage())
        status = self.server.stop()
        judge = Judge(self.server, self.account, storm, final)
        self.report = account_lines(self.account, storm, asker, final, judge, self.server.recycled())
        self.report += figures.lines()
        judge.judge(status, asker)
        if final["failed_reloads"]:
            raise Fault(f"{final['failed_reloads']} reloads failed")
        if figures.faults():
            raise Fault("; ".join(figures.faults()))

    def _settled_usage(self) -> list[Usage]:
        """Return what the processes have open, when there is nothing more to close."""
        with contextlib.suppress(Fault):  # who waits in vain finds out by the figures what is wrong
            self.server.wait_for(lambda: usage_of(self.server.pid)[:2] == self._before[:2], "as few as at the start")
        return usage_of(self.server.pid)

    def _monitor_rests(self) -> bool:
        return [usage.threads for usage in usage_of(self.server.pid) if usage.role == "monitor"] == [1]


def run_one(model: str, seconds: float, seed: int) -> int:
    """Run one model in this process, and print its report; return the exit status."""
    with tempfile.TemporaryDirectory() as directory:
        stress = Stress(Path(directory), model, seconds, seed)
        fault: Fault | None = None
        try:
            stress.run()
        except Fault as found:
            fault = found
        finally:
            stress.server.kill_all()
        if fault is not None:
            print(stress.server.log()[-20000:])
        print(f"{model}: {'as it should be' if fault is None else f'FAULT: {fault}'} (seed {seed})")
        print("\n".join(stress.report), flush=True)
    return 0 if fault is None else 1


def run_side_by_side(models: Sequence[str], seconds: float, seed: int) -> int:
    """Run models side by side, each in a process of its own; return the worst exit status."""
    options: list[Any] = ["--seconds", seconds, "--seed", seed]
    commands = [[sys.executable, "-m", "tests.soak.stress", *map(str, options), "--model", model] for model in models]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    worst = 0
    for process in processes:
        out, _ = process.communicate()
        print(out, end="", flush=True)
        worst = max(worst, abs(process.returncode))
    return worst


def main() -> int:
    """Run the models that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--model", choices=MODELS, action="append")
    arguments = parser.parse_args()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored, and the servers would inherit that
    models = arguments.model or MODELS
    if len(models) == 1:
        return run_one(models[0], arguments.seconds, arguments.seed)
    began = time.monotonic()
    status = run_side_by_side(models, arguments.seconds, arguments.seed)
    load = ", ".join(f"{number:.1f}" for number in os.getloadavg())
    print(f"{time.monotonic() - began:.0f} s on {os.cpu_count()} processors, load at the end {load}")
    return status


if __name__ == "__main__":
    sys.exit(main())
