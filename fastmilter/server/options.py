"""The options of the server: one table.

``OPTIONS`` is the only place where an option stands. The command line, the names of environment variables, the keys of
the TOML file and the reference (docs/options.md) are made from it.

Errors are ``ConfigError``, which say what would be right.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from fastmilter.constants import MAX_HEADER_BYTES, MAX_HEADER_FIELDS, MAX_RECIPIENTS
from fastmilter.endpoints import Endpoint, parse_endpoint
from fastmilter.errors import ConfigError
from fastmilter.server.listen import BACKLOG
from fastmilter.server.load import Target, parse_target
from fastmilter.server.numbers import (
    parse_backlog,
    parse_limit,
    parse_limit_or_auto,
    parse_number,
    parse_size,
    whole_number,
)
from fastmilter.server.peers import parse_networks, parse_users
from fastmilter.server.places import parse_control, parse_metrics
from fastmilter.server.syslog import parse_syslog

ENVIRONMENT_PREFIX: Final = "FASTMILTER_"
FILTER_TABLE: Final = "filter"
FILTER_VARIABLE: Final = ENVIRONMENT_PREFIX + FILTER_TABLE.upper()

MAX_WORKERS: Final = 1024
MAX_THREADS: Final = 4096
_MAX_DURATION_S: Final = 7 * 86400.0
_LOG_LEVELS: Final = ("debug", "info", "warning", "error")
_LOG_FORMATS: Final = ("plain", "json")


# Reading one value: each takes what a string or TOML can hold and raises ConfigError with the right form.


def parse_workers(value: object) -> int:
    """Read a number of workers; "auto" is one per processor that this process may run on."""
    if value == "auto":
        return processors()
    return whole_number(value, 1, MAX_WORKERS, "a whole number from 1, or auto")


def processors() -> int:
    """Return the number of processors that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and the BSDs
        return os.cpu_count() or 1


def parse_threads(value: object) -> int:
    """Read a number of threads."""
    return whole_number(value, 1, MAX_THREADS, "a whole number from 1")


_UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", re.ASCII)


def parse_duration(value: object) -> float:
    """Read a time; return seconds.

    >>> parse_duration("10min"), parse_duration("1.5h"), parse_duration(30)
    (600.0, 5400.0, 30.0)
    """
    form = "write seconds, or a number with s, min, h or d"
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip().lower())
        if match is None or match[2] not in _UNITS:
            raise ConfigError(f"{value!r} is not a time: {form}")
        seconds = float(match[1]) * _UNITS[match[2]]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        raise ConfigError(f"{value!r} is not a time: {form}")
    if not 0 < seconds <= _MAX_DURATION_S:
        raise ConfigError(f"{value!r} is out of range: a time is above 0 and at most 7d")
    return seconds


def parse_tiers(value: object) -> tuple[float, float, float]:
    """Read the three limits of a drain; return seconds."""
    form = "write three rising times, such as 20,40,60"
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, Sequence) or len(parts) != 3:
        raise ConfigError(f"{value!r} will not do: {form}")
    first, second, third = (parse_duration(part) for part in parts)
    if not first <= second <= third:
        raise ConfigError(f"{value!r} does not rise: {form}")
    return first, second, third


def parse_listen(value: object) -> tuple[Endpoint, ...]:
    """Read one address or several."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{value!r} will not do: write an address, or a list of addresses")
    if not texts:
        raise ConfigError("there must be at least one address")
    addresses = tuple(parse_endpoint(text) for text in cast("Sequence[str]", texts))
    for place, address in enumerate(addresses):
        if address in addresses[:place]:
            raise ConfigError(f"{str(address)!r} is there twice")
    return addresses


def _parse_target(value: object) -> Target:
    if not isinstance(value, str):
        raise ConfigError(f"{value!r} will not do: write module:Class or path/to/file.py:Class")
    return parse_target(value)


def _parse_log_level(value: object) -> str:
    if isinstance(value, str) and value.lower() in _LOG_LEVELS:
        return value.lower()
    raise ConfigError(f"{value!r} will not do: write {', '.join(_LOG_LEVELS[:-1])} or {_LOG_LEVELS[-1]}")


def _parse_log_format(value: object) -> str:
    if isinstance(value, str) and value.lower() in _LOG_FORMATS:
        return value.lower()
    raise ConfigError(f"{value!r} will not do: write {' or '.join(_LOG_FORMATS)}")


def _parse_name(value: object) -> str:
    if isinstance(value, str | int) and not isinstance(value, bool) and str(value):
        return str(value)
    raise ConfigError(f"{value!r} will not do: write a name or a number")


def parse_path(value: object) -> str:
    """Read the path of a file."""
    if isinstance(value, str) and value:
        return value
    raise ConfigError("write the path of a file")


_YES: Final = ("yes", "true", "on", "1")
_NO: Final = ("no", "false", "off", "0")


def parse_flag(value: object) -> bool:
    """Read yes or no.

    >>> parse_flag("off"), parse_flag(True)
    (False, True)
    """
    word = str(value).strip().lower() if isinstance(value, str | int) else ""
    if word not in _YES + _NO:
        raise ConfigError(f"{value!r} will not do: write yes or no, true or false, on or off, 1 or 0")
    return word in _YES


def split_words(text: str) -> list[str]:
    """Split a list as it stands in a variable of the environment: at spaces and commas."""
    return text.replace(",", " ").split()


@dataclass(frozen=True, slots=True)
class Option:
    """One option: how it is called everywhere, how it is read, what it means."""

    name: str
    """With underscores: the attribute of ``Settings`` and the key in the file."""
    parse: Callable[[object], Any]
    default: str | None
    """As it would be written; ``None``: there is none."""
    form: str
    """What a value looks like, in short."""
    help: str
    repeat: bool = False
    """May be given several times on the command line; a list in the file, words in the environment."""
    in_file: bool = True
    in_environment: bool = True
    positional: bool = False
    flag: bool = False

    @property
    def switch(self) -> str:
        """The option on the command line."""
        return self.form if self.positional else "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable of the option."""
        return ENVIRONMENT_PREFIX + self.name.upper()


