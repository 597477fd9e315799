"""The rows of the benchmark: what is measured and what the project aims at. The one place where an aim stands."""

from __future__ import annotations

from bench.loading import Traffic
from bench.measure import Entry, Row, Wanted, cpu_against_libmilter, share_of_raw_speed
from bench.servers import Contestant, Job

TYPICAL = Job("Typical", "typical", edits=3)
NO_REPLY = Job("TypicalNoReply", "typical", edits=3)
ANSWERED = Job("TypicalAnswered", "typical", edits=3)
NOOP = Job("Noop", "noop")
LOOK = Job("Look", "look")
REPLACE = Job("Replace", "replace", replace=1 << 20)

LABELS = {
    "fastmilter": "fastmilter",
    "raw": "raw C loop",
    "threads": "libmilter, thread per connection",
    "debian": "libmilter, Debian (pool)",
    "pymilter": "pymilter",
}
NATIVE = ("fastmilter", "raw", "threads", "debian")
ALL = (*NATIVE, "pymilter")

KEPT = 1_000_000  # messages per connection: connections last for the whole run


def entries(job: Job, transport: str, traffic: Traffic, kinds: tuple[str, ...]) -> tuple[Entry, ...]:
    return tuple(Entry(kind, LABELS[kind], Contestant(kind, job, transport), traffic) for kind in kinds)


def throughput(
    name: str,
    title: str,
    job: Job,
    transport: str = "unix",
    traffic: Traffic | None = None,
    *,
    libmilter: float | None = None,
    raw: float | None = None,
    kinds: tuple[str, ...] = NATIVE,
    quick: bool = True,
) -> Row:
    """A row about the server's CPU time per message."""
    wanted = []
    if libmilter is not None:
        wanted.append(Wanted("less CPU per message than libmilter", cpu_against_libmilter, libmilter))
    if raw is not None:
        wanted.append(Wanted("of the raw loop's speed", share_of_raw_speed, raw, unit="of its speed"))
    return Row(name, title, entries(job, transport, traffic or Traffic(), kinds), tuple(wanted), quick)


HUNDRED = Traffic(per_connection=100)
MEGABYTE = Traffic(body=1 << 20, warmup=60)

ROWS = (
    throughput("typical-unix", "typical, unix, one message each", TYPICAL, libmilter=11, raw=0.6, kinds=ALL),
    throughput("typical-kept", "typical, unix, 100 messages each", TYPICAL, "unix", HUNDRED, libmilter=15, raw=0.45),
    throughput("typical-tcp", "typical, TCP, one message each", TYPICAL, "tcp", libmilter=7, raw=0.7),
    throughput("noreply-unix", "typical with @no_reply, unix, one each", NO_REPLY, libmilter=13, raw=0.6),
    throughput("noreply-kept", "the same, 100 each", NO_REPLY, "unix", HUNDRED, libmilter=19, raw=0.4),
    throughput("answered-unix", "typical, every step answered, unix, one each", ANSWERED, libmilter=4, raw=0.8),
    throughput("noop-tcp", "noop, every step answered, TCP, one each", NOOP, "tcp", libmilter=2, raw=0.8, kinds=ALL),
    throughput("look-unix", "1 MB body looked at, unix", LOOK, "unix", MEGABYTE, libmilter=2.2, raw=0.8),
    throughput("replace-unix", "1 MB body replaced, unix", REPLACE, "unix", MEGABYTE, quick=False),
)


def row(name: str) -> Row:
    """Return the row of a name; ``KeyError`` if there is none."""
    return {row.name: row for row in ROWS}[name]
