"""The log goes to a syslog daemon, which may be slow, or be started anew: nothing waits for it."""

import json
import re
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastmilter.client import Client
from tests.process.harness import Server, begin, complete, wait_until, whole_message

FILTER = """
import logging
from fastmilter import Filter

class Tagger(Filter):
    def on_mail(self, sender, params):
        logging.getLogger("tagger").warning("from %s\\nof caf\\udce9", sender)
"""
COUNT = 100
"""Many more than the kernel queues for a daemon."""
HEAD = r"<(\d+)>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d fastmilter\[\d+\]: "


class Daemon:
    """The socket of a syslog daemon."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[str] = []
        self.begin()

    def begin(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path))

    def end(self) -> None:
        self.socket.close()
        self.path.unlink()

    def read(self) -> None:
        """Read what has come."""
        while select.select([self.socket], [], [], 0)[0]:
            self.lines.append(self.socket.recv(1 << 16).decode())

    def wait(self, pattern: str, count: int = 1) -> list[re.Match[str]]:
        """Wait until so many lines match, each as a whole; return the matches."""
        found: list[re.Match[str]] = []

        def there() -> bool:
            nonlocal found
            self.read()
            found = [match for line in self.lines if (match := re.fullmatch(HEAD + pattern, line, re.DOTALL))]
            return len(found) >= count

        try:
            wait_until(there, f"{count} lines that match {pattern!r}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.lines}") from None
        return found


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path / "syslog")
    yield daemon
    daemon.socket.close()


def serve(server: Server, daemon: Daemon, *options: str) -> str:
    """Start the server; return its address."""
    server.filter.write_text(FILTER)
    server.start("--workers=1", f"--syslog=mail@{daemon.path}", "--log-messages", *options, wait=False)
    daemon.wait(r".*worker 1 is ready.*")
    (listens,) = daemon.wait(r".*listening on (\S+).*")
    return listens[2]


def test_all_lines_go_there_each_with_its_priority(server: Server, daemon: Daemon) -> None:
    with Client(serve(server, daemon)) as client:
        whole_message(client)
    (line,) = daemon.wait(r"warning tagger: from a@example\.org\n  of caf\\udce9 pid=\d+ client='192\.0\.2\.1:25'")
    assert line[1] == "20", "mail.warning"
    message = r"info fastmilter\.message: qid=.* client=.* from='a@example\.org' .* verdict=continue .* pid=\d+"
    (line,) = daemon.wait(message)
    assert line[1] == "22", "mail.info"
    assert server.stop() == 0
    daemon.wait(r"info fastmilter\.server\.supervisor: .*")
    assert server.log() == "", "nothing is left on standard error"


def test_objects_of_json_follow_the_same_head(server: Server, daemon: Daemon) -> None:
    server.filter.write_text(FILTER)
    server.start("--workers=1", f"--syslog=local3@{daemon.path}", "--log-messages", "--log-format=json", wait=False)
    (listens,) = daemon.wait(r'.*"message": "listening on (\S+).*')
    daemon.wait(".*worker 1 is ready.*")
    with Client(listens[2]) as client:
        whole_message(client)
    (line,) = daemon.wait(r'(\{.*"verdict": "continue".*\})')
    assert line[1] == str(19 * 8 + 6)
    assert json.loads(line[2])["from"] == "a@example.org"
    assert server.stop() == 0


def test_a_daemon_that_is_started_anew_is_found(server: Server, daemon: Daemon) -> None:
    with Client(serve(server, daemon)) as client:
        whole_message(client)
        daemon.wait(r"info fastmilter\.message: .*")
        daemon.end()
        client.mail("away@example.org")
        complete(client)
        daemon.begin()
        client.mail("back@example.org")
        complete(client)
        daemon.wait(r"info fastmilter\.message: .*from='away@example\.org'.*")
        daemon.wait(r"info fastmilter\.message: .*from='back@example\.org'.*")
        daemon.wait(r"warning tagger: from back@example\.org.*")
    assert server.stop() == 0


def test_a_daemon_that_stands_still_holds_up_no_mail(server: Server, daemon: Daemon) -> None:
    """The kernel queues some ten datagrams; the others wait in the worker, and come when the daemon goes on."""
    address = serve(server, daemon)
    server.filter.write_text(FILTER)
    with Client(address) as client:
        begin(client)
        complete(client)
        for number in range(COUNT):
            client.mail(f"{number}@example.org")
            complete(client)
        messages = daemon.wait(r"info fastmilter\.message: .*from='(\d+)@.*", COUNT)
        records = daemon.wait(r"warning tagger: from (\d+)@.*", COUNT)
    for lines in (messages, records):
        assert [int(line[2]) for line in lines] == list(range(COUNT)), "all of them, in order"
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (("--syslog=mail@/nonexistent/log",), 78, "--syslog: nobody takes lines at /nonexistent/log: No such file"),
        (("--syslog=lpr",), 64, "--syslog: 'lpr' will not do: write mail, daemon, user or local0 to local7"),
        (("--syslog=mail", "--log-file=x"), 78, "--syslog and --log-file are both given"),
    ],
)
def test_what_cannot_work_is_refused(server: Server, options: tuple[str, ...], status: int, said: str) -> None:
    server.start(*options, wait=False)
    assert server.finish() == status
    assert said in server.log()
