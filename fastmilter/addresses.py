"""What the envelope and CONNECT carry, as Python values: ``Address``, ``Recipient``, ``Params``, ``SocketAddress``.

Text is ``str``, UTF-8 with ``surrogateescape``: every byte that the MTA sent comes back unchanged when it is handed
on. Nothing here fails on what a client typed; what cannot be understood is simply not there (``None``, ``""``).

Sources: RFC 5321 sections 4.1.1.2, 4.1.1.3 and 4.1.2; ``libmilter/engine.c`` (st_connectinfo).
"""

import ipaddress
import re
from collections.abc import Iterable
from typing import Final, Literal

from fastmilter._text import path_text, subtype_of_str, to_bytes, to_text
from fastmilter.constants import Family


class Params(tuple[str, ...]):
    """ESMTP parameters of MAIL or RCPT in the order sent, for instance ``("SIZE=100", "SMTPUTF8")``.

    >>> params = Params(["Size=100", "SMTPUTF8"])
    >>> "size" in params, params.get("SIZE"), params.get("smtputf8"), params.get("BODY")
    (True, '100', '', None)
    """

    __slots__ = ()

    def __contains__(self, keyword: object) -> bool:
        """Whether a parameter is there, by its keyword or whole (``"BODY=8BITMIME"``), in any case."""
        if not isinstance(keyword, str):
            return False
        wanted = keyword.upper()
        return any(param.upper() == wanted or param.partition("=")[0].upper() == wanted for param in self)

    def get(self, keyword: str, default: str | None = None) -> str | None:
        """Return the value of a parameter: ``""`` if it has none, ``default`` if it is not there."""
        wanted = keyword.upper()
        for param in self:
            name, _, value = param.partition("=")
            if name.upper() == wanted:
                return value
        return default


_NO_PARAMS: Final = Params()


def params_of(params: tuple[bytes, ...]) -> Params:
    """Return the parameters that the MTA sent; nearly always there are few or none."""
    return Params([to_text(param) for param in params]) if params else _NO_PARAMS


def address_of(raw: bytes) -> "Address":
    """Return ``Address(raw)``: the call of a class costs four times as much."""
    made = subtype_of_str(Address, path_text(raw))
    made.raw = raw
    return made


class Address(str):
    """A reverse-path or forward-path without angle brackets and source route; ``""`` is the null reverse-path.

    >>> address = Address(b"<@relay.example:Ann@Example.ORG>")
    >>> str(address), address.local_part, address.domain, address.raw
    ('Ann@Example.ORG', 'Ann', 'example.org', b'<@relay.example:Ann@Example.ORG>')
    """

    __slots__ = ("raw",)

    raw: bytes
    """The bytes as the MTA sent them."""

    def __new__(cls, raw: bytes) -> "Address":
        """Read the path that the MTA sent."""
        self = subtype_of_str(cls, path_text(raw))
        self.raw = raw
        return self

    def __getnewargs__(self) -> tuple[bytes]:  # type: ignore[override]
        """Let copies and pickles be made from the bytes."""
        return (self.raw,)

    def _at(self) -> int:
        """Return where the ``@`` between local part and domain stands, or the length if there is none."""
        position = self.rfind("@")
        if position < 0 or (self[:1] == '"' and position < self.rfind('"')):
            return len(self)
        return position

    @property
    def local_part(self) -> str:
        """The part before the ``@`` as typed, quotes included."""
        return self[: self._at()]

    @property
    def domain(self) -> str:
        """The part after the ``@`` in lower case without a trailing dot; ``""`` if there is none."""
        return self[self._at() + 1 :].lower().rstrip(".")


class Recipient(Address):
    """A recipient of the message with its ESMTP parameters."""

    __slots__ = ("params",)

    params: Params

    def __new__(cls, raw: bytes, params: Params = _NO_PARAMS) -> "Recipient":
        """Read the path that the MTA sent and keep its parameters."""
        self = super().__new__(cls, raw)
        assert isinstance(self, Recipient)
        self.params = params
        return self

    def __getnewargs__(self) -> tuple[bytes, Params]:  # type: ignore[override]
        """Let copies and pickles be made from the bytes and the parameters."""
        return (self.raw, self.params)


_QUOTED: Final = re.compile(rb'^"(?:[^"\\]|\\.)*"(?=@)')  # a local part may hold anything within quotes
_MISPLACED: Final = re.compile(rb"[<> ]")


