"""How long a message through real Sendmail and Postfix waits for its milter: ``python -m bench.real_mta``.

    python -m bench.real_mta [--rounds N] [--quick] [--json]

Both MTAs run privately on loopback (tests/mta/lab) and deliver to an SMTP server of this process. Messages are sent one
at a time, each in an SMTP session of its own, without a milter and with each contestant in turn, round after round; the
milters are asked over TCP. A session is timed from the connect to the answer to QUIT. What a milter makes a message
wait is the median of the sessions with it, minus the median of those without.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench import programs, report
from bench.programs import BenchFailed
from bench.results import Aim
from bench.rows import LABELS, TYPICAL
from bench.servers import Contestant, Cores, Server
from tests.mta.lab import (
    ClosedByServer,
    Delivery,
    LabError,
    Mta,
    Postfix,
    Sendmail,
    Sink,
    SmtpClient,
    SmtpError,
    missing_for_postfix,
    missing_for_sendmail,
)

ROUNDS = 50
QUICK_ROUNDS = 7
WARM_UP = 2  # rounds that are not counted

ALONE = "alone"
"""The MTA without a milter, which the others are compared with."""

FIELDS = 20
BODY_BYTES = 4096
SENDER, RECIPIENT, SUBJECT = "jiri@orchard.example", "anna@harbour.example", "Apples"
NEW_SUBJECT = "[bench] Minutes of the harbour meeting"  # which every contestant sets


@dataclass(frozen=True)
class Wanted:
    """An aim: on an MTA, at most ``limit`` times the waiting that others cause."""

    mta: str
    others: tuple[str, ...]
    name: str
    limit: float


WANTED = (
    Wanted("sendmail", ("threads", "debian"), "libmilter", 0.25),
    Wanted("postfix", ("pymilter",), "pymilter", 0.1),
)
MTAS: Mapping[str, tuple[str, Callable[[], list[str]]]] = {
    "sendmail": ("Sendmail", missing_for_sendmail),
    "postfix": ("Postfix", missing_for_postfix),
}

Times = dict[str, list[float]]
"""Seconds of each session, by contestant."""


@dataclass(frozen=True)
class Lane:
    """An MTA that asks one contestant, or none, when the client comes from ``source``."""

    mta: Mta
    source: str
    asks: str


def message() -> bytes:
    """Return a message of FIELDS fields and BODY_BYTES of body."""
    fields = {
        "From": f"Jiri <{SENDER}>",
        "To": f"Anna <{RECIPIENT}>",
        "Subject": SUBJECT,
        "Date": "Mon, 23 Nov 2026 09:14:28 +0100",
        "Message-ID": "<apples.1@orchard.example>",  # what is missing of these Postfix would add
    }
    fields |= {f"X-Field-{number:02}": "a value as long as most of them" for number in range(FIELDS - len(fields))}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    line = b"twelve boxes of apples, and three of pears for the market day.\r\n"
    return head.encode() + b"\r\n" + (line * (BODY_BYTES // len(line) + 1))[: BODY_BYTES - 2] + b"\r\n"


def missing_mta(name: str) -> str | None:
    """Why an MTA cannot run here, in words that name the command which gets it; ``None`` if it can."""
    title, reasons = MTAS[name]
    found = reasons()
    return f"{title} cannot run here: {'; '.join(found)} (tests/mta/install.sh installs it, as root)" if found else None


def missing() -> list[str]:
    """Return in words what the aims need and is not here; the programs in C have been built."""
    texts = [text for name in MTAS if (text := missing_mta(name))]
    for wanted in WANTED:
        reasons = [programs.why_missing(kind) for kind in wanted.others]
        if all(reasons):
            texts.append(f"{wanted.name} cannot be measured: {reasons[0]}")
    return texts


@contextlib.contextmanager
def contestants() -> Iterator[dict[str, str]]:
    """Start each contestant that can run here, over TCP; yield their addresses."""
    core = Cores.choose().server
    with contextlib.ExitStack() as stack:
        kinds = [kind for kind in programs.KINDS if kind != "raw" and programs.why_missing(kind) is None]
        yield {kind: stack.enter_context(Server(Contestant(kind, TYPICAL, "tcp"), core)).address for kind in kinds}


@contextlib.contextmanager
def lanes(mta: str, sink: Sink, addresses: Mapping[str, str]) -> Iterator[list[Lane]]:
    """Start an MTA that asks the milters at ``addresses``, and none in the lane ``ALONE``."""
    asked = {ALONE: None, **addresses}
    sources = {asks: f"127.0.0.{number}" for number, asks in enumerate(asked, start=2)}
    with contextlib.ExitStack() as stack:
        if mta == "postfix":
            one = stack.enter_context(Postfix(sink, [], _milters_by_client(sources, asked)))
            yield [Lane(one, source, asks) for asks, source in sources.items()]
        else:
            yield [
                Lane(stack.enter_context(Sendmail(sink, [address] if address else [])), sources[asks], asks)
                for asks, address in asked.items()
            ]


def _milters_by_client(sources: Mapping[str, str], asked: Mapping[str, str | None]) -> dict[str, str]:
    """Return settings with which the same smtpd process serves all lanes, and asks the milter of the client's."""
    pairs = [
        f"{{ {sources[asks]} = {_spelled(address) if address else 'DISABLE'} }}" for asks, address in asked.items()
    ]
    return {"smtpd_milter_maps": f"inline:{{ {', '.join(pairs)} }}"}


