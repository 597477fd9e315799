"""What a real rsyslogd makes of our lines, and that none is lost while it is started anew under mail."""

import re
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from fastmilter.client import Client
from tests.examples.backends import need, running
from tests.process.harness import Server, begin, complete, wait_until, whole_message

FILTER: Final = """
import logging
from fastmilter import Filter

class Tagger(Filter):
    def on_mail(self, sender, params):
        if sender.local_part == "odd":
            logging.getLogger("tagger").warning("two\\nlines, caf\\u00e9")
"""
CONFIGURATION: Final = """
module(load="imuxsock" SysSock.Use="off")
input(type="imuxsock" Socket="{directory}/socket" CreatePath="off" RateLimit.Interval="0")
template(name="all" type="string" string="%syslogfacility-text%.%syslogseverity-text% %programname% %procid%%msg%\\n")
action(type="omfile" file="{directory}/messages" template="all")
"""
MESSAGES: Final = 40


class Rsyslog:
    """An rsyslogd of our own: one socket, one file."""

    def __init__(self, directory: Path) -> None:
        """Nothing runs until ``started``."""
        self._program = need("rsyslogd", hint="tests/process/install.sh")
        directory.mkdir()
        self._directory = directory
        self.socket = directory / "socket"
        (directory / "conf").write_text(CONFIGURATION.format(directory=directory))

    def started(self) -> AbstractContextManager[None]:
        """Run it for the time of the block."""
        options = ["-n", "-iNONE", "-f", str(self._directory / "conf")]
        return running([self._program, *options], self._directory / "log", self.socket.exists)

    def lines(self, pattern: str) -> list[re.Match[str]]:
        """Return the matches of what is in the file, line by line."""
        file = self._directory / "messages"
        written = file.read_text() if file.exists() else ""
        return [match for line in written.splitlines() if (match := re.fullmatch(pattern, line))]

    def wait(self, pattern: str, count: int = 1) -> list[re.Match[str]]:
        """Wait until so many lines match; return the matches."""
        wait_until(lambda: len(self.lines(pattern)) >= count, f"{count} lines that match {pattern!r}")
        return self.lines(pattern)


def serve(server: Server, daemon: Rsyslog) -> str:
    """Start the server; return its address."""
    server.filter.write_text(FILTER)
    server.start("--workers=1", f"--syslog=mail@{daemon.socket}", "--log-messages", wait=False)
    daemon.wait(r".*worker 1 is ready.*")
    return daemon.wait(r".*listening on (\S+).*")[0][1]


def test_facility_severity_name_and_process_are_found(server: Server, tmp_path: Path) -> None:
    daemon = Rsyslog(tmp_path / "rsyslog")
    with daemon.started():
        with Client(serve(server, daemon)) as client:
            begin(client, "odd@example.org")
            complete(client)
        (warning,) = daemon.wait(r"mail\.warning fastmilter (\d+) warning tagger: two#012  lines, café pid=(\d+) .*")
        (message,) = daemon.wait(
            r"mail\.info fastmilter (\d+) info fastmilter\.message: .* from='odd@example\.org' .* pid=(\d+)"
        )
        assert server.stop() == 0
        (ready,) = daemon.wait(r"mail\.info fastmilter (\d+) info fastmilter\.server\.supervisor: worker 1 is ready .*")
    assert {warning[1], warning[2], message[1], message[2]} == {warning[1]}, "the worker's own number"
    assert ready[1] != warning[1], "the master's"
    assert server.log() == "", "nothing is left on standard error"


def test_no_message_lacks_its_line_while_the_daemon_is_started_anew(server: Server, tmp_path: Path) -> None:
    daemon = Rsyslog(tmp_path / "rsyslog")
    with daemon.started():
        client = Client(serve(server, daemon))
        client.open()
        whole_message(client)
        daemon.wait(r".* info fastmilter\.message: .*")
    for number in range(MESSAGES):
        client.mail(f"{number}@example.org")
        complete(client)
    with daemon.started():
        client.mail("last@example.org")
        complete(client)
        client.close()
        told = daemon.wait(r".* info fastmilter\.message: .* from='(\d+)@example\.org' .*", MESSAGES)
        assert Counter(int(line[1]) for line in told) == dict.fromkeys(range(MESSAGES), 1)
        daemon.wait(r".* info fastmilter\.message: .* from='last@example\.org' .*")
        assert server.stop() == 0