def path_argument(address: str | bytes) -> bytes:
    """Return an address that an author gave, ``a@b`` or ``<a@b>``, as both MTAs want it: ``<a@b>``.

    ``ValueError`` for control characters, stray angle brackets, and what cannot be encoded. ``""`` gives ``<>``.
    """
    if not isinstance(address, str | bytes):
        raise ValueError(f"an address must be str or bytes, not {type(address).__name__}")
    raw = to_bytes(address) if isinstance(address, str) else address
    path = raw[1:-1] if raw[:1] == b"<" and raw[-1:] == b">" else raw
    if any(byte < 0x20 or byte == 0x7F for byte in path):
        raise ValueError(f"address {address!r} contains a control character")
    if _MISPLACED.search(_QUOTED.sub(b"", path)):
        raise ValueError(f"address {address!r} must look like 'a@example.org' or '<a@example.org>'")
    return b"<" + path + b">"


def params_argument(params: Iterable[str] | str) -> tuple[bytes, ...]:
    """Return ESMTP parameters that an author gave; ``ValueError`` for spaces and control characters within one."""
    if isinstance(params, str | bytes):
        raise ValueError(f"params must be a sequence such as ('NOTIFY=NEVER',), not {params!r}")
    encoded = tuple(to_bytes(param) for param in params)
    for param in encoded:
        if not param or any(byte <= 0x20 or byte == 0x7F for byte in param):
            raise ValueError(f"ESMTP parameter {to_text(param)!r} must be one word such as 'NOTIFY=NEVER'")
    return encoded


AddressFamily = Literal["inet", "inet6", "unix", "unknown"]

_NAMES_OF_FAMILIES: Final[dict[bytes, AddressFamily]] = {
    Family.INET.value: "inet",
    Family.INET6.value: "inet6",
    Family.UNIX.value: "unix",
}

_UNIX: Final[bytes] = Family.UNIX.value

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class SocketAddress:
    """The address of the SMTP client, from CONNECT (the ``hostaddr`` of xxfi_connect). Read-only.

    ``family`` says what was announced; ``host`` is the text as sent without an ``IPv6:`` prefix (Sendmail sends
    one), ``port`` is ``None`` if unknown, ``path`` is that of a unix socket. An address that cannot be read (Postfix
    sends ``unknown`` for some XCLIENT sessions) has no ``ip``, and that is no error.

    >>> SocketAddress.from_wire(b"6", 25, b"IPv6:0:0:0:0:0:0:0:1").ip
    IPv6Address('::1')
    """

    # No dataclass: each connection makes one, and what a frozen dataclass does then costs as much as ten callbacks.

    __match_args__ = ("family", "host", "port", "path")

    def __init__(
        self,
        family: AddressFamily = "unknown",
        host: str | None = None,
        port: int | None = None,
        path: str | None = None,
    ) -> None:
        """Make one from its parts."""
        self.family = family
        self.host = host
        self.port = port
        self.path = path

    @staticmethod
    def from_wire(family: bytes, port: int, address: bytes) -> "SocketAddress":
        """Read the family letter, the port (0: unknown) and the address of a CONNECT packet."""
        return socket_address(family, port, address)

    def __eq__(self, other: object) -> bool:
        """Whether all parts are the same."""
        if not isinstance(other, SocketAddress):
            return NotImplemented
        return self._parts() == other._parts()

    def __hash__(self) -> int:
        """Return a number of all parts."""
        return hash(self._parts())

    def __repr__(self) -> str:
        """Return how to make it."""
        return f"SocketAddress(family={self.family!r}, host={self.host!r}, port={self.port!r}, path={self.path!r})"

    def __reduce__(self) -> tuple[type["SocketAddress"], tuple[AddressFamily, str | None, int | None, str | None]]:
        """Let copies and pickles be made from the parts."""
        return SocketAddress, self._parts()

    def _parts(self) -> tuple[AddressFamily, str | None, int | None, str | None]:
        return self.family, self.host, self.port, self.path

    @property
    def ip(self) -> IPAddress | None:
        """The address as an object, IPv4-mapped ones as IPv4; ``None`` if there is none."""
        if self.host is None:
            return None
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return None
        mapped = getattr(address, "ipv4_mapped", None)
        return mapped if mapped is not None else address

    def __str__(self) -> str:
        """Return the address as a log line shows it."""
        if self.path is not None:
            return f"unix:{self.path}"
        if self.host is None:
            return "unknown"
        host = f"[{self.host}]" if self.family == "inet6" else self.host
        return host if self.port is None else f"{host}:{self.port}"


def socket_address(family: bytes, port: int, address: bytes) -> SocketAddress:
    """Return the address in a CONNECT packet: ``SocketAddress.from_wire``, without the cost of calling a class."""
    made = SocketAddress.__new__(SocketAddress)
    name = _NAMES_OF_FAMILIES.get(family)
    if name is None:
        made.family = "unknown"
        return made
    made.family = name
    text = to_text(address)
    if family == _UNIX:
        made.path = text or None
        return made
    if text[:1] in "iI" and text[:5].lower() == "ipv6:":
        text = text[5:]
    made.host = text or None
    made.port = port or None
    return made
