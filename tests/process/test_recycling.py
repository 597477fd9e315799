"""Workers that have served long enough, or have too much memory, are replaced between messages."""

import os
import signal

import pytest

from tests.process.harness import FILTER, Server, begin, complete, wait_until, whole_message


def test_a_worker_of_age_goes_when_its_successor_serves(server: Server) -> None:
    server.start("--workers=2", "--max-age=1")
    old = set(server.workers())
    client = server.client().open()
    begin(client)
    server.wait_log(r"worker \d: it has reached its age \(--max-age\): starting its successor")
    assert complete(client)["X-Version"] == "one", "whichever served it, in its own time"
    client.quit()
    client.close()
    wait_until(lambda: not old & set(server.workers()), "both of the first two are replaced, one after the other")
    with server.client() as fresh:
        whole_message(fresh)
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    def on_end_of_message(self):\n", "    def on_end_of_message(self):\n"),
        ('    version = "one"\n', '    version = "one"\n    blocking = True\n'),
        ("    def on_end_of_message(self):\n", "    async def on_end_of_message(self):\n"),
    ],
    ids=["plain", "blocking", "async"],
)
def test_every_kind_of_worker_can_be_replaced_and_followed(server: Server, old: str, new: str) -> None:
    assert old in FILTER
    server.filter.write_text(FILTER.replace(old, new))
    server.start("--workers=1", "--max-messages=2")
    (first,) = server.workers()
    client = server.client().open()
    whole_message(client)
    client.mail("again@example.org")
    server.send(signal.SIGUSR2)
    server.wait_log("upgrade: the master is new, 1 workers serve on")
    server.wait_log("generation 2 serves")
    assert complete(client)["X-Pid"] == str(first)
    client.quit()
    client.close()
    wait_until(lambda: first not in server.workers() and len(server.workers()) == 1, "the first worker leaves")
    (second,) = server.workers()
    for _ in range(2):
        with server.client() as fresh:
            whole_message(fresh)
    server.wait_log(r"worker 1: it has served its messages \(--max-messages\): starting its successor")
    wait_until(lambda: second not in server.workers() and len(server.workers()) == 1, "so does the second")
    assert server.stop() == 0


def test_a_worker_that_keeps_memory_is_replaced_and_the_next_one_is_small(server: Server) -> None:
    server.filter.write_text(
        FILTER.replace(
            "    def on_end_of_message(self):\n",
            "    kept = []\n\n    def on_end_of_message(self):\n        self.kept.append(b'x' * 200_000_000)\n",
        )
    )
    server.start("--workers=1", "--max-rss=150M")
    (old,) = server.workers()
    with server.client() as client:
        assert whole_message(client)["X-Pid"] == str(old)
    server.wait_log(r"worker 1: it has too much memory \(--max-rss\): starting its successor")
    wait_until(lambda: old not in server.workers() and len(server.workers()) == 1, "the old one leaves")
    assert "before its first message" not in server.log()
    assert server.stop() == 0


def test_a_successor_that_cannot_start_leaves_the_worker_where_it_is(server: Server) -> None:
    server.start("--workers=1", "--max-messages=1")
    (old,) = server.workers()
    server.filter.write_text("raise RuntimeError('not today')\n")
    with server.client() as client:
        whole_message(client)
        server.wait_log(r"worker 1: it has served its messages \(--max-messages\): starting its successor")
        server.wait_log("RuntimeError: not today")
        server.wait_log("worker 1 could not use the configuration: starting another in")
        client.mail("again@example.org")
        assert complete(client)["X-Pid"] == str(old)
    server.filter.write_text(FILTER)
    wait_until(
        lambda: old not in server.workers() and len(server.workers()) == 1, "a later one could, the old one leaves"
    )
    with server.client() as client:
        assert whole_message(client)["X-Pid"] != str(old)
    assert server.stop() == 0


def test_a_worker_that_dies_while_its_successor_starts_costs_no_further_one(server: Server) -> None:
    release = server.directory / "release"
    server.start("--workers=1", "--max-messages=1")
    (old,) = server.workers()
    server.filter.write_text(
        FILTER
        + f"""
    @classmethod
    def worker_started(cls, options):
        import time
        while not os.path.exists({str(release)!r}):
            time.sleep(0.01)
"""
    )
    with server.client() as client:
        whole_message(client)
    server.wait_log("starting its successor")
    wait_until(lambda: len(server.started()) == 2, "the successor starts")
    os.kill(old, signal.SIGKILL)
    server.wait_log(rf"worker 1 ended pid={old} ")
    release.touch()
    server.wait_ready(2)
    assert len(server.started()) == 2
    assert server.stop() == 0
