"""The names that ``fastmilter`` exports: all of them can be imported, and the heavy ones load when asked for."""

import subprocess
import sys

import pytest

import fastmilter

HEAVY = ("asyncio", "email", "fastmilter.client", "fastmilter.testing", "logging.handlers", "psutil", "ssl", "tomllib")


@pytest.mark.parametrize("name", fastmilter.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(fastmilter, name) is not None
    assert name in dir(fastmilter)


def test_what_is_loaded_on_demand_is_exported() -> None:
    assert set(fastmilter._ON_DEMAND) <= set(fastmilter.__all__)
    for name, module in fastmilter._ON_DEMAND.items():
        assert getattr(fastmilter, name).__module__ == module


def test_no_other_name() -> None:
    with pytest.raises(AttributeError, match="module 'fastmilter' has no attribute 'Clinet'"):
        _ = fastmilter.Clinet  # type: ignore[attr-defined]


def test_a_filter_loads_nothing_that_only_a_client_needs() -> None:
    program = "import sys; from fastmilter import Filter, reply; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert not set(HEAVY) & set(done.stdout.split())


def test_the_blocking_client_needs_no_event_loop() -> None:
    program = "import sys; from fastmilter import Client, Outcome; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert "asyncio" not in done.stdout.split()
