"""Lines for the syslog daemon of this machine, which may be slow, stand still, or be started anew (RFC 3164).

Each line is a datagram of its own to the daemon's unix socket. The sender never waits: what the daemon does not take
now waits here, as for a pipe that is full; and a daemon that was started anew is connected to again.
"""

import os
import socket
import time
from typing import Final, NamedTuple

from fastmilter.errors import ConfigError
from fastmilter.server.line_writer import LineWriter

DAEMON: Final = "/dev/log"
MOST_BYTES: Final = 8192
"""The most of a line that is sent: what daemons take by default."""
MOST_BYTES_OF_TEXT: Final = MOST_BYTES - 64
"""What of that is left for the text: ``Syslog.head`` returns at most 42 characters."""
TOOK_NO_MORE: Final = "the syslog daemon took no more"
"""How a line begins that tells how much is missing."""

FACILITIES: Final = {"user": 1, "mail": 2, "daemon": 3, **{f"local{number}": 16 + number for number in range(8)}}
_SEVERITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_TAG: Final = "fastmilter"
_STDERR: Final = 2


class Syslog(NamedTuple):
    """Where lines go: a facility, and the socket of the daemon."""

    facility: str
    path: str

    def head(self, level: str) -> str:
        """Return what a line of ``level`` begins with, now and in this process: RFC 3164 section 4.1, local time."""
        now = time.localtime()
        priority = FACILITIES[self.facility] * 8 + _SEVERITIES.get(level, 5)
        clock = f"{_MONTHS[now.tm_mon - 1]} {now.tm_mday:2} {now.tm_hour:02}:{now.tm_min:02}:{now.tm_sec:02}"
        return f"<{priority}>{clock} {_TAG}[{os.getpid()}]: "


def parse_syslog(value: object) -> Syslog:
    """Read a facility, and the path of the daemon's socket if it is not the usual one.

    >>> parse_syslog("mail"), parse_syslog("local0@/run/syslog.sock")
    (Syslog(facility='mail', path='/dev/log'), Syslog(facility='local0', path='/run/syslog.sock'))
    """
    facility, at, path = value.partition("@") if isinstance(value, str) else ("", "", "")
    if facility not in FACILITIES or (at and not path.startswith("/")):
        raise ConfigError(
            f"{value!r} will not do: write mail, daemon, user or local0 to local7,"
            f" or the same with @/path of the daemon's socket"
        )
    return Syslog(facility, path or DAEMON)


def tell_on_stderr(text: str) -> None:
    """Say at the end what the daemon does not take, if that can be said without waiting."""
    try:
        writer = LineWriter(_STDERR)
    except OSError:  # it is closed
        return
    writer.put(f"fastmilter: {text.rstrip()}\n".encode())
    writer.flush()
    writer.close()


class SyslogWriter(LineWriter):
    """Lines for a syslog daemon; ``put`` them whole, with what ``Syslog.head`` returns in front."""

    def __init__(self, syslog: Syslog) -> None:
        """Connect to the daemon, if it is there."""
        self._path = syslog.path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        super().__init__(self._socket.fileno(), together=False)
        self.connect()

    def connect(self) -> OSError | None:
        """Connect to the daemon, or once more if it was started anew; return why that failed."""
        try:
            self._socket.connect(self._path)
        except OSError as error:
            return error
        return None

    def put(self, line: bytes) -> None:
        """Have a line sent by the next ``flush``; cut if it is too long."""
        line = line.rstrip(b"\n")
        if len(line) > MOST_BYTES:
            end = MOST_BYTES
            while end > MOST_BYTES - 3 and line[end] & 0xC0 == 0x80:  # not in the middle of a character
                end -= 1
            line = line[:end]
        super().put(line)

    def flush(self) -> int:
        """Send what is taken now; return how many lines were lost, as ``LineWriter``."""
        lost = super().flush()
        if self.waiting and not self.is_blocked and self.connect() is None:
            lost += super().flush()
        return lost

    def close(self) -> None:
        """Close the socket; what waits is lost."""
        super().close()
        self._socket.close()
