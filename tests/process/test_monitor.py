"""The monitor of a real server: every number moves when it should, and what becomes of it harms nobody."""

import contextlib
import os
import re
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fastmilter import codec
from fastmilter.client import Client
from fastmilter.server.metrics import METRICS
from tests.process.harness import PATIENCE_S, Server, begin, complete, title, wait_until, whole_message
from tests.process.watching import Series, control, http, metrics, monitors

FILTER = """
import os
import fastmilter

class Tagger(fastmilter.Filter):
    def on_connect(self, hostname, address):
        pass

    def on_mail(self, sender, params):
        if sender.local_part == "raise":
            raise RuntimeError("a fault")
        if sender.local_part == "later":
            return fastmilter.reply(451, None, "later")

    def on_rcpt(self, recipient, params):
        if recipient.local_part == "no":
            return fastmilter.reply(550, "5.1.1", "no")

    def on_header(self, name, value):
        pass

    def on_end_of_message(self):
        self.message.add_header("X-Pid", str(os.getpid()))

    def on_close(self):
        pass
"""

WATCHED = ("--metrics=127.0.0.1:0", "--control=control")

NOT_HERE = {
    "fastmilter_connections_refused_total",
    "fastmilter_accept_failures_total",
    "fastmilter_internal_errors_total",
    "fastmilter_guards",
    "fastmilter_guard_running",
    "fastmilter_guard_calls_total",
    "fastmilter_guard_failures_total",
    "fastmilter_guard_refused_total",
    "fastmilter_guard_opened_total",
}
"""What nothing in these tests moves; ``tests/unit/test_metrics.py`` does, through the same memory."""


@pytest.fixture
def watched(server: Server) -> Server:
    """A server whose filter does a little of everything, as it is started here."""
    server.filter.write_text(FILTER)
    return server


def raw(server: Server) -> socket.socket:
    port = int(server.address().split(":")[1].split("@")[0])
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)


def grown(server: Server, name: str, than: Series, by: float = 1) -> None:
    """Wait until a number is as much larger as it should be, and see that it is not more."""
    wait_until(lambda: metrics(server)[name] >= than[name] + by, f"{name} grows")
    assert metrics(server)[name] == than[name] + by


def test_every_metric_is_there_from_the_start(watched: Server) -> None:
    watched.start("--workers=1", *WATCHED)
    wait_until(lambda: len(metrics(watched)) > 200, "all series")
    _, body = http(watched)
    declared = dict(re.findall(r"^# TYPE (\S+) (\S+)$", body, re.MULTILINE))
    assert declared == {metric.name: metric.kind for metric in METRICS}
    assert len(declared) >= 24
    names = {re.sub(r"\{.*", "", name) for name in metrics(watched)}
    assert {metric.name for metric in METRICS} - names <= {
        "fastmilter_callback_seconds",
        *(name for name in NOT_HERE if "guard" in name),  # this filter has none
    }
    assert watched.stop() == 0


def test_numbers_of_connections_and_messages(watched: Server) -> None:
    watched.start("--workers=1", *WATCHED)
    before = metrics(watched)
    client = Client(watched.address()).open()
    grown(watched, "fastmilter_connections_accepted_total", before)
    grown(watched, "fastmilter_connections", before)
    begin(client)
    wait_until(lambda: metrics(watched)["fastmilter_messages_in_flight"] == 1, "a message in flight")
    complete(client)
    grown(watched, 'fastmilter_messages_total{verdict="continue"}', before)
    grown(watched, "fastmilter_edits_total", before)
    grown(watched, 'fastmilter_callback_seconds_count{step="end_of_message"}', before)
    grown(watched, 'fastmilter_callback_seconds_bucket{step="header",le="+Inf"}', before)
    assert metrics(watched)['fastmilter_callback_seconds_sum{step="mail"}'] > 0
    assert metrics(watched)["fastmilter_received_bytes_total"] > before["fastmilter_received_bytes_total"] + 100
    client.mail("two@example.org")
    assert client.rcpt("no@example.net").code == 550  # type: ignore[union-attr]
    grown(watched, 'fastmilter_verdicts_total{step="rcpt",verdict="reply_5xx"}', before)
    client.abort()  # leaves with the next command
    assert client.mail("later@example.org").code == 451  # type: ignore[union-attr]
    grown(watched, 'fastmilter_messages_total{verdict="dropped"}', before)
    grown(watched, 'fastmilter_messages_total{verdict="reply_4xx"}', before)
    client.mail("raise@example.org")
    grown(watched, 'fastmilter_callback_exceptions_total{callback="on_mail"}', before)
    grown(watched, 'fastmilter_verdicts_total{step="mail",verdict="tempfail"}', before)
    grown(watched, 'fastmilter_messages_total{verdict="tempfail"}', before)
    client.quit()
    wait_until(lambda: metrics(watched)["fastmilter_connections"] == 0, "the connection is gone")
    grown(watched, 'fastmilter_callback_seconds_count{step="other"}', before, 2)  # __init__, on_close
    wait_until(lambda: metrics(watched)["fastmilter_messages_in_flight"] == 0, "no message in flight")
    assert watched.stop() == 0


