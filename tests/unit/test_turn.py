"""What a worker does at a turn of its loop with connections that are at different steps."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fastmilter import codec
from fastmilter.server.pace import ANSWERS_TOGETHER
from tests.support.playing import ABORT, CONNECT, EOM, HEADER, HELO, MAIL, QUIT, RCPT, V6
from tests.support.turns import Bench

STAGES: list[tuple[list[codec.Command], list[type]]] = [
    ([V6], [codec.Negotiate]),
    ([CONNECT, HELO, MAIL], [codec.Continue]),
    ([RCPT], []),  # tagger.py does not look at recipients
    ([HEADER, EOM], [codec.ChangeHeader, codec.AddHeader, codec.AddHeader, codec.Continue]),
    ([MAIL], [codec.Continue]),
    ([ABORT, QUIT], []),
]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack, tmp_path / "m")


def said(client: socket.socket) -> list[type]:
    """Return the answers that are there by now."""
    decoder = codec.ResponseDecoder()
    client.setblocking(False)
    try:
        while data := client.recv(1 << 16):
            decoder.feed(data)
    except BlockingIOError:
        pass
    return [type(response) for response in decoder]


def accept_all(bench: Bench) -> None:
    while bench.turn():
        pass


@pytest.mark.parametrize("number", [1, 2, len(STAGES), 3 * ANSWERS_TOGETHER])
def test_every_connection_is_served_at_the_turn_in_which_it_is_ready(bench: Bench, number: int) -> None:
    """Each begins some turns after the one before, so that soon some are at every stage at once."""
    clients = bench.come(number)
    accept_all(bench)
    for turn in range(2 * len(STAGES)):
        ready = {client: turn - place % len(STAGES) for place, client in enumerate(clients)}
        ready = {client: stage for client, stage in ready.items() if 0 <= stage < len(STAGES)}
        for client, stage in ready.items():
            client.sendall(b"".join([codec.encode(command) for command in STAGES[stage][0]]))
        bench.turn()
        for client, stage in ready.items():
            assert said(client) == STAGES[stage][1], (turn, stage)
    assert bench.slots.connections(0) == 0, "the last stage has closed each"
