"""Which worker a filter class gets: its callbacks run in the loop, in threads, or on asyncio."""

import importlib.util
import socket
from typing import Any

from fastmilter.filter import Filter
from fastmilter.server.settings import Settings
from fastmilter.server.slots import Slots
from fastmilter.server.worker import Worker


def make_worker(
    filter_class: type[Filter[Any]],
    settings: Settings,
    listeners: list[socket.socket],
    channel: socket.socket,
    slots: Slots,
    slot: int,
) -> Worker:
    """Return the worker for a filter class, in the process that is to be it.

    What the other models need is not even imported: a worker of a plain filter has no threads and no event loop.
    """
    made: type[Worker] = Worker
    if filter_class._fastmilter_plan.is_async:
        from fastmilter.server.aio import AsyncWorker

        made = AsyncWorker
    elif filter_class.blocking:
        from fastmilter.server.offload import ThreadedWorker

        made = ThreadedWorker
    return made(filter_class, settings, listeners, channel, slots, slot)


def describe_model(filter_class: type[Filter[Any]], settings: Settings) -> str:
    """Return where the callbacks of a class run, for an administrator."""
    threads = f"{settings.threads} threads of each worker"
    if filter_class._fastmilter_plan.is_async:
        loop = "uvloop" if importlib.util.find_spec("uvloop") else "asyncio"
        return f"on {loop}" + (f", those without async in {threads}" if filter_class.blocking else "")
    return f"in {threads}" if filter_class.blocking else "in the loop of the worker, one at a time"