def test_numbers_of_what_peers_do_wrong(watched: Server) -> None:
    watched.start("--workers=1", *WATCHED, "--negotiation-timeout=0.4", "--packet-timeout=0.4", "--idle-timeout=0.4")
    before = metrics(watched)
    with raw(watched) as silent, raw(watched) as mid_packet, raw(watched) as idle, raw(watched) as wrong:
        wrong.sendall(b"GET / HTTP/1.1\r\n\r\n")
        grown(watched, "fastmilter_protocol_errors_total", before)
        idle.sendall(codec.encode(codec.Negotiate(6, 0x1FF, 0x1FFFFF)))
        assert idle.recv(1024)
        mid_packet.sendall(codec.encode(codec.Negotiate(6, 0x1FF, 0x1FFFFF)) + struct.pack("!I", 100) + b"C")
        assert mid_packet.recv(1024)
        for phase in ("negotiation", "packet", "idle"):
            grown(watched, f'fastmilter_connections_timed_out_total{{phase="{phase}"}}', before)
        assert silent.recv(1) == b""
    with raw(watched) as too_old:
        too_old.sendall(codec.encode(codec.Negotiate(6, 0, 0)))  # grants nothing of what the filter needs? it may
        too_old.recv(1024)
        too_old.sendall(codec.encode(codec.RcptTo(b"<a@b.example>")))  # no MAIL before it
        grown(watched, "fastmilter_complaints_total", before)
    assert watched.stop() == 0


def test_a_negotiation_that_fails(watched: Server) -> None:
    watched.filter.write_text(
        FILTER.replace("    def on_connect", "    requires = fastmilter.Action.QUARANTINE\n\n    def on_connect")
    )
    watched.start("--workers=1", *WATCHED)
    before = metrics(watched)
    with raw(watched) as poor:
        poor.sendall(codec.encode(codec.Negotiate(6, 0, 0)))
        grown(watched, "fastmilter_negotiation_failures_total", before)
    assert watched.stop() == 0


def test_numbers_survive_a_killed_worker_and_a_reload(watched: Server) -> None:
    watched.start("--workers=1", *WATCHED)
    with watched.client() as client:
        pid = int(whole_message(client)["X-Pid"])
    wait_until(lambda: metrics(watched)['fastmilter_messages_total{verdict="continue"}'] == 1, "the message counts")
    before = metrics(watched)
    os.kill(pid, signal.SIGKILL)
    watched.wait_ready(2)
    grown(watched, 'fastmilter_worker_ends_total{reason="killed"}', before)
    grown(watched, "fastmilter_worker_starts_total", before)
    watched.send(signal.SIGHUP)
    watched.wait_log("generation=1 status=0")
    wait_until(lambda: len(monitors(watched)) == 2, "the monitor is replaced too")
    grown(watched, 'fastmilter_reloads_total{result="ok"}', before)
    grown(watched, "fastmilter_generation", before)
    grown(watched, "fastmilter_monitor_starts_total", before)
    after = metrics(watched)
    for name, value in before.items():
        if re.match(r"\w+_(total|count|sum|bucket)\b", name) and "cpu" not in name:
            assert after[name] >= value, name
    with watched.client() as client:
        whole_message(client)
    grown(watched, 'fastmilter_messages_total{verdict="continue"}', before)
    watched.filter.write_text("syntax error")
    watched.send(signal.SIGHUP)
    grown(watched, 'fastmilter_reloads_total{result="failed"}', before)
    grown(watched, 'fastmilter_worker_ends_total{reason="config"}', before)
    assert watched.stop() == 0


