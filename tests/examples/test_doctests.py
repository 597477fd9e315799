"""The examples in docstrings are run."""

import doctest
import importlib
import pkgutil

import pytest

import fastmilter

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(fastmilter.__path__, "fastmilter.")
    if not module.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_some() -> None:
    assert sum(doctest.testmod(importlib.import_module(name)).attempted for name in MODULES) > 20
