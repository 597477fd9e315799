"""What a filter sees of the connection and of the message in work: ``Connection``, ``Message``.

A message is a new object for every MAIL, so nothing of one message can reach another. When it has ended it is sealed:
whoever still holds it can read it, and an edit raises ``MessageEnded``.
"""

from collections.abc import AsyncIterable, Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Generic

from fastmilter._text import to_bytes, to_text
from fastmilter.addresses import (
    Address,
    Params,
    Recipient,
    SocketAddress,
    address_of,
    params_argument,
    params_of,
    path_argument,
    socket_address,
)
from fastmilter.codec import (
    AddRecipient,
    ChangeSender,
    Connect,
    DeleteRecipient,
    InsertHeader,
    MailFrom,
    Quarantine,
    RcptTo,
    encode,
)
from fastmilter.constants import Action
from fastmilter.edits import (
    BodySource,
    Composed,
    DeleteHeaders,
    Edit,
    NewBody,
    PacketEdit,
    append_header,
    compose,
    discard,
    field_name,
    field_value,
    header_index,
    set_header,
    spooled,
    spooled_from,
)
from fastmilter.errors import MessageEnded, NotNegotiated
from fastmilter.macros import CONNECTION_STAGES, Macros, Stages, look_up
from fastmilter.negotiation import Agreement
from fastmilter.plan import Plan
from fastmilter.session import Session

if TYPE_CHECKING:
    # PEP 696 defaults let ``class Tagger(Filter)`` pass ``mypy --strict``; at run time they need Python 3.13.
    from typing_extensions import TypeVar

    S = TypeVar("S", default=SimpleNamespace)
else:
    from typing import TypeVar

    S = TypeVar("S")


_ADD_HEADERS = int(Action.ADD_HEADERS)
_CHANGE_HEADERS = int(Action.CHANGE_HEADERS)
_ADD_RECIPIENT = int(Action.ADD_RECIPIENT)
_ADD_RECIPIENT_PARAMS = int(Action.ADD_RECIPIENT_PARAMS)
_DELETE_RECIPIENT = int(Action.DELETE_RECIPIENT)
_CHANGE_SENDER = int(Action.CHANGE_SENDER)
_CHANGE_BODY = int(Action.CHANGE_BODY)
_QUARANTINE = int(Action.QUARANTINE)


class Connection:
    """The SMTP connection that a filter serves: ``Filter.connection``, from CONNECT to its end. Read-only."""

    def __init__(self, session: Session, connect: Connect | None) -> None:
        """Begin with what CONNECT told; ``None`` if the MTA began without it."""
        self._session = session
        self._connect = connect
        self._helo: bytes | None = None
        self._known_mta: str | None = None

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
        return socket_address(connect.family, connect.port, connect.address)

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
        return self._find_mta()

    def _find_mta(self) -> str | None:
        if self._known_mta is None:
            self._known_mta = _mta_of(self._session.stages[:CONNECTION_STAGES])
        return self._known_mta

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


def _mta_of(stages: Stages) -> str | None:
    version = look_up(stages, b"v")
    if version is not None:
        return "postfix" if version.startswith("Postfix") else "sendmail" if version[:2] == "8." else None
    # Sendmail does not send v unless it is configured; {if_name} and the daemon's name MTA or MSA are its own.
    if look_up(stages, b"if_name") is not None or look_up(stages, b"daemon_name") in ("MTA", "MSA"):
        return "sendmail"
    return None


