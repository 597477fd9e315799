"""Long-lived connections spread evenly over the workers, and none waits because every worker left it to the others."""

import psutil
import pytest

from fastmilter.client import Client
from tests.process.harness import Server

CONNECTIONS = 200
WORKERS = 4


@pytest.mark.parametrize("address", ["inet:0@127.0.0.1", "unix"])
def test_connections_spread_evenly(server: Server, address: str) -> None:
    server.start(f"--workers={WORKERS}", listen=[address if address != "unix" else f"unix:{server.directory}/fm.sock"])
    before = {pid: psutil.Process(pid).num_fds() for pid in server.workers()}
    clients = [server.client().open() for _ in range(CONNECTIONS)]
    held = [psutil.Process(pid).num_fds() - count for pid, count in before.items()]
    for client in clients:
        client.close()
    # A worker outside the listeners holds as many descriptors as one inside: what grew are the connections.
    assert sum(held) == CONNECTIONS
    assert max(held) <= 1.25 * CONNECTIONS / WORKERS, held
    assert server.stop() == 0


def test_who_is_full_comes_back_when_the_others_are(server: Server) -> None:
    server.start("--workers=2")
    first = [server.client().open() for _ in range(20)]
    pids = list(server.workers())
    before = [psutil.Process(pid).num_fds() for pid in pids]
    second = [server.client().open() for _ in range(20)]
    grown = [psutil.Process(pid).num_fds() - count for pid, count in zip(pids, before, strict=True)]
    assert sum(grown) == len(second)
    assert min(grown) >= 5, "both took new connections, also the one that had left them to the other before"
    for client in (*first, *second):
        assert isinstance(client, Client)
        client.close()
    assert server.stop() == 0
