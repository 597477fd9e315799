"""HAProxy with the configuration of contrib/ in front of two servers: one drains, one is killed, no mail is lost."""

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastmilter import codec
from fastmilter.server.settings import load_settings
from tests.examples.backends import need
from tests.layout import haproxy
from tests.layout.load import MailLoad, MilterLoad
from tests.mta.lab import Delivery, Postfix, Sink, free_port, missing_for_postfix, required
from tests.process.harness import Server, wait_until

MTA = "127.0.0.25"
PROXY = "127.0.0.1"
OPTIONS = ("--workers=2", "--log-messages", f"--proxy-from={PROXY}", "--drain-stop=1,2,60")


class Behind(Server):
    """A server behind the proxy."""

    def __init__(self, directory: Path, name: str) -> None:
        directory.mkdir()
        super().__init__(directory)
        self.name = name
        self.port = free_port()
        self.filter.write_text(self.filter.read_text().replace('version = "one"', f'version = "{name}"'))

    def begin(self, *more: str) -> None:
        self.start(*OPTIONS, *more, listen=[f"inet:{self.port}@127.0.0.1?proxy=yes"])


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[Behind]]:
    made = [Behind(tmp_path / name, name) for name in haproxy.SERVERS]
    yield made
    for server in made:
        server.kill_all()
        print(server.log_file.read_text()[-4000:])


def test_the_health_check_is_a_negotiation_and_the_time_outs_leave_room() -> None:
    text = haproxy.CONFIGURATION.read_text()
    sent = bytes.fromhex("".join(re.findall(r"^    tcp-check send-binary (\w+)$", text, re.MULTILINE)))
    assert sent == codec.encode(codec.Negotiate(6, 0x1FF, 0x1FFFFF)) + codec.encode(codec.Quit())
    (expected,) = re.findall(r"^    tcp-check expect binary (\w+)$", text, re.MULTILINE)
    assert codec.encode(codec.Negotiate(6, 0, 0))[4:].startswith(bytes.fromhex(expected))
    idle = load_settings({"target": "tagger:Tagger"}, {}).idle_timeout
    times = re.findall(r"^    timeout (?:client|server) (\d+)s$", text, re.MULTILINE)
    assert len(times) == 2
    assert all(float(seconds) > idle for seconds in times)
    assert not re.search(r"^[^#]*shutdown-sessions", text, re.MULTILINE)


def test_one_drains_and_one_is_killed_and_no_mail_is_lost(servers: list[Behind], tmp_path: Path) -> None:
    program = need("haproxy", hint="tests/layout/install.sh")
    first, second = servers
    for server in servers:
        server.begin(f"--allow={MTA}")
    ports = {server.name: server.port for server in servers}
    with haproxy.started(program, tmp_path, ports) as proxy, MilterLoad(proxy.port, 8, MTA) as load:
        for server in servers:
            load.go_on(server.name, 50)

        first.send(signal.SIGTERM)
        wait_until(lambda: proxy.states()[first.name] == "DOWN", "the proxy sees that one is not there any more")
        assert first.finish() == 0
        load.go_on(second.name, 50)
        assert not load.broken, load
        assert load.moved[first.name] > 0, "sessions were under way, and nothing broke"

        first.begin(f"--allow={MTA}")
        wait_until(lambda: proxy.states()[first.name] == "UP", "the proxy sees that it is back")
        load.go_on(first.name, 50)
        assert not load.broken, load

        for pid in (second.pid, *second.workers()):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: proxy.states()[second.name] == "DOWN", "the proxy sees that one is dead")
        broken = len(load.broken)
        load.go_on(first.name, 200)
        assert len(load.broken) == broken, "nothing breaks any more once the dead one is out"
        assert {server for server, _ in load.broken} <= {second.name, None}, "sessions on the dead one alone"
    print(
        f"{load.accepted.total()} messages let through, {load.moved.total()} moved, {len(load.broken)} broken by a kill"
    )
    assert len(load.broken) <= 2 * 8
    assert len(set(load.sent)) == len(load.sent) == load.accepted.total(), "each message was let through once"
    told = first.log_file.read_text()
    assert told.count(f" mta='{MTA}' ") == told.count(" verdict=") > 0, "the log tells the MTA, not the proxy"
    assert "refused" not in told
    assert first.stop() == 0


@pytest.mark.mta
def test_the_same_with_postfix(servers: list[Behind], tmp_path: Path) -> None:
    """Each message that Postfix took is delivered once, with what the filter added."""
    program = need("haproxy", hint="tests/layout/install.sh")
    need_postfix()
    first, second = servers
    for server in servers:
        server.begin(f"--allow={PROXY}")  # Postfix has the address of this machine too
    ports = {server.name: server.port for server in servers}
    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(haproxy.started(program, tmp_path, ports))
        sink = stack.enter_context(Sink())
        postfix = stack.enter_context(Postfix(sink, [f"inet:{proxy.port}@127.0.0.1"]))
        with MailLoad(postfix.port, 6) as load:
            for server in servers:
                server.wait_log(" verdict=continue ", 20)

            first.send(signal.SIGTERM)
            wait_until(lambda: proxy.states()[first.name] == "DOWN", "the proxy sees that one is not there any more")
            assert first.finish() == 0
            load.go_on(30)
            assert set(load.answers) == {421}, "sessions were moved, and none got the default action"

            first.begin(f"--allow={PROXY}")
            first.wait_log(" verdict=continue ", 20)
            for pid in (second.pid, *second.workers()):
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: proxy.states()[second.name] == "DOWN", "the proxy sees that one is dead")
            load.go_on(60)
        assert not load.broken
        assert set(load.answers) <= {421, 451}, "451: the default action, for sessions on the dead one"
        assert load.answers[451] <= 2 * 6
        postfix.settle()
        delivered = sink.matching(lambda _: True)
    print(f"{len(delivered)} messages delivered, each once; answers that were not 250: {dict(load.answers)}")
    assert sorted(delivery.sender for delivery in delivered) == sorted(f"{name}@example.org" for name in load.sent)
    assert all(is_filtered(delivery) for delivery in delivered)


def is_filtered(delivery: Delivery) -> bool:
    return delivery.values("X-Version")[0].decode() in haproxy.SERVERS


def need_postfix() -> None:
    """Fail, or skip where nobody insists, when Postfix cannot run here."""
    if reasons := missing_for_postfix():
        text = f"postfix cannot run here: {'; '.join(reasons)} (see tests/mta/install.sh)"
        if required():
            pytest.fail(text)
        pytest.skip(text)
