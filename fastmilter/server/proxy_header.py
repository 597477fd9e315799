"""The header of the PROXY protocol, versions 1 and 2: what a proxy sends first, to say who connected to it.

Bytes alone: no socket, no clock. A header may come in any pieces, with the first packets behind it. Who may send one
is the business of ``lobby.py``.

Errors: ``RemoteProtocolError`` for what is no such header, as soon as that shows.

Source: HAProxy's ``doc/proxy-protocol.txt`` of 2020/03/05, sections 2.1 (version 1) and 2.2 (version 2).
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from fastmilter.errors import RemoteProtocolError

V1_BEGINNING: Final = b"PROXY "
V2_BEGINNING: Final = b"\r\n\r\n\x00\r\nQUIT\n"

MAX_V1_BYTES: Final = 107
"""The longest line of version 1, with its CRLF."""

MAX_V2_BYTES: Final = 4096
"""The longest header of version 2 that is taken; the protocol would allow 65551. The addresses need 232 bytes at most,
the rest is additions (TLVs) that mean nothing here."""

MAX_BYTES: Final = MAX_V2_BYTES

LOCAL_HEADER: Final = V2_BEGINNING + b"\x20\x00\x00\x00"
"""What a proxy sends that speaks for itself, as in its health checks (version 2)."""

_V2_FIXED: Final = 16
_V2_LOCAL: Final = 0
_V2_PROXY: Final = 1
_V2_ADDRESSES: Final = {0x11: (4, 12), 0x21: (16, 36)}
"""TCP over IPv4 and IPv6: bytes of an address, and of both addresses with their ports."""
_V2_UNIX: Final = 0x31
_V2_UNIX_BYTES: Final = 216
_V1_FAMILIES: Final = {"TCP4": ipaddress.IPv4Address, "TCP6": ipaddress.IPv6Address}
_V1_PORT: Final = re.compile(r"0|[1-9][0-9]{0,4}", re.ASCII)
_SHOWN: Final = 60


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """A whole header."""

    size: int
    """Its bytes; what is behind them belongs to the milter protocol."""
    source: str | None
    """The IP address that connected to the proxy; ``None`` if the header does not tell: the proxy itself counts."""
    is_local: bool = False
    """Whether the proxy speaks for itself (version 2), as in its health checks."""


def may_begin_header(data: bytes) -> bool:
    """Tell whether ``data``, all that has come so far, is a header or the beginning of one.

    >>> may_begin_header(b"PROXY TCP4 "), may_begin_header(b"PR"), may_begin_header(b"\\0\\0\\0\\rO")
    (True, True, False)
    """
    return any(data.startswith(beginning) or beginning.startswith(data) for beginning in (V1_BEGINNING, V2_BEGINNING))


def parse_proxy_header(data: bytes) -> ProxyHeader | None:
    """Read the header at the beginning of ``data``; ``None`` if there is more to come of it.

    ``RemoteProtocolError`` if it is none. With ``MAX_BYTES`` of data the answer is never ``None``.

    >>> parse_proxy_header(b"PROXY TCP4 192.0.2.25 192.0.2.1 40522 8894\\r\\n\\0\\0")
    ProxyHeader(size=44, source='192.0.2.25', is_local=False)
    """
    if not may_begin_header(data):
        raise RemoteProtocolError(f"no header of the PROXY protocol, but {data[:_SHOWN]!r}")
    return _parse_v1(data) if data.startswith(b"P") else _parse_v2(data)


def _parse_v1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, MAX_V1_BYTES)
    if end < 0:
        if len(data) >= MAX_V1_BYTES:
            raise RemoteProtocolError(f"a PROXY line is longer than {MAX_V1_BYTES} bytes: {data[:_SHOWN]!r}")
        return None
    line = data[:end]
    size = end + 2
    try:
        words = line.decode("latin-1").split(" ")
        if words[1] == "UNKNOWN":
            return ProxyHeader(size, None)  # whatever else there is in the line
        _, family, source, destination, *ports = words
        if len(ports) != 2 or not all(_V1_PORT.fullmatch(port) and int(port) <= 65535 for port in ports):
            raise ValueError
        _V1_FAMILIES[family](destination)
        address = _V1_FAMILIES[family](source)
    except (ValueError, KeyError):
        raise RemoteProtocolError(f"a PROXY line that cannot be read: {line[:_SHOWN]!r}") from None
    if "%" in source + destination:  # a zone of IPv6: of which machine?
        raise RemoteProtocolError(f"a PROXY line that cannot be read: {line[:_SHOWN]!r}")
    return ProxyHeader(size, str(address))


def _parse_v2(data: bytes) -> ProxyHeader | None:
    if len(data) < _V2_FIXED:
        return None
    version, command = data[12] >> 4, data[12] & 15
    if version != 2 or command not in (_V2_LOCAL, _V2_PROXY):
        raise RemoteProtocolError(f"a PROXY header of version {version} with command {command}, expected 2 with 0 or 1")
    rest = int.from_bytes(data[14:16])
    size = _V2_FIXED + rest
    if size > MAX_V2_BYTES:
        raise RemoteProtocolError(f"a PROXY header of {size} bytes, expected at most {MAX_V2_BYTES}")
    kind = data[13]
    width, least = _V2_ADDRESSES.get(kind, (0, 0))
    if command == _V2_PROXY:
        if kind == _V2_UNIX:
            least = _V2_UNIX_BYTES
        elif not width and kind >> 4:
            raise RemoteProtocolError(f"a PROXY header for addresses of kind {kind:#04x}, expected TCP")
        if rest < least:
            raise RemoteProtocolError(f"a PROXY header with {rest} bytes of addresses, expected {least}")
    if len(data) < size:
        return None
    if command == _V2_LOCAL:
        return ProxyHeader(size, None, True)
    return ProxyHeader(size, str(ipaddress.ip_address(data[16 : 16 + width])) if width else None)
