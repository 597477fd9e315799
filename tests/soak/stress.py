"""A server of filters that wait, under clients that abort and hang up, while it is reloaded and scaled.

``python -m tests.soak.stress --seconds 60``: every answer is compared with what the message's script says, or is one
that time explains (out of time, or 421 since the worker leaves); the client's own state machine refuses an answer too
many.
"""

import argparse
import itertools
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Final

from fastmilter import CONTINUE, TEMPFAIL, Step, Verdict
from fastmilter.client import Client
from fastmilter.codec import AddHeader
from fastmilter.errors import ConnectionLost
from tests.process.harness import Server
from tests.soak.filters import SLOW, script_of

CLIENTS: Final = 24
MODELS: Final = ("Threaded", "Waiting", "Mixed")


class Fault(AssertionError):
    """An answer that nothing explains."""


class Stress:
    """One run against one model."""

    def __init__(self, directory: Path, model: str, seconds: float, seed: int) -> None:
        """Prepare a run; ``seed`` says what the clients do."""
        self.server = Server(directory)
        self.model = model
        self.seconds = seconds
        self.dice = random.Random(seed)
        self.numbers = itertools.count(seed * 1_000_000)
        self.seen: Counter[str] = Counter()
        self.faults: list[str] = []
        self.over = threading.Event()
        self._lock = threading.Lock()

    def run(self) -> None:
        """Run it; raises ``Fault`` for the first thing that is wrong."""
        options = ("--workers=2", "--threads=16", "--drain-reload=1,2,3", "--drain-stop=3,4,5")
        target = f"tests.soak.filters:{self.model}"
        unix = f"unix:{self.server.directory}/fm.sock"
        self.server.start(*options, target=target, listen=[unix, "inet:0@127.0.0.1"])
        clients = [threading.Thread(target=self._client, args=(number,)) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        end = time.monotonic() + self.seconds
        orders = itertools.cycle([signal.SIGHUP, signal.SIGTTIN, signal.SIGHUP, signal.SIGTTOU])
        while not self.over.wait(min(1.5, max(0.0, end - time.monotonic()))) and time.monotonic() < end:
            self.server.send(next(orders))
        self.over.set()
        for client in clients:
            client.join()
        status = self.server.stop()
        self._judge(status)

    # -- clients -------------------------------------------------------------------------------------------------

    def _client(self, place: int) -> None:
        dice = random.Random(self.dice.random())
        while not self.over.is_set():
            try:
                self._session(dice, place % 2)
            except ConnectionLost:
                self._saw("closed")  # a worker that leaves closes what is idle at last
            except Fault as fault:
                self.faults.append(str(fault))
                self.over.set()

    def _session(self, dice: random.Random, place: int) -> None:
        client = self.server.client(place)
        with client:
            client.connect("client.example", "192.0.2.1", 25)
            client.helo("client.example")
            for _ in range(dice.randint(1, 6)):
                if self.over.is_set() or not self._message(client, dice):
                    return

    def _message(self, client: Client, dice: random.Random) -> bool:
        """Play one message; tell whether the session goes on."""
        with self._lock:
            number = next(self.numbers)
        script = script_of(number)
        stop_at = dice.choice([*Step, None, None, None, None, None, None])
        hangs_up = dice.random() < 0.3
        refused: list[Verdict] = []
        for step, act in script.items():
            verdict, marks = self._step(client, step, number)
            self._saw("none" if verdict is None else str(verdict.kind))
            if verdict is not None and verdict.code == 421:
                self._saw("moved")
                return False
            expected = [act.verdict or CONTINUE] if not act.raises else [TEMPFAIL]
            if verdict is not None and verdict not in (*expected, SLOW, *refused):
                raise Fault(f"message {number}, {step}: {verdict}, expected {expected[0]} or {SLOW}")
            if step == Step.END_OF_MESSAGE:
                if verdict == CONTINUE and marks != [number]:
                    raise Fault(f"message {number} came back with the marks {marks}")
                if verdict != CONTINUE and marks:
                    raise Fault(f"message {number} was refused with edits: {marks}")
                return True
            if step in (Step.HEADER, Step.BODY):
                refused += [verdict for verdict in expected if verdict != CONTINUE]  # kept for the end
            elif verdict is not None and verdict != CONTINUE:
                client.abort()
                return True
            if step == stop_at:
                self._saw("hung up" if hangs_up else "aborted")
                if hangs_up:
                    return False
                client.abort()
                return True
        return True

    def _step(self, client: Client, step: Step, number: int) -> tuple[Verdict | None, list[int]]:
        match step:
            case Step.MAIL:
                return client.mail(f"{number}@example.org"), []
            case Step.RCPT:
                return client.rcpt("b@example.net"), []
            case Step.DATA:
                return client.data(), []
            case Step.HEADER:
                client.header("From", f"{number}@example.org")
                return client.header("Subject", "stress"), []
            case Step.BODY:
                client.end_of_headers()
                return client.body(b"x" * 5000), []
            case _:
                verdict, changes = client.end_of_message()
                return verdict, [int(change.value) for change in changes if isinstance(change, AddHeader)]

    def _saw(self, what: str) -> None:
        with self._lock:
            self.seen[what] += 1

    # -- judgement -----------------------------------------------------------------------------------------------

    def _judge(self, status: int) -> None:
        if self.faults:
            raise Fault(self.faults[0])
        log = self.server.log()
        if status != 0:
            raise Fault(f"the server ended with status {status}")
        wrong = re.findall(r".*(?:internal error|are left without|asyncio: ).*", log)
        wrong += [line for line in re.findall(r"\n\w*Error: .*", log) if "as scripted" not in line]
        if wrong:
            raise Fault(wrong[0].strip())
        total: Counter[str] = Counter()
        for name, number in re.findall(r"(\w+)=(\d+)", (self.server.directory / "counts").read_text()):
            total[name] += int(number)
        if total["overlaps"]:
            raise Fault(f"{total['overlaps']} callbacks ran beside another of their connection")
        if total["opened"] != total["closed"] or total["begun"] != total["ended"]:
            raise Fault(f"not everything that began has ended: {dict(total)}")
        if not all(self.seen[what] for what in ("continue", "reply", "tempfail", "aborted", "hung up")):
            raise Fault(f"too little happened: {dict(self.seen)}")


def main() -> int:
    """Run all models, each for its share of the time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--model", choices=MODELS, action="append")
    arguments = parser.parse_args()
    models = arguments.model or MODELS
    for model in models:
        with tempfile.TemporaryDirectory() as directory:
            stress = Stress(Path(directory), model, arguments.seconds / len(models), arguments.seed)
            try:
                stress.run()
            except Fault as fault:
                print(stress.server.log()[-20000:])
                print(f"{model}: {fault} (seed {arguments.seed})")
                return 1
            finally:
                stress.server.kill_all()
            print(f"{model}: {dict(stress.seen)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
