"""``fastmilter check TARGET [MESSAGE]``: play a message through a milter and show what becomes of it."""

import argparse
import ipaddress
import json
import re
import sys
from contextlib import ExitStack
from typing import Any, Final

from fastmilter.client import Client, Outcome, Timeouts
from fastmilter.commands.options import Option, UsageError, add_options, flag, one_of, read_options, text
from fastmilter.commands.private_server import READY_S, serving
from fastmilter.commands.report import Report
from fastmilter.commands.terminal import Paper, harmless, until_the_reader_leaves
from fastmilter.constants import Step
from fastmilter.endpoints import parse_endpoint
from fastmilter.errors import ConfigError, FastmilterError
from fastmilter.mta import MTAS, mta_named
from fastmilter.replies import Verdict, VerdictKind
from fastmilter.server.load import Target, parse_target
from fastmilter.server.options import parse_duration

EXIT_STATUS: Final = """\
exit status:
  0   accepted, unchanged or changed, also if the MTA is to hold it
  1   refused for good
  2   refused for now
  3   discarded
  4   no verdict: the milter could not be reached, or did not answer as a milter
  64  the command line or the message cannot be used
"""

EXIT_ACCEPTED: Final = 0
EXIT_REFUSED: Final = 1
EXIT_TEMPORARY: Final = 2
EXIT_DISCARDED: Final = 3
EXIT_NO_VERDICT: Final = 4


def _client(value: object) -> tuple[str | None, str]:
    """Read ``192.0.2.1`` or ``mail.example.org[192.0.2.1]``, as Postfix logs it; return name and address."""
    match = re.fullmatch(r"(?:([^\[\]]*)\[([^\[\]]+)\]|([^\[\]]+))", str(value))
    address = (match[2] or match[3]) if match else ""
    try:
        ip = ipaddress.ip_address(address[5:] if address[:5].lower() == "ipv6:" else address)
    except ValueError:
        raise ConfigError(f"{value!r} is no client: write an IP address, or NAME[ADDRESS]") from None
    return (match[1] if match else None) or None, str(ip)


def _texts(value: object) -> list[str]:
    assert isinstance(value, list)
    return value


def _macros(value: object) -> dict[Step | None, dict[str, str]]:
    """Read macros, each ``name=value`` or ``step:name=value``; ``None`` where no step is named."""
    macros: dict[Step | None, dict[str, str]] = {}
    assert isinstance(value, list)
    for word in value:
        head, equals, content = word.partition("=")
        place, colon, name = head.rpartition(":")
        if not equals or not name or (colon and place not in [str(step) for step in Step]):
            steps = ", ".join(Step)
            raise ConfigError(f"{word!r} will not do: write name=value or step:name=value; the steps are {steps}")
        macros.setdefault(Step(place) if colon else None, {})[name] = content
    return macros


_RECIPIENT: Final = "b@example.net"

OPTIONS: Final = (
    Option(
        "target",
        text,
        None,
        "TARGET",
        "the milter: an address (inet:PORT@HOST, inet6:PORT@[HOST], unix:/path, /path), or a filter (module:Class,"
        " path/to/file.py:Class), which is served for this check in a process of its own",
        positional=True,
    ),
    Option("message", text, "-", "MESSAGE", "the file with the message; - is standard input", positional=True),
    Option("from", text, "a@example.org", "ADDRESS", "the sender; empty: the null reverse-path of a bounce"),
    Option(
        "rcpt", _texts, None, "ADDRESS", f"a recipient; may be given several times (default {_RECIPIENT})", repeat=True
    ),
    Option("helo", text, None, "NAME", "the name that the client gives in EHLO (default: the name of the client)"),
    Option(
        "client",
        _client,
        "localhost[127.0.0.1]",
        "CLIENT",
        "the SMTP client: an IPv4 or IPv6 address, or NAME[ADDRESS]",
    ),
    Option(
        "macro",
        _macros,
        None,
        "[STEP:]NAME=VALUE",
        "a macro that the MTA is to send; without STEP where the MTA sends it by default, else at connect; may be given"
        " several times",
        repeat=True,
    ),
    Option("mta", one_of(*MTAS), "postfix", "|".join(MTAS), "which MTA to play, and whose rules hold for the changes"),
    Option("config", text, None, "FILE", "for a filter: the configuration whose [filter] table it gets"),
    Option(
        "timeout",
        parse_duration,
        None,
        "SECONDS",
        "longest wait for any answer (default: as Postfix, 30 s, and 300 s in the message)",
    ),
    Option("json", flag, None, "", "the result as one JSON object", flag=True),
)
"""Every option of ``fastmilter check``."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the table."""
    add_options(parser, OPTIONS, epilog=EXIT_STATUS)