def _spelled(address: str) -> str:
    """Spell ``inet:PORT@HOST`` as Postfix does."""
    port, _, host = address.removeprefix("inet:").partition("@")
    return f"inet:{host}:{port}"


def send(lane: Lane, content: bytes) -> float:
    """Send a message in a session of its own; return the seconds it took."""
    begun = time.perf_counter()
    with SmtpClient.over_tcp(lane.mta.port, lane.source) as client:
        client.ehlo()
        reply = client.send(content, SENDER, [RECIPIENT])
        client.quit()
        seconds = time.perf_counter() - begun
    if reply.code != 250:
        raise BenchFailed(f"{lane.mta.name} with {lane.asks} said {reply} to the message")
    return seconds


def delivered(lane: Lane, sink: Sink) -> Delivery:
    """Wait for the one message that was sent, and for the MTA to come to rest; return what was delivered."""
    found = sink.wait(lambda delivery: True)
    lane.mta.settle()
    sink.clear()
    return found[0]


def bears_the_work(delivery: Delivery, asks: str, source: str) -> bool:
    """Whether a message came with exactly the edits of who was asked, and with what a milter saw of it."""
    found = {name: delivery.values(name) for name in ("Subject", "X-Bench-1", "X-Bench-2")}
    if asks == ALONE:
        return found == {"Subject": [SUBJECT.encode()], "X-Bench-1": [], "X-Bench-2": []}
    seen = f"{FIELDS} fields, {BODY_BYTES} bytes, client {source}"
    begins = found.pop("X-Bench-1")  # with the queue id
    return len(begins) == 1 and found == {"Subject": [NEW_SUBJECT.encode()], "X-Bench-2": [seen.encode()]}


def rounds_of(lanes: Sequence[Lane], sink: Sink, rounds: int) -> Times:
    """Send messages through the lanes in turn, each round beginning with another one, and time the sessions."""
    content = message()
    times: Times = {lane.asks: [] for lane in lanes}
    for number in range(WARM_UP + rounds):
        first = number % len(lanes)
        for lane in [*lanes[first:], *lanes[:first]]:
            seconds = send(lane, content)
            delivery = delivered(lane, sink)
            if not bears_the_work(delivery, lane.asks, lane.source):
                raise BenchFailed(f"{lane.mta.name} with {lane.asks} delivered {delivery.head!r}")
            if number >= WARM_UP:
                times[lane.asks].append(seconds)
    return times


