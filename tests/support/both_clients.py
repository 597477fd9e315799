"""``AsyncClient`` with blocking methods, so that one test can be about both clients."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any, Self

import pytest

from fastmilter.client import AsyncClient, Client


class Waiting:
    """An ``AsyncClient`` and a loop of its own: each method runs the loop until its coroutine is done."""

    def __init__(self, address: Any, **options: Any) -> None:
        self.client = AsyncClient(address, **options)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.quit()
        else:
            self.close()

    def open(self, **options: Any) -> Self:
        self._blocking(self.client.open)(**options)
        return self

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.client, name)
        return self._blocking(found) if inspect.iscoroutinefunction(found) else found

    @staticmethod
    def _blocking(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            return asyncio.run(method(*arguments, **options))

        return call


MakeClient = Callable[..., Any]

BOTH = [pytest.param(Client, id="Client"), pytest.param(Waiting, id="AsyncClient")]
"""For ``parametrize`` and fixtures: what makes a client of each kind."""
