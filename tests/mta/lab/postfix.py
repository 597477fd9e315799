"""A private Postfix: own configuration, queue and port; the system's instance is not touched."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from .environment import LabError, program
from .mta import HOST_NAME, UNKNOWN_RECIPIENT, Mta, end_group
from .sink import Sink
from .smtp import SmtpClient

# Where mail lies that is still on its way; `hold` is not among them.
_ACTIVE_QUEUES = ("maildrop", "incoming", "active", "deferred")

_MASTER_CF = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup     unix n - n 60    1 pickup
cleanup    unix n - n -     0 cleanup
qmgr       unix n - n 300   1 qmgr
rewrite    unix - - n -     - trivial-rewrite
bounce     unix - - n -     0 bounce
defer      unix - - n -     0 bounce
trace      unix - - n -     0 bounce
verify     unix - - n -     1 verify
flush      unix n - n 1000? 0 flush
proxymap   unix - - n -     - proxymap
smtp       unix - - n -     - smtp
relay      unix - - n -     - smtp
showq      unix n - n -     - showq
error      unix - - n -     - error
retry      unix - - n -     - error
discard    unix - - n -     - discard
anvil      unix - - n -     1 anvil
scache     unix - - n -     1 scache
postlog    unix-dgram n - n - 1 postlogd
"""


def _spelled_for_postfix(address: str) -> str:
    kind, _, rest = address.partition(":")
    if kind == "inet":
        port, _, host = rest.partition("@")
        return f"inet:{host}:{port}"
    return address


class Postfix(Mta):
    """Postfix with `smtpd_milters` and `non_smtpd_milters`; the time-outs and macro lists are its defaults."""

    name = "postfix"

    def __init__(self, sink: Sink, milters: Sequence[str], settings: Mapping[str, str] | None = None) -> None:
        """`settings` are lines of main.cf that come last and win."""
        super().__init__(sink, milters)
        self.configuration = self.directory / "etc"
        self.queue = self.directory / "spool"
        self._settings = dict(settings or {})

    def _main_cf(self) -> str:
        milters = ", ".join(_spelled_for_postfix(address) for address in self.milters)
        parameters = {
            "compatibility_level": "3.6",
            "queue_directory": str(self.queue),
            "data_directory": str(self.directory / "data"),
            "maillog_file": str(self.log_file),
            "maillog_file_prefixes": str(self.directory),
            "myhostname": HOST_NAME,
            "mydestination": "",
            "mynetworks": "127.0.0.0/8",
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            "disable_dns_lookups": "yes",
            "alias_maps": "",
            "local_recipient_maps": "",
            "relayhost": f"[127.0.0.1]:{self.sink.port}",
            "smtpd_relay_restrictions": "permit_mynetworks, reject",
            "smtpd_recipient_restrictions": (
                f"check_recipient_access inline:{{ {{ {UNKNOWN_RECIPIENT} = REJECT User unknown }} }}, permit"
            ),
            # Tests provoke errors by the dozen: no pauses and no limits for clients that do.
            "smtpd_error_sleep_time": "0",
            "smtpd_soft_error_limit": "1000",
            "smtpd_hard_error_limit": "1000",
            "smtpd_client_connection_count_limit": "0",
            "in_flow_delay": "0",
            "smtpd_milters": milters,
            "non_smtpd_milters": milters,
            **self._settings,
        }
        return "".join(f"{name} = {value}\n" for name, value in parameters.items())

    def start(self) -> None:
        """Take up to 3 seconds."""
        self.configuration.mkdir()
        self.queue.mkdir()
        data = self.directory / "data"
        data.mkdir(mode=0o700)
        self._run("chown", "postfix", data)
        (self.configuration / "main.cf").write_text(self._main_cf())
        (self.configuration / "master.cf").write_text(_MASTER_CF.format(port=self.port))
        self._run(program("postfix") or "postfix", "-c", self.configuration, "start")
        self._wait_for_greeting()

    def stop(self) -> None:
        """End the master and its children."""
        pid_file = self.queue / "pid" / "master.pid"
        if pid_file.exists():
            end_group(int(pid_file.read_text()))
        self._remove_directory()

    def submit(self, message: bytes, sender: str, recipients: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
        """Postfix's sendmail(1): into maildrop; cleanup asks the milters."""
        command = [self._sendmail(), "-C", str(self.configuration), "-i", "-f", sender, "--", *recipients]
        return subprocess.run(command, input=message, capture_output=True, timeout=60, check=False)

    def smtp_on_stdin(self) -> SmtpClient:
        """A stand-alone smtpd whose mail goes into maildrop."""
        return SmtpClient.over_pipes([self._sendmail(), "-C", str(self.configuration), "-bs"], dict(os.environ))

    def waiting(self) -> list[str]:
        """Files of maildrop, incoming, active and deferred."""
        return [name for queue in _ACTIVE_QUEUES for name in self._files(queue)]

    def held(self) -> list[str]:
        """Files of the hold queue."""
        return self._files("hold")

    def discard_queue(self) -> None:
        """By postsuper."""
        self._run(program("postsuper") or "postsuper", "-c", self.configuration, "-d", "ALL")

    def retry(self) -> None:
        """Wake the pickup daemon, which otherwise looks once a minute."""
        self._run(program("postkick") or "postkick", "-c", self.configuration, "public", "pickup", "W")

    def _files(self, queue: str) -> list[str]:
        names = []
        for directory, _, files in os.walk(self.queue / queue):
            names += [f"{Path(directory).relative_to(self.queue)}/{name}" for name in files]
        return names

    @staticmethod
    def _sendmail() -> str:
        # Not the one in the search path: another MTA's may come first there.
        return str(Path(program("postconf") or "postconf").with_name("sendmail"))

    @staticmethod
    def _run(*command: str | Path) -> None:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            raise LabError(f"{command[0]} ended {done.returncode}: {done.stdout}{done.stderr}")
