"""The master's side of the monitor: its listening sockets, when it is started again, what it says.

The monitor serves whoever wants to look, so that the master serves nobody. The master holds the sockets, so that
neither the death of a monitor nor a reload makes anybody lose the way to them. It never waits for the monitor: what it
sends may get lost, what comes is read in small parts, and a monitor that should go and does not is killed.
"""

import contextlib
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from fastmilter.endpoints import Endpoint, EndpointKind
from fastmilter.errors import ConfigError
from fastmilter.server import channel
from fastmilter.server.child import open_pidfd
from fastmilter.server.listen import Listener, open_anew, open_listener
from fastmilter.server.policy import BACKOFF_FIRST_S, BACKOFF_LONGEST_S, HEALTHY_AFTER_S
from fastmilter.server.settings import Settings

log = logging.getLogger(__name__)

CONTROL_MODE: Final = 0o600
"""Permissions of the control socket: who may use it may stop the server."""

LEAVE_S: Final = 12.0
"""What a monitor that should leave gets before it is killed: those whom it serves are served to the end."""

_BACKLOG: Final = 64

Fork = Callable[[], tuple[int, socket.socket, int]]
"""Makes a monitor; returns its pid, the master's end of its channel, and its pidfd (-1 if there is none)."""


@dataclass(frozen=True, slots=True)
class Windows:
    """The sockets through which a monitor can be asked."""

    metrics: Listener | None = None
    control: Listener | None = None

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """Those that there are."""
        return tuple(listener for listener in (self.metrics, self.control) if listener is not None)


def open_windows(settings: Settings, old: Windows) -> Windows:
    """Open what the settings ask for, and keep what is open already; ``ConfigError`` if that cannot be done."""
    metrics = _open(settings.metrics, old.metrics)
    if metrics is not None and metrics is not old.metrics:
        port, host = metrics.bound.port, metrics.bound.host or "0.0.0.0"
        log.info("metrics on http://%s:%s/metrics", f"[{host}]" if ":" in host else host, port)
    control = None
    try:
        if settings.control is not None:
            control = _open(Endpoint(EndpointKind.UNIX, path=settings.control, mode=CONTROL_MODE), old.control)
    except ConfigError as error:
        if settings.control_is_asked:
            if metrics is not None and metrics is not old.metrics:
                metrics.close()
            raise
        log.warning("there is no control socket: %s", error)
    return Windows(metrics, control)


def _open(address: Endpoint | None, old: Listener | None) -> Listener | None:
    if address is None:
        return None
    if old is None or not old.is_at(address):
        return open_listener(address, backlog=_BACKLOG)
    return open_anew(old, backlog=_BACKLOG) if old.is_cut_off else old


@dataclass(slots=True)
class _Monitor:
    """A monitor as a process."""

    pid: int
    link: socket.socket | None
    """The master's end of its channel; ``None`` once it was let go."""
    pidfd: int
    started_at: float
    reader: channel.Reader = field(default_factory=channel.Reader)
    is_outdated: bool = False
    """It serves on, but only until its successor does."""
    kill_at: float | None = None
    """When it is killed unless it is gone; ``None`` while it is wanted."""