def test_numbers_of_workers(watched: Server) -> None:
    watched.start("--workers=2", *WATCHED)
    wait_until(lambda: metrics(watched)['fastmilter_workers{state="serving"}'] == 2, "two workers")
    wait_until(lambda: len(of_worker(watched, 2, "loop_age_seconds")) == 1, "both turn")
    numbers = metrics(watched)
    assert numbers["fastmilter_workers_wanted"] == 2
    assert numbers["fastmilter_ready"] == 1
    assert of_worker(watched, 1, "resident_bytes")[0] > 1e6
    assert of_worker(watched, 2, "cpu_seconds_total")[0] >= 0
    assert abs(numbers["fastmilter_start_time_seconds"] - psutil.Process(watched.pid).create_time()) < 60
    assert http(watched, "/readyz")[0] == 200
    with watched.client() as client:  # keeps one worker draining
        begin(client)
        watched.send(signal.SIGTERM)
        wait_until(lambda: metrics(watched)["fastmilter_ready"] == 0, "nobody takes connections")
        wait_until(lambda: metrics(watched)['fastmilter_workers{state="draining"}'] == 1, "one drains")
        assert http(watched, "/readyz")[0] == 503
        status, body = http(watched, "/healthz")
        assert (status, "ConnectFailed" in body) == (503, True)
    assert watched.finish() == 0


def of_worker(server: Server, number: int, name: str) -> list[float]:
    """A number of the processes that are worker ``number`` of the first generation."""
    start = f'fastmilter_worker_{name}{{worker="{number}",generation="1",pid="'
    return [value for series, value in metrics(server).items() if series.startswith(start)]


def test_a_worker_that_drains_and_its_successor_are_told_apart(watched: Server) -> None:
    """Prometheus would take one of two series that are named alike, and complain."""
    watched.start("--workers=1", "--max-messages=1", *WATCHED)
    with watched.client() as client:  # the session goes on, so the worker drains beside its successor
        whole_message(client)
        wait_until(lambda: len(of_worker(watched, 1, "loop_age_seconds")) == 2, "both are shown")
        assert len(of_worker(watched, 1, "resident_bytes")) == len(of_worker(watched, 1, "cpu_seconds_total")) == 2
        names = [line.rpartition(" ")[0] for line in http(watched)[1].splitlines() if not line.startswith("#")]
        assert sorted(names) == sorted(set(names))
    assert watched.stop() == 0


GUARDED = """
import fastmilter
from fastmilter.guard import Guard

dns = Guard("dns", failures=1, recovery=1000)

class Tagger(fastmilter.Filter):
    def on_mail(self, sender, params):
        with dns:
            if sender.local_part == "fail":
                raise OSError("no answer")
"""


def test_numbers_of_guards(watched: Server) -> None:
    watched.filter.write_text(GUARDED)
    watched.start("--workers=1", *WATCHED)
    wait_until(lambda: metrics(watched).get('fastmilter_guards{guard="dns",state="closed"}') == 1, "it is shown")
    before = metrics(watched)
    with contextlib.closing(watched.client().open()) as client:
        begin(client)
        client.abort()
        client.mail("fail@example.org")
        client.mail("fail@example.org")
        grown(watched, 'fastmilter_guards{guard="dns",state="open"}', before)
        grown(watched, 'fastmilter_guard_calls_total{guard="dns"}', before, 2)
        grown(watched, 'fastmilter_guard_failures_total{guard="dns"}', before)
        grown(watched, 'fastmilter_guard_opened_total{guard="dns"}', before)
        grown(watched, 'fastmilter_guard_refused_total{guard="dns"}', before)
    assert watched.stop() == 0


WAITING = """
import os
import fastmilter

class Tagger(fastmilter.Filter):
    blocking = True
    deadline = {"end_of_message": 1.0}

    def on_mail(self, sender, params):
        pass

    def on_end_of_message(self):
        import time
        while not os.path.exists("release"):
            time.sleep(0.01)
"""


@contextlib.contextmanager
def to_the_end(server: Server) -> Iterator[Client]:
    """Say all of a message, without waiting for the verdict."""
    with contextlib.closing(Client(server.address()).open()) as client:
        begin(client)
        client.rcpt("b@example.net")
        client.data()
        client.body(b"text")
        client.send(codec.EndOfMessage())
        yield client


def test_numbers_of_threads(watched: Server) -> None:
    watched.filter.write_text(WAITING)
    watched.start("--workers=1", "--threads=1", *WATCHED)
    with to_the_end(watched):
        wait_until(lambda: metrics(watched)["fastmilter_threads_busy"] == 1, "one thread is busy")
        assert metrics(watched)["fastmilter_threads"] == 1
        wait_until(lambda: metrics(watched)["fastmilter_callback_timeouts_total"] > 0, "a callback is out of time")
        (watched.directory / "release").touch()
        wait_until(lambda: metrics(watched)["fastmilter_late_callbacks_total"] > 0, "it comes back all the same")
        numbers = metrics(watched)
        assert numbers['fastmilter_callback_seconds_count{step="mail"}'] >= 1
        assert numbers['fastmilter_callback_seconds_bucket{step="end_of_message",le="0.5"}'] == 0, "it took longer"
        assert numbers['fastmilter_callback_seconds_count{step="end_of_message"}'] == 1
        wait_until(lambda: metrics(watched)["fastmilter_threads_busy"] == 0, "no thread is busy")
    assert watched.stop() == 0


