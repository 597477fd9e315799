"""Long-lived connections spread evenly over the workers, and none waits because every worker left it to the others."""

import psutil
import pytest

from tests.process.harness import Server

CONNECTIONS = 400
WORKERS = 4


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