class MonitorKeeper:
    """Keeps one monitor alive as long as there is something for it to do."""

    def __init__(
        self,
        fork: Fork,
        obey: Callable[[list[channel.Message]], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; ``fork`` makes the process, ``obey`` is given what administrators ask for through it."""
        self._fork = fork
        self._obey = obey
        self._clock = clock
        self._selector: selectors.BaseSelector | None = None
        self._monitors: list[_Monitor] = []
        self._start_at: float | None = None
        self._failures = 0
        self.windows = Windows()
        """The sockets that are open."""
        self.starts = 0

    # -- what the master asks for --------------------------------------------------------------------------------------

    def begin(self, windows: Windows, selector: selectors.BaseSelector, former: Iterable[int] = ()) -> None:
        """Start a monitor on these sockets, if there are any; wait for it with ``selector``.

        ``former`` are monitors of the master that this process was before: their channels ended with it, so they leave.
        """
        self._selector = selector
        now = self._clock()
        for pid in former:
            self._watch_over(_Monitor(pid, None, open_pidfd(pid), now, kill_at=now + LEAVE_S))
        self.change(windows)

    def pids(self) -> list[int]:
        """Return the monitors that were not reaped yet, for the master that follows."""
        return [monitor.pid for monitor in self._monitors]

    def change(self, windows: Windows, *, may_overlap: bool = False) -> None:
        """Have the monitor replaced by one with these sockets, and what else was set anew.

        ``may_overlap``: what the old one says is still right. Then, if the sockets stay, it serves until the new one
        does: on a busy machine that takes longer than those who ask wait.
        """
        may_overlap = may_overlap and windows == self.windows
        self.close_other_than(windows)
        self.windows = windows
        for monitor in self._monitors:
            monitor.is_outdated = True
        if not may_overlap:
            self._send_outdated_away()
        self._start_at = self._clock() if windows.listeners else None
        self.on_time()

    def close(self) -> None:
        """Let go of everything: the master ends, and its monitor notices."""
        self.close_other_than(Windows())
        self._close_channels()

    def close_other_than(self, kept: Windows) -> None:
        """Close the sockets that are not among ``kept``."""
        for listener in self.windows.listeners:
            if listener not in kept.listeners:
                listener.close()

    def tell(self, message: channel.Message, file: int | None = None) -> None:
        """Send something to the monitor, if it takes it now."""
        for monitor in self._monitors:
            if monitor.link is not None:
                channel.send(monitor.link, message, file)

    def next_deadline(self) -> float | None:
        """Return when ``on_time`` has something to do, ``None`` if nothing is planned."""
        times = [monitor.kill_at for monitor in self._monitors if monitor.kill_at is not None]
        if self._start_at is not None:
            times.append(self._start_at)
        return min(times, default=None)

    def on_time(self) -> None:
        """Do what is due."""
        now = self._clock()
        for monitor in self._monitors:
            if monitor.kill_at is not None and monitor.kill_at <= now:
                monitor.kill_at = now + LEAVE_S
                with contextlib.suppress(ProcessLookupError):
                    os.kill(monitor.pid, signal.SIGKILL)
        if self._start_at is not None and self._start_at <= now:
            self._start_at = None
            self._start(now)

    def on_child(self) -> None:
        """Look for monitors that have ended, where the system has no pidfd."""
        for monitor in [monitor for monitor in self._monitors if monitor.pidfd < 0]:
            self._reap(monitor)

    def forget_in_child(self) -> None:
        """Close in a child what is the master's alone."""
        self._close_channels()
        for monitor in self._monitors:
            if monitor.pidfd >= 0:
                os.close(monitor.pidfd)

    # -- life ----------------------------------------------------------------------------------------------------------

    def _start(self, now: float) -> None:
        assert self._selector is not None
        try:
            pid, link, pidfd = self._fork()
        except OSError as error:
            log.error("the monitor cannot be started: %s", error.strerror)
            self._plan(now, now)
            return
        self.starts += 1
        self._watch_over(_Monitor(pid, link, pidfd, now))
        log.info("the monitor started pid=%d", pid)

    def _watch_over(self, monitor: _Monitor) -> None:
        """Wait for what a monitor says, and for its end."""
        assert self._selector is not None
        self._monitors.append(monitor)
        if monitor.link is not None:
            self._selector.register(monitor.link, selectors.EVENT_READ, lambda: self._on_channel(monitor))
        if monitor.pidfd >= 0:
            self._selector.register(monitor.pidfd, selectors.EVENT_READ, lambda: self._reap(monitor))

    def _plan(self, started_at: float, now: float) -> float:
        """Plan the next start; return in how many seconds it is."""
        self._failures = 1 if now - started_at >= HEALTHY_AFTER_S else self._failures + 1
        delay = 0.0  # the first of a series
        if self._failures > 1:
            delay = min(BACKOFF_FIRST_S * 2.0 ** min(self._failures - 2, 30), BACKOFF_LONGEST_S)
        self._start_at = now + delay
        return delay

    def _send_outdated_away(self) -> None:
        for monitor in self._monitors:
            if monitor.is_outdated and monitor.kill_at is None:
                monitor.kill_at = self._clock() + LEAVE_S
                self._let_go(monitor)

    def _let_go(self, monitor: _Monitor) -> None:
        """Close the channel, which tells a monitor to leave."""
        assert self._selector is not None
        if monitor.link is not None:
            self._selector.unregister(monitor.link)
            monitor.link.close()
            monitor.link = None

    def _close_channels(self) -> None:
        """Close all channels, as the end of a process does."""
        for monitor in self._monitors:
            if monitor.link is not None:
                monitor.link.close()

    def _on_channel(self, monitor: _Monitor) -> None:
        if monitor.link is None:
            return  # within this turn
        messages, gone = channel.receive(monitor.link, monitor.reader)
        if gone:
            self._let_go(monitor)
            if monitor.kill_at is None:  # it ends, or should
                monitor.kill_at = self._clock() + LEAVE_S
        if channel.Ready() in messages and not monitor.is_outdated:
            self._send_outdated_away()
        orders = [message for message in messages if message != channel.Ready()]
        if orders:
            self._obey(orders)

    def _reap(self, monitor: _Monitor) -> None:
        assert self._selector is not None
        try:
            pid, wait_status = os.waitpid(monitor.pid, os.WNOHANG)
        except ChildProcessError:
            pid, wait_status = monitor.pid, 0
        if pid == 0 or monitor not in self._monitors:
            return
        self._monitors.remove(monitor)
        self._let_go(monitor)
        if monitor.pidfd >= 0:
            self._selector.unregister(monitor.pidfd)
            os.close(monitor.pidfd)
        status = os.waitstatus_to_exitcode(wait_status)
        log.info("the monitor ended pid=%d status=%d", monitor.pid, status)
        is_there = any(monitor.kill_at is None and not monitor.is_outdated for monitor in self._monitors)
        if self.windows.listeners and not is_there and self._start_at is None:
            delay = self._plan(monitor.started_at, self._clock())
            log.warning("the monitor ended: starting another %s", f"in {delay:.0f} s" if delay else "now")