OPTIONS: Final = (
    Option(
        "target", _parse_target, None, "TARGET", "the filter: module:Class or path/to/file.py:Class", positional=True
    ),
    Option(
        "listen",
        parse_listen,
        "inet:8894@127.0.0.1",
        "ADDRESS",
        "where the MTA connects: inet:PORT@HOST, inet6:PORT@[HOST], unix:/path?mode=0660&owner=filter&group=postfix,"
        " unix:@name, fd:N, or as Postfix writes it; ?proxy=yes behind one of TCP: see --proxy-from; may be given"
        " several times",
        repeat=True,
    ),
    Option(
        "allow",
        parse_networks,
        None,
        "NETWORK",
        "TCP peers that may connect, such as 192.0.2.0/24; may be given several times; without it everybody may",
        repeat=True,
    ),
    Option(
        "allow_user",
        parse_users,
        None,
        "USER",
        "users of this machine that may connect to a unix socket, by name or number; may be given several times;"
        " without it everybody who has access to the socket may",
        repeat=True,
    ),
    Option(
        "proxy_from",
        parse_networks,
        None,
        "NETWORK",
        "proxies that must begin with a header of the PROXY protocol, at addresses with ?proxy=yes; the MTA that it"
        " names is who is allowed, counted and logged; may be given several times",
        repeat=True,
    ),
    Option("user", _parse_name, None, "USER", "whom the filter runs as if the server is started by root"),
    Option("group", _parse_name, None, "GROUP", "the group that goes with it; without it that of the user"),
    Option(
        "allow_root",
        parse_flag,
        "yes",
        "",
        "run the filter as root if the server does; no (in the file or the environment) refuses that",
        flag=True,
    ),
    Option("workers", parse_workers, "auto", "N|auto", "worker processes; auto: one per processor"),
    Option(
        "max_connections_per_worker",
        parse_limit_or_auto,
        "auto",
        "N|auto",
        "connections of a worker at the same time, beyond which new ones wait; auto: 10000, or what the hard limit on"
        " open files allows",
    ),
    Option(
        "max_connections",
        parse_limit,
        "unlimited",
        "N",
        "connections of all workers together at the same time, beyond which new ones wait",
    ),
    Option(
        "max_connections_per_peer",
        parse_limit,
        "unlimited",
        "N",
        "connections from one TCP address at the same time, beyond which new ones are closed",
    ),
    Option(
        "max_recipients", parse_number, str(MAX_RECIPIENTS), "N", "recipients of a message; those beyond get 452 4.5.3"
    ),
    Option(
        "max_header_fields",
        parse_number,
        str(MAX_HEADER_FIELDS),
        "N",
        "header fields of a message; with more: 552 5.3.4",
    ),
    Option(
        "max_header_bytes",
        parse_number,
        str(MAX_HEADER_BYTES),
        "BYTES",
        "names and values of the header fields of a message together; with more: 552 5.3.4",
    ),
    Option(
        "read_ahead_memory",
        parse_size,
        "256K",
        "SIZE",
        "what is held in memory of what an MTA sends while a callback of its connection runs",
    ),
    Option(
        "read_ahead_disk",
        parse_size,
        "256M",
        "SIZE",
        "what is held beyond that, in a temporary file for each connection; then the MTA has to wait",
    ),
    Option("backlog", parse_backlog, str(BACKLOG), "N", "connections that may wait to be accepted, at each address"),
    Option(
        "bind_timeout",
        parse_duration,
        "5",
        "SECONDS",
        "how long a server that starts waits for an address at which another one still listens",
    ),
    Option("threads", parse_threads, "100", "N", "threads in each worker for a filter that sets blocking = True"),
    Option("config", parse_path, None, "FILE", "read options from this TOML file", in_file=False),
    Option(
        "check_config",
        parse_flag,
        "no",
        "",
        "check the options, import the filter, print what it would negotiate, and leave",
        in_file=False,
        in_environment=False,
        flag=True,
    ),
    Option("log_level", _parse_log_level, "info", "LEVEL", "write debug, info, warning or error messages and above"),
    Option(
        "log_messages",
        parse_flag,
        "no",
        "",
        "write a line for each message that has its verdict, or is dropped before one, whatever the log level",
        flag=True,
    ),
    Option("log_format", _parse_log_format, "plain", "plain|json", "write lines for people, or a JSON object a line"),
    Option(
        "log_file",
        parse_path,
        None,
        "FILE",
        "write everything that would be on standard error to the end of this file, which USR1 opens anew; -: do not",
    ),
    Option(
        "syslog",
        parse_syslog,
        None,
        "FACILITY[@PATH]",
        "send the log to the syslog daemon (at /dev/log, or PATH) instead, as mail, daemon, user or local0 to local7",
    ),
    Option(
        "metrics",
        parse_metrics,
        None,
        "HOST:PORT",
        "serve numbers for Prometheus at /metrics, and /healthz and /readyz, by HTTP to whoever can connect here; none:"
        " do not",
    ),
    Option(
        "control",
        parse_control,
        "auto",
        "PATH",
        "the unix socket for fastmilter status, top, reload, stop, scale and reopen-logs; auto: control in the"
        " $RUNTIME_DIRECTORY that systemd gives a service, else none; none: there is none",
    ),
    Option(
        "slow_callback",
        parse_duration,
        "2",
        "SECONDS",
        "a callback that holds up the loop of its worker for so long is logged with its stack",
    ),
    Option(
        "kill_hung",
        parse_duration,
        None,
        "SECONDS",
        "kill a worker that has stood still for so long, in mid-message too; not given: none is killed",
    ),
    Option(
        "max_messages",
        parse_limit,
        "unlimited",
        "N",
        "replace a worker after so many messages, give or take a tenth",
    ),
    Option("max_age", parse_duration, None, "SECONDS", "replace a worker at this age, give or take a tenth"),
    Option(
        "max_rss", parse_size, None, "SIZE", "replace a worker that stays above so much resident memory, such as 300M"
    ),
    Option("ready_timeout", parse_duration, "60", "SECONDS", "longest time a worker may take to load the filter"),
    Option("negotiation_timeout", parse_duration, "30", "SECONDS", "longest silence of an MTA before its first packet"),
    Option("packet_timeout", parse_duration, "300", "SECONDS", "longest silence in the middle of a packet"),
    Option(
        "idle_timeout",
        parse_duration,
        "7210",
        "SECONDS",
        "longest silence between two packets; an MTA is silent while its client uploads a message",
    ),
    Option(
        "drain_stop",
        parse_tiers,
        "20,40,60",
        "A,B,C",
        "seconds to finish when the server stops: until A as always, until B new messages get 421, until C also new"
        " recipients, then connections are closed",
    ),
    Option(
        "drain_reload",
        parse_tiers,
        "10min,15min,20min",
        "A,B,C",
        "the same for the old workers after a reload",
    ),
)
"""Every option of ``fastmilter serve``, in the order of the documentation."""


