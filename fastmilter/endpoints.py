"""How addresses of milters are spelled: libmilter's and Postfix's forms, read into an ``Endpoint``.

Both sides use it: the server for what it listens on, the client for what it connects to. Nothing here opens a socket
or looks a name up; a port may stay the name of a service (``getaddrinfo`` takes both).

Errors: ``ConfigError``, whose text names the right form.

Sources: ``libmilter/listener.c`` (mi_milteropen), Sendmail ``sendmail/milter.c`` (milter_open), Postfix
``src/milter/milter8.c`` (milter8_connect) and MILTER_README.
"""

import ipaddress
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fastmilter.errors import ConfigError

MAX_UNIX_PATH_BYTES: Final = 107
"""Longest path of a unix socket on Linux, where ``sun_path`` has 108 bytes (the BSDs have 104, and say so then)."""

FORMS: Final = "inet:PORT@HOST, inet6:PORT@HOST, inet:HOST:PORT, unix:/PATH, unix:@NAME, /PATH, fd:N or systemd"
"""The spellings, as error messages name them."""


class EndpointKind(StrEnum):
    """What kind of socket an address means."""

    INET = "inet"
    INET6 = "inet6"
    UNIX = "unix"
    FD = "fd"


@dataclass(frozen=True)
class Endpoint:
    """One address of a milter. ``str()`` gives the canonical spelling, which ``parse_endpoint`` reads back.

    ``host`` is ``None`` for every local address (``inet:8894``); ``port`` is a number from 0 to 65535 or the name of
    a service; ``path`` belongs to ``unix``, with ``mode`` (permission bits), ``owner`` and ``group`` for whoever makes
    it, each ``None`` if not given; a path that begins with ``@`` is an abstract name (Linux), which no file system
    shows; ``fd`` is the number of an inherited descriptor, ``None`` for all that systemd has opened. ``proxy`` (TCP and
    ``fd``): what a server expects there of proxies is the PROXY protocol.
    """

    kind: EndpointKind
    host: str | None = None
    port: int | str = 0
    path: str | None = None
    mode: int | None = None
    owner: str | None = None
    group: str | None = None
    fd: int | None = None
    proxy: bool = False

    @property
    def is_abstract(self) -> bool:
        """Whether this is a unix socket that has a name but no file."""
        return self.path is not None and self.path.startswith("@")

    @property
    def sun_path(self) -> str:
        """What ``bind`` and ``connect`` take for a unix socket."""
        path = self.path or ""
        return "\0" + path[1:] if self.is_abstract else path

    def __str__(self) -> str:
        """Return the address in libmilter's spelling."""
        query = "?proxy=yes" if self.proxy else ""
        if self.kind is EndpointKind.FD:
            return f"systemd{query}" if self.fd is None else f"fd:{self.fd}{query}"
        if self.kind is EndpointKind.UNIX:
            options = [] if self.mode is None else [f"mode={self.mode:04o}"]
            options += [] if self.owner is None else [f"owner={self.owner}"]
            options += [] if self.group is None else [f"group={self.group}"]
            return f"unix:{self.path}" + (f"?{'&'.join(options)}" if options else "")
        if self.host is None:
            return f"{self.kind}:{self.port}{query}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.kind}:{self.port}@{host}{query}"


def parse_endpoint(text: str) -> Endpoint:
    """Read an address in any of the usual spellings.

    ``inet:8894@127.0.0.1``, ``inet6:8894@[::1]``, ``inet:8894`` (every local address), ``unix:/path``,
    ``local:/path``, ``/path``, ``fd:3`` (libmilter); ``inet:127.0.0.1:8894``, ``inet:[::1]:8894`` (Postfix);
    ``systemd`` (the sockets that it has opened). A path takes ``?mode=0660&owner=filter&group=postfix``;
    ``unix:@name`` is an abstract socket of Linux, which has none of these. All others take ``?proxy=yes``, which means
    something to a server. An IPv6 address makes the kind ``inet6``
    whatever the prefix.

    Raises ``ConfigError`` for anything else.

    >>> parse_endpoint("inet:127.0.0.1:8894") == parse_endpoint("inet:8894@127.0.0.1")
    True
    >>> str(parse_endpoint("inet:[::1]:8894"))
    'inet6:8894@[::1]'
    >>> parse_endpoint("/run/milter.sock?mode=0660&group=postfix").group
    'postfix'
    """
    if not text or any(character < " " or character == "\x7f" for character in text):
        raise ConfigError(f"address {text!r} is not one of {FORMS}")
    if text[0] in "/.":
        return _unix(text, text)
    if text.lower() == "systemd":
        return Endpoint(EndpointKind.FD)
    prefix, colon, rest = text.partition(":")
    kind = prefix.lower()
    if colon and kind in ("unix", "local"):
        return _unix(text, rest)
    if colon and kind == "fd":
        return _descriptor(text, rest)
    if colon and kind in ("inet", "inet6"):
        return _inet(text, EndpointKind(kind), rest)
    raise ConfigError(f"address {text!r} is not one of {FORMS}")


