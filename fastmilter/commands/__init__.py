"""The command ``fastmilter``: one module per subcommand over this entry.

A subcommand is a module of this package with ``HELP`` (one line), ``add_arguments(parser)`` and ``run(arguments)``,
which returns the exit status. Only the one that is called is imported, so that each starts as fast as it can.
"""

import argparse
import difflib
import importlib
import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

from fastmilter._version import __version__
from fastmilter.commands.log_handler import PatientHandler
from fastmilter.errors import ConfigError

if TYPE_CHECKING:
    from fastmilter.server.syslog import Syslog

EXIT_OK: Final = 0
EXIT_USAGE: Final = 64
EXIT_SOFTWARE: Final = 70
EXIT_CONFIG: Final = 78
EXIT_INTERRUPTED: Final = 130
"""What a shell expects of a program that Ctrl-C ended before it could do better."""

EXIT_STATUS: Final = """\
exit status:
  0   stopped as it was asked to
  64  the command line cannot be used
  70  internal error: a worker crashed, had to be killed, or could not start
  78  configuration: an option, an address, the file or the filter cannot be used
"""

SUBCOMMANDS: Final = {
    "serve": "run a filter as a server",
    "status": "show what a server is doing",
    "top": "show what a server is doing, live",
    "reload": "have a server read code and configuration again",
    "scale": "change the number of workers of a server",
    "stop": "have a server finish what it serves, and leave",
    "reopen-logs": "have a server open its log file anew",
    "check": "play a message through a filter and show what becomes of it",
    "tap": "stand between MTA and milter and record what they say",
    "decode": "print a recording, or a stream of bytes, packet by packet",
}
"""The subcommands and what each does."""


class Parser(argparse.ArgumentParser):
    """A parser that ends with the documented status and suggests what was meant."""

    def error(self, message: str) -> NoReturn:
        """Report a command line that cannot be used, and leave."""
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\nTry '{self.prog} --help'.\n")

    def refuse(self, word: str) -> NoReturn:
        """Report a word that is no option of ours and no argument that is expected."""
        if not word.startswith("-"):
            self.error(f"{word!r} is one argument too many")
        known = [option for option in self._option_string_actions if option.startswith("--")]
        close = difflib.get_close_matches(word.partition("=")[0], known, n=1)
        self.error(f"there is no option {word}" + (f"; did you mean {close[0]}?" if close else ""))


_INVISIBLE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What has no place in a line: it would end it, steer the terminal, turn the text around, or is no character."""


def shown_safely(text: str) -> str:
    r"""Return a text for the log: all of it visible, and no line after the first can be taken for a record's first.

    >>> print(shown_safely("got \x1b[31m\n2026-11-22T22:04:51.123+0000 info forged\udcff"))
    got \x1b[31m
      2026-11-22T22:04:51.123+0000 info forged\udcff
    """
    if text.isprintable():
        return text
    visible = _INVISIBLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
    return visible.replace("\n", "\n  ")


class LogFormat(logging.Formatter):
    """``2026-11-22T22:04:51.123+0000 warning fastmilter.server.worker: text key=value``.

    What filters log may be what somebody sent them, and so may the texts of exceptions: see ``shown_safely``.
    """

    def __init__(self, *, stamped: bool = True) -> None:
        """Set the pattern; without the time (``stamped``) for who notes it anyway."""
        super().__init__(f"{'%(asctime)s ' * stamped}%(lowercase)s %(name)s: %(message)s%(end)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - logging's name
        """Return local time with its offset, to the millisecond."""
        local = time.localtime(record.created)
        return f"{time.strftime('%Y-%m-%dT%H:%M:%S', local)}.{int(record.msecs):03d}{time.strftime('%z', local)}"

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        record.lowercase = record.levelname.lower()
        record.end = getattr(record, "end_of_line", "")  # what a record of a filter is about
        return shown_safely(super().format(record))


class JsonFormat(LogFormat):
    """``{"time": "...", "level": "warning", "logger": "fastmilter.server.worker", "message": "...", "pid": 4711}``."""

    def __init__(self, *, most_bytes: int | None = None) -> None:
        """Cut long texts, so that a line is at most ``most_bytes``; by default none is cut."""
        super().__init__()
        self._most_bytes = most_bytes

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record; a traceback is in it as ``exception``, ``stack_info`` as ``stack``."""
        from fastmilter.server.json_line import json_line  # here: most servers do without

        fields: dict[str, object] = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
            **getattr(record, "about", {}),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = self.formatStack(record.stack_info)
        return json_line(fields, self._most_bytes)


def open_standard_descriptors() -> None:
    """Open what is closed of descriptors 0 to 2: a socket that got one of them would be written to by ``print``."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - for the life of the process


def set_up_logging(level: str, *, as_json: bool = False, syslog: "Syslog | None" = None) -> None:
    """Write log records of ``level`` and above to standard error or syslog; only commands do that, no library."""
    handler: logging.Handler
    most_bytes: int | None = None
    if syslog is None:
        handler = PatientHandler(sys.stderr)
    else:
        from fastmilter.server.syslog import MOST_BYTES_OF_TEXT  # here: no other command needs it
        from fastmilter.server.syslog_handler import SyslogHandler

        handler = SyslogHandler(syslog)
        most_bytes = MOST_BYTES_OF_TEXT
    handler.setFormatter(JsonFormat(most_bytes=most_bytes) if as_json else LogFormat(stamped=syslog is None))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def let_go_of_broken_streams() -> None:
    """Point an output whose reader has gone to nowhere: the interpreter would make exit status 120 of it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments`` (default: the command line); return the exit status."""
    open_standard_descriptors()
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except BrokenPipeError:
        return EXIT_SOFTWARE  # nobody reads what there was to say
    finally:
        let_go_of_broken_streams()


def _run(words: list[str]) -> int:
    parser = Parser(
        prog="fastmilter",
        description="Milters (mail filters for Postfix and Sendmail) in Python.",
        epilog="fastmilter COMMAND --help tells the options and the exit status of a command.\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fastmilter {__version__}")
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    modules: dict[str, Any] = {}
    parsers: dict[str, Parser] = {}
    for name, text in SUBCOMMANDS.items():
        parsers[name] = subparsers.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=EXIT_STATUS,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if words and words[0] == name:
            modules[name] = importlib.import_module(f"fastmilter.commands.{name.replace('-', '_')}")
            modules[name].add_arguments(parsers[name])
    try:
        parsed, unknown = parser.parse_known_args(words)
        if unknown:
            parsers[parsed.command].refuse(unknown[0])
        return int(modules[parsed.command].run(parsed))
    except ConfigError as error:
        from fastmilter.server.settings import UsageError

        print(f"fastmilter: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_CONFIG
    except SystemExit as end:  # --help, --version and wrong usage: argparse leaves this way
        return end.code if isinstance(end.code, int) else EXIT_OK
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception:
        logging.getLogger(__name__).exception("internal error; please report it")
        return EXIT_SOFTWARE
