"""Where a server can be watched and given orders: the options ``--metrics`` and ``--control``, read.

Errors: ``ConfigError``.
"""

import os
import re
from collections.abc import Mapping
from typing import Final

from fastmilter.endpoints import MAX_UNIX_PATH_BYTES, Endpoint, EndpointKind, parse_endpoint
from fastmilter.errors import ConfigError

AUTO: Final = "auto"
NONE: Final = "none"

CONTROL_NAME: Final = "control"
"""The name of the control socket in a directory that systemd has made for the server."""


def parse_metrics(value: object) -> Endpoint | None:
    """Read where the numbers are served by HTTP: HOST:PORT as Prometheus writes it, or as listeners are written.

    ``None`` for the word ``none``.

    >>> str(parse_metrics("127.0.0.1:9894")), str(parse_metrics("inet:9894@localhost"))
    ('inet:9894@127.0.0.1', 'inet:9894@localhost')
    """
    form = "write HOST:PORT, such as 127.0.0.1:9894 or [::1]:9894"
    if not isinstance(value, str):
        raise ConfigError(f"{value!r} will not do: {form}")
    if value.lower() == NONE:
        return None
    is_bare = re.fullmatch(r"(\[[^\]]+\]|[^\[\]:@/?]+):[0-9]+", value) is not None and not value.startswith("inet")
    try:
        endpoint = parse_endpoint(f"inet:{value}" if is_bare else value)
    except ConfigError:
        raise ConfigError(f"{value!r} will not do: {form}") from None
    if endpoint.kind not in (EndpointKind.INET, EndpointKind.INET6):
        raise ConfigError(f"{value!r} will not do: the numbers are served over TCP: {form}")
    return endpoint


def parse_control(value: object) -> str:
    """Read the path of the control socket, or one of the words that stand for it; return an absolute path."""
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{value!r} will not do: write the path of a socket, auto or none")
    if value.lower() in (AUTO, NONE):
        return value.lower()
    path = os.path.abspath(value.removeprefix("unix:"))
    if len(os.fsencode(path)) > MAX_UNIX_PATH_BYTES:
        raise ConfigError(f"{value!r} is too long: the path of a unix socket has at most {MAX_UNIX_PATH_BYTES} bytes")
    return path


def control_path(asked: str, environment: Mapping[str, str]) -> str | None:
    """Return where the control socket is to be, ``None``: nowhere."""
    if asked != AUTO:
        return None if asked == NONE else asked
    directory = environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]  # there may be several
    return os.path.join(directory, CONTROL_NAME) if directory else None