class EditableMessage:
    """All of a ``Message`` but its ``state``, which is of a type that the filter chooses.

    Edits may be asked for from ``on_mail`` on; they are kept and sent with the verdict at the end of the message, and
    dropped by the MTA if the message is refused. Each raises ``NotNegotiated`` if the MTA did not grant it,
    ``MessageEnded`` after the end, ``ValueError`` for what cannot be sent.
    """

    def __init__(self, agreement: Agreement, stages: Stages, sender: MailFrom, plan: Plan) -> None:
        """Begin a message with what MAIL told."""
        self._agreement = agreement
        self._actions = agreement.actions
        self._stages = stages
        self._macros: Macros | None = None
        self._sender = sender
        self._plan = plan
        self._state: Any = None
        self._recipients: list[RcptTo] = []
        self._shown: list[str] = []
        self._edits: list[Edit] = []
        self._unread_body: Any = None
        self._sealed = False
        self._began = 0.0  # when MAIL was read, by the clock of the driver

    # -- what the MTA told ---------------------------------------------------------------------------------------

    @property
    def sender(self) -> Address:
        """The reverse-path; ``""`` is the null reverse-path of bounces."""
        return address_of(self._sender.sender)

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
        if self._macros is None:
            self._macros = Macros(self._stages)
        return self._macros

    @property
    def queue_id(self) -> str | None:
        """The MTA's queue id (macro ``i``); Postfix knows it from the first accepted recipient on, else ``None``."""
        return look_up(self._stages, b"i")

    # -- edits ---------------------------------------------------------------------------------------------------

    def add_header(self, name: str | bytes, value: str | bytes) -> None:
        """Add a header field after all others (smfi_addheader)."""
        field = field_name(name)
        self._add(_ADD_HEADERS, append_header(field, field_value(field, value)))

    def insert_header(self, name: str | bytes, value: str | bytes, *, index: int = 0) -> None:
        """Insert a header field (smfi_insheader).

        ``index``: 0 above the MTA's own Received field, 1 below it; larger numbers mean the same place on both MTAs
        only beyond the end.
        """
        field = field_name(name)
        self._add_packet(_ADD_HEADERS, InsertHeader(header_index(index, 0), field, field_value(field, value)))

    def change_header(self, name: str | bytes, value: str | bytes, *, index: int = 1) -> None:
        """Change the ``index``-th field of that name, counted from 1 as the filter was shown them (smfi_chgheader).

        A field that is not there is added.
        """
        field = field_name(name)
        new = field_value(field, value)
        if not new:
            raise ValueError(f"an empty value would delete {field.decode()}: use delete_header")
        self._add(_CHANGE_HEADERS, set_header(field, header_index(index, 1), new))

    def delete_header(self, name: str | bytes, *, index: int) -> None:
        """Delete the ``index``-th field of that name, counted from 1 as the filter was shown them."""
        self._add(_CHANGE_HEADERS, set_header(field_name(name), header_index(index, 1), None))

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
        self._add(_CHANGE_HEADERS, DeleteHeaders(field))

    def add_recipient(self, address: str | bytes, params: Iterable[str] = ()) -> None:
        """Add a recipient to the envelope (smfi_addrcpt, smfi_addrcpt_par)."""
        encoded = params_argument(params)
        action = _ADD_RECIPIENT_PARAMS if encoded else _ADD_RECIPIENT
        self._add_packet(action, AddRecipient(_some_path(address), encoded))

    def delete_recipient(self, address: str | bytes) -> None:
        """Take a recipient out of the envelope; upper and lower case count (smfi_delrcpt)."""
        self._add_packet(_DELETE_RECIPIENT, DeleteRecipient(_some_path(address)))

    def change_sender(self, address: str | bytes, params: Iterable[str] = ()) -> None:
        """Change the reverse-path; ``""`` is the null reverse-path (smfi_chgfrom)."""
        self._add_packet(_CHANGE_SENDER, ChangeSender(path_argument(address), params_argument(params)))

    def replace_body(self, data: BodySource) -> None:
        """Replace the whole body; the last call wins (smfi_replacebody).

        ``data``: ``bytes``, a binary file or an iterable of ``bytes``; the last two are read now, into a temporary
        file where they are large. An asynchronous iterable of ``bytes`` is read when the callback has returned, within
        its deadline; only a class with ``async`` callbacks may hand one over.
        """
        self._check(_CHANGE_BODY)
        if isinstance(data, AsyncIterable):
            if not self._plan.is_async:
                raise TypeError("an asynchronous iterable needs a class with async callbacks")
            self._unread_body = data
        else:
            body = NewBody(spooled(data))
            self._unread_body = None
            self._add(_CHANGE_BODY, body)

    @property
    def _has_unread_body(self) -> bool:
        """Whether an asynchronous iterable was handed over and is still to be read: for whoever runs the callback."""
        return self._unread_body is not None

    async def _read_body(self) -> None:
        """Read what was handed over last, into a temporary file where it is large; errors of it come through."""
        source, self._unread_body = self._unread_body, None
        self._add(_CHANGE_BODY, NewBody(await spooled_from(source)))

    def quarantine(self, reason: str) -> None:
        """Hold the message in the MTA's queue until an administrator releases it (smfi_quarantine).

        ``reason``: not empty, one line; Postfix does not keep it.
        """
        encoded = to_bytes(reason)
        if not encoded.strip() or any(byte < 0x20 or byte == 0x7F for byte in encoded):
            # Sendmail writes the reason into its queue file: a newline would corrupt it.
            raise ValueError(f"the reason of a quarantine must be one line of text, not {reason!r}")
        self._add_packet(_QUARANTINE, Quarantine(encoded))

    def _add(self, action: int, edit: Edit) -> None:
        self._check(action)
        self._edits.append(edit)

    def _add_packet(self, action: int, edit: PacketEdit) -> None:
        self._check(action)
        encode(edit)  # what does not fit a packet is refused here, at the call
        self._add(action, edit)

    def _check(self, action: int) -> None:
        if self._sealed:
            raise MessageEnded("this message has ended: it cannot be changed any more")
        if self._actions & action != action:
            names = ", ".join(flag.name or hex(flag) for flag in Action(action))
            raise NotNegotiated(f"the MTA did not grant {names}, or the class does not ask for it (actions)")

    # -- for the conversation ------------------------------------------------------------------------------------

    def _roll_back(self, mark: int) -> None:
        """Drop the edits since ``mark``, and a body that was not read yet."""
        self._unread_body = None
        discard(self._edits[mark:])
        del self._edits[mark:]

    def _compose(self, appends_in_place: bool) -> Composed:
        """Put the edits in order for an MTA that adds a field where one of its name is, or at the end."""
        shown = self._shown if self._agreement.headers_shown else None
        return compose(self._edits, shown, appends_in_place, self._actions & _ADD_HEADERS != 0, self._recipients)

    def _seal(self) -> None:
        self._sealed = True

    def _wants_quarantine(self) -> bool:
        return any([isinstance(edit, Quarantine) for edit in self._edits])


class Message(EditableMessage, Generic[S]):
    """The message in work: ``Filter.message``, from MAIL to its end.

    Edits may be asked for from ``on_mail`` on; they are kept and sent with the verdict at the end of the message, and
    dropped by the MTA if the message is refused. Each raises ``NotNegotiated`` if the MTA did not grant it,
    ``MessageEnded`` after the end, ``ValueError`` for what cannot be sent.
    """

    __slots__ = ()

    @property
    def state(self) -> S:
        """The filter's own data for this message, made anew for each."""
        if self._state is None:
            self._state = self._plan.state_class()
        state: S = self._state
        return state

    @state.setter
    def state(self, value: S) -> None:
        self._state = value


def _some_path(address: str | bytes) -> bytes:
    path = path_argument(address)
    if path == b"<>":
        raise ValueError("a recipient's address must not be empty")
    return path
