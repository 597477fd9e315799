"""How the tests are shared out where several processes run them (``-n 2``, pytest-xdist): a file stays whole."""

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
TOGETHER = frozenset({"mta", "milters", "layout", "bench", "soak"})
"""Directories whose tests share something outside of their own: MTAs that are installed once, what is built for a
measurement, both processors. One process runs all of them, one after the other."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Name for each test the group whose tests the same process runs."""
    for item in items:
        place = item.path.relative_to(TESTS)
        group = "together" if place.parts[0] in TOGETHER else str(place)
        item.add_marker(pytest.mark.xdist_group(group))
