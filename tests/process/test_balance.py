"""Long-lived connections spread evenly over the workers, and none waits because every worker left it to the others."""

import os
import threading

import psutil
import pytest

from fastmilter.client import Client
from tests.process.harness import Server, begin, wait_until

CONNECTIONS = 400
WORKERS = 4

HANGING = """
import fastmilter

class Hanging(fastmilter.Filter):
    def on_mail(self, sender, params):
        open("hangs", "w").close()
        with open(sender.local_part):  # a named pipe that nobody writes to yet
            pass
"""


@pytest.mark.parametrize("address", ["inet:0@127.0.0.1", "unix"])
def test_connections_spread_evenly(server: Server, address: str) -> None:
    server.start(f"--workers={WORKERS}", listen=[address if address != "unix" else f"unix:{server.directory}/fm.sock"])
    before = {pid: psutil.Process(pid).num_fds() for pid in server.workers()}
    clients = [server.client().open() for _ in range(CONNECTIONS)]
    held = [psutil.Process(pid).num_fds() - count for pid, count in before.items()]
    for client in clients:
        client.close()
    # What grew is the connections: a worker outside the listeners keeps their descriptors.
    assert sum(held) == CONNECTIONS
    assert max(held) <= 1.25 * CONNECTIONS / WORKERS, held
    assert server.stop() == 0


def test_nobody_waits_for_a_worker_that_hangs(server: Server) -> None:
    (server.directory / "hanging.py").write_text(HANGING)
    pipe = server.directory / "pipe"
    os.mkfifo(pipe)
    server.start(f"--workers={WORKERS}", target="hanging:Hanging", listen=[f"unix:{server.directory}/fm.sock"])
    first = [server.client().open() for _ in range(10 * WORKERS)]
    hanging = threading.Thread(target=_hang, args=(first[0],))
    hanging.start()
    try:
        wait_until((server.directory / "hangs").exists, "a worker hangs")
        # It has its share and waits for connections as far as the others know, so that they would leave them to it.
        later = [server.client().open() for _ in range(CONNECTIONS // 2)]
        assert hanging.is_alive()
    finally:
        with pipe.open("w"):
            hanging.join()
    for client in first + later:
        client.close()
    assert server.stop() == 0


def _hang(client: Client) -> None:
    begin(client, "pipe@example.org")
