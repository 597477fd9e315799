"""The master: binds, forks, watches and reaps; serves nobody.

Everything that is decided is decided by ``Policy``; here it is done. There is one wait, for signals, workers' channels
and ends of workers, until the next deadline of the policy. No thread, no code of the user, nothing else that could
fail or leak lives in this process: whoever forks must be simple.

Whoever wants to look, or to give orders from a command line, asks the monitor, a child of its own (``monitor_keeper``).

``_fork`` is the only place of the package that forks. The child never comes back from it: it ends in ``os._exit``, so
no ``finally`` of the master runs twice.

Errors: ``ConfigError`` from ``run`` if the server cannot start (an address, for instance). While it runs, nothing that
a worker does reaches the master; a bug of the master itself closes the channels, and the workers drain.
"""

import contextlib
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NoReturn

from fastmilter.errors import ConfigError
from fastmilter.server import channel, counters, decisions, ends, policy, privileges, systemd, titles, upgrade
from fastmilter.server._orphan import shut_down_when_orphaned
from fastmilter.server.child import Child, WorkerClass, open_pidfd
from fastmilter.server.descriptors import make_room_for
from fastmilter.server.listen import Listener
from fastmilter.server.load import Target, load_filter
from fastmilter.server.log_file import STDERR, open_log_file
from fastmilter.server.log_switch import LogSwitch
from fastmilter.server.monitor_keeper import MonitorKeeper
from fastmilter.server.pace import FINAL_GRACE_S
from fastmilter.server.path_lock import AddressUnavailable
from fastmilter.server.prepare import prepare
from fastmilter.server.roster import Limits, Worker
from fastmilter.server.settings import Settings
from fastmilter.server.setups import Setup, Setups
from fastmilter.server.signals import MASTER_SIGNALS, SignalPipe
from fastmilter.server.slots import CAPACITY
from fastmilter.server.stacks import StackPipe
from fastmilter.server.syslog_handler import send_what_waits
from fastmilter.server.watchman import Watchman

if TYPE_CHECKING:
    from fastmilter.server.monitor import Probe

log = logging.getLogger(__name__)

BIND_AGAIN_S: Final = 0.25
"""How long a server that starts waits before it tries again to listen where another one still does."""

GAP_S: Final = 5.0
"""Woken so much later than planned, the master takes it that it was suspended, and its workers with it."""


