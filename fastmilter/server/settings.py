"""The options of the server: one table, and reading them from the command line, the environment and a file.

``OPTIONS`` is the only place where an option stands. The command line, the names of environment variables, the keys of
the TOML file and the reference (docs/options.md) are made from it. What is given in several places counts in this
order: command line, environment, file, default.

Errors are ``ConfigError`` (``UsageError`` for the command line), name the option as it was given and say what would be
right.
"""

import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
from fastmilter.server.peers import Network, parse_networks, parse_users

ENVIRONMENT_PREFIX: Final = "FASTMILTER_"
FILTER_TABLE: Final = "filter"

MAX_WORKERS: Final = 1024
MAX_THREADS: Final = 4096
_MAX_DURATION_S: Final = 7 * 86400.0
_LOG_LEVELS: Final = ("debug", "info", "warning", "error")


class UsageError(ConfigError):
    """The command line cannot be used as it stands."""


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


def _parse_name(value: object) -> str:
    if isinstance(value, str | int) and not isinstance(value, bool) and str(value):
        return str(value)
    raise ConfigError(f"{value!r} will not do: write a name or a number")


def _parse_path(value: object) -> str:
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


def _split_words(text: str) -> list[str]:
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
        " unix:@name, fd:N, or as Postfix writes it; may be given several times",
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
    Option("backlog", parse_backlog, str(BACKLOG), "N", "connections that may wait to be accepted, at each address"),
    Option(
        "bind_timeout",
        parse_duration,
        "5",
        "SECONDS",
        "how long a server that starts waits for an address at which another one still listens",
    ),
    Option("threads", parse_threads, "100", "N", "threads in each worker for a filter that sets blocking = True"),
    Option("config", _parse_path, None, "FILE", "read options from this TOML file", in_file=False),
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

_BY_NAME: Final = {option.name: option for option in OPTIONS}


@dataclass(frozen=True)
class Settings:
    """What a server runs with; times are in seconds."""

    target: Target
    listen: tuple[Endpoint, ...]
    allow: tuple[Network, ...]
    allow_user: tuple[int, ...]
    user: str | None
    group: str | None
    allow_root: bool
    workers: int
    max_connections_per_worker: int
    max_connections: int
    max_connections_per_peer: int
    max_recipients: int
    max_header_fields: int
    max_header_bytes: int
    backlog: int
    bind_timeout: float
    threads: int
    config: str | None
    check_config: bool
    log_level: str
    log_messages: bool
    slow_callback: float
    kill_hung: float | None
    max_messages: int
    max_age: float | None
    max_rss: int | None
    ready_timeout: float
    negotiation_timeout: float
    packet_timeout: float
    idle_timeout: float
    drain_stop: tuple[float, float, float]
    drain_reload: tuple[float, float, float]
    filter_options: Mapping[str, Any] = field(default_factory=dict)
    """The ``[filter]`` table: what ``worker_started`` gets."""
    warnings: tuple[str, ...] = ()
    """What was odd in the environment or the file, but no error."""


def load_settings(command_line: Mapping[str, object], environment: Mapping[str, str]) -> Settings:
    """Put together the settings from everywhere; a key that is missing or ``None`` counts as not given.

    ``command_line`` maps names of options to strings (to a list of strings where an option may be repeated, to ``True``
    for a flag). The file is read again at every call, so a reload sees what changed.
    """
    values: dict[str, Any] = {}
    from_environment = _from_environment(environment)
    config = command_line.get("config") or (from_environment["config"][0] if "config" in from_environment else None)
    from_file, filter_options = _from_file(_parse_path(config)) if config else ({}, {})
    for option in OPTIONS:
        given = command_line.get(option.name)
        if given is not None:
            try:
                values[option.name] = option.parse(given)
            except ConfigError as error:
                raise UsageError(f"{option.switch}: {error}") from None
        elif option.name in from_environment:
            value, where = from_environment[option.name]
            values[option.name] = _parsed(option, value, where)
        elif option.name in from_file:
            values[option.name] = _parsed(option, from_file[option.name], f"{option.name} in {config}")
        else:
            missing = () if option.repeat else None
            values[option.name] = option.parse(option.default) if option.default is not None else missing
    if values["target"] is None:
        raise UsageError("no filter given: write fastmilter serve module:Class (or path/to/file.py:Class)")
    return Settings(
        **values,
        filter_options={**filter_options, **_filter_options_from(environment)},
        warnings=tuple(_odd_variables(environment)),
    )


