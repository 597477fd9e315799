"""What a filter sees of the connection and of the message in work: ``Connection``, ``Message``.

A message is a new object for every MAIL, so nothing of one message can reach another. When it has ended it is sealed:
whoever still holds it can read it, and an edit raises ``MessageEnded``.
"""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Generic

from fastmilter import codec
from fastmilter.addresses import (
    Address,
    Params,
    Recipient,
    SocketAddress,
    params_argument,
    params_of,
    path_argument,
    to_bytes,
    to_text,
)
from fastmilter.constants import Action
from fastmilter.edits import (
    AppendHeader,
    BodySource,
    DeleteHeaders,
    Edit,
    NewBody,
    SetHeader,
    discard,
    field_name,
    field_value,
    header_index,
    spooled,
)
from fastmilter.errors import MessageEnded, NotNegotiated
from fastmilter.macros import CONNECTION_STAGES, Macros, Stages
from fastmilter.negotiation import Agreement
from fastmilter.session import Session

if TYPE_CHECKING:
    # PEP 696 defaults let ``class Tagger(Filter)`` pass ``mypy --strict``; at run time they need Python 3.13.
    from typing_extensions import TypeVar

    S = TypeVar("S", default=SimpleNamespace)
else:
    from typing import TypeVar

    S = TypeVar("S")


class Connection:
    """The SMTP connection that a filter serves: ``Filter.connection``, from CONNECT to its end. Read-only."""

    __slots__ = ("_connect", "_helo", "_session")

    def __init__(self, session: Session, connect: codec.Connect | None) -> None:
        """Begin with what CONNECT told; ``None`` if the MTA began without it."""
        self._session = session
        self._connect = connect
        self._helo: bytes | None = None

    @property
    def hostname(self) -> str:
        """The client's host name as the MTA knows it, for instance ``[192.0.2.1]`` without reverse DNS."""
        return "" if self._connect is None else to_text(self._connect.hostname)

    @property
    def address(self) -> SocketAddress:
        """The client's address."""
        connect = self._connect
        if connect is None:
            return SocketAddress()
        return SocketAddress.from_wire(connect.family, connect.port, connect.address)

    @property
    def helo(self) -> str | None:
        """The argument of the last HELO or EHLO; ``None`` before it, and if there was none."""
        return None if self._helo is None else to_text(self._helo)

    @property
    def macros(self) -> Macros:
        """The macros of CONNECT and HELO."""
        return Macros(self._session.stages[:CONNECTION_STAGES])

    @property
    def mta(self) -> str | None:
        """``"postfix"``, ``"sendmail"`` or ``None`` if unknown: from the macro ``v``, or else from its habits."""
        macros = self.macros
        version = macros.get("v")
        if version is not None:
            return "postfix" if version.startswith("Postfix") else "sendmail" if version[:2] == "8." else None
        # Sendmail does not send v unless it is configured; {if_name} and the daemon's name MTA or MSA are its own.
        if "if_name" in macros or macros.get("daemon_name") in ("MTA", "MSA"):
            return "sendmail"
        return None

    @property
    def mta_version(self) -> str | None:
        """The MTA's version, for instance ``3.7.11``; ``None`` if it does not say."""
        version = self.macros.get("v")
        return None if version is None else version.removeprefix("Postfix").strip()

    @property
    def protocol_version(self) -> int:
        """The version of the milter protocol in use, 2 to 6."""
        return self._session.agreement.version

    def can(self, action: Action) -> bool:
        """Whether the MTA granted ``action``, for instance ``Action.QUARANTINE``."""
        return self._session.agreement.can(action)


