"""The habits of Postfix and Sendmail as milter clients, as data, and the macros they tell.

A client that is to find the faults a real MTA would find has to behave like one: what it sends before which step,
when it sends ABORT, what it takes for a mistake. All of that stands in the two tables ``POSTFIX`` and ``SENDMAIL``;
``client_session`` reads them and has no branch on a name.

Sources: Postfix 3.7.11 ``src/milter/milter8.c``, ``src/smtpd/smtpd.c`` and MILTER_README; Sendmail 8.17.1
``sendmail/milter.c``, ``sendmail/srvrsmtp.c`` and ``cf/m4/cfhead.m4``; recordings of both.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from fastmilter import codec
from fastmilter._text import to_bytes
from fastmilter.addresses import Address, SocketAddress
from fastmilter.constants import POSTFIX_MACROS, SENDMAIL_MACROS, STEPS, Family, Step
from fastmilter.errors import ConfigError
from fastmilter.negotiation import normalise_macro
from fastmilter.replies import ACCEPT, Verdict, reply

Text = str | bytes
"""What the caller may write: ``str`` goes out as UTF-8 with ``surrogateescape``, ``bytes`` as they are."""


def as_bytes(text: Text) -> bytes:
    """Return ``text`` as it goes on the wire."""
    return text if isinstance(text, bytes) else to_bytes(text)


@dataclass(frozen=True)
class Mta:
    """How one MTA plays its side. Make a variant of your own with ``dataclasses.replace(POSTFIX, ...)``."""

    name: str
    macros: Mapping[Step, tuple[str, ...]]
    """The macros told before each step when the filter asks for none."""
    values: Mapping[str, str]
    """Values of macros that hold for every connection."""
    mailer: str
    """``{mail_mailer}`` and ``{rcpt_mailer}``."""
    macros_always: bool
    """A MACRO packet before every command, even an empty one; otherwise only where the list names something."""
    list_of: Mapping[Step, Step]
    """Steps that take the requested list of another one."""
    empty_request_is_default: bool
    """A request for no macros means the default list; otherwise it means none."""
    end_of_message_list_by_flag: bool
    """Whether the list for the end of the message counts is decided by the presence of that for end of headers."""
    queue_id_at_mail: bool
    """The macro ``i`` is known at MAIL; otherwise once a recipient was accepted."""
    makes_message_id: bool
    """A message without a Message-Id gets one, which is told as ``{msg_id}``."""
    abort_at_reset: bool
    """ABORT for everything that is reset: after each message, at a second HELO (behind it) and at QUIT. Otherwise only
    for a transaction cut short whose MAIL was answered CONTINUE."""
    quit_after_connection_verdict: bool
    """QUIT after a verdict that ended the session at CONNECT or HELO; otherwise the connection is just closed."""
    ipv6_prefix: bool
    """IPv6 addresses in CONNECT as ``IPv6:0:0:0:0:0:0:0:1``."""
    mailbox_line: bytes
    """The name of the field that a first line ``From ...`` of a message becomes; empty: it is dropped."""
    unknown_whole_line: bool
    """UNKNOWN carries the line with its arguments; otherwise the first word."""
    strict_bits: bool
    """A protocol bit in the answer that was not offered is an error; otherwise it is taken as agreed."""
    oldest_version: int
    """The lowest version taken in an answer."""
    progress_anywhere: bool
    """PROGRESS may put off any answer; otherwise only that to the end of the message."""
    skips: Mapping[Step, Step]
    """SKIP in answer to the first step: the second is not sent any more in this message."""
    skip_ends_session: frozenset[Step]
    """SKIP at these steps: the filter is sent nothing more of the whole session."""
    skip_refused: frozenset[Step]
    """SKIP at these steps is an error."""
    discard_aborts: frozenset[Step]
    """DISCARD at these steps is followed by ABORT, though the message had its verdict."""
    discard_ends_session: frozenset[Step]
    """DISCARD at these steps: the filter is sent nothing more of the whole session."""
    default_actions: Mapping[str, Verdict]
    """What the MTA can be told to do when a filter fails, and what it says to the SMTP client then."""


POSTFIX: Final = Mta(
    name="postfix",
    macros=POSTFIX_MACROS,
    values={
        "j": "mx.example.org",
        "v": "Postfix 3.7.11",
        "{daemon_name}": "mx.example.org",
        "{daemon_addr}": "127.0.0.1",
        "{daemon_port}": "25",
        "{client_connections}": "1",
        "{client_resolve}": "OK",
    },
    mailer="smtp",
    macros_always=True,
    list_of={Step.HEADER: Step.END_OF_HEADERS, Step.BODY: Step.END_OF_MESSAGE},
    empty_request_is_default=True,
    end_of_message_list_by_flag=False,
    queue_id_at_mail=False,
    makes_message_id=False,
    abort_at_reset=True,
    quit_after_connection_verdict=False,
    ipv6_prefix=False,
    mailbox_line=b"X-Mailbox-Line",
    unknown_whole_line=False,
    strict_bits=False,
    oldest_version=0,
    progress_anywhere=True,
    skips={Step.RCPT: Step.RCPT, Step.HEADER: Step.HEADER, Step.BODY: Step.BODY},
    skip_ends_session=frozenset(),
    skip_refused=frozenset(),
    discard_aborts=frozenset(),
    discard_ends_session=frozenset(),
    default_actions={
        "accept": ACCEPT,
        "reject": reply(550, "5.5.0", "Service unavailable"),
        "tempfail": reply(451, "4.7.1", "Service unavailable - try again later"),
        "quarantine": ACCEPT,
        "shutdown": reply(421, "4.7.1", "Service unavailable - try again later"),
    },
)
"""Postfix 3.7."""

SENDMAIL: Final = Mta(
    name="sendmail",
    macros=SENDMAIL_MACROS,
    values={
        "j": "mx.example.org",
        "v": "8.17.1.9",
        "{daemon_name}": "MTA",
        "{daemon_family}": "inet",
        "{if_name}": "mx.example.org",
        "{client_resolve}": "OK",
    },
    mailer="esmtp",
    macros_always=False,
    list_of={},
    empty_request_is_default=False,
    end_of_message_list_by_flag=True,
    queue_id_at_mail=True,
    makes_message_id=True,
    abort_at_reset=False,
    quit_after_connection_verdict=True,
    ipv6_prefix=True,
    mailbox_line=b"",
    unknown_whole_line=True,
    strict_bits=True,
    oldest_version=2,
    progress_anywhere=False,
    skips={Step.HEADER: Step.BODY, Step.END_OF_HEADERS: Step.BODY, Step.BODY: Step.BODY},
    skip_ends_session=frozenset({Step.CONNECT, Step.HELO, Step.MAIL, Step.RCPT, Step.DATA}),
    skip_refused=frozenset({Step.END_OF_MESSAGE}),
    discard_aborts=frozenset({Step.RCPT, Step.DATA}),
    discard_ends_session=frozenset({Step.CONNECT}),
    default_actions={
        "accept": ACCEPT,
        "reject": reply(550, "5.7.1", "Command rejected"),
        "tempfail": reply(451, "4.3.2", "Please try again later"),
        "shutdown": reply(421, "4.7.0", "closing connection"),
    },
)
"""Sendmail 8.17."""

MTAS: Final[dict[str, Mta]] = {"postfix": POSTFIX, "sendmail": SENDMAIL}


def mta_named(mta: str | Mta) -> Mta:
    """Return the table of ``"postfix"`` or ``"sendmail"``, or the one given; ``ConfigError`` for another name."""
    if isinstance(mta, Mta):
        return mta
    try:
        return MTAS[mta]
    except KeyError:
        raise ConfigError(f"mta {mta!r} is not one of {', '.join(MTAS)}") from None


def wire_path(path: Text) -> bytes:
    """Return an address as it goes on the wire: ``bytes`` and what an MTA sent as they are, text in angle brackets.

    >>> wire_path("a@example.org"), wire_path("<a@example.org>"), wire_path(""), wire_path(b"a@example.org")
    (b'<a@example.org>', b'<a@example.org>', b'<>', b'a@example.org')
    """
    if isinstance(path, Address):
        return path.raw
    raw = as_bytes(path)
    if isinstance(path, bytes) or (raw[:1] == b"<" and raw[-1:] == b">"):
        return raw
    return b"<" + raw + b">"


def connect_message(hostname: Text, address: str | SocketAddress | None, port: int, mta: Mta) -> codec.Connect:
    """Return the CONNECT of an SMTP client as ``mta`` words it.

    ``address``: an IPv4 or IPv6 address, a path, ``"unknown"`` (Postfix says so of some clients), a ``SocketAddress``,
    or ``None`` for a client without one; ``port``: 0 if not known. ``ValueError`` for an address that is none of these.

    >>> connect_message("localhost", "::1", 25, SENDMAIL).address
    b'IPv6:0:0:0:0:0:0:0:1'
    """
    name = as_bytes(hostname)
    if isinstance(address, SocketAddress):
        port = address.port or port
        address = address.path if address.family == "unix" else address.host
    if not address:
        return codec.Connect(name, Family.UNKNOWN.value)
    if address[0] in "/.":
        return codec.Connect(name, Family.UNIX.value, 0, to_bytes(address))
    if address == "unknown":
        return codec.Connect(name, Family.INET.value, port, b"unknown")
    ip = ipaddress.ip_address(address[5:] if address[:5].lower() == "ipv6:" else address)
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.version == 4:
        return codec.Connect(name, Family.INET.value, port, str(ip).encode())
    if not mta.ipv6_prefix:
        return codec.Connect(name, Family.INET6.value, port, str(ip).encode())
    full = ":".join(f"{int(group, 16):x}" for group in ip.exploded.split(":"))
    return codec.Connect(name, Family.INET6.value, port, b"IPv6:" + full.encode())


Requests = Mapping[Step, tuple[str, ...]]
"""The macros that a filter asked for, by step; a step that is absent was not asked about."""


@dataclass
class MacroBook:
    """Every value the MTA knows now, and what of it goes before a step.

    What the caller says of a step comes on top of what the MTA knows by itself; both stay known (for a filter that
    asks for them at a later step) as long as what they describe: the connection or the message.
    """

    mta: Mta
    queue_prefix: str = "FA570"
    connection: dict[str, bytes] = field(default_factory=dict)
    message: dict[str, bytes] = field(default_factory=dict)
    said: dict[Step, dict[str, bytes]] = field(default_factory=dict)
    messages: int = 0

    def say(self, step: Step, values: Mapping[str, Text]) -> None:
        """Keep what the caller wants told before the next ``step``."""
        kept = self.said.setdefault(step, {})
        kept.update((normalise_macro(name), as_bytes(value)) for name, value in values.items())

    def connect(self, hostname: bytes, address: bytes, port: int) -> None:
        """Know the SMTP client."""
        self.connection = {name: to_bytes(value) for name, value in self.mta.values.items()}
        told = b"IPv6:" + address if b":" in address and not address.lower().startswith(b"ipv6:") else address
        self.connection |= {
            "_": b"%s [%s]" % (hostname, address),
            "{client_addr}": told,
            "{client_name}": hostname,
            "{client_ptr}": hostname,
            "{client_port}": b"%d" % port,
        }

    def mail(self, sender: bytes) -> None:
        """Know the sender; a new message begins. The null sender is known too, with empty values."""
        self.messages += 1
        path = to_bytes(Address(sender))
        self.message = {
            "{mail_addr}": path,
            "{mail_host}": path.rpartition(b"@")[2],
            "{mail_mailer}": to_bytes(self.mta.mailer),
        }
        if self.mta.queue_id_at_mail:
            self.assign_queue_id()

    def rcpt(self, recipient: bytes) -> None:
        """Know the recipient."""
        path = to_bytes(Address(recipient))
        self._recipient(path, path.rpartition(b"@")[2], self.mta.mailer)

    def rejected_rcpt(self, enhanced: bytes, reason: bytes) -> None:
        """Know a recipient that the MTA itself refuses: both MTAs tell the reason in its macros."""
        self._recipient(reason, enhanced, "error")

    def _recipient(self, address: bytes, host: bytes, mailer: str) -> None:
        self.message |= {"{rcpt_addr}": address, "{rcpt_host}": host, "{rcpt_mailer}": to_bytes(mailer)}

    def header(self, name: bytes, value: bytes) -> None:
        """Know the Message-Id, which Sendmail tells at the end."""
        if name.lower() == b"message-id":
            self.message["{msg_id}"] = value.strip()

    def assign_queue_id(self) -> None:
        """Know the queue id, if the message has none yet."""
        self.message.setdefault("i", to_bytes(f"{self.queue_prefix}{self.messages:06X}"))

    def end_of_message(self) -> None:
        """Know the Message-Id of a message without one, if the MTA would make it."""
        if self.mta.makes_message_id:
            made = b"<%s@%s>" % (self.message.get("i", b""), self.connection.get("j", b""))
            self.message.setdefault("{msg_id}", made)

    def forget_message(self) -> None:
        """Know nothing of a message any more, what was said for its later steps included."""
        self.message = {}
        for step in STEPS:
            if step not in (Step.CONNECT, Step.HELO, Step.MAIL, Step.UNKNOWN):
                self.said.pop(step, None)

    def packet(self, step: Step, requests: Requests) -> codec.Macros | None:
        """Return the MACRO packet that goes before ``step`` now, or ``None``; uses up what was said for it."""
        said = self.said.pop(step, {})
        scope = self.connection if step in (Step.CONNECT, Step.HELO) else self.message
        scope.update(said)
        names = self._requested(step, requests)
        if names is None:
            names = self.mta.macros.get(step, ())
            shown = {normalise_macro(name) for name in names}
            names += tuple(name for name in said if name not in shown)
        if not names and not self.mta.macros_always:
            return None
        values = []
        for name in names:
            key = normalise_macro(name)
            value = self.message.get(key, self.connection.get(key))
            if value is not None:
                values.append((to_bytes(name), value))
        return codec.Macros(STEPS[step].letter.value, tuple(values))

    def _requested(self, step: Step, requests: Requests) -> tuple[str, ...] | None:
        source = self.mta.list_of.get(step, step)
        if self.mta.end_of_message_list_by_flag and source is Step.END_OF_MESSAGE:
            # milter_data() of Sendmail looks at the flag of the other list.
            names = requests.get(source, ()) if Step.END_OF_HEADERS in requests else None
        else:
            names = requests.get(source)
        return None if names == () and self.mta.empty_request_is_default else names
