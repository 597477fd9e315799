"""``fastmilter tap --listen A --upstream B --out FILE``: record what an MTA and a milter say, in production."""

import argparse
import contextlib
import logging
import resource
from typing import Any, Final

from fastmilter.commands import EXIT_OK, set_up_logging
from fastmilter.commands.options import Option, UsageError, add_options, flag, read_options, text
from fastmilter.commands.recorder import Recorder, open_output
from fastmilter.commands.recordings import TO_FILTER, TO_MTA, Direction
from fastmilter.commands.redaction import Redactor
from fastmilter.commands.relay import Relay, resolve
from fastmilter.endpoints import parse_endpoint
from fastmilter.errors import ConfigError
from fastmilter.server.listen import open_listener, spelling_for_postfix
from fastmilter.server.options import parse_duration

log = logging.getLogger(__name__)


def _endpoint(value: object) -> Any:
    endpoint = parse_endpoint(str(value))
    if endpoint.proxy:
        raise ConfigError(f"{endpoint}: leave out ?proxy=yes, which is for fastmilter serve")
    return endpoint


OPTIONS: Final = (
    Option(
        "listen",
        _endpoint,
        None,
        "ADDRESS",
        "where the MTA connects: inet:PORT@HOST, inet6:PORT@[HOST], unix:/path?mode=0660&group=postfix, fd:N, or as"
        " Postfix writes it",
    ),
    Option("upstream", _endpoint, None, "ADDRESS", "where the milter listens"),
    Option(
        "out",
        text,
        None,
        "FILE",
        "where the recording goes: JSON Lines, one object per read; a new file, readable by its user alone",
    ),
    Option(
        "redact",
        flag,
        None,
        "",
        "record sizes and structure but no content: every text becomes x of equal length, names of macros and reply"
        " codes stay",
        flag=True,
    ),
    Option(
        "grace",
        parse_duration,
        "20",
        "SECONDS",
        "when told to stop, how long connections may go on that are open",
    ),
)
"""Every option of ``fastmilter tap``."""

EXIT_STATUS: Final = """\
exit status:
  0   stopped as it was asked to
  64  the command line cannot be used
  78  an address or the file cannot be used
"""

_EPILOG: Final = f"""\
Let the milter listen where it does, and give the MTA the address of --listen instead; when the tap is stopped, give it
back the one of the milter. A full or slow disk costs records, which are counted, but never the traffic.

signals:
  TERM, INT  take no more connections and end with the last one, or after --grace; the second time, end now

{EXIT_STATUS}"""

_FINISH_S: Final = 5.0
"""How long the end waits for the disk."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the table."""
    add_options(parser, OPTIONS, epilog=_EPILOG)


def run(arguments: argparse.Namespace) -> int:
    """Record until told to stop; return the exit status."""
    options = read_options(arguments, OPTIONS)
    for name in ("listen", "upstream", "out"):
        if options[name] is None:
            raise UsageError(f"--{name} is missing: write fastmilter tap --listen A --upstream B --out FILE")
    set_up_logging("info")
    _allow_many_connections()
    upstream = resolve(options["upstream"])
    listener = open_listener(options["listen"])
    try:
        recorder = Recorder(open_output(options["out"]))
        relay = Relay(
            listener.socket, upstream, _Scribe(recorder, redact=bool(options["redact"])), grace_s=options["grace"]
        )
        log.info("listening on %s (Postfix: %s)", listener.bound, spelling_for_postfix(listener.bound))
        log.info("passing on to %s, recording in %s", options["upstream"], options["out"])
        try:
            relay.run()
        finally:
            recorder.close(_FINISH_S)
    finally:
        listener.close()
    log.info("ends connections=%d records=%d dropped=%d", relay.connections, recorder.written, recorder.dropped)
    return EXIT_OK


def _allow_many_connections() -> None:
    """Use all the descriptors that the system allows: each connection takes two."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # a limit that may be read but not be used is no reason to stop
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class _Scribe:
    """Tells the recorder what happens, without its content if that is wanted."""

    def __init__(self, recorder: Recorder, *, redact: bool) -> None:
        self._recorder = recorder
        self._redact = redact
        self._segments: dict[tuple[int, Direction], int] = {}
        self._redactors: dict[tuple[int, Direction], Redactor] = {}

    def opened(self, conn: int) -> None:
        """Begin a connection."""
        for direction in (TO_FILTER, TO_MTA):
            key: tuple[int, Any] = (conn, direction)
            self._segments[key] = 0
            if self._redact:
                self._redactors[key] = Redactor(command=direction == TO_FILTER)
        self._recorder.event(conn, TO_FILTER, "open")

    def data(self, conn: int, direction: Direction, data: bytes) -> None:
        """Record a read."""
        segment = self._segments[conn, direction]
        self._segments[conn, direction] = segment + 1
        shown = self._redactors[conn, direction].redact(data) if self._redact else data
        self._recorder.add(conn, direction, segment, shown)

    def event(self, conn: int, direction: Direction, event: str) -> None:
        """Record what became of a connection."""
        self._recorder.event(conn, direction, event)

    def closed(self, conn: int) -> None:
        """Forget a connection."""
        for direction in (TO_FILTER, TO_MTA):
            key: tuple[int, Any] = (conn, direction)
            self._segments.pop(key, None)
            self._redactors.pop(key, None)
