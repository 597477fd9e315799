"""What the workers of each generation run with: the settings, and everything that is open for them.

A reload opens what is new beside what is there, and lets go of the rest only when it has succeeded.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from fastmilter.server.listen import Listener, open_all
from fastmilter.server.log_file import open_log_file
from fastmilter.server.monitor_keeper import Windows, open_windows
from fastmilter.server.privileges import Identity
from fastmilter.server.settings import Settings


@dataclass(frozen=True, slots=True)
class Setup:
    """What the workers of one generation run with."""

    settings: Settings
    listeners: tuple[Listener, ...]
    windows: Windows
    identity: Identity | None
    """Whom they become before the filter is imported; ``None``: who the master is."""


class Setups:
    """The setups of all generations that live; the master's."""

    def __init__(self) -> None:
        """Begin with none."""
        self._setups: dict[int, Setup] = {}

    def __getitem__(self, generation: int) -> Setup:
        """Return the setup of a generation that lives."""
        return self._setups[generation]

    def open(self, settings: Settings, identity: Identity | None, windows: Windows) -> Setup:
        """Open what the settings ask for, and take what is open already; ``ConfigError`` if that cannot be done.

        ``windows`` are those that are open. What MTAs connect to comes after them: where one of those cannot be had,
        no MTA may find an address that is closed again at once. The log file comes last: until a server listens, what
        hinders it is said where it was started.
        """
        setup = Setup(settings, (), open_windows(settings, windows), identity)
        try:
            listeners = open_all(settings.listen, backlog=settings.backlog, known=self._listeners())
            setup = replace(setup, listeners=listeners)
            open_log_file(settings.log_file)
        except BaseException:
            self.close_new(setup)
            raise
        return setup

    def add(self, generation: int, setup: Setup) -> None:
        """Let the workers of a generation run with this."""
        self._setups[generation] = setup

    def close_new(self, setup: Setup) -> None:
        """Close what was opened for a setup that is not to be."""
        known = list(self._everything())
        for listener in (*setup.listeners, *setup.windows.listeners):
            if listener not in known:
                listener.close()

    def keep(self, generation: int) -> Setup:
        """Let go of what only other generations needed; return what is left."""
        kept = self._setups[generation]
        for listener in self._everything():
            if listener not in (*kept.listeners, *kept.windows.listeners):
                listener.close()
        for listener in kept.listeners:
            listener.set_backlog(kept.settings.backlog)  # not before: a reload that fails changes nothing
        self._setups = {generation: kept}
        return kept

    def close_listeners(self) -> None:
        """Stop listening for MTAs; the windows stay."""
        for listener in self._listeners():
            listener.close()

    def forget_in_child(self, kept: tuple[Listener, ...]) -> None:
        """Let go of every socket but ``kept``, in a child."""
        for listener in self._everything():
            if listener in kept:
                listener.forget_lock()
            else:
                listener.forget()

    def _listeners(self) -> Iterator[Listener]:
        for setup in self._setups.values():
            yield from setup.listeners

    def _everything(self) -> Iterator[Listener]:
        for setup in self._setups.values():
            yield from (*setup.listeners, *setup.windows.listeners)
