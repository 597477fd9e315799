"""Prints the resident memory of idle connections: what one of 10,000 costs a worker beyond the process itself.

    python bench/idle_memory.py [--connections N] [--at-most KB] [--json]

A real server with one worker serves ``examples/tagger.py`` on a unix socket. Each connection negotiates as Postfix
does; then all of them go through CONNECT and HELO, then into a message up to RCPT, then to its end. After each of these
the memory of the worker (RSS, PSS, USS) is read; the figures are its growth since the worker was ready, divided by the
number of connections. Memory of the kernel (two sockets and their buffers) is not part of any of them.
"""

import argparse
import json
import resource
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from fastmilter import codec
from fastmilter.constants import ALL_ACTIONS

EXAMPLES = Path(__file__).parent.parent / "examples"
SPARE_DESCRIPTORS = 100
MORE_CONNECTIONS = 10  # to warm up, and to ask whether all others were served
START_S = 30.0
ANSWER_S = 30.0
BATCH = 64  # connections that are asked before the answers are read: below every backlog

HELLO = codec.encode(codec.Negotiate(6, int(ALL_ACTIONS), 0x1FFFFF))


def macros(command: bytes, **values: bytes) -> bytes:
    """Encode the macros of a command; names without braces."""
    named = ((name if len(name) == 1 else f"{{{name}}}", value) for name, value in values.items())
    return codec.encode(codec.Macros(command, tuple((name.encode(), value) for name, value in named)))


CONNECT_AND_HELO = b"".join(
    [
        macros(b"C", j=b"mx.harbour.example", daemon_name=b"smtpd", daemon_addr=b"192.0.2.1", v=b"Postfix 3.7.11"),
        codec.encode(codec.Connect(b"mail.orchard.example", b"4", 40522, b"192.0.2.25")),
        macros(b"H", tls_version=b"TLSv1.3", cipher=b"TLS_AES_256_GCM_SHA384", cipher_bits=b"256"),
        codec.encode(codec.Helo(b"mail.orchard.example")),
    ]
)
MAIL_AND_RCPT = b"".join(
    [
        macros(b"M", mail_mailer=b"smtp", mail_host=b"orchard.example", mail_addr=b"jiri@orchard.example"),
        codec.encode(codec.MailFrom(b"<jiri@orchard.example>", (b"SIZE=2310",))),
        macros(b"R", rcpt_mailer=b"local", rcpt_host=b"harbour.example", rcpt_addr=b"anna@harbour.example"),
        codec.encode(codec.RcptTo(b"<anna@harbour.example>")),
    ]
)
CONTENT = b"".join(
    [
        codec.encode(codec.Header(b"From", b"Jiri <jiri@orchard.example>")),
        codec.encode(codec.Header(b"Subject", b"Apples")),
        codec.encode(codec.Header(b"Date", b"Mon, 23 Nov 2026 09:14:28 +0100")),
        codec.encode(codec.EndOfHeaders()),
        codec.encode(codec.Body(b"twelve boxes\r\n" * 100)),
        macros(b"E", i=b"4ZkT9c1x2Pz3wYQ"),
        codec.encode(codec.EndOfMessage()),
    ]
)


@dataclass(frozen=True)
class Phase:
    """Something every connection does, and how many verdicts it waits for."""

    name: str
    data: bytes
    verdicts: int


class BenchFailed(Exception):
    """The measurement could not be made."""