@until_the_reader_leaves
def run(arguments: argparse.Namespace) -> int:
    """Play the message and report; return the exit status."""
    options = read_options(arguments, OPTIONS)
    options["rcpt"] = options["rcpt"] or [_RECIPIENT]
    if options["target"] is None:
        raise UsageError("no milter given: write fastmilter check ADDRESS, or module:Class, and a message")
    target = _target(options["target"])
    message = _read(options["message"])
    paper = Paper()
    try:
        outcome, agreed = _play(target, message, options)
    except ConfigError as error:
        raise UsageError(str(error)) from None
    except FastmilterError as error:
        print(f"fastmilter: no verdict: {harmless(str(error))}", file=sys.stderr)
        return EXIT_NO_VERDICT
    status = exit_status(outcome)
    name = "message" if options["message"] == "-" else options["message"]
    report = Report(outcome, agreed, options["rcpt"], str(options["target"]), name, status)
    if options["json"]:
        print(json.dumps(report.as_object(), indent=2))
    else:
        for line in report.as_lines(paper):
            print(line)
    return status


def exit_status(outcome: Outcome) -> int:
    """Return the exit status for what became of a message."""
    verdict = outcome.verdict
    if verdict.is_refusal:
        return _refusal(verdict)
    if verdict.kind is VerdictKind.DISCARD:
        return EXIT_DISCARDED
    applied = outcome.apply()
    # The filter lets it pass, and the MTA cannot do what it was asked for: it answers 451.
    failed = not applied.delivered and not applied.quarantined and applied.recipients
    return EXIT_TEMPORARY if failed else EXIT_ACCEPTED


def _refusal(verdict: Verdict) -> int:
    return EXIT_TEMPORARY if verdict.is_temporary else EXIT_REFUSED


def _target(words: str) -> str | Target:
    """Return an address as it is, a filter as a ``Target``."""
    is_address = words.split(":")[0].lower() in ("inet", "inet6", "unix", "local", "fd") or words[:1] in ("/", ".")
    try:
        if is_address and not re.search(r"\.py:[\w.]+$", words):
            parse_endpoint(words)
            return words
        return parse_target(words)
    except ConfigError as error:
        raise UsageError(f"TARGET: {error}; or the address of a milter, such as inet:8894@127.0.0.1") from None


def _read(path: str) -> bytes:
    try:
        if path == "-":
            return sys.stdin.buffer.read()
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def _play(target: str | Target, message: bytes, options: dict[str, Any]) -> tuple[Outcome, Any]:
    seconds = options["timeout"]
    timeouts = Timeouts() if seconds is None else Timeouts(seconds, seconds, seconds, seconds)
    hostname, address = options["client"]
    name = hostname or ("unknown" if options["mta"] == "postfix" else f"[{address}]")
    with ExitStack() as stack:
        place: Any = target
        if isinstance(target, Target):
            place = stack.enter_context(serving(target, options["config"]))
            # Loading the filter takes its time; nobody will ask for it again.
            with Client(place, mta=options["mta"], timeouts=Timeouts(command=READY_S + 5)):
                pass
        client = stack.enter_context(Client(place, mta=options["mta"], timeouts=timeouts))
        outcome = client.send_message(
            message,
            options["from"],
            options["rcpt"],
            hostname=name,
            address=address,
            port=25000,
            helo=options["helo"] or name,
            macros=_by_step(options["macro"] or {}, options["mta"]),
        )
        return outcome, client.agreed


def _by_step(macros: dict[Step | None, dict[str, str]], mta: str) -> dict[Step, dict[str, str]]:
    """Return the macros with a step for each: the first at which the MTA sends one of that name by default."""
    found: dict[Step, dict[str, str]] = {step: dict(values) for step, values in macros.items() if step is not None}
    for name, value in macros.get(None, {}).items():
        bare = name.strip("{}")
        step = next(
            (step for step, names in mta_named(mta).macros.items() if bare in [each.strip("{}") for each in names]),
            Step.CONNECT,
        )
        found.setdefault(step, {})[name] = value
    return found
