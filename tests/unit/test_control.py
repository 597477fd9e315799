"""What the control socket says of the time that an order takes, and who counts processors."""

import json
import socket
import threading
from typing import Any

import pytest

from fastmilter.server import channel, control
from fastmilter.server.control import Control
from fastmilter.server.counters import Of, State
from fastmilter.server.options import processors
from fastmilter.server.policy import DRAIN_GRACE_S, KILL_GRACE_S
from fastmilter.server.settings import load_settings
from fastmilter.server.slots import Slots

PATIENCE_S = 30.0
TOLD_S = 0.3
DRAIN = "1,2,60"


class Asked:
    """A control socket's side of the monitor, without a master."""

    def __init__(self, **options: str) -> None:
        self.slots = Slots(8)
        self.ordered: list[channel.Message] = []
        self.later: threading.Timer | None = None
        settings = load_settings({"target": "tagger:Tagger", **options}, {})
        self.control = Control(self.slots, settings, self.order, dict)
        self.slots.counters.set_of_server(Of.STATE, State.SERVING)
        self.slots.counters.set_of_server(Of.GENERATION, 2)
        self.slots.claim(0, pid=4711, generation=2)

    def order(self, message: channel.Message) -> bool:
        """Do at once what the master would; a reload a little later."""
        self.ordered.append(message)
        shown = self.slots.counters
        match message:
            case channel.Reload():
                self.later = threading.Timer(TOLD_S, self.reload)
                self.later.start()
            case channel.Scale(workers):
                shown.set_of_server(Of.WANTED, workers)
            case channel.Stop() | channel.StopNow():
                shown.set_of_server(Of.STATE, State.STOPPING)
        return True

    def reload(self) -> None:
        self.slots.counters.set_of_server(Of.GENERATION, 3)
        self.slots.counters.add_of_server(Of.RELOADS)
        self.control.notice(gone=False)

    def ask(self, command: str, **more: object) -> list[dict[str, Any]]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.settimeout(PATIENCE_S)
            ours.sendall(json.dumps({"command": command, **more}).encode() + b"\n")
            self.control.serve(theirs)
            theirs.close()
            with ours.makefile() as reader:
                return [json.loads(line) for line in reader]


def test_a_reload_waits_for_older_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "ORDER_S", TOLD_S / 10)
    asked = Asked(ready_timeout=str(TOLD_S / 10), drain_stop=DRAIN)
    asked.slots.claim(1, pid=4712, generation=1)
    interim, answer = asked.ask("reload", interim=True)
    assert answer == {"ok": True, "text": "generation 3 serves, the old workers drain"}
    drain = 60 + DRAIN_GRACE_S + KILL_GRACE_S
    assert interim["within"] >= drain
    assert interim["text"] == "1 worker of another generation must finish first, which takes 75 s at most"


def test_without_them_it_takes_what_new_workers_take(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(ready_timeout="300", drain_stop=DRAIN)
    assert asked.ask("reload", interim=True)[0] == {"within": 2 * 300 + control.ORDER_S, "text": ""}
    monkeypatch.setattr(control, "ORDER_S", TOLD_S / 10)
    late = Asked(ready_timeout=str(TOLD_S / 10), drain_stop=DRAIN)
    assert late.ask("reload") == [{"ok": False, "text": "not done within 0 s; see fastmilter status"}]


def test_only_who_asks_for_it_gets_two_lines() -> None:
    asked = Asked()
    assert asked.ask("scale", workers=2) == [{"ok": True, "text": "the number of workers is now 2"}]
    assert [*map(len, asked.ask("scale", workers=2, interim=True))] == [2, 2]
    assert asked.ask("status", interim=False) == [{"ok": True, "text": "", "status": {}}]


def test_stop_says_when_the_server_is_gone() -> None:
    by_drain = Asked(drain_stop=DRAIN).ask("stop")[0]
    assert by_drain["ok"]
    assert by_drain["within"] > 60 + DRAIN_GRACE_S
    assert KILL_GRACE_S < Asked(drain_stop=DRAIN).ask("stop", now=True)[0]["within"] < 60


def test_auto_is_the_number_of_the_servers_processors() -> None:
    asked = Asked()
    assert asked.ask("scale", workers="auto") == [{"ok": True, "text": f"the number of workers is now {processors()}"}]
    assert asked.ordered == [channel.Scale(processors())]
    assert not asked.ask("scale", workers="all")[0]["ok"]
