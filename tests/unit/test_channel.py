"""The channel between master and worker: packets, cutting, and what is ignored."""

import os
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmilter.server.channel import (
    MAX_LIMIT_S,
    MOST_SCALED,
    PACKET_BYTES,
    Drain,
    Message,
    News,
    Reader,
    Ready,
    Reload,
    ReopenLogs,
    Retire,
    Scale,
    Stop,
    StopNow,
    decode,
    encode,
    open_channel,
    receive,
    send,
)

limits = st.tuples(*[st.floats(0, MAX_LIMIT_S)] * 3).map(lambda three: tuple(sorted(three)))
messages = st.one_of(
    st.sampled_from([Ready(), StopNow(), ReopenLogs(), News(), Reload(), Retire(), Stop()]),
    limits.map(lambda three: Drain((three[0], *three[1:]))),
    st.integers(1, MOST_SCALED).map(Scale),
)


@given(messages)
def test_a_message_survives_the_way(message: Message) -> None:
    packet = encode(message)
    assert len(packet) == PACKET_BYTES
    assert decode(packet) == message


@pytest.mark.parametrize(
    "bad",
    [(-1.0, 1.0, 2.0), (2.0, 1.0, 3.0), (1.0, 3.0, 2.0), (0.0, 0.0, float("nan")), (0.0, 0.0, float("inf"))],
)
def test_limits_that_make_no_sense_are_neither_sent_nor_taken(bad: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="limits of a drain"):
        encode(Drain(bad))
    assert decode(struct.pack("!2sBx4x3d", b"fm", 2, *bad)) is None


@given(st.binary(max_size=2 * PACKET_BYTES))
def test_anything_else_is_ignored(data: bytes) -> None:
    message = decode(data)
    if message is not None:  # only a real packet, down to the last bit that counts
        assert decode(encode(message)) == message


def test_packets_of_another_kind_or_mark_are_ignored() -> None:
    packet = bytearray(encode(Ready()))
    packet[2] = 99
    assert decode(bytes(packet)) is None
    packet = bytearray(encode(Ready()))
    packet[0] = 0
    assert decode(bytes(packet)) is None


@given(st.lists(messages, max_size=6), st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_any_split_gives_the_same_messages(sent: list[Message], cuts: list[int]) -> None:
    stream = b"".join(encode(message) for message in sent)
    reader, seen, place = Reader(), [], 0
    for turn in range(len(stream) + 1):
        size = cuts[turn % len(cuts)]
        seen += reader.feed(stream[place : place + size])
        place += size
    assert seen == sent


def test_an_unknown_packet_between_two_known_ones_costs_only_itself() -> None:
    unknown = bytearray(encode(Ready()))
    unknown[2] = 200
    assert Reader().feed(encode(Ready()) + bytes(unknown) + encode(StopNow())) == [Ready(), StopNow()]


def test_a_channel_carries_messages_both_ways_and_tells_the_end() -> None:
    master, worker = open_channel()
    try:
        assert not master.get_inheritable()
        assert not worker.get_inheritable()
        assert receive(worker, Reader()) == ([], False)  # nothing there: it does not wait
        assert send(worker, Ready())
        assert receive(master, Reader()) == ([Ready()], False)
        assert send(master, Drain((1.0, 2.0, 3.0)))
        assert send(master, StopNow())
        master.close()
        assert receive(worker, Reader()) == ([Drain((1.0, 2.0, 3.0)), StopNow()], True)
        assert not send(worker, Ready())
    finally:
        master.close()
        worker.close()


def test_an_open_file_goes_with_its_message(tmp_path: Path) -> None:
    master, worker = open_channel()
    with master, worker, open(tmp_path / "log", "w") as file:
        assert send(master, StopNow())
        assert send(master, ReopenLogs(), file.fileno())
        files: list[int] = []
        seen: list[Message] = []
        while len(seen) < 2:
            seen += receive(worker, Reader(), files)[0]
        assert seen == [StopNow(), ReopenLogs()]
        (copy,) = files
        os.write(copy, b"from the worker")
        os.close(copy)
        assert (tmp_path / "log").read_bytes() == b"from the worker"


def test_an_open_file_that_nobody_asked_for_is_closed() -> None:
    ours, theirs = open_channel()
    read_end, write_end = os.pipe()
    with ours, theirs:
        assert send(theirs, Ready(), write_end)
        os.close(write_end)
        assert receive(ours, Reader()) == ([Ready()], False)
        assert os.read(read_end, 1) == b"", "no copy of the other end is left"
        os.close(read_end)


def test_a_worker_that_does_not_read_does_not_block_the_master() -> None:
    master, worker = open_channel()
    try:
        master.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        assert any(not send(master, StopNow()) for _ in range(100_000))
    finally:
        master.close()
        worker.close()


@pytest.mark.parametrize("bad", [0, -1, MOST_SCALED + 1])
def test_numbers_of_workers_that_make_no_sense_are_neither_sent_nor_taken(bad: int) -> None:
    with pytest.raises(ValueError, match="a number of workers"):
        encode(Scale(bad))
    assert decode(struct.pack("!2sBx4x3d", b"fm", 7, float(bad), 0.0, 0.0)) is None
    assert decode(struct.pack("!2sBx4x3d", b"fm", 7, 1.5, 0.0, 0.0)) is None
    assert decode(struct.pack("!2sBx4x3d", b"fm", 7, float("nan"), 0.0, 0.0)) is None


def test_who_never_stops_sending_does_not_keep_its_reader() -> None:
    ours, theirs = open_channel()
    with ours, theirs:
        sent = 0
        while send(theirs, News()):
            sent += 1
        first, gone = receive(ours, Reader())
        assert not gone
        assert 0 < len(first) < sent