def test_numbers_of_jobs_that_wait_and_of_what_is_read_ahead(watched: Server) -> None:
    watched.filter.write_text(WAITING.replace('deadline = {"end_of_message": 1.0}', "deadline = None"))
    watched.start("--workers=1", "--threads=1", *WATCHED)
    with to_the_end(watched) as first, contextlib.closing(Client(watched.address()).open()) as second:
        wait_until(lambda: metrics(watched)["fastmilter_threads_busy"] == 1, "the callback runs")
        first.send(codec.MailFrom(b"<next@example.org>"))
        second.send(codec.MailFrom(b"<a@example.org>"))
        wait_until(lambda: metrics(watched)["fastmilter_jobs_waiting"] == 1, "one waits for the thread")
        wait_until(lambda: metrics(watched)["fastmilter_read_ahead_bytes"] > 0, "something is read ahead")
        (watched.directory / "release").touch()
        wait_until(lambda: metrics(watched)["fastmilter_jobs_waiting"] == 0, "none waits")
        wait_until(lambda: metrics(watched)["fastmilter_read_ahead_bytes"] == 0, "all is worked off")
    assert watched.stop() == 0


def test_numbers_of_tasks(watched: Server) -> None:
    waiting = WAITING.replace("blocking = True", "pass").replace("def on_end", "async def on_end")
    waiting = waiting.replace("import time", "import asyncio").replace("time.sleep", "await asyncio.sleep")
    watched.filter.write_text(waiting.replace('deadline = {"end_of_message": 1.0}', "deadline = None"))
    watched.start("--workers=1", *WATCHED)
    before = metrics(watched)
    with to_the_end(watched), to_the_end(watched):
        wait_until(lambda: metrics(watched)["fastmilter_tasks"] == 2, "two tasks")
        (watched.directory / "release").touch()
        wait_until(lambda: metrics(watched)["fastmilter_tasks"] == 0, "none is left")
        grown(watched, 'fastmilter_callback_seconds_count{step="end_of_message"}', before, 2)
        assert metrics(watched)['fastmilter_callback_seconds_sum{step="end_of_message"}'] > 0
    assert watched.stop() == 0


def test_clients_that_say_nothing_give_way(watched: Server) -> None:
    watched.start("--workers=1", *WATCHED)
    place = "127.0.0.1", int(watched.wait_log(r"metrics on http://127\.0\.0\.1:(\d+)/")[-1][1])
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(place)) for _ in range(20)]
        assert http(watched, "/readyz") == (200, "ready\n")
        silent[0].settimeout(PATIENCE_S)
        assert silent[0].recv(1) == b"", "the one that was there first"


def test_healthz_negotiates(watched: Server) -> None:
    watched.start("--workers=1", *WATCHED)
    before = metrics(watched)
    assert http(watched, "/healthz") == (200, "a milter connection was made and negotiated\n")
    grown(watched, "fastmilter_connections_accepted_total", before)
    (worker,) = watched.workers()
    os.kill(worker, signal.SIGSTOP)  # connections are still made, by the kernel
    wait_until(lambda: http(watched, "/healthz")[0] == 503, "the worker does not answer")
    os.kill(worker, signal.SIGCONT)
    wait_until(lambda: http(watched, "/healthz")[0] == 200, "it answers again")
    assert watched.stop() == 0


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /metrics HTTP/1.1\r\n\r\n", 405),
        (b"GET /nothing HTTP/1.1\r\n\r\n", 404),
        (b"GET /\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 10000, 431),
        (b"\xff\x00\n\n", 400),
        (b"GET / HTTP/1.0\n\n", 200),
    ],
)
def test_odd_requests(server: Server, request_: bytes, status: int) -> None:
    server.start("--workers=1", *WATCHED)
    assert http(server, raw=request_)[0] == status
    assert server.stop() == 0


def test_slow_clients_neither_stay_nor_keep_others_out_for_long(server: Server) -> None:
    server.start("--workers=1", *WATCHED)
    port = int(server.wait_log(r"metrics on http://127\.0\.0\.1:(\d+)/")[0][1])
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    assert control(server)["ok"], "the control socket has room of its own"
    for connection in slow:
        connection.settimeout(PATIENCE_S)
        with connection:
            connection.recv(1)  # closed, sooner or later
    assert http(server)[0] == 200
    assert server.stop() == 0


