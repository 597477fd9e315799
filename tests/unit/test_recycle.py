"""When a worker asks to be replaced."""

import socket
from contextlib import closing

import pytest

from fastmilter.server import channel
from fastmilter.server.channel import Reader, Reason, Retire
from fastmilter.server.recycle import SAMPLE_S, SAMPLES, Lifetime, Recycler, open_recycler
from fastmilter.server.settings import Settings, load_settings

MB = 1 << 20


def given(**options: str) -> Settings:
    return load_settings({"target": "tagger:Tagger", **options}, {})


def lifetime(*, dice: float = 0.5, sizes: list[int] | None = None, **options: str) -> Lifetime:
    taken = iter(sizes or ())
    return Lifetime(given(**options), 1000.0, memory=lambda: next(taken), dice=lambda: dice)


@pytest.mark.parametrize(("dice", "messages"), [(0.0, 180), (0.5, 200), (1.0, 220)])
def test_messages_are_counted_and_the_number_is_spread(dice: float, messages: int) -> None:
    life = lifetime(max_messages="200", dice=dice)
    assert life.is_over(1e9, messages - 1) is None
    assert life.is_over(1000.0, messages) is Reason.MESSAGES


@pytest.mark.parametrize(("dice", "seconds"), [(0.0, 3240.0), (0.5, 3600.0), (1.0, 3960.0)])
def test_age_is_spread_too(dice: float, seconds: float) -> None:
    life = lifetime(max_age="1h", dice=dice)
    assert life.is_over(1000.0 + seconds - 0.1, 10**9) is None
    assert life.is_over(1000.0 + seconds + 0.1, 0) is Reason.AGE


def test_memory_must_be_too_much_several_times_in_a_row() -> None:
    looks = [50, 101, 102, 99, 101, 102, 103]
    life = lifetime(max_rss="100M", sizes=[size * MB for size in looks])
    found = []
    for number in range(len(looks)):
        now = 1000.0 + number * SAMPLE_S
        found += [life.is_over(now, 0), life.is_over(now + SAMPLE_S / 2, 0)]  # in between nobody looks
    assert SAMPLES == 3
    assert found[:-2] == [None] * (len(found) - 2)
    assert found[-2:] == [Reason.MEMORY, None]


def test_a_limit_below_what_a_fresh_worker_has_is_told_and_does_not_count(caplog: pytest.LogCaptureFixture) -> None:
    life = lifetime(max_rss="100M", sizes=[120 * MB] * 10)
    assert [life.is_over(1000.0 + number * SAMPLE_S, 0) for number in range(10)] == [None] * 10
    (line,) = [record.getMessage() for record in caplog.records]
    assert "120 MB before its first message, and --max-rss is 100 MB" in line


def test_the_master_is_asked_once() -> None:
    masters_end, own_end = channel.open_channel()
    with closing(masters_end), closing(own_end):
        recycler = Recycler(lifetime(max_messages="1"), own_end)
        for messages in (0, 1, 2):
            recycler.look(1000.0, messages)
        assert channel.receive(masters_end, Reader()) == ([Retire(Reason.MESSAGES)], False)


def test_a_master_that_could_not_be_asked_is_asked_again() -> None:
    masters_end, own_end = channel.open_channel()
    with closing(masters_end), closing(own_end):
        recycler = Recycler(lifetime(max_messages="1"), own_end)
        own_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        while channel.send(own_end, Retire()):
            pass
        recycler.look(1000.0, 1)
        assert Retire(Reason.MESSAGES) not in channel.receive(masters_end, Reader())[0]
        recycler.look(1001.0, 1)
        assert channel.receive(masters_end, Reader())[0] == [Retire(Reason.MESSAGES)]


def test_without_a_limit_there_is_nothing_to_look_at() -> None:
    masters_end, own_end = channel.open_channel()
    with closing(masters_end), closing(own_end):
        assert open_recycler(given(), own_end) is None
        assert open_recycler(given(max_age="1d"), own_end) is not None
