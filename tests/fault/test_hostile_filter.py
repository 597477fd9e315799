"""Whatever a filter does, every call of a client ends with the right error, in time, and leaves nothing behind.

The filters are in ``hostile.py``; each listens on a real socket. ``AsyncClient`` is played by a blocking cover.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fastmilter import codec
from fastmilter.client import Timeouts
from fastmilter.constants import ProtocolFlag, Step
from fastmilter.errors import ConnectionLost, FastmilterError, ProtocolBroken, TimedOut
from tests.fault.hostile import (
    NEGOTIATION,
    PLACES,
    Case,
    ending,
    malformed,
    quick_cases,
    saying,
    silent,
    slow_cases,
    up_to,
)
from tests.support.both_clients import BOTH, MakeClient
from tests.support.scripted_milter import Milter, Peer, Play, Script, playing

DEADLINE_S = 0.25
SHORT = Timeouts(connect=20, command=DEADLINE_S, content=DEADLINE_S, progress=2 * DEADLINE_S)
PATIENT = Timeouts(connect=20, command=20, content=20)
HANGS_S = 15.0
"""A call that takes so long has missed its deadline, however busy the machine is."""

MESSAGE = b"Subject: hi\r\n\r\nbody\r\n"


@pytest.fixture(params=BOTH)
def make_client(request: pytest.FixtureRequest) -> MakeClient:
    made: MakeClient = request.param
    return made


class Stage:
    """One listening socket whose filter changes."""

    script: Script

    def __init__(self, play: Play) -> None:
        self.milter: Milter = play(lambda peer: self.script(peer))


@pytest.fixture
def stage() -> Iterator[Stage]:
    plays = playing()
    yield Stage(next(plays))
    with contextlib.suppress(StopIteration):
        next(plays)


def by_steps(client: Any) -> None:
    with client:
        client.connect("localhost")
        client.helo("client.test")
        client.mail("a@from.test")
        client.rcpt("b@rcpt.test")
        client.data()
        client.header("Subject", " hi")
        client.end_of_headers()
        client.body(b"body\r\n")
        client.end_of_message()


def whole(client: Any) -> None:
    with client:
        client.send_message(MESSAGE, "a@from.test", ["b@rcpt.test"])


WAYS: dict[str, Callable[[Any], None]] = {"steps": by_steps, "send_message": whole}


def ends_with(case: Case, stage: Stage, client: Any, play: Callable[[Any], None]) -> Exception:
    """Play to a hostile filter, and return the error, which must be the right one, in time, with nothing left open."""
    stage.script = case.script
    error: Exception | None = None
    start = time.monotonic()
    try:
        play(client)
    except (FastmilterError, OSError) as raised:
        error = raised
    took = time.monotonic() - start
    assert error is not None, f"{case.name}: no error"
    assert type(error) is case.error, f"{case.name}: {error!r}"
    assert took < HANGS_S, f"{case.name}: {took} seconds"
    assert not client.is_open, case.name
    return error


def test_there_is_enough_to_refuse() -> None:
    assert len(malformed()) > 350


@pytest.mark.parametrize("mta", ["postfix", "sendmail"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", WAYS)
def test_what_shows_at_once(stage: Stage, make_client: MakeClient, way: str, place: str, mta: str) -> None:
    for number, case in enumerate(quick_cases(place, mta)):
        is_malformed = case.error is ProtocolBroken and not case.name.endswith("out of turn")
        if is_malformed and number % 9 and (mta, way) != ("postfix", "steps"):
            continue  # what is malformed is so for everybody
        client = make_client(stage.milter.address, mta=mta, timeouts=PATIENT)
        error: Any = ends_with(case, stage, client, WAYS[way])
        assert error.step == (None if place == NEGOTIATION else place), case.name
        if isinstance(error, ConnectionLost):
            assert error.in_message is (place in PLACES[PLACES.index(Step.MAIL) :])


@pytest.mark.parametrize("mta", ["postfix", "sendmail"])
@pytest.mark.parametrize("place", [NEGOTIATION, Step.CONNECT, Step.RCPT, Step.BODY, Step.END_OF_MESSAGE])
def test_what_shows_when_time_is_up(stage: Stage, make_client: MakeClient, place: str, mta: str) -> None:
    for case in slow_cases(place, mta):
        client = make_client(stage.milter.address, mta=mta, timeouts=SHORT)
        error: Any = ends_with(case, stage, client, by_steps)
        assert error.step == (None if place == NEGOTIATION else place), case.name


def test_an_answer_too_many_is_found_at_the_next_step(stage: Stage, make_client: MakeClient) -> None:
    for verdict in (
        codec.Continue(),
        codec.Accept(),
        codec.Reject(),
        codec.AddHeader(b"A", b"b"),
        codec.Negotiate(6, 0, 0),
    ):
        script = saying(Step.CONNECT, codec.encode(codec.Continue()) + codec.encode(verdict))
        case = Case(f"{verdict!r} too many", script, ProtocolBroken)
        error: Any = ends_with(case, stage, make_client(stage.milter.address, timeouts=PATIENT), by_steps)
        assert error.step is Step.HELO


def test_a_filter_that_does_not_read(stage: Stage, make_client: MakeClient) -> None:
    over = threading.Event()

    def script(peer: Peer) -> None:
        peer.negotiate(ProtocolFlag.NR_BODY | ProtocolFlag.NO_MAIL | ProtocolFlag.NO_CONNECT)
        over.wait(60)

    def large(client: Any) -> None:
        with client:
            client.connect("localhost")
            client.mail("a@b")
            client.body(b"x" * 50_000_000)

    client = make_client(stage.milter.address, timeouts=SHORT)
    error: Any = ends_with(Case("does not read", script, TimedOut), stage, client, large)
    over.set()
    assert error.step is Step.BODY
    assert "takes no data" in str(error)


def exchange(client: Any) -> None:
    try:
        client.open(negotiate=False)
        client.send(codec.Negotiate(6, 0x1FF, 0x1FFFFF))
        client.receive(timeout=DEADLINE_S)
        client.send(codec.Helo(b"x"))
        client.receive(timeout=DEADLINE_S)
    finally:
        client.close()


def test_level_2(stage: Stage, make_client: MakeClient) -> None:
    cases = [
        *(
            Case(name, saying(Step.HELO, packet), ProtocolBroken)
            for name, packet in malformed().items()
            if "reply" not in name
        ),
        Case("closes", ending(Step.HELO, b""), ConnectionLost),
        Case("never answers", up_to(Step.HELO, silent), TimedOut),
        Case("progress only", saying(Step.HELO, codec.encode(codec.Progress()) * 100), TimedOut),
    ]
    for case in cases:
        ends_with(case, stage, make_client(stage.milter.address, timeouts=PATIENT), exchange)


def test_a_thousand_rounds_leave_nothing_open(stage: Stage, make_client: MakeClient) -> None:
    cases = [
        case
        for place in (NEGOTIATION, Step.CONNECT, Step.RCPT, Step.END_OF_MESSAGE)
        for number, case in enumerate(quick_cases(place, "postfix"))
        if number % 20 == 0 or case.error is ConnectionLost
    ]
    cases += [Case("never answers", up_to(place, silent), TimedOut) for place in (NEGOTIATION, Step.CONNECT)]
    hasty = Timeouts(connect=20, command=0.01, content=0.01)
    before = len(os.listdir("/dev/fd"))
    for number in range(1000):
        case = cases[number % len(cases)]
        timeouts = hasty if case.error is TimedOut else PATIENT
        client = make_client(stage.milter.address, timeouts=timeouts)
        ends_with(case, stage, client, (by_steps, whole)[number % 2])
    stage.milter.close()
    assert len(os.listdir("/dev/fd")) <= before