def measure_mtas(rounds: int) -> dict[str, Times]:
    """Return the times of the sessions with each MTA that is here; ``BenchFailed`` if neither is."""
    programs.build()
    here = [name for name in MTAS if missing_mta(name) is None]
    if not here:
        raise BenchFailed("; ".join(missing()))
    measured = {}
    try:
        with contestants() as addresses, Sink() as sink:
            for name in here:
                with lanes(name, sink, addresses) as ready:
                    measured[name] = rounds_of(ready, sink, rounds)
    except (LabError, SmtpError, ClosedByServer, OSError) as error:
        raise BenchFailed(f"a message did not come through: {type(error).__name__}: {error}") from error
    return measured


def waiting(times: Times, asks: str) -> float:
    """Return how long a message waits for a milter, in seconds."""
    return statistics.median(times[asks]) - statistics.median(times[ALONE])


def aims_of(measured: Mapping[str, Times]) -> list[Aim]:
    """Return the aims that can be judged, with their figures."""
    aims: list[Aim] = []
    for wanted in WANTED:
        times = measured.get(wanted.mta, {})
        beside = [waiting(times, kind) for kind in wanted.others if kind in times]
        if not beside:
            continue
        ours, theirs = waiting(times, "fastmilter"), min(beside)  # of two builds, the quicker one
        # Without a stall on the other side both figures are noise, and we have gained nothing.
        ratio = max(ours, 0.0) / theirs if theirs > 0 else 1.0
        aims.append(
            {
                "job": f"a message through real {MTAS[wanted.mta][0]}, TCP",
                "aim": f"waiting for the milter, times {wanted.name}'s",
                "value": round(ratio, 4),
                "limit": wanted.limit,
                "at_most": True,
                "shown": f"{ratio:.3f} ({ours * 1000:.1f} ms, {theirs * 1000:.1f} ms)",
            }
        )
    return aims


def measure(quick: bool) -> list[Aim]:
    """Measure, and return the aims with their figures; ``missing`` tells of those that cannot be judged here."""
    aims = aims_of(measure_mtas(QUICK_ROUNDS if quick else ROUNDS))
    for text in missing():
        print(f"real_mta: {text}", file=sys.stderr)
    return aims


def tables(measured: Mapping[str, Times]) -> str:
    """Return the times of the sessions as a table for each MTA, in milliseconds."""
    lines = []
    for name, times in measured.items():
        head = f"{MTAS[name][0]}, {len(times[ALONE])} sessions each"
        lines.append(f"{head:<36}{'median':>10}{'quartiles':>18}{'longest':>10}{'waiting':>10}   ms")
        for asks, seconds in times.items():
            low, middle, high = statistics.quantiles([1000 * value for value in seconds], n=4, method="inclusive")
            waits = "" if asks == ALONE else f"{waiting(times, asks) * 1000:10.2f}"
            label = "no milter" if asks == ALONE else LABELS[asks]
            lines.append(
                f"  {label:<34}{middle:10.2f}{f'{low:.2f} - {high:.2f}':>18}{1000 * max(seconds):10.2f}{waits}"
            )
        lines.append("")
    return "\n".join(lines)


def as_json(measured: Mapping[str, Times], aims: list[Aim], unmeasured: list[str]) -> str:
    """Return everything that was measured."""
    sessions = {
        name: {
            asks: {
                "median_ms": round(statistics.median(seconds) * 1000, 3),
                "longest_ms": round(max(seconds) * 1000, 3),
                "waiting_ms": round(waiting(times, asks) * 1000, 3),
            }
            for asks, seconds in times.items()
        }
        for name, times in measured.items()
    }
    return json.dumps({"sessions": sessions, "aims": aims, "missing": unmeasured}, indent=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit status is 1 if that was not possible."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.real_mta", description="Measures what a message through real MTAs waits for its milter."
    )
    parser.add_argument("--rounds", type=int, metavar="N", help=f"messages for each (default {ROUNDS})")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    if rounds < 2:
        parser.error("--rounds must be at least 2")
    try:
        measured = measure_mtas(rounds)
    except BenchFailed as error:
        print(f"real_mta: {error}", file=sys.stderr)
        return 1
    aims, unmeasured = aims_of(measured), missing()
    if options.json:
        print(as_json(measured, aims, unmeasured))
    else:
        print(tables(measured))
        print(report.aims_table(aims, unmeasured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
