"""What a server runs with: the options as they are given on the command line, in the environment and in a file.

What is given in several places counts in this order: command line, environment, file, default.

Errors are ``ConfigError`` (``UsageError`` for the command line), name the option as it was given and say what would be
right.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fastmilter.endpoints import Endpoint
from fastmilter.errors import ConfigError
from fastmilter.server.load import Target
from fastmilter.server.options import (
    ENVIRONMENT_PREFIX,
    FILTER_TABLE,
    FILTER_VARIABLE,
    OPTIONS,
    Option,
    parse_path,
    split_words,
)
from fastmilter.server.peers import Network, refuse_half_a_proxy
from fastmilter.server.places import AUTO, control_path
from fastmilter.server.syslog import Syslog

_NO_FILE: Final = "-"
"""What stands for no log file, where a configuration has one."""

_BY_NAME: Final = {option.name: option for option in OPTIONS}


class UsageError(ConfigError):
    """The command line cannot be used as it stands."""


@dataclass(frozen=True)
class Settings:
    """What a server runs with; times are in seconds."""

    target: Target
    listen: tuple[Endpoint, ...]
    allow: tuple[Network, ...]
    allow_user: tuple[int, ...]
    proxy_from: tuple[Network, ...]
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
    read_ahead_memory: int
    read_ahead_disk: int
    backlog: int
    bind_timeout: float
    threads: int
    config: str | None
    check_config: bool
    log_level: str
    log_messages: bool
    log_format: str
    log_file: str | None
    syslog: Syslog | None
    metrics: Endpoint | None
    control: str | None
    """The path of the control socket."""
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
    control_is_asked: bool = True
    """Whether somebody named the control socket: if not, the server starts without it where it cannot be had."""
    warnings: tuple[str, ...] = ()
    """What was odd in the environment or the file, but no error."""

    @property
    def is_timed(self) -> bool:
        """Whether the time of callbacks is taken: somebody collects it."""
        return self.metrics is not None

    @property
    def is_watched(self) -> bool:
        """Whether somebody may look at what is in flight."""
        return self.metrics is not None or self.control is not None


def load_settings(command_line: Mapping[str, object], environment: Mapping[str, str]) -> Settings:
    """Put together the settings from everywhere; a key that is missing or ``None`` counts as not given.

    ``command_line`` maps names of options to strings (to a list of strings where an option may be repeated, to ``True``
    for a flag). The file is read again at every call, so a reload sees what changed.
    """
    values: dict[str, Any] = {}
    from_environment = _from_environment(environment)
    config = command_line.get("config") or (from_environment["config"][0] if "config" in from_environment else None)
    from_file, filter_options = _from_file(parse_path(config)) if config else ({}, {})
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
    refuse_half_a_proxy(values["listen"], values["proxy_from"])
    if values["log_file"] == _NO_FILE:
        values["log_file"] = None
    if values["syslog"] is not None and values["log_file"] is not None:
        raise ConfigError("--syslog and --log-file are both given, and the log goes to one place: leave out one")
    asked = values["control"]
    values["control"] = control_path(asked, environment)
    return Settings(
        **values,
        control_is_asked=asked != AUTO,
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
            values[option.name] = (split_words(text) if option.repeat else text, option.variable)
    return values


def _filter_options_from(environment: Mapping[str, str]) -> dict[str, Any]:
    text = environment.get(FILTER_VARIABLE, "")
    if not text:
        return {}
    import json  # here, as tomllib below: most servers need neither

    try:
        table = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{FILTER_VARIABLE}: not valid JSON: {error}") from None
    if not isinstance(table, dict):
        raise ConfigError(f'{FILTER_VARIABLE}: write a JSON object, such as {{"key": "value"}}')
    return table


def _odd_variables(environment: Mapping[str, str]) -> list[str]:
    """Return a warning for each variable that looks like a misspelt one of ours.

    Not an error: Kubernetes gives every container of a namespace variables such as FASTMILTER_SERVICE_HOST.
    """
    known = {option.variable for option in OPTIONS if option.in_environment} | {FILTER_VARIABLE}
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
    except (ValueError, RecursionError) as error:  # also of a number with thousands of digits
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
