"""A private Sendmail, from the package that install.sh unpacked: own configuration, queues and port."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from .environment import SENDMAIL_CF, SENDMAIL_PROGRAM, SENDMAIL_SHIM, LabError, program
from .mta import HOST_NAME, Mta, end_group
from .sink import Sink
from .smtp import SmtpClient

# Common to the daemon and to the submission program. No name service but a file of our own; no ident; no limits by
# load average, since the machine may be busy with other tests.
_COMMON = """\
divert(0)dnl
VERSIONID(`fastmilter laboratory')
OSTYPE(`linux')
define(`confDOMAIN_NAME', `{host}')
define(`STATUS_FILE', `{directory}/statistics')
define(`HELP_FILE', `{directory}/helpfile')
define(`confHOSTS_FILE', `{directory}/hosts')
define(`confSERVICE_SWITCH_FILE', `{directory}/service.switch')
define(`confTO_IDENT', `0')
define(`confLOG_LEVEL', `14')
define(`confDONT_PROBE_INTERFACES', `True')
define(`confQUEUE_LA', `10000')
define(`confREFUSE_LA', `10000')
define(`confDELAY_LA', `0')
undefine(`ALIAS_FILE')
"""

_DAEMON = """\
define(`QUEUE_DIR', `{directory}/mqueue')
define(`confPID_FILE', `{directory}/sendmail.pid')
define(`confTRUSTED_USER', `root')
define(`SMART_HOST', `relay:[127.0.0.1]')
define(`RELAY_MAILER_ARGS', `TCP $h {sink}')
FEATURE(`no_default_msa')
FEATURE(`nocanonify')
FEATURE(`promiscuous_relay')
FEATURE(`accept_unqualified_senders')
FEATURE(`accept_unresolvable_domains')
DAEMON_OPTIONS(`Name=MTA, Addr=127.0.0.1, Port={port}')
{filters}
MAILER(`local')
MAILER(`smtp')
"""

_SUBMISSION = """\
define(`MSP_QUEUE_DIR', `{directory}/client-queue')
define(`confPID_FILE', `{directory}/client.pid')
define(`confRUN_AS_USER', `{user_id}:{user_id}')
define(`LOCAL_MAILER_ARGS', `TCP $h {port}')
define(`RELAY_MAILER_ARGS', `TCP $h {port}')
FEATURE(`msp', `[127.0.0.1]')
"""


# The submission program refuses to run as root. Debian has this user everywhere.
_SUBMISSION_USER = "mail"


class Sendmail(Mta):
    """Sendmail with `INPUT_MAIL_FILTER`s; the time-outs and macro lists are its defaults unless given."""

    name = "sendmail"

    def __init__(self, sink: Sink, milters: Sequence[str], flags: str = "T", timeouts: str = "") -> None:
        """`flags` is F= (`T`: a filter that fails is a temporary failure), `timeouts` is T= (empty: the defaults)."""
        super().__init__(sink, milters)
        self._flags = flags
        self._timeouts = timeouts
        self._process: subprocess.Popen[bytes] | None = None

    def _filters(self) -> str:
        options = (f", F={self._flags}" if self._flags else "") + (f", T={self._timeouts}" if self._timeouts else "")
        lines = [
            f"INPUT_MAIL_FILTER(`lab{number}', `S={address}{options}')" for number, address in enumerate(self.milters)
        ]
        return "\n".join(lines)

    def _write_configuration(self, name: str, template: str) -> None:
        source = (_COMMON + template).format(
            host=HOST_NAME,
            directory=self.directory,
            port=self.port,
            sink=self.sink.port,
            filters=self._filters(),
            user_id=_SUBMISSION_USER,
        )
        (self.directory / f"{name}.mc").write_text(source)
        command = [program("m4") or "m4", f"-D_CF_DIR_={SENDMAIL_CF}/", str(SENDMAIL_CF / "m4/cf.m4")]
        done = subprocess.run(
            [*command, str(self.directory / f"{name}.mc")], capture_output=True, timeout=60, check=False
        )
        if done.returncode != 0:
            raise LabError(f"m4 ended {done.returncode}: {done.stderr.decode()}")
        (self.directory / f"{name}.cf").write_bytes(done.stdout)

    def start(self) -> None:
        """Take up to half a second."""
        (self.directory / "mqueue").mkdir(mode=0o700)
        submissions = self.directory / "client-queue"
        submissions.mkdir()
        submissions.chmod(0o770)
        self.log_file.touch()
        self.log_file.chmod(0o666)
        for path in (submissions, self.log_file):
            shutil.chown(path, _SUBMISSION_USER, _SUBMISSION_USER)
        (self.directory / "hosts").write_text(f"127.0.0.1 localhost\n127.0.0.1 {HOST_NAME}\n")
        (self.directory / "service.switch").write_text("hosts files\naliases files\n")
        (self.directory / "helpfile").write_text("#vers 2\n")
        (self.directory / "statistics").touch()
        self._write_configuration("sendmail", _DAEMON)
        self._write_configuration("submit", _SUBMISSION)
        with (self.directory / "output").open("wb") as output:
            daemon = self._process = subprocess.Popen(
                self._command("sendmail", "-bD"),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._wait_for_greeting(lambda: daemon.poll() is not None)

    def stop(self) -> None:
        """End the daemon and its children."""
        if self._process is not None:
            end_group(self._process.pid)
            self._process.wait(10)
        self._remove_directory()

    def submit(self, message: bytes, sender: str, recipients: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
        """Sendmail's submission program: by SMTP to the daemon."""
        return subprocess.run(
            self._command("submit", "-i", "-f", sender, "--", *recipients),
            env=self._environment(),
            input=message,
            capture_output=True,
            timeout=60,
            check=False,
        )

    def smtp_on_stdin(self) -> SmtpClient:
        """The daemon's own program and configuration, the client on its standard input."""
        return SmtpClient.over_pipes(self._command("sendmail", "-bs"), self._environment())

    def waiting(self) -> list[str]:
        """Envelope files of both queues: in work, waiting, locked for a new envelope."""
        return self._envelopes("qf", "tf", "xf") + [
            str(path.name) for path in (self.directory / "client-queue").iterdir()
        ]

    def held(self) -> list[str]:
        """Quarantined envelopes."""
        return self._envelopes("hf")

    def discard_queue(self) -> None:
        """By hand: the queues are ours alone."""
        for queue in ("mqueue", "client-queue"):
            for path in (self.directory / queue).iterdir():
                path.unlink(missing_ok=True)

    def retry(self) -> None:
        """One run over the submission queue."""
        subprocess.run(self._command("submit", "-q"), env=self._environment(), timeout=60, check=True)

    def _envelopes(self, *prefixes: str) -> list[str]:
        names = [path.name for path in (self.directory / "mqueue").iterdir()]
        return [name for name in names if name.startswith(prefixes)]

    def _command(self, configuration: str, *arguments: str) -> list[str]:
        return [str(SENDMAIL_PROGRAM), "-C", str(self.directory / f"{configuration}.cf"), *arguments]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "LD_PRELOAD": str(SENDMAIL_SHIM), "FASTMILTER_LAB_LOG": str(self.log_file)}
