"""Each contestant does its job for real: short runs without an error, the same edits from all of them."""

from __future__ import annotations

import shutil

import pytest

from bench.loading import Traffic, run
from bench.memory import STATES, bytes_per_connection
from bench.programs import KINDS, NATIVE
from bench.rows import ANSWERED, LOOK, NO_REPLY, NOOP, REPLACE, TYPICAL, WAITING
from bench.servers import Contestant, Cores, Job, Server, steps
from bench.syscalls import calls_per_message
from fastmilter import Client, codec
from tests.bench.conftest import need

FEW = Traffic(connections=4, per_connection=3, warmup=5, messages=24)
MESSAGE = b"From: a@orchard.example\r\nSubject: Apples\r\n\r\n" + b"twelve boxes\r\n" * 4

# The build with a thread per connection is fetched: where it has not been, its tests are not there.
HERE = [kind for kind in KINDS if kind != "threads" or (NATIVE / "libmilter_threads").exists()]


def server(kind: str, job: Job, cores: Cores, transport: str = "unix", protocol: int = 0) -> Server:
    need(kind)
    return Server(Contestant(kind, job, transport), cores.server, protocol)


@pytest.mark.parametrize("transport", ["unix", "tcp"])
@pytest.mark.parametrize("kind", HERE)
def test_typical(kind: str, transport: str, cores: Cores) -> None:
    with server(kind, TYPICAL, cores, transport) as running:
        sample = run(running, FEW, cores.load)
    assert sample.errors == 0, sample.said
    assert sample.messages == 24
    assert sample.edits == 3
    assert sample.cpu_us > 0
    assert sample.p99_us >= sample.p50_us > 0


@pytest.mark.parametrize("job", [NOOP, LOOK, REPLACE, NO_REPLY, ANSWERED], ids=lambda job: job.filter_class)
@pytest.mark.parametrize("kind", ["fastmilter", "raw", "debian"])
def test_other_jobs(kind: str, job: Job, cores: Cores) -> None:
    pieces = -(-job.replace // 65535)  # of a new body
    with server(kind, job, cores) as running:
        sample = run(running, FEW, cores.load)
    assert sample.errors == 0, sample.said
    assert sample.edits == job.edits + pieces


@pytest.mark.parametrize(
    ("kind", "job"),
    [*(("fastmilter", name) for name in WAITING), *((kind, "blocking") for kind in HERE[2:])],
)
def test_waiting(kind: str, job: str, cores: Cores) -> None:
    with server(kind, WAITING[job], cores) as running:
        sample = run(running, FEW, cores.load)
    assert sample.errors == 0, sample.said
    assert sample.edits == 3
    assert sample.p50_us > WAITING[job].wait_ms * 1000


def test_the_steps_that_are_answered(cores: Cores) -> None:
    expected = {NO_REPLY: "M", NOOP: "CHMRTLNB", ANSWERED: "CMRLB", LOOK: "M"}
    for job, letters in expected.items():
        with server("fastmilter", job, cores) as running:
            assert steps(running.protocol)[0] == letters


@pytest.mark.parametrize("job", [NOOP, TYPICAL], ids=lambda job: job.filter_class)
def test_the_raw_loop_answers_the_same_steps(job: Job, cores: Cores) -> None:
    with server("fastmilter", job, cores) as ours, server("raw", job, cores, protocol=ours.protocol) as raw:
        assert steps(raw.protocol) == steps(ours.protocol)


def edits(kind: str, cores: Cores) -> list[tuple[str, bytes, bytes]]:
    """What a contestant changes in one message."""
    with server(kind, TYPICAL, cores) as running, Client(running.address) as client:
        outcome = client.send_message(
            MESSAGE, "jiri@orchard.example", ["anna@harbour.example"], macros={"end_of_message": {"i": "4X1"}}
        )
    made = []
    for edit in outcome.modifications:
        assert isinstance(edit, codec.AddHeader | codec.ChangeHeader)
        made.append((type(edit).__name__, edit.name, edit.value.replace(b"<", b"").replace(b">", b"")))
    return sorted(made)


@pytest.mark.parametrize("kind", [kind for kind in HERE if kind not in ("fastmilter", "raw")])
def test_all_make_the_same_edits(kind: str, cores: Cores) -> None:
    expected = [
        ("AddHeader", b"X-Bench-1", b"4X1 from jiri@orchard.example for 1"),
        ("AddHeader", b"X-Bench-2", b"2 fields, 56 bytes, client 127.0.0.1"),
        ("ChangeHeader", b"Subject", b"[bench] Minutes of the harbour meeting"),
    ]
    assert edits("fastmilter", cores) == expected
    assert edits(kind, cores) == expected


def test_memory_of_held_connections(cores: Cores) -> None:
    for state in STATES:
        assert 100 < bytes_per_connection("fastmilter", state, 300, cores) < 20_000


def test_system_calls_are_counted(cores: Cores) -> None:
    with server("raw", NOOP, cores) as running:
        calls = calls_per_message(running, FEW, cores.load)
    if shutil.which("strace") is None:
        assert calls is None  # and the table shows none
    else:
        assert calls is not None
        assert calls > 10  # a read and a write at least for each of the answered steps