def _unix(text: str, rest: str) -> Endpoint:
    path, mark, query = rest.partition("?")
    if not path or path.endswith("/"):
        raise ConfigError(f"address {text!r} names no socket: it must look like 'unix:/run/milter.sock'")
    if len(path.encode("utf-8", "surrogateescape")) > MAX_UNIX_PATH_BYTES:
        raise ConfigError(f"address {text!r}: the path of a unix socket has at most {MAX_UNIX_PATH_BYTES} bytes")
    mode: int | None = None
    names: dict[str, str] = {}
    for option in query.split("&") if mark else ():
        name, _, value = option.partition("=")
        if name == "mode" and mode is None and re.fullmatch(r"0?[0-7]{3}", value):
            mode = int(value, 8)
        elif name in ("owner", "group") and name not in names and value:
            names[name] = value
        else:
            form = "'mode=0660', 'owner=NAME' or 'group=NAME', each at most once"
            raise ConfigError(f"address {text!r}: {option!r} must be {form}")
    endpoint = Endpoint(EndpointKind.UNIX, path=path, mode=mode, owner=names.get("owner"), group=names.get("group"))
    if endpoint.is_abstract and (path == "@" or mark):
        raise ConfigError(f"address {text!r}: an abstract socket has a name and no permissions: 'unix:@milter'")
    return endpoint


def _descriptor(text: str, rest: str) -> Endpoint:
    number, proxy = _without_proxy(text, rest)
    if not re.fullmatch(r"[0-9]{1,9}", number):
        raise ConfigError(f"address {text!r} must look like 'fd:3'")
    return Endpoint(EndpointKind.FD, fd=int(number), proxy=proxy)


def _without_proxy(text: str, rest: str) -> tuple[str, bool]:
    """Take ``?proxy=yes`` off the end of an address that is no path."""
    place, mark, query = rest.partition("?")
    if query.partition("=")[0] in ("mode", "owner", "group"):
        raise ConfigError(f"address {text!r}: mode, owner and group belong to a unix path")
    if mark and query not in ("proxy=yes", "proxy=no"):
        raise ConfigError(f"address {text!r}: {query!r} must be 'proxy=yes'")
    return place, query == "proxy=yes"


def _inet(text: str, kind: EndpointKind, rest: str) -> Endpoint:
    form = f"it must look like '{kind}:8894@{'::1' if kind is EndpointKind.INET6 else '127.0.0.1'}'"
    rest, proxy = _without_proxy(text, rest)
    host: str | None
    if "@" in rest:
        port, _, host = rest.partition("@")
    elif ":" in rest:
        host, _, port = rest.rpartition(":")
        if ":" in host and not host.startswith("["):
            # "inet:::1:8894": where the address ends and the port begins is a guess, and a wrong one goes unnoticed.
            raise ConfigError(f"address {text!r}: an IPv6 address needs brackets, as in 'inet:[::1]:8894'")
    else:
        port, host = rest, None
    checked = None if host is None else _host(text, host, form)
    if checked is not None and ":" in checked:
        kind = EndpointKind.INET6
    elif checked is not None and kind is EndpointKind.INET6 and re.fullmatch(r"[0-9.]+", checked):
        raise ConfigError(f"address {text!r}: {checked} is no IPv6 address; {form}")
    return Endpoint(kind, checked, _port(text, port, form), proxy=proxy)


def _host(text: str, host: str, form: str) -> str:
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    if ":" in bare:
        address, _, zone = bare.partition("%")
        try:
            ipaddress.IPv6Address(address)
        except ValueError:
            raise ConfigError(f"address {text!r}: {bare!r} is no IPv6 address; {form}") from None
        return bare if zone or "%" not in bare else address
    if bracketed:
        # "[127.0.0.1]" is how mail people write an address that must not be looked up.
        try:
            return str(ipaddress.IPv4Address(bare))
        except ValueError:
            raise ConfigError(f"address {text!r}: {bare!r} is no IP address; {form}") from None
    if not re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?", bare):
        raise ConfigError(f"address {text!r}: {bare!r} is no host name; {form}")
    if re.fullmatch(r"[0-9.]+", bare):
        try:
            ipaddress.IPv4Address(bare)
        except ValueError:
            raise ConfigError(f"address {text!r}: {bare!r} is no IP address; {form}") from None
    return bare


def _port(text: str, port: str, form: str) -> int | str:
    if port.isascii() and port.isdigit():
        if len(port) > 5 or int(port) > 65535:
            raise ConfigError(f"address {text!r}: port {port} is not between 0 and 65535")
        return int(port)
    if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?", port):
        return port
    raise ConfigError(f"address {text!r}: {port!r} is no port; {form}")
