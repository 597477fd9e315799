"""The rows of the benchmark: what is measured and what the project aims at. The one place where an aim stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

from bench.loading import Traffic
from bench.measure import (
    LIBMILTER,
    Entry,
    Figures,
    Results,
    Row,
    Wanted,
    best_libmilter,
    cpu_against_libmilter,
    share_of_raw_speed,
)
from bench.servers import Contestant, Job

TYPICAL = Job("Typical", "typical", edits=3)
NO_REPLY = Job("TypicalNoReply", "typical", edits=3)
ANSWERED = Job("TypicalAnswered", "typical", edits=3)
NOOP = Job("Noop", "noop")
LOOK = Job("Look", "look")
WAITING = {
    "plain": Job("TypicalPlainWaiting", "typical", edits=3, wait_ms=5),
    "blocking": Job("TypicalBlocking", "typical", edits=3, wait_ms=5),
    "async": Job("TypicalAsync", "typical", edits=3, wait_ms=5),
}
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

LOG_OPTIONS = ("--log-messages",)

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
        wanted.append(Wanted("of the raw loop's speed", share_of_raw_speed, raw, unit=" of its speed"))
    return Row(name, title, entries(job, transport, traffic or Traffic(), kinds), tuple(wanted), quick)


def latency(name: str, title: str, job: Job, transport: str, wanted: tuple[Wanted, ...], *, quick: bool = True) -> Row:
    """A row about the time of a message when there is one connection."""
    return Row(name, title, entries(job, transport, ONE, NATIVE), wanted, quick)


def under(job: Job, kinds: Iterable[str], traffics: Mapping[str, Traffic], unit: str) -> tuple[Entry, ...]:
    """Entries for several traffics, over unix sockets; the key of each ends in ``@`` and the traffic's name."""
    return tuple(
        Entry(f"{kind}@{name}", f"{LABELS[kind]}, {name} {unit}", Contestant(kind, job, "unix"), traffic)
        for kind in kinds
        for name, traffic in traffics.items()
    )


def cpu_us(results: Results, key: str) -> float | None:
    return results[key].median.cpu_us if key in results else None


def quotient(results: Results, above: str, below: str) -> float | None:
    """CPU per message under one traffic, divided by that under another."""
    numerator, denominator = cpu_us(results, above), cpu_us(results, below)
    return numerator / denominator if numerator and denominator else None


def latency_against_libmilter(
    results: Results, figure: Callable[[Figures], float], key: str = "fastmilter"
) -> float | None:
    """Our latency divided by that of libmilter's faster build."""
    best = best_libmilter(results, figure)
    return figure(results[key]) / best if best and key in results else None


def p50(results: Results) -> float | None:
    return latency_against_libmilter(results, lambda figures: figures.median.p50_us)


def p99(results: Results, key: str = "fastmilter") -> float | None:
    return latency_against_libmilter(results, lambda figures: figures.median.p99_us, key)


def speed_against_libmilter(results: Results, key: str) -> float | None:
    """Our messages per second divided by those of libmilter's faster build."""
    best = max((results[kind].median.per_second for kind in LIBMILTER if kind in results), default=0.0)
    return results[key].median.per_second / best if best and key in results else None


def errors_of_waiting(results: Results) -> float | None:
    """Errors of all rounds, of both kinds of filter that may wait."""
    both = ("blocking", "async")
    return sum(results[key].errors for key in both) if set(both) <= set(results) else None


def growth_against_raw(results: Results) -> float | None:
    """How much more a message costs on 5,000 connections than on 50, divided by the same of the raw loop."""
    ours, raw = (quotient(results, f"{kind}@5000", f"{kind}@50") for kind in ("fastmilter", "raw"))
    return ours / raw if ours and raw else None


def resident_growth_mb(results: Results) -> float | None:
    """Peak of resident memory with 100 MB bodies beyond that with 1 MB."""
    if not {"fastmilter@1", "fastmilter@100"} <= set(results):
        return None
    small, large = (results[f"fastmilter@{size}"].median.resident for size in (1, 100))
    return (large - small) / 1e6


HUNDRED = Traffic(per_connection=100)
MEGABYTE = Traffic(body=1 << 20, warmup=60)
ONE = Traffic(connections=1, per_connection=100, warmup=5)
IDLE = {"0": Traffic(), "5000": Traffic(idle=5000)}
BUSY = {
    str(count): Traffic(connections=count, per_connection=KEPT, warmup=max(300, 2 * count))
    for count in (1, 50, 500, 5000)
}
BODIES = {
    str(size): Traffic(connections=1, per_connection=KEPT, body=size << 20, warmup=2, messages=messages)
    for size, messages in ((1, 100), (10, 20), (100, 4))
}