class Message(Generic[S]):
    """The message in work: ``Filter.message``, from MAIL to its end.

    Edits may be asked for from ``on_mail`` on; they are kept and sent with the verdict at the end of the message, and
    dropped by the MTA if the message is refused. Each raises ``NotNegotiated`` if the MTA did not grant it,
    ``MessageEnded`` after the end, ``ValueError`` for what cannot be sent.
    """

    __slots__ = (
        "_agreement",
        "_edits",
        "_recipients",
        "_sealed",
        "_sender",
        "_shown",
        "_stages",
        "_state",
        "_state_class",
    )

    def __init__(self, agreement: Agreement, stages: Stages, sender: codec.MailFrom, state_class: type[S]) -> None:
        """Begin a message with what MAIL told."""
        self._agreement = agreement
        self._stages = stages
        self._sender = sender
        self._state_class = state_class
        self._state: S | None = None
        self._recipients: list[codec.RcptTo] = []
        self._shown: list[bytes] = []
        self._edits: list[Edit] = []
        self._sealed = False

    # -- what the MTA told ---------------------------------------------------------------------------------------

    @property
    def sender(self) -> Address:
        """The reverse-path; ``""`` is the null reverse-path of bounces."""
        return Address(self._sender.sender)

    @property
    def sender_params(self) -> Params:
        """The ESMTP parameters of MAIL."""
        return params_of(self._sender.params)

    @property
    def recipients(self) -> tuple[Recipient, ...]:
        """The recipients that neither the filter nor the MTA refused so far."""
        return tuple(Recipient(rcpt.recipient, params_of(rcpt.params)) for rcpt in self._recipients)

    @property
    def macros(self) -> Macros:
        """The macros of the message and of its connection."""
        return Macros(self._stages)

    @property
    def queue_id(self) -> str | None:
        """The MTA's queue id (macro ``i``); Postfix knows it from the first accepted recipient on, else ``None``."""
        return self.macros.get("i")

    @property
    def state(self) -> S:
        """The filter's own data for this message, made anew for each."""
        if self._state is None:
            self._state = self._state_class()
        return self._state

    @state.setter
    def state(self, value: S) -> None:
        self._state = value

    # -- edits ---------------------------------------------------------------------------------------------------

    def add_header(self, name: str | bytes, value: str | bytes) -> None:
        """Add a header field after all others (smfi_addheader)."""
        field = field_name(name)
        self._add(Action.ADD_HEADERS, AppendHeader(field, field_value(field, value)))

    def insert_header(self, name: str | bytes, value: str | bytes, *, index: int = 0) -> None:
        """Insert a header field (smfi_insheader).

        ``index``: 0 above the MTA's own Received field, 1 below it; larger numbers mean the same place on both MTAs
        only beyond the end.
        """
        field = field_name(name)
        edit = codec.InsertHeader(header_index(index, 0), field, field_value(field, value))
        self._add(Action.ADD_HEADERS, edit)

    def change_header(self, name: str | bytes, value: str | bytes, *, index: int = 1) -> None:
        """Change the ``index``-th field of that name, counted from 1 as the filter was shown them (smfi_chgheader).

        A field that is not there is added.
        """
        field = field_name(name)
        new = field_value(field, value)
        if not new:
            raise ValueError(f"an empty value would delete {field.decode()}: use delete_header")
        self._add(Action.CHANGE_HEADERS, SetHeader(field, header_index(index, 1), new))

    def delete_header(self, name: str | bytes, *, index: int) -> None:
        """Delete the ``index``-th field of that name, counted from 1 as the filter was shown them."""
        self._add(Action.CHANGE_HEADERS, SetHeader(field_name(name), header_index(index, 1), None))

    def delete_headers(self, name: str | bytes) -> None:
        """Delete every field of that name that the filter is shown, also those still to come.

        ``NotNegotiated`` if the class does not override ``on_header``: then it is shown none.
        """
        field = field_name(name)
        if not self._agreement.headers_shown:
            raise NotNegotiated(
                f"delete_headers({field.decode()!r}) must see the header section: override on_header, "
                "or use delete_header(name, index=...)"
            )
        self._add(Action.CHANGE_HEADERS, DeleteHeaders(field))

    def add_recipient(self, address: str | bytes, params: Iterable[str] = ()) -> None:
        """Add a recipient to the envelope (smfi_addrcpt, smfi_addrcpt_par)."""
        encoded = params_argument(params)
        action = Action.ADD_RECIPIENT_PARAMS if encoded else Action.ADD_RECIPIENT
        self._add(action, codec.AddRecipient(_some_path(address), encoded))

    def delete_recipient(self, address: str | bytes) -> None:
        """Take a recipient out of the envelope; upper and lower case count (smfi_delrcpt)."""
        self._add(Action.DELETE_RECIPIENT, codec.DeleteRecipient(_some_path(address)))

    def change_sender(self, address: str | bytes, params: Iterable[str] = ()) -> None:
        """Change the reverse-path; ``""`` is the null reverse-path (smfi_chgfrom)."""
        self._add(Action.CHANGE_SENDER, codec.ChangeSender(path_argument(address), params_argument(params)))

    def replace_body(self, data: BodySource) -> None:
        """Replace the whole body; the last call wins (smfi_replacebody).

        ``data``: ``bytes``, a binary file or an iterable of ``bytes``; the last two are read now, into a temporary
        file where they are large.
        """
        self._check(Action.CHANGE_BODY)
        self._add(Action.CHANGE_BODY, NewBody(spooled(data)))

    def quarantine(self, reason: str) -> None:
        """Hold the message in the MTA's queue until an administrator releases it (smfi_quarantine).

        ``reason``: not empty, one line; Postfix does not keep it.
        """
        encoded = to_bytes(reason)
        if not encoded.strip() or any(byte < 0x20 or byte == 0x7F for byte in encoded):
            # Sendmail writes the reason into its queue file: a newline would corrupt it.
            raise ValueError(f"the reason of a quarantine must be one line of text, not {reason!r}")
        self._add(Action.QUARANTINE, codec.Quarantine(encoded))

    def _add(self, action: Action, edit: Edit) -> None:
        self._check(action)
        if not isinstance(edit, AppendHeader | SetHeader | DeleteHeaders | NewBody):
            codec.encode(edit)  # what does not fit a packet is refused here, at the call
        self._edits.append(edit)

    def _check(self, action: Action) -> None:
        if self._sealed:
            raise MessageEnded("this message has ended: it cannot be changed any more")
        if not self._agreement.can(action):
            names = ", ".join(flag.name or hex(flag) for flag in action)
            raise NotNegotiated(f"the MTA did not grant {names}, or the class does not ask for it (actions)")

    # -- for the conversation ------------------------------------------------------------------------------------

    def _roll_back(self, mark: int) -> None:
        """Drop the edits since ``mark``."""
        discard(self._edits[mark:])
        del self._edits[mark:]

    def _seal(self) -> None:
        self._sealed = True

    def _wants_quarantine(self) -> bool:
        return any(isinstance(edit, codec.Quarantine) for edit in self._edits)


def _some_path(address: str | bytes) -> bytes:
    path = path_argument(address)
    if path == b"<>":
        raise ValueError("a recipient's address must not be empty")
    return path