def render_options() -> str:
    """Return the reference of all options in Markdown: docs/options.md."""
    lines = [
        "# Options of `fastmilter serve`",
        "",
        "Made from the table in `fastmilter/server/options.py` (`render_options`); do not edit by hand.",
        "",
        "The command line counts before the environment, the environment before the file (`--config`), the file before",
        "the default. Times are seconds, or a number with `s`, `min`, `h` or `d`. In the file, `-` may stand for `_`,",
        "lists are TOML lists, and unknown keys are errors. In the environment, several addresses are separated by",
        "spaces or commas. An option without a value is `true` or `false` in the file, and in the environment `yes` or",
        "`no`, `true` or `false`, `on` or `off`, `1` or `0`.",
        "",
        "| option | environment | key in the file | default | meaning |",
        "| --- | --- | --- | --- | --- |",
    ]
    for option in OPTIONS:
        switch = option.switch if option.positional or option.flag else f"{option.switch} {option.form}"
        cells = [
            f"`{switch}`",
            f"`{option.variable}`" if option.in_environment else "",
            f"`{option.name}`" if option.in_file else "",
            f"`{option.default}`" if option.default else "",
            option.help,
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines += [
        f"|  | `{FILTER_VARIABLE}` | `[{FILTER_TABLE}]` |  | the filter's own options, which `worker_started` gets:"
        " a table in the file, a JSON object in the environment (its keys replace those of the file) |",
        "",
    ]
    return "\n".join(lines)