class Supervisor:
    """The master process; made and run once."""

    def __init__(
        self,
        settings: Settings,
        worker_class: WorkerClass,
        *,
        reread: Callable[[], Settings] | None = None,
        log_as: Callable[[Settings], None] = lambda _settings: None,
        load: Callable[[Target], Any] = load_filter,
        lifeline: int | None = None,
        pidfds: bool = True,
        probe: "Probe | None" = None,
    ) -> None:
        """Prepare a server; nothing is opened before ``run``.

        ``reread`` gives the settings for a reload, ``log_as`` sets level and format of the log. ``load`` imports the
        filter, in the worker. ``lifeline`` is a descriptor whose end of file means that whoever started this server is
        gone. Without ``pidfds`` the ends of workers are learnt from SIGCHLD, as on systems that have no pidfd.
        ``probe`` is how the monitor finds out whether the server answers; without one it does not say.
        """
        self._settings = settings
        self._worker_class = worker_class
        self._reread = reread or (lambda: settings)
        self._log = LogSwitch(settings, log_as)
        self._load = load
        self._lifeline = lifeline
        self._pidfds = pidfds and hasattr(os, "pidfd_open")
        self._inherited = upgrade.take_state(os.environ)
        self._upgrader = upgrade.Upgrader(self._say)
        self._notifier = systemd.Notifier(os.environ)
        self._slots = upgrade.slots_of(self._inherited, CAPACITY)
        self._watchman = Watchman(self._slots)
        self._pid = os.getpid()
        self._children: dict[int, Child] = {}
        self._setups = Setups()
        self._status: int | None = None
        self._probe = probe
        self._failure = ""  # what a worker said of its end, while that is looked at
        self._keeper = MonitorKeeper(lambda: self._fork(self._be_monitor), self._obey)
        self._policy = policy.Policy(
            settings.workers, _limits(settings), capacity=self._slots.count, clock=time.monotonic
        )

    def run(self) -> int:
        """Serve until told to stop; return the exit status."""
        titles.master_title(self._settings.target.name)
        with SignalPipe((*MASTER_SIGNALS, signal.SIGCHLD)) as self._signals:
            try:
                with selectors.DefaultSelector() as self._selector:
                    self._selector.register(self._signals, selectors.EVENT_READ, self._on_signals)
                    if self._lifeline is not None:
                        os.set_inheritable(self._lifeline, False)
                        self._selector.register(self._lifeline, selectors.EVENT_READ, self._on_lifeline)
                    if self._inherited is None:
                        self._begin()
                    else:
                        self._resume(self._inherited)
                    while self._status is None:
                        self._turn()
            finally:
                self._upgrader.cancel()
                self._setups.close_listeners()
                for child in self._children.values():
                    child.link.close()  # to a worker that is still there, its master is gone
                self._keeper.close()
        log.info("the server ends status=%d", self._status)
        return self._status

    def _begin(self) -> None:
        """Open the listeners and start the first workers; an address that cannot be had yet is waited for."""
        self._slots.counters.set_time(counters.Of.STARTED_AT, time.time())
        settings, identity = self._settings, prepare(self._settings)
        deadline = time.monotonic() + settings.bind_timeout
        waits = False
        while self._status is None:
            try:
                setup = self._setups.open(settings, identity, self._keeper.windows)
            except AddressUnavailable as error:
                if time.monotonic() >= deadline:
                    raise
                if not waits:
                    log.warning("%s; trying again for up to %.0f s", error, settings.bind_timeout)
                waits = True
                self._wait_to_bind(min(BIND_AGAIN_S, deadline - time.monotonic()))
                continue
            self._setups.add(self._policy.newest, setup)
            self._do(self._policy.start())
            self._keeper.begin(setup.windows, self._selector)
            return

    def _wait_to_bind(self, timeout_s: float) -> None:
        """Let some time pass, unless we are told to stop; what else is asked for has no meaning yet."""
        for key, _ in self._selector.select(max(0.0, timeout_s)):
            if key.data == self._on_lifeline:
                self._on_lifeline()
            elif self._signals.take() & {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}:
                log.info("stopping before anything was served")
                self._status = ends.EXIT_OK

    # -- the loop ------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Wait for what happens next, and act on it."""
        before = time.monotonic()
        plans = self._policy.next_deadline(), self._keeper.next_deadline(), self._watchman.next_look()
        deadlines = [at for at in (*plans, self._upgrader.deadline, self._notifier.next_sign()) if at is not None]
        # Without a deadline nothing is planned, and whatever can happen comes through a descriptor.
        timeout = max(0.0, min(deadlines) - before) if deadlines else None
        events = self._selector.select(timeout)
        late = 0.0 if timeout is None else time.monotonic() - before - timeout
        if late > GAP_S:
            log.warning("the master was suspended for %.0f s: all deadlines move", late)
            self._policy.shift(late)
        # News from workers come before orders from outside: a worker that became ready counts as ready.
        for key, _ in sorted(events, key=lambda event: event[0].data == self._on_signals):
            key.data()
        self._keeper.on_time()
        self._do(self._policy.on_time())
        passed = self._upgrader.outcome()
        if passed is not None:
            self._end_trial(passed)
        self._do(decisions.Kill(worker) for worker in self._watchman.look())
        self._notify()
        send_what_waits()

    def _notify(self) -> None:
        """Tell systemd how we are; whether we reload is told where that begins."""
        phase = None
        if self._policy.stopping:
            phase = systemd.Phase.STOPPING
        elif self._policy.settled and not self._upgrader.is_trying:
            phase = systemd.Phase.SERVING
        leave_s = self._settings.drain_stop[-1] + FINAL_GRACE_S + policy.KILL_GRACE_S
        self._notifier.look(time.monotonic(), phase, self._policy.serving, leave_s=leave_s)

    def _do(self, actions: Iterable[decisions.Action]) -> None:
        """Carry out what the policy decided, and what follows from it."""
        waiting = deque(actions)
        while waiting:
            waiting.extend(self._act(waiting.popleft()))
        self._publish()

    def _act(self, action: decisions.Action) -> list[decisions.Action]:
        match action:
            case decisions.Say(level, text):
                self._say(level, text)
            case decisions.Spawn():
                return self._spawn(action)
            case decisions.SendDrain(worker, limits):
                self._send(worker, channel.Drain(limits))
            case decisions.SendStopNow(worker):
                self._send(worker, channel.StopNow())
            case decisions.Kill(worker):
                if worker in self._children:
                    # Not reaped yet, so the number cannot be another process's.
                    os.kill(self._children[worker].pid, signal.SIGKILL)
            case decisions.CloseListeners():
                titles.mark_draining()
                self._setups.close_listeners()
            case decisions.PrepareReload():
                return self._prepare_reload()
            case decisions.PrepareUpgrade():
                self._upgrader.begin(self._settings.ready_timeout)
            case decisions.LogAsBefore():
                if self._log.take_back():
                    self._reopen_logs()
            case decisions.EndReload(kept):
                self._end_reload(kept)
            case decisions.Leave(status):
                self._status = status
        return []

    def _say(self, level: int, text: str) -> None:
        """Log a line; one that tells of trouble is shown by the monitor too, with what the worker said."""
        log.log(level, "%s", text)
        if level >= logging.ERROR:
            text += f": {self._failure}" if self._failure else ""
            self._slots.counters.set_error(text, time.time())

    def _publish(self) -> None:
        """Tell the monitor how things stand."""
        shown, state = self._slots.counters, counters.State.SERVING
        if self._policy.stopping:
            state = counters.State.STOPPING
        elif self._policy.changing:
            state = counters.State.RELOADING
        elif not self._policy.proven:
            state = counters.State.STARTING
        shown.set_of_server(counters.Of.STATE, state)
        shown.set_of_server(counters.Of.GENERATION, self._policy.generation)
        shown.set_of_server(counters.Of.WANTED, self._policy.wanted)
        shown.set_of_server(counters.Of.MONITOR_STARTS, self._keeper.starts)
        self._keeper.tell(channel.News())

    def _send(self, worker: int, message: channel.Message, file: int | None = None) -> None:
        child = self._children.get(worker)
        if child is not None and not channel.send(child.link, message, file):
            log.warning("worker %d cannot be reached pid=%d", child.number, child.pid)

    # -- what happens --------------------------------------------------------------------------------------------

    def _on_signals(self) -> None:
        """Handle signals, in this order whatever the order they came in."""
        came = self._signals.take()
        if signal.SIGCHLD in came:
            for child in [child for child in self._children.values() if child.pidfd < 0]:
                self._reap(child)
            self._keeper.on_child()
        if signal.SIGQUIT in came:
            self._do(self._policy.on_stop_now())
        if signal.SIGTERM in came or signal.SIGINT in came:
            self._do(self._policy.on_stop())
        if came & {signal.SIGHUP, signal.SIGUSR2}:
            self._notifier.look(time.monotonic(), systemd.Phase.RELOADING, self._policy.serving)
        if signal.SIGHUP in came:
            self._do(self._policy.on_reload())
        if signal.SIGUSR2 in came:
            self._do(self._policy.on_upgrade())
        if signal.SIGTTIN in came:
            self._do(self._policy.on_more())
        if signal.SIGTTOU in came:
            self._do(self._policy.on_fewer())
        if signal.SIGUSR1 in came:
            self._reopen_logs()

    def _obey(self, messages: list[channel.Message]) -> None:
        """Do what administrators ask for through the monitor; of several of a kind, the last."""
        for message in {type(message): message for message in messages}.values():
            match message:
                case channel.StopNow():
                    self._do(self._policy.on_stop_now())
                case channel.Stop() if not self._policy.stopping:  # "now" has a word of its own here
                    self._do(self._policy.on_stop())
                case channel.Reload():
                    self._do(self._policy.on_reload())
                case channel.Scale(workers):
                    self._do(self._policy.on_scale(workers))
                case channel.ReopenLogs():
                    self._reopen_logs()

    def _reopen_logs(self) -> None:
        """Open the log file anew, for everybody; where that fails the log goes on as it was, and says so."""
        if self._settings.log_file is None:
            return
        try:
            open_log_file(self._settings.log_file)
        except ConfigError as error:
            self._say(logging.ERROR, f"the log file was not opened anew: {error}")
            self._slots.counters.add_of_server(counters.Of.NOT_REOPENED)
        else:
            for worker in self._children:
                self._send(worker, channel.ReopenLogs(), STDERR)
            self._keeper.tell(channel.ReopenLogs(), STDERR)
            self._slots.counters.add_of_server(counters.Of.REOPENED)
        self._keeper.tell(channel.News())

    def _on_lifeline(self) -> None:
        assert self._lifeline is not None
        with contextlib.suppress(OSError):
            if os.read(self._lifeline, 1):
                return  # not for us: only the end counts
        self._selector.unregister(self._lifeline)
        log.warning("the program that started this server is gone")
        if not self._policy.stopping:
            self._do(self._policy.on_stop())

    def _on_channel(self, child: Child) -> None:
        if child.worker not in self._children:
            return  # reaped within this turn
        messages, gone = channel.receive(child.link, child.reader)
        if gone and not child.lost:
            child.lost = True
            self._selector.unregister(child.link)
        if any(isinstance(message, channel.Ready) for message in messages):
            log.info("worker %d is ready pid=%d generation=%d", child.number, child.pid, child.generation)
            self._do(self._policy.on_ready(child.worker))
        for message in messages:
            if isinstance(message, channel.Retire):
                self._do(self._policy.on_retire(child.worker, message.reason))
        if gone and child.worker in self._children:
            self._do(self._policy.on_lost(child.worker))

    def _reap(self, child: Child) -> None:
        """Find out whether a worker has ended, and tell the policy."""
        try:
            pid, wait_status = os.waitpid(child.pid, os.WNOHANG)
        except ChildProcessError:  # somebody ignores SIGCHLD for us: it is gone, and nobody knows how
            pid, wait_status = child.pid, ends.EXIT_SOFTWARE << 8
        if pid == 0 or child.worker not in self._children:
            return
        if not child.lost:
            self._on_channel(child)  # what it said last: it may have become ready before it died
        del self._children[child.worker]
        if not child.lost:
            self._selector.unregister(child.link)
        child.link.close()
        if child.pidfd >= 0:
            self._selector.unregister(child.pidfd)
            os.close(child.pidfd)
        self._failure = self._slots.counters.failure(child.slot)
        self._watchman.remove(child.worker)
        if self._slots.pid(child.slot) == child.pid:
            self._slots.clear(child.slot)
        status = os.waitstatus_to_exitcode(wait_status)
        self._slots.counters.add_of_server(counters.Of.DRAINED + counters.ENDS.index(ends.kind_of_end(status)))
        log.info("worker %d ended pid=%d generation=%d status=%d", child.number, child.pid, child.generation, status)
        self._do(self._policy.on_exit(child.worker, status))
        self._failure = ""

    # -- generations ---------------------------------------------------------------------------------------------

    def _prepare_reload(self) -> list[decisions.Action]:
        """Read the settings again and open what is new; nothing changes if that fails."""
        former = self._settings
        try:
            settings = self._reread()
            self._log.begin(settings)
            setup = self._setups.open(settings, prepare(settings), self._keeper.windows)
        except Exception as error:
            self._log.take_back()
            is_told = isinstance(error, ConfigError)
            if not is_told:
                log.exception("internal error while a reload was prepared")
            why = error if is_told else f"{type(error).__name__}: {error}"
            self._say(logging.ERROR, f"reload failed, the old workers stay: {why}")
            self._slots.counters.add_of_server(counters.Of.FAILED_RELOADS)
            return self._policy.refuse_reload()
        # A number that was changed by TTIN or TTOU stays, unless the configuration has another one now.
        workers = settings.workers if settings.workers != former.workers else self._policy.wanted
        actions = self._policy.begin_reload(workers, _limits(settings))
        if not actions:
            self._setups.close_new(setup)
            self._log.take_back()
            return []
        self._setups.add(self._policy.newest, setup)
        return actions

    def _end_reload(self, generation: int) -> None:
        """Let go of what only other generations needed."""
        shown, is_new = self._slots.counters, generation == self._policy.newest
        self._publish()  # before the count: who waits for that finds the generation that serves
        shown.add_of_server(counters.Of.RELOADS if is_new else counters.Of.FAILED_RELOADS)
        shown.set_time(counters.Of.RELOADED_AT, time.time())
        kept, former = self._setups.keep(generation), self._settings
        self._settings = kept.settings
        titles.master_title(kept.settings.target.name)
        self._keeper.tell(channel.News())
        if is_new:
            if self._log.accept():
                self._reopen_logs()
            asks_alike = (former.listen, former.proxy_from) == (kept.settings.listen, kept.settings.proxy_from)
            self._keeper.change(kept.windows, may_overlap=asks_alike)

    # -- from one master to the next -----------------------------------------------------------------------------

    def _end_trial(self, passed: bool) -> None:
        """Become the new master if the code has passed its trial; later if the workers change just now."""
        if passed and not self._policy.may_be_followed:
            self._do(self._policy.on_upgrade())
            return
        if passed:
            self._become_new_master()
        self._do(self._policy.on_upgrade_failed())

    def _become_new_master(self) -> None:
        """Hand everything to the code that is installed now, in this process; returns only if that failed."""
        setup = self._setups[self._policy.generation]
        state = upgrade.make_state(
            self._policy, setup, self._children, self._watchman, self._slots, monitors=self._keeper.pids()
        )
        log.info("upgrade: the new code takes over")
        _flush()
        with self._signals.blocked():
            self._signals.leave_to_next_program()
            self._say(logging.ERROR, upgrade.become_new_master(state, lifeline=self._lifeline))

    def _resume(self, state: upgrade.State) -> None:
        """Take over what the former master of this process left; then replace its workers, as in a reload."""
        settings, generation = self._settings, state["generation"]
        listeners, windows = upgrade.listeners_of(state), upgrade.windows_of(state)
        self._setups.add(generation, Setup(settings, listeners, windows, prepare(settings)))
        self._keeper.starts = self._slots.counters.of_server(counters.Of.MONITOR_STARTS)  # it never goes down
        if not self._slots.counters.time_of(counters.Of.STARTED_AT):  # fresh: what was there meant other things
            self._slots.counters.set_time(counters.Of.STARTED_AT, time.time())
        # A number that was changed by TTIN or TTOU stays, unless the configuration has another one now.
        wanted = state["wanted"] if settings.workers == state["configured"] else settings.workers
        self._policy.adopt((Worker.from_state(worker) for worker in state["workers"]), generation, wanted)
        for worker in state["workers"]:
            self._watch_over(Child.from_state(worker, pidfds=self._pidfds), StackPipe.of_master(worker["stacks"]))
        log.info("upgrade: the master is new, %d workers serve on", len(self._children))
        self._keeper.begin(windows, self._selector, state["monitors"])
        self._reopen_logs()  # the settings may name another one than those of the former master
        self._signals.unblock()
        for child in list(self._children.values()):
            self._reap(child)  # whose end nobody has seen
        self._keeper.on_child()
        self._do(self._policy.on_reload())

    # -- birth ---------------------------------------------------------------------------------------------------

    def _spawn(self, spawn: decisions.Spawn) -> list[decisions.Action]:
        self._slots.clear(spawn.slot)
        make_room_for(self._policy.wanted)
        pipe = None
        try:
            made = pipe = StackPipe()
            pid, link, pidfd = self._fork(lambda own_end: self._be_worker(spawn, own_end, made))
        except OSError as error:
            if pipe is not None:
                pipe.close()
            log.error("worker %d cannot be started: %s", spawn.number, error.strerror)
            return self._policy.on_exit(spawn.worker, ends.EXIT_SOFTWARE)
        pipe.be_master()
        child = Child(spawn.worker, spawn.number, spawn.slot, spawn.generation, pid, link, pidfd)
        self._watch_over(child, pipe)
        self._slots.counters.add_of_server(counters.Of.STARTS)
        log.info("worker %d started pid=%d generation=%d", child.number, child.pid, child.generation)
        return []

    def _watch_over(self, child: Child, pipe: StackPipe) -> None:
        """Wait for what a worker says, and for its end."""
        self._children[child.worker] = child
        if not child.lost:
            self._selector.register(child.link, selectors.EVENT_READ, lambda: self._on_channel(child))
        if child.pidfd >= 0:
            self._selector.register(child.pidfd, selectors.EVENT_READ, lambda: self._reap(child))
        settings = self._setups[child.generation].settings
        self._watchman.add(
            child.worker, number=child.number, pid=child.pid, slot=child.slot, settings=settings, pipe=pipe
        )

    def _fork(self, be: Callable[[socket.socket], int]) -> tuple[int, socket.socket, int]:
        """Fork a child that runs ``be``; return its pid, our end of its channel, and its pidfd (-1: there is none).

        Signals are held back until each of the two processes has its own handlers in order.
        """
        ours, theirs = channel.open_channel()
        _flush()  # what is buffered would be written by both
        try:
            with self._signals.blocked():
                pid = os.fork()
                if pid == 0:
                    self._live(be, ours, theirs)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        return pid, ours, open_pidfd(pid) if self._pidfds else -1  # without it SIGCHLD will do

    def _live(self, be: Callable[[socket.socket], int], masters_end: socket.socket, own_end: socket.socket) -> NoReturn:
        """Be a child, from the fork to the end of the process."""
        status = ends.EXIT_SOFTWARE
        try:
            self._signals.forget_in_child()
            masters_end.close()
            status = be(own_end)
        except BaseException:
            log.exception("a child of the master failed pid=%d", os.getpid())
        finally:
            with contextlib.suppress(Exception):
                logging.shutdown()
            _flush()
            os._exit(status)

    def _be_worker(self, spawn: decisions.Spawn, own_end: socket.socket, pipe: StackPipe) -> int:
        setup, failed = self._setups[spawn.generation], self._slots.counters.set_failure
        # One for each socket: "systemd" alone may stand for many, and those of a former master may be others.
        settings = replace(setup.settings, listen=tuple(listener.address for listener in setup.listeners))
        self._forget_master(setup.listeners)
        titles.worker_title(spawn.number, setup.settings.target.name)
        self._slots.claim(spawn.slot, pid=os.getpid(), generation=spawn.generation, number=spawn.number)
        if pipe.be_worker():
            self._slots.set_stacks(spawn.slot)
        try:
            if setup.identity is not None:
                privileges.drop(setup.identity)
            ports = [listener.socket.fileno() for listener in setup.listeners if listener.holds_port]
            shut_down_when_orphaned(ports, self._pid)
            filter_class = self._load(setup.settings.target)
            listeners = [listener.socket for listener in setup.listeners]
            return self._worker_class(filter_class, settings, listeners, own_end, self._slots, spawn.slot).run()
        except ConfigError as error:
            log.error("%s", error)
            failed(spawn.slot, str(error).strip().rpartition("\n")[2])  # of a traceback the end
            return ends.EXIT_CONFIG
        except BaseException as error:
            log.exception("worker %d failed pid=%d", spawn.number, os.getpid())
            failed(spawn.slot, f"{type(error).__name__}: {error}")
            return ends.EXIT_SOFTWARE

    def _be_monitor(self, own_end: socket.socket) -> int:
        from fastmilter.server.monitor import Monitor  # here: the master needs nothing of it

        windows, setup = self._keeper.windows, self._setups[self._policy.generation]
        addresses = [listener.bound for listener in setup.listeners]
        self._forget_master(windows.listeners)
        titles.monitor_title(self._settings.target.name)
        if setup.identity is not None:
            privileges.drop(setup.identity)
        return Monitor(self._settings, self._slots, own_end, windows, addresses, self._probe).run()

    def _forget_master(self, kept: tuple[Listener, ...]) -> None:
        """Close the descriptors of the master in a child, all listening sockets but ``kept`` among them.

        A copy of a sibling's channel above all: as long as one exists, the sibling does not notice that the master
        died. Nothing is unregistered from the selector, which would change the master's too: both share it.
        """
        self._selector.close()
        self._watchman.forget()
        self._slots.forget_memory()
        systemd.forget_in_child(os.environ)
        for sibling in self._children.values():
            sibling.link.close()
            if sibling.pidfd >= 0:
                os.close(sibling.pidfd)
        if self._lifeline is not None:
            os.close(self._lifeline)
        self._keeper.forget_in_child()
        self._upgrader.forget_in_child()
        self._log.forget_in_child()
        self._setups.forget_in_child(kept)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # whoever read them has gone: no reason to stop serving
            stream.flush()


def _limits(settings: Settings) -> Limits:
    return Limits(settings.ready_timeout, settings.drain_stop, settings.drain_reload)
