"""Workers that stand still: whatever happens to the master, they keep no port from the next server."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastmilter.codec import MailFrom
from tests.process.harness import Server, begin, complete, is_gone, wait_until, whole_message
from tests.process.test_supervision import wait_refused

SPINS = """
import fastmilter

class Tagger(fastmilter.Filter):
    def on_mail(self, sender, params):
        print("it stands still", flush=True)
        while sender.domain == "stuck.example":
            {how}
"""

STARTS_SLOWLY = """
import time
print("it stands still", flush=True)
time.sleep(600)
"""

HOW = {"sleeps": "__import__('time').sleep(600)", "computes": "sum(range(10**11))"}


@pytest.fixture
def next_server(tmp_path: Path) -> Iterator[Server]:
    directory = tmp_path / "next"
    directory.mkdir()
    server = Server(directory)
    yield server
    server.kill_all()


@contextmanager
def stuck(server: Server, how: str, *options: str) -> Iterator[None]:
    """Start a server whose only worker stands still in a callback."""
    server.filter.write_text(SPINS.format(how=HOW[how]))
    server.start("--workers=1", "--drain-stop=600,600,600", *options, listen=() if options else ("inet:0@127.0.0.1",))
    with server.client() as client:
        client.connect("client.example", "192.0.2.1", 25)
        client.helo("client.example")
        client.send(MailFrom(b"<a@stuck.example>"))
        server.wait_log("it stands still")
        yield


def serves(server: Server, address: str) -> None:
    """Start a server at an address that was just given up, see that it serves, stop it."""
    server.start("--workers=1", listen=[address])
    with server.client() as client:
        whole_message(client)
    assert server.stop() == 0


@pytest.mark.parametrize("how", HOW)
def test_a_callback_outlives_a_master_that_is_killed(server: Server, next_server: Server, how: str) -> None:
    with stuck(server, how):
        server.send(signal.SIGKILL)
        server.finish()
        serves(next_server, server.address())
        assert server.workers(), "the worker is still in its callback"


def test_a_callback_outlives_a_master_that_stops(server: Server, next_server: Server) -> None:
    with stuck(server, "sleeps"):
        server.send(signal.SIGTERM)
        wait_refused(server.address())
        serves(next_server, server.address())
        assert server.workers(), "the worker is still in its callback"
        assert not is_gone(server.pid), "and the master waits for it"


def test_a_callback_outlives_the_address_that_a_reload_gives_up(server: Server) -> None:
    config = server.directory / "fm.toml"
    config.write_text('listen = ["inet:0@127.0.0.1"]\n')
    with stuck(server, "sleeps", f"--config={config}"):
        config.write_text(f'listen = ["unix:{server.directory}/fm.sock"]\n')
        server.send(signal.SIGHUP)
        server.wait_log("the old workers drain")
        wait_refused(server.address())


def test_a_worker_that_starts_outlives_a_master_that_is_killed(server: Server, next_server: Server) -> None:
    server.filter.write_text(STARTS_SLOWLY)
    server.start("--workers=1", wait=False)
    server.wait_log("it stands still")
    server.send(signal.SIGKILL)
    server.finish()
    serves(next_server, server.address())
    assert server.workers(), "the worker still starts"


def test_a_connection_of_a_worker_that_outlives_its_master_goes_on(server: Server) -> None:
    server.start("--workers=1")
    client = server.client().open()
    begin(client)
    server.send(signal.SIGKILL)
    server.finish()
    wait_refused(server.address())
    complete(client)
    client.quit()
    wait_until(lambda: not server.workers(), "the worker leaves")
    assert "cannot accept" not in server.log()