# -- the process ----------------------------------------------------------------------------------------------------


def test_the_monitor_is_a_process_of_its_own_with_nothing_of_the_filter(server: Server) -> None:
    server.filter.write_text("import decimal\n" + server.filter.read_text())
    server.start("--workers=1", *WATCHED)
    wait_until(lambda: http(server)[0] == 200, "it answers")
    (pid,) = monitors(server)
    assert title(pid) == "fastmilter: monitor [Tagger]"
    assert "_decimal" not in Path(f"/proc/{pid}/maps").read_text()
    sockets = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    port = int(server.address().split(":")[1].split("@")[0])
    listening = [each for each in psutil.Process(pid).net_connections() if each.status == psutil.CONN_LISTEN]
    assert sockets
    assert listening
    assert port not in {each.laddr.port for each in listening}, "a copy that nobody accepts from would swallow MTAs"
    assert psutil.Process(server.pid).num_threads() == 1
    assert server.stop() == 0
    wait_until(lambda: not title(pid), "it leaves with the master")


def test_the_starts_of_monitors_are_counted_on_in_an_upgrade(server: Server) -> None:
    server.start("--workers=1", *WATCHED)
    server.send(signal.SIGHUP)
    wait_until(lambda: len(monitors(server)) == 2, "a monitor of the new generation")
    server.wait_log("generation=1 status=0")  # an upgrade waits until the older workers are gone
    server.send(signal.SIGUSR2)
    server.wait_log("generation 3 serves")
    wait_until(lambda: len(monitors(server)) == 4, "one for the new master, one for its generation")
    wait_until(lambda: metrics(server)["fastmilter_monitor_starts_total"] == 4, "all of them count")
    assert server.stop() == 0


def test_a_killed_monitor_is_replaced_and_nobody_else_notices(server: Server) -> None:
    server.start("--workers=2", *WATCHED)
    workers = set(server.workers())
    with server.client() as client:
        begin(client)
        for killed in range(1, 4):
            wait_until(lambda: len(monitors(server)) == killed, "a monitor")  # noqa: B023 - runs at once
            os.kill(monitors(server)[-1], signal.SIGKILL)
        wait_until(lambda: len(monitors(server)) == 4, "another monitor")
        wait_until(lambda: http(server)[0] == 200, "it answers")
        complete(client)
    assert metrics(server)["fastmilter_monitor_starts_total"] == 4
    assert set(server.workers()) == workers
    server.wait_log("the monitor ended: starting another in 2 s")
    assert server.stop() == 0


def test_a_monitor_that_stands_still_does_not_stop_the_master(server: Server) -> None:
    server.start("--workers=1", *WATCHED)
    wait_until(lambda: monitors(server), "a monitor")
    (pid,) = monitors(server)
    os.kill(pid, signal.SIGSTOP)
    ready = 1
    for _ in range(3):
        server.send(signal.SIGHUP)
        ready += 1
        server.wait_ready(ready)
        server.wait_log("status=0", ready - 1)
    server.wait_log(f"the monitor ended pid={pid} status=-9")
    assert http(server)[0] == 200
    assert server.stop() == 0


def test_the_death_of_the_master_ends_the_monitor(server: Server) -> None:
    server.start("--workers=1", *WATCHED)
    wait_until(lambda: monitors(server), "a monitor")
    (pid,) = monitors(server)
    server.send(signal.SIGKILL)
    server.finish()
    wait_until(lambda: not title(pid), "the monitor leaves")


def test_without_options_there_is_no_monitor(server: Server) -> None:
    server.start("--workers=1")
    assert not monitors(server)
    assert server.stop() == 0


def test_a_port_that_is_taken_is_an_error_at_the_start_and_keeps_the_old_ones_at_a_reload(server: Server) -> None:
    config = server.directory / "fm.toml"
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        config.write_text('metrics = "127.0.0.1:0"\ncontrol = "control"\n')
        server.start("--workers=1", "--config=fm.toml")
        wait_until(lambda: control(server)["status"]["state"] == "serving", "it serves")
        config.write_text(f'metrics = "{taken}"\ncontrol = "control"\n')
        answer = control(server, "reload")
        assert not answer["ok"]
        assert "another program listens there already" in answer["text"]
        assert control(server)["status"]["generation"] == 1
        assert server.stop() == 0
        server.start("--workers=1", "--config=fm.toml", wait=False)
        assert server.finish() == 78
        assert "another program listens there already" in server.log()
