"""A master that replaces itself in place (``USR2``): the same process, with the code that is installed now.

First the new code is tried in a process of its own, which reads the configuration and imports the filter
(``--check-config``) and says whether it can take over. Only if it can, the master becomes it by ``exec``: its workers
stay its children, and listeners, locks, channels and shared memory go over as open descriptors. What they are stands
in a state, JSON in a descriptor that a variable of the environment names. The workers notice nothing.

The two may be of different versions. ``STATE_VERSION`` says what a state means; keys may be added without a new one,
and readers ignore keys that they do not know.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import IO, TYPE_CHECKING, Any, Final

from fastmilter.errors import ConfigError
from fastmilter.server.child import Child
from fastmilter.server.listen import Listener
from fastmilter.server.monitor_keeper import Windows
from fastmilter.server.policy import Policy
from fastmilter.server.setups import Setup
from fastmilter.server.slots import LAYOUT, Slots
from fastmilter.server.watchman import Watchman

if TYPE_CHECKING:
    from subprocess import Popen

STATE_VERSION: Final = 1

_STATE: Final = "_FASTMILTER_FORMER_MASTER"
"""The variable that a new master finds its state by: the process that it is meant for, and the descriptor."""
_TRIAL: Final = "_FASTMILTER_TRIAL"
"""The variable that tells a trial which version of the state it is to understand."""

_OUTPUT_BYTES: Final = 4000
"""How much of the output of a trial that failed is logged, from its end."""

_WINDOWS: Final = ("metrics", "control")

State = dict[str, Any]


# The trial.


def command(*more: str) -> list[str]:
    """Return how this process was started, with ``more`` options."""
    words = sys.orig_argv[1:]
    end = words.index("--") if "--" in words else len(words)
    return [sys.executable, *words[:end], *more, *words[end:]]


def can_take_over(environment: Mapping[str, str]) -> str | None:
    """Return what a trial says if it can take over; ``None`` if this is no trial, ``ConfigError`` if it cannot."""
    asked = environment.get(_TRIAL)
    if asked is not None and asked != str(STATE_VERSION):
        raise ConfigError("this version cannot take over from the master that runs: stop it and start this one")
    return None if asked is None else _consent(asked)


def _consent(version: object) -> str:
    return f"can take over: state {version}"


class Trial:
    """A process that tries the code that is installed now."""

    def __init__(self, seconds: float) -> None:
        """Start it; it has so many seconds. Raises ``OSError`` if it cannot be started."""
        import subprocess  # here, as below: an upgrade is rare, and a master is small
        import tempfile

        self.deadline: Final = time.monotonic() + seconds
        self._seconds = seconds
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _end
        try:
            self._process: Popen[bytes] = subprocess.Popen(
                command("--check-config"),
                env={**os.environ, _TRIAL: str(STATE_VERSION)},
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
            )
        except BaseException:
            self._output.close()
            raise

    def is_over(self) -> bool:
        """Tell whether there is an outcome, without waiting; a trial whose time is up is killed."""
        return self._process.poll() is not None or time.monotonic() >= self.deadline

    def failure(self) -> str | None:
        """Return why the new code cannot be used, ``None`` if it can; only when the trial is over."""
        status = self._process.poll()
        text = self._end()
        if status is None:
            return f"it took more than {self._seconds:.0f} s to load{text}"
        if status != 0:
            return f"it ended with status {status}{text}"
        if _consent(STATE_VERSION) not in text.splitlines():
            return "it is of a version that cannot take over from this one: stop the server and start it"
        return None

    def _end(self) -> str:
        """Be done with the process; return what it wrote at last."""
        self.cancel()
        self._output.seek(0, os.SEEK_END)
        self._output.seek(max(0, self._output.tell() - _OUTPUT_BYTES))
        text = self._output.read().decode("utf-8", "backslashreplace").strip()
        self._output.close()
        return f"\n{text}" if text else ""

    def forget_in_child(self) -> None:
        """Close this process's copy of the output, in a child of the master."""
        self._output.close()

    def cancel(self) -> None:
        """Kill the process if it is still there, and reap it."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()  # a killed process ends


class Upgrader:
    """The trial that is under way, if one is."""

    def __init__(self, say: Callable[[int, str], None]) -> None:
        """Begin with none; ``say`` logs a line, and shows an error to whoever watches the server."""
        self._say = say
        self._trial: Trial | None = None
        self._could_not_begin = False

    @property
    def is_trying(self) -> bool:
        """Whether a trial is under way."""
        return self._trial is not None

    @property
    def deadline(self) -> float | None:
        """When ``outcome`` is to be asked at the latest, ``None`` if there is none to come."""
        if self._could_not_begin:
            return time.monotonic()
        return None if self._trial is None else self._trial.deadline

    def begin(self, seconds: float) -> None:
        """Start a trial, unless one is under way."""
        if self._trial is not None:
            return
        self._say(logging.INFO, "upgrade: trying the code that is installed now")
        try:
            self._trial = Trial(seconds)
        except OSError as error:
            self._say(logging.ERROR, _failed(f"{sys.executable} cannot be started: {error.strerror}"))
            self._could_not_begin = True

    def outcome(self) -> bool | None:
        """Tell, once, whether a trial that is over has passed, and log why if it has not; ``None``: nothing is new."""
        if self._could_not_begin:
            self._could_not_begin = False
            return False
        trial = self._trial
        if trial is None or not trial.is_over():
            return None
        self._trial = None
        why = trial.failure()
        if why is not None:
            self._say(logging.ERROR, _failed(f"the new code cannot be used: {why}"))
        return why is None

    def forget_in_child(self) -> None:
        """Let go of what the trial writes to."""
        if self._trial is not None:
            self._trial.forget_in_child()

    def cancel(self) -> None:
        """End the trial: the server stops."""
        if self._trial is not None:
            self._trial.cancel()
            self._trial = None


def _failed(why: str) -> str:
    return f"upgrade failed, everything stays: {why}"


# The state.


def make_state(
    policy: Policy,
    setup: Setup,
    children: Mapping[int, Child],
    watchman: Watchman,
    slots: Slots,
    *,
    monitors: Iterable[int],
) -> State:
    """Return what the next master has to know; ``setup`` is that of all workers, ``monitors`` are processes."""
    metrics, control = setup.windows.metrics, setup.windows.control
    return {
        "version": STATE_VERSION,
        "generation": policy.generation,
        "wanted": policy.wanted,
        "configured": setup.settings.workers,
        "slots": {"layout": LAYOUT, "memory": slots.memory, "bell": -1 if slots.bell is None else slots.bell},
        "listeners": [listener.to_state() for listener in setup.listeners],
        "metrics": None if metrics is None else metrics.to_state(),
        "control": None if control is None else control.to_state(),
        "monitors": list(monitors),
        "workers": [
            {
                **record.to_state(),
                **children[record.worker].to_state(),
                "stacks": watchman.pipe(record.worker).fileno(),
            }
            for record in policy.workers()
            if record.worker in children
        ],
    }


def listeners_of(state: State) -> tuple[Listener, ...]:
    """Return the listeners of the former master."""
    return tuple(Listener.from_state(listener) for listener in state["listeners"])


def windows_of(state: State) -> Windows:
    """Return the sockets of its monitor."""
    windows = [state[name] and Listener.from_state(state[name]) for name in _WINDOWS]
    return Windows(*windows)


def _descriptors(state: State) -> list[int]:
    """Return the descriptors that a state speaks of."""
    slots = state["slots"]
    numbers = [slots["memory"], slots["bell"]]
    listeners = state["listeners"] + [state[name] for name in _WINDOWS if state[name]]
    numbers += [listener[name] for listener in listeners for name in ("socket", "lock")]
    numbers += [worker[name] for worker in state["workers"] for name in ("link", "stacks")]
    return [number for number in numbers if number >= 0]


def become_new_master(state: State, *, lifeline: int | None) -> str:
    """Replace this process; return why that failed, with everything as it was."""
    import json
    import tempfile

    descriptors = _descriptors(state) + ([] if lifeline is None else [lifeline])
    with tempfile.TemporaryFile() as file:
        descriptors.append(file.fileno())
        try:
            file.write(json.dumps(state).encode())
            file.flush()
            os.environ[_STATE] = f"{os.getpid()}:{file.fileno()}"
            for number in descriptors:
                os.set_inheritable(number, True)
            os.execve(sys.executable, command(), os.environ)
        except OSError as error:
            return _failed(f"{sys.executable}: {error.strerror}")
        finally:
            os.environ.pop(_STATE, None)
            for number in descriptors:
                os.set_inheritable(number, False)


def take_state(environment: MutableMapping[str, str]) -> State | None:
    """Return the state that the former master of this process has left, ``None`` if there was none.

    Nobody finds it after that, and no program that is started from here gets what it speaks of.
    """
    pid, _, number = environment.pop(_STATE, "").partition(":")
    if pid != str(os.getpid()):
        return None
    import json

    with open(int(number), "rb") as file:
        file.seek(0)
        state: State = json.load(file)
    if state["version"] != STATE_VERSION:  # the trial has said that it is
        raise ConfigError(f"the state of the former master is of version {state['version']}, not {STATE_VERSION}")
    for descriptor in _descriptors(state):
        os.set_inheritable(descriptor, False)
    return state


def slots_of(state: State | None, count: int) -> Slots:
    """Return the slots of the former master, or fresh ones if there was none, or if they mean something else."""
    former = {} if state is None else state["slots"]
    if former.get("layout") != LAYOUT or former["memory"] < 0:
        return Slots(count)
    return Slots(count, memory=former["memory"], bell=former["bell"])