def waiting(connections: int, kinds: tuple[str, ...], libmilters: tuple[str, ...], *, quick: bool) -> Row:
    """A row about filters that wait 5 ms at the end of each message; the keys of ours are the kinds of filter."""
    traffic = Traffic(connections=connections, warmup=2 * connections)
    ours = tuple(
        Entry(
            kind,
            f"fastmilter, {kind}",
            Contestant("fastmilter", WAITING[kind], "unix"),
            traffic,
        )
        for kind in kinds
    )
    wanted = (
        Wanted("blocking: messages/s against libmilter's", partial(speed_against_libmilter, key="blocking"), 1.2),
        Wanted("blocking: p99 against libmilter's", partial(p99, key="blocking"), 1.0, at_most=True),
        Wanted("async: messages/s against libmilter's", partial(speed_against_libmilter, key="async"), 2.0),
        Wanted("errors of blocking and async", errors_of_waiting, 0, at_most=True, unit="", digits=0),
    )
    others = entries(WAITING["blocking"], "unix", traffic, libmilters)
    title = f"typical and 5 ms of waiting at the end, unix, one message each, {connections} connections"
    return Row(f"waiting-{connections}", title, (*ours, *others), wanted, quick)


NOT_SLOWER = (
    Wanted("p50 against libmilter's", p50, 1.0, at_most=True),
    Wanted("p99 against libmilter's", p99, 1.15, at_most=True),
)
NO_STALL = (Wanted("p50 against libmilter's", p50, 1 / 40, at_most=True, digits=4),)

SENDMAIL = Row(
    "sendmail-tcp",
    "one connection, noop, every step answered, TCP, written as Sendmail writes",
    entries(NOOP, "tcp", replace(ONE, mta="sendmail"), NATIVE),
    quick=False,
)
LOG = Row(
    "log",
    "one log line per message, unix, one each",
    (
        *entries(TYPICAL, "unix", Traffic(), ("fastmilter",)),
        Entry("log", "fastmilter, --log-messages", Contestant("fastmilter", TYPICAL, "unix", LOG_OPTIONS), Traffic()),
    ),
    (
        Wanted(
            "CPU with the line against without", partial(quotient, above="log", below="fastmilter"), 1.6, at_most=True
        ),
    ),
)
BESIDE_IDLE = Row(
    "idle",
    "50 busy connections beside idle ones",
    under(TYPICAL, ("fastmilter", "raw"), IDLE, "idle"),
    (
        Wanted(
            "CPU beside 5,000 idle against without",
            partial(quotient, above="fastmilter@5000", below="fastmilter@0"),
            1.1,
            at_most=True,
        ),
    ),
    count_syscalls=False,
)
SCALE = Row(
    "scale",
    "typical, unix, growing number of long-lived connections",
    (
        *under(TYPICAL, ("fastmilter", "raw"), BUSY, "connections"),
        *under(TYPICAL, ("threads",), {count: BUSY[count] for count in ("50", "500")}, "connections"),
    ),
    (Wanted("growth from 50 to 5,000 against the raw loop's", growth_against_raw, 1.25, at_most=True),),
    quick=False,
    count_syscalls=False,
)
BODY = Row(
    "body",
    "bodies of 1, 10 and 100 MB looked at, unix, one connection",
    under(LOOK, ("fastmilter", "raw"), BODIES, "MB"),
    (
        Wanted(
            "CPU of 100 MB against 1 MB", partial(quotient, above="fastmilter@100", below="fastmilter@1"), 110, True
        ),
        Wanted("peak memory of 100 MB beyond 1 MB", resident_growth_mb, 2.0, True, " MB"),
    ),
    quick=False,
    count_syscalls=False,
)

ROWS = (
    throughput("typical-unix", "typical, unix, one message each", TYPICAL, libmilter=11, raw=0.6, kinds=ALL),
    throughput("typical-kept", "typical, unix, 100 messages each", TYPICAL, "unix", HUNDRED, libmilter=15, raw=0.45),
    throughput("typical-tcp", "typical, TCP, one message each", TYPICAL, "tcp", libmilter=7, raw=0.7),
    throughput("noreply-unix", "typical with @no_reply, unix, one each", NO_REPLY, libmilter=13, raw=0.6),
    throughput(
        "noreply-kept", "typical with @no_reply, unix, 100 each", NO_REPLY, "unix", HUNDRED, libmilter=19, raw=0.4
    ),
    throughput("answered-unix", "typical, every step answered, unix, one each", ANSWERED, libmilter=4, raw=0.8),
    throughput("noop-tcp", "noop, every step answered, TCP, one each", NOOP, "tcp", libmilter=2, raw=0.8, kinds=ALL),
    throughput("look-unix", "1 MB body looked at, unix", LOOK, "unix", MEGABYTE, libmilter=2.2, raw=0.8),
    throughput("replace-unix", "1 MB body replaced, unix", REPLACE, "unix", MEGABYTE, quick=False),
    latency("one-typical-unix", "one connection, typical, unix", TYPICAL, "unix", NOT_SLOWER, quick=False),
    latency("one-noop-unix", "one connection, noop, every step answered, unix", NOOP, "unix", NOT_SLOWER),
    latency("one-noop-tcp", "one connection, noop, every step answered, TCP", NOOP, "tcp", NOT_SLOWER),
    latency("one-edit-tcp", "one connection, edit at the end, TCP", TYPICAL, "tcp", NO_STALL),
    waiting(50, ("blocking", "async", "plain"), ("threads", "debian", "pymilter"), quick=True),
    waiting(500, ("blocking", "async"), ("threads", "debian"), quick=False),
    SENDMAIL,
    BESIDE_IDLE,
    SCALE,
    BODY,
    LOG,
)


def row(name: str) -> Row:
    """Return the row of a name; ``KeyError`` if there is none."""
    return {row.name: row for row in ROWS}[name]