class Connection:
    """One MTA connection, as plain as can be: this process holds 10,000 of them."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(ANSWER_S)
        self.sock.connect(path)

    def await_answers(self, count: int) -> None:
        """Read until ``count`` responses that are no modifications have come."""
        decoder = codec.ResponseDecoder()
        while count > 0:
            data = self.sock.recv(1 << 16)
            if not data:
                raise BenchFailed("the server closed a connection")
            decoder.feed(data)
            count -= sum(not isinstance(message, codec.Modification) for message in decoder)


def run_phase(connections: Iterable[Connection], phase: Phase) -> None:
    """Have every connection do ``phase``, a batch at a time."""
    batch: list[Connection] = []
    for connection in connections:
        connection.sock.sendall(phase.data)
        batch.append(connection)
        if len(batch) == BATCH:
            for asked in batch:
                asked.await_answers(phase.verdicts)
            batch.clear()
    for asked in batch:
        asked.await_answers(phase.verdicts)


NEGOTIATION = Phase("negotiated", HELLO, 1)
LATER = (
    # Tagger overrides neither on_connect nor on_helo: no answer is due.
    Phase("after HELO", CONNECT_AND_HELO, 0),
    Phase("in a message", MAIL_AND_RCPT, 1),
    Phase("after a message", CONTENT, 1),
)


@dataclass(frozen=True)
class Memory:
    """Bytes of the worker."""

    rss: int
    pss: int
    uss: int

    @classmethod
    def of(cls, process: psutil.Process) -> "Memory":
        full = process.memory_full_info()
        return cls(full.rss, full.pss, full.uss)

    def per(self, count: int, before: "Memory") -> dict[str, float]:
        """Return the growth since ``before``, in bytes for each of ``count``."""
        return {
            "rss": (self.rss - before.rss) / count,
            "pss": (self.pss - before.pss) / count,
            "uss": (self.uss - before.uss) / count,
        }


def allow_descriptors(connections: int) -> None:
    """Raise the limit of open files of this process, which the server inherits."""
    wanted = connections + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    enough = hard == resource.RLIM_INFINITY or hard >= wanted
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard if enough else wanted))
    except (ValueError, OSError):  # only root may raise the hard limit
        raise BenchFailed(
            f"{connections} connections need {wanted} open files in each of two processes, but the hard limit is "
            f"{hard}: raise it (as root: ulimit -Hn {wanted}), or measure --connections {hard - SPARE_DESCRIPTORS}"
        ) from None


def start(path: str, connections: int) -> tuple["subprocess.Popen[bytes]", psutil.Process]:
    """Start a server with one worker; return master and worker."""
    command = [sys.executable, "-m", "fastmilter", "serve", f"{EXAMPLES / 'tagger.py'}:Tagger", "--allow-root"]
    server = subprocess.Popen(
        [*command, "--workers", "1", "--listen", f"unix:{path}", "--max-connections-per-worker", str(connections)],
        stderr=subprocess.PIPE,
        cwd=EXAMPLES.parent,
    )
    assert server.stderr is not None
    too_late = threading.Timer(START_S, server.kill)
    too_late.start()
    said = []
    for line in server.stderr:
        said.append(line)
        if b" is ready " in line:
            break
    too_late.cancel()
    workers = psutil.Process(server.pid).children() if server.poll() is None else []
    if len(workers) != 1:
        server.kill()
        raise BenchFailed(f"the server did not start: {b''.join(said).decode(errors='replace')}")
    return server, workers[0]


def measure(connections: int, path: str, worker: psutil.Process) -> dict[str, dict[str, float]]:
    """Open the connections and return the growth of the worker for each phase."""
    warm_up = [Connection(path)]  # what is loaded and cached at the first message is the process's
    for phase in (NEGOTIATION, *LATER):
        run_phase(warm_up, phase)
    before = Memory.of(worker)
    figures = {}
    opened: list[Connection] = []
    while len(opened) < connections:
        batch = [Connection(path) for _ in range(min(BATCH, connections - len(opened)))]
        run_phase(batch, NEGOTIATION)
        opened += batch
    figures[NEGOTIATION.name] = Memory.of(worker).per(connections, before)
    for phase in LATER:
        run_phase(opened, phase)
        # Readiness is served in the order in which it came: who asks now is answered after all the others.
        run_phase([Connection(path)], NEGOTIATION)
        figures[phase.name] = Memory.of(worker).per(connections, before)
    return figures


def run(connections: int) -> dict[str, dict[str, float]]:
    """Measure with a server of our own, and stop it."""
    allow_descriptors(connections)
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/milter"
        server, worker = start(path, connections + MORE_CONNECTIONS)
        try:
            return measure(connections, path, worker)
        finally:
            server.kill()
            server.communicate()
            psutil.wait_procs([worker], timeout=START_S)  # it sees that the master is gone, and its connections too


def main() -> int:
    parser = argparse.ArgumentParser(description="Prints the resident memory of idle connections.")
    parser.add_argument("--connections", type=int, default=10_000, metavar="N", help="how many (default 10000)")
    parser.add_argument("--at-most", type=float, metavar="KB", help="fail if a negotiated connection takes more (RSS)")
    parser.add_argument("--json", action="store_true", help="print JSON, in bytes")
    options = parser.parse_args()
    try:
        figures = run(options.connections)
    except (BenchFailed, OSError) as error:
        print(f"idle_memory: {error}", file=sys.stderr)
        return 1
    print_figures(options.connections, figures, as_json=options.json)
    taken = figures[NEGOTIATION.name]["rss"] / 1024
    if options.at_most is not None and taken > options.at_most:
        print(f"idle_memory: {taken:.2f} KB per connection are more than {options.at_most}", file=sys.stderr)
        return 1
    return 0


def print_figures(connections: int, figures: dict[str, dict[str, float]], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"connections": connections, "bytes_per_connection": figures}))
        return
    print(f"{connections} connections on one worker; KB (1024 bytes) per connection beyond the process")
    print(f"{'':<20} {'RSS':>8} {'PSS':>8} {'USS':>8}")
    for name, values in figures.items():
        print(f"{name:<20} " + " ".join(f"{values[kind] / 1024:8.2f}" for kind in ("rss", "pss", "uss")))


if __name__ == "__main__":
    sys.exit(main())
