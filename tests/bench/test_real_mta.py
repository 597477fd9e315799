"""Real MTAs ask every contestant, and every message bears its work; no time is asserted to be short."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from bench import programs, real_mta
from bench.real_mta import ALONE, FIELDS, MTAS, Times
from bench.results import is_met
from tests.bench.conftest import need
from tests.mta.conftest import need as need_mta
from tests.mta.lab import Delivery, Sink

CONTESTANTS = ("fastmilter", "debian", "pymilter")


@pytest.fixture(scope="module")
def addresses(built: None) -> Iterator[dict[str, str]]:
    for kind in CONTESTANTS:
        need(kind)
    with real_mta.contestants() as running:
        yield running


@pytest.mark.mta
@pytest.mark.parametrize("mta", list(MTAS))
def test_all_contestants_do_their_work(mta: str, addresses: dict[str, str]) -> None:
    need_mta(mta)
    with Sink() as sink, real_mta.lanes(mta, sink, addresses) as lanes:
        assert {ALONE, *CONTESTANTS} <= {lane.asks for lane in lanes}
        for lane in lanes:
            assert real_mta.send(lane, real_mta.message()) > 0
            delivery = real_mta.delivered(lane, sink)
            assert real_mta.bears_the_work(delivery, lane.asks, lane.source)
            assert delivery.values("X-Field-00") == [b"a value as long as most of them"]
            if lane.asks == ALONE:
                assert delivery.values("X-Bench-1") == delivery.values("X-Bench-2") == []
                continue
            (begins,) = delivery.values("X-Bench-1")
            assert begins.replace(b"<", b"").replace(b">", b"").endswith(b" from jiri@orchard.example for 1")
            assert delivery.values("X-Bench-2") == [f"{FIELDS} fields, 4096 bytes, client {lane.source}".encode()]
            assert delivery.values("Subject") == [b"[bench] Minutes of the harbour meeting"]
        times = real_mta.rounds_of(lanes[:2], sink, 2)
    assert [len(seconds) for seconds in times.values()] == [2, 2]


SEEN = f"X-Bench-2: {FIELDS} fields, 4096 bytes, client 127.0.0.3\r\n"


@pytest.mark.parametrize(
    ("head", "bears"),
    [
        (f"Subject: [bench] Minutes of the harbour meeting\r\nX-Bench-1: a\r\n{SEEN}", True),
        (f"Subject: Apples\r\nX-Bench-1: a\r\n{SEEN}", False),
        (f"Subject: [bench] Minutes of the harbour meeting\r\n{SEEN}", False),
        (f"Subject: [bench] Minutes of the harbour meeting\r\nX-Bench-1: a\r\n{SEEN}{SEEN}", False),
        ("Subject: [bench] Minutes of the harbour meeting\r\nX-Bench-1: a\r\n", False),
        ("Subject: Apples\r\n", False),
    ],
)
def test_missing_edits_are_noticed(head: str, bears: bool) -> None:
    delivery = Delivery("", "", (), (), f"{head}\r\ntext\r\n".encode())
    assert real_mta.bears_the_work(delivery, "pymilter", "127.0.0.3") == bears
    assert real_mta.bears_the_work(delivery, ALONE, "127.0.0.3") == (head == "Subject: Apples\r\n")


def test_the_message() -> None:
    head, _, body = real_mta.message().partition(b"\r\n\r\n")
    assert len(head.split(b"\r\n")) == FIELDS
    assert len(body) == 4096
    assert all(len(line) < 70 for line in body.split(b"\r\n"))


def seconds(alone: float, **others: float) -> Times:
    return {asks: [value, value, value + 9] for asks, value in {ALONE: alone, **others}.items()}


def test_the_aims() -> None:
    measured = {
        "sendmail": seconds(0.010, fastmilter=0.012, debian=0.210, threads=0.220, pymilter=0.5),
        "postfix": seconds(0.003, fastmilter=0.023, debian=0.1, pymilter=0.103),
    }
    aims = real_mta.aims_of(measured)
    assert [aim["value"] for aim in aims] == pytest.approx([0.01, 0.2])
    assert [is_met(aim) for aim in aims] == [True, False]
    assert "200.0 ms" in aims[0]["shown"]
    assert "200.00" in real_mta.tables(measured)
    assert json.loads(real_mta.as_json(measured, aims, []))["sessions"]["postfix"]["pymilter"]["waiting_ms"] == 100
    assert real_mta.aims_of({"postfix": seconds(0.003, fastmilter=0.004)}) == []  # nothing to compare with


def test_what_cannot_be_measured_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], built: None
) -> None:
    reasons = {name: (title, lambda: ["it is not installed"]) for name, (title, _) in MTAS.items()}
    monkeypatch.setattr(real_mta, "MTAS", reasons)
    monkeypatch.setattr(programs, "why_missing", lambda kind: "it is not there (bench/get_libmilter.sh)")
    assert real_mta.main([]) == 1
    said = capsys.readouterr().err
    for text in ("Sendmail", "Postfix", "tests/mta/install.sh", "libmilter", "pymilter", "bench/get_libmilter.sh"):
        assert text in said
