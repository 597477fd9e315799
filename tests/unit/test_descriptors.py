"""Connections and open files: what is needed, what is raised, what is refused."""

import logging
import resource
from collections.abc import Iterator

import pytest

from fastmilter.errors import ConfigError
from fastmilter.server.descriptors import (
    CONNECTIONS,
    RESERVED,
    connections_of_a_worker,
    make_room_for,
    provide,
    shortage,
)
from fastmilter.server.settings import Settings, load_settings


def settings(**options: str) -> Settings:
    return load_settings({"target": "tagger:Tagger", "workers": "1", **options}, {})


@pytest.fixture
def soft_limit() -> Iterator[int]:
    """A soft limit that is not enough; what is raised is taken back."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    yield 256
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_connections_of_a_worker() -> None:
    assert connections_of_a_worker(settings(), 1 << 30) == CONNECTIONS
    assert connections_of_a_worker(settings(), 1024) == 1024 - RESERVED - 1
    assert connections_of_a_worker(settings(), 10) == 1
    assert connections_of_a_worker(settings(max_connections_per_worker="77"), 10) == 77


def test_the_soft_limit_is_raised_and_never_lowered(soft_limit: int) -> None:
    provide(settings(max_connections_per_worker="100"))
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == soft_limit
    provide(settings(max_connections_per_worker="500"))
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 500 + RESERVED + 1
    provide(settings(max_connections_per_worker="100"))
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 500 + RESERVED + 1


def test_a_master_of_many_workers_needs_some_too(soft_limit: int) -> None:
    provide(settings(max_connections_per_worker="1", workers="100"))
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 64 + 6 * 100 > soft_limit


@pytest.mark.usefixtures("soft_limit")
def test_what_the_hard_limit_cannot_hold_is_refused() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY:
        pytest.skip("there is no hard limit")
    with pytest.raises(ConfigError, match=f"{hard} connections per worker need {hard + 33} open files, and the hard"):
        provide(settings(max_connections_per_worker=str(hard)))
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 256


def test_what_is_short() -> None:
    assert shortage(settings(), CONNECTIONS + RESERVED + 1) is None
    assert shortage(settings(), 1000) == (
        "the hard limit of 1000 open files leaves each worker 967 connections: raise it to 10033"
        " (LimitNOFILE= of systemd, ulimit -Hn)"
    )
    assert shortage(settings(max_connections_per_worker="967"), 1000) is None
    short = shortage(settings(max_connections_per_worker="968"), 1000)
    assert short is not None
    assert short.startswith("968 connections per worker need 1001 open files, and the hard limit is 1000: raise it")
    assert shortage(settings(max_connections_per_worker="1", workers="1000"), 1000) is not None, "the master's own"


def test_providing_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """What is short is said once, by who asks ``shortage``."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with caplog.at_level(logging.WARNING):
        provide(settings())
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert caplog.records == []


def test_a_master_of_more_workers_than_planned_gets_what_it_needs(soft_limit: int) -> None:
    make_room_for(10)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == soft_limit
    make_room_for(100)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 64 + 6 * 100
    make_room_for(10)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 64 + 6 * 100