def _parsed(option: Option, value: object, where: str) -> object:
    try:
        return option.parse(value)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _from_environment(environment: Mapping[str, str]) -> dict[str, tuple[object, str]]:
    """Return the values of our variables, each with its name; an empty one counts as not set."""
    values: dict[str, tuple[object, str]] = {}
    for option in OPTIONS:
        text = environment.get(option.variable, "") if option.in_environment else ""
        if text:
            values[option.name] = (_split_words(text) if option.repeat else text, option.variable)
    return values


_FILTER_VARIABLE: Final = ENVIRONMENT_PREFIX + FILTER_TABLE.upper()


def _filter_options_from(environment: Mapping[str, str]) -> dict[str, Any]:
    text = environment.get(_FILTER_VARIABLE, "")
    if not text:
        return {}
    import json  # here, as tomllib below: most servers need neither

    try:
        table = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{_FILTER_VARIABLE}: not valid JSON: {error}") from None
    if not isinstance(table, dict):
        raise ConfigError(f'{_FILTER_VARIABLE}: write a JSON object, such as {{"key": "value"}}')
    return table


def _odd_variables(environment: Mapping[str, str]) -> list[str]:
    """Return a warning for each variable that looks like a misspelt one of ours.

    Not an error: Kubernetes gives every container of a namespace variables such as FASTMILTER_SERVICE_HOST.
    """
    known = {option.variable for option in OPTIONS if option.in_environment} | {_FILTER_VARIABLE}
    odd = sorted(name for name in environment if name.startswith(ENVIRONMENT_PREFIX) and name not in known)
    return [
        f"environment variable {name} is not known; did you mean {close[0]}?"
        for name in odd
        if (close := difflib.get_close_matches(name, known, n=1, cutoff=0.85))
    ]


def _from_file(path: str) -> tuple[dict[str, object], dict[str, Any]]:
    """Return the options in a TOML file and its [filter] table."""
    import tomllib

    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    filter_options = content.pop(FILTER_TABLE, {})
    if not isinstance(filter_options, dict):
        raise ConfigError(f"{path}: filter is the table of the filter's own options: write [filter] and keys below it")
    values: dict[str, object] = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in _BY_NAME or not _BY_NAME[name].in_file:
            raise ConfigError(f"{path}: {_unknown_key(key, value)}")
        if name in values:
            raise ConfigError(f"{path}: {name} is there twice, with - and with _")
        values[name] = value
    return values, filter_options


def _unknown_key(key: str, value: object) -> str:
    names = [option.name for option in OPTIONS if option.in_file]
    if isinstance(value, dict):
        return f"there is no table [{key}]: options of the server stand at the top, those of the filter in [filter]"
    close = difflib.get_close_matches(key.replace("-", "_"), names, n=1)
    if close:
        return f"there is no option {key!r}; did you mean {close[0]}?"
    return f"there is no option {key!r} (options of the filter stand in [filter]); there are: {', '.join(names)}"


def render_options() -> str:
    """Return the reference of all options in Markdown: docs/options.md."""
    lines = [
        "# Options of `fastmilter serve`",
        "",
        "Made from the table in `fastmilter/server/settings.py` (`render_options`); do not edit by hand.",
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
        f"|  | `{_FILTER_VARIABLE}` | `[{FILTER_TABLE}]` |  | the filter's own options, which `worker_started` gets:"
        " a table in the file, a JSON object in the environment (its keys replace those of the file) |",
        "",
    ]
    return "\n".join(lines)
