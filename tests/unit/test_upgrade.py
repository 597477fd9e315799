"""What a master leaves to the one that follows it in the same process."""

import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fastmilter.endpoints import parse_endpoint
from fastmilter.errors import ConfigError
from fastmilter.server import upgrade
from fastmilter.server.listen import Listener, open_listener
from fastmilter.server.slots import CAPACITY, LAYOUT, Slots


def state_with(**more: object) -> upgrade.State:
    slots = {"layout": "", "memory": -1, "bell": -1}
    nothing: dict[str, Any] = {"listeners": [], "metrics": None, "control": None, "monitors": [], "workers": []}
    return {"version": upgrade.STATE_VERSION, "slots": slots, **nothing, **more}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def left(state: upgrade.State, pid: int | None = None) -> dict[str, str]:
    """Return the environment that finds ``state``."""
    with tempfile.TemporaryFile() as file:
        file.write(json.dumps(state).encode())
        file.flush()
        number = os.dup(file.fileno())
    return {upgrade._STATE: f"{os.getpid() if pid is None else pid}:{number}", "OTHER": "1"}


@pytest.mark.parametrize("address", ["inet:0@127.0.0.1", "unix:{}/fm.sock?mode=0600", "unix:@fm-{}"])
def test_a_listener_goes_over_with_its_path_and_lock(address: str, tmp_path: Path, stack: ExitStack) -> None:
    listener = open_listener(parse_endpoint(address.format(tmp_path if "/fm" in address else os.urandom(6).hex())))
    state = json.loads(json.dumps(listener.to_state()))
    listener.socket.detach()  # exec: the descriptors stay, the objects do not
    after = Listener.from_state(state)
    stack.callback(after.close)
    assert (after.address, after.bound) == (listener.address, listener.bound)
    assert after.is_at(listener.address)
    with pytest.raises(ConfigError, match="another program listens there already"):
        open_listener(after.bound)
    assert after.socket.gettimeout() == 0.0
    after.close()
    assert list(tmp_path.iterdir()) == []


def test_a_state_is_found_once_and_what_it_names_goes_no_further() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        os.set_inheritable(sock.fileno(), True)
        state = state_with(listeners=[{"socket": sock.fileno(), "lock": -1}])
        environment = left(state)
        assert upgrade.take_state(environment) == state
        assert environment == {"OTHER": "1"}
        assert not sock.get_inheritable()
    assert upgrade.take_state(environment) is None


def test_a_state_for_another_process_is_none() -> None:
    environment = left(state_with(), pid=1)
    number = int(environment[upgrade._STATE].partition(":")[2])
    assert upgrade.take_state(environment) is None
    assert environment == {"OTHER": "1"}
    os.close(number)


def test_a_state_of_another_version_is_refused() -> None:
    with pytest.raises(ConfigError, match="version 99, not 1"):
        upgrade.take_state(left(state_with(version=99)))


def test_slots_go_over_if_they_mean_the_same() -> None:
    slots = Slots(CAPACITY)
    assert slots.bell is not None
    slots.claim(3, pid=4711, generation=2)
    slots.set_connections(3, 17)
    bell = os.dup(slots.bell)
    described = {"layout": LAYOUT, "memory": os.dup(slots.memory), "bell": bell}
    after = upgrade.slots_of(state_with(slots=described), CAPACITY)
    assert (after.active(), after.connections(3)) == ([3], 17)
    slots.set_connections(3, 18)
    assert after.connections(3) == 18
    assert after.bell == bell
    after.forget_memory()
    os.close(bell)
    assert upgrade.slots_of(state_with(slots={**described, "layout": "another"}), CAPACITY).active() == []
    assert upgrade.slots_of(None, CAPACITY).active() == []


def test_a_program_that_cannot_be_executed_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[tuple[int, str]] = []
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with socket.create_server(("127.0.0.1", 0)) as sock:
        lifeline, other_end = os.pipe()
        state = state_with(listeners=[{"socket": sock.fileno(), "lock": -1}])
        why = upgrade.become_new_master(state, lifeline=lifeline)
        assert not sock.get_inheritable()
        assert not os.get_inheritable(lifeline)
        os.close(lifeline)
        os.close(other_end)
    assert upgrade._STATE not in os.environ
    assert why == "upgrade failed, everything stays: /nonexistent/python: No such file or directory"
    upgrader = upgrade.Upgrader(lambda level, text: said.append((level, text)))
    upgrader.begin(1.0)
    assert upgrader.deadline is not None, "the master does not wait to learn it"
    assert (upgrader.is_trying, upgrader.outcome(), upgrader.outcome()) == (False, False, None)
    assert said[-1][0] == logging.ERROR
    assert "/nonexistent/python cannot be started" in said[-1][1]


def test_a_trial_answers_the_master_that_asks() -> None:
    assert upgrade.can_take_over({}) is None
    assert upgrade.can_take_over({upgrade._TRIAL: "1"}) == "can take over: state 1"
    with pytest.raises(ConfigError, match="stop it and start this one"):
        upgrade.can_take_over({upgrade._TRIAL: "99"})


@pytest.mark.parametrize(
    ("words", "all_of_it"),
    [
        (["serve", "a:B", "--workers=2"], ["serve", "a:B", "--workers=2", "--check-config"]),
        (["serve", "--lifeline", "5", "--", "a:B"], ["serve", "--lifeline", "5", "--check-config", "--", "a:B"]),
    ],
)
def test_the_command_is_the_one_of_the_start(words: list[str], all_of_it: list[str]) -> None:
    program = "from fastmilter.server.upgrade import command; print(command('--check-config'))"
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([sys.executable, "-c", program, *all_of_it])
