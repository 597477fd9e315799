"""What a filter wants changed in a message: checked when it is asked for, put in order when the message ends.

Postfix and Sendmail number header fields differently while changes are applied (Postfix renumbers after a deletion,
Sendmail keeps the slot; an addition goes to the end on Postfix and before the first field of its name on Sendmail).
So that both give the same result, indices count the fields as the filter was shown them, changes and deletions go out
first and within a name the highest index first, then insertions and additions in call order, then the envelope, the
body and the quarantine.

Sources: Postfix ``src/cleanup/cleanup_milter.c``, Sendmail ``sendmail/milter.c`` (milter_addheader,
milter_changeheader) and ``sendmail/headers.c`` (insheader); ``libmilter/smfi.c``.
"""

import io
import re
import tempfile
from collections.abc import AsyncIterable, Iterable, Iterator
from typing import IO, Any, Final

from fastmilter._encode import encode, header_packet
from fastmilter._text import is_field_name, is_one_line, is_same_name, to_bytes, to_text
from fastmilter.codec import AddRecipient, ChangeSender, DeleteRecipient, InsertHeader, Quarantine, RcptTo, ReplaceBody
from fastmilter.constants import MAX_DATA_BYTES, MAX_HEADER_INDEX
from fastmilter.replies import TEMPFAIL

_AtOnce = bytes | bytearray | memoryview | IO[bytes] | Iterable[bytes]

BodySource = _AtOnce | AsyncIterable[bytes]
"""What ``replace_body`` takes."""

SPOOL_MEMORY_BYTES: Final = 1 << 20
"""How much of a new body is held in memory before it goes into a temporary file."""

APPEND_INDEX: Final = 10000
"""An index for INSHEADER that is beyond the end of every header section, and no large number to either MTA."""

_MADE_BY_MTA: Final = frozenset({b"date", b"from", b"message-id"})

_NOT_FOLDING = re.compile(rb"\n(?![ \t])")


def field_name(name: str | bytes) -> bytes:
    """Return the name of a header field; ``ValueError`` unless it is printable ASCII without colon and space."""
    encoded = to_bytes(name) if isinstance(name, str) else name
    if not isinstance(encoded, bytes) or not is_field_name(encoded):
        raise ValueError(f"header field name {name!r} must be printable ASCII without colon and space")
    return encoded


def field_value(name: bytes, value: str | bytes) -> bytes:
    """Return the value of a header field as both MTAs take it: folded with LF and white space.

    One newline at the end is dropped. ``ValueError`` for NUL, bare CR, a newline that is not folding, and a field
    that does not fit a packet.
    """
    if not isinstance(value, (str, bytes)):
        raise ValueError(f"the value of {name!r} must be str or bytes, not {type(value).__name__}")
    encoded = to_bytes(value) if isinstance(value, str) else value
    if not is_one_line(encoded):
        encoded = _folded(name, encoded)
    if len(name) + len(encoded) + 6 > MAX_DATA_BYTES:  # an index and two NULs
        raise ValueError(f"the field {name.decode()} has {len(encoded)} bytes and does not fit a packet")
    return encoded


def _folded(name: bytes, value: bytes) -> bytes:
    """Return a value of more than one line as it may stand in a packet."""
    value = value.replace(b"\r\n", b"\n").removesuffix(b"\n")  # Postfix and Sendmail would deliver CR CR LF
    if b"\0" in value or b"\r" in value:
        what = "a NUL" if b"\0" in value else "a bare CR"
        raise ValueError(f"the value of {name.decode()} contains {what}")
    if _NOT_FOLDING.search(value):
        raise ValueError(
            f"the value of {name.decode()} contains a newline that is not folding: a space or tab must follow it"
        )
    return value


def header_index(index: int, lowest: int) -> int:
    """Return an index that both MTAs understand; ``ValueError`` outside ``lowest`` to 2147483647."""
    if isinstance(index, bool) or not isinstance(index, int) or not lowest <= index <= MAX_HEADER_INDEX:
        raise ValueError(f"index {index!r} must be a number from {lowest} to {MAX_HEADER_INDEX}")
    return index


class SetHeader:
    """Change the field number ``index`` (from 1) of that name; ``value`` ``None`` deletes it."""

    def __init__(self, name: bytes, index: int, value: bytes | None) -> None:
        self.name = name
        self.index = index
        self.value = value


class DeleteHeaders:
    """Delete every field of that name."""

    def __init__(self, name: bytes) -> None:
        self.name = name


class AppendHeader:
    """Add a field after all others."""

    def __init__(self, name: bytes, value: bytes) -> None:
        self.name = name
        self.value = value


def append_header(name: bytes, value: bytes) -> AppendHeader:
    """Return ``AppendHeader(name, value)``, without the cost of calling a class."""
    made = AppendHeader.__new__(AppendHeader)
    made.name, made.value = name, value
    return made


def set_header(name: bytes, index: int, value: bytes | None) -> SetHeader:
    """Return ``SetHeader(name, index, value)``, without the cost of calling a class."""
    made = SetHeader.__new__(SetHeader)
    made.name, made.index, made.value = name, index, value
    return made


class NewBody:
    """Replace the body."""

    def __init__(self, source: bytes | IO[bytes]) -> None:
        self.source = source


PacketEdit = InsertHeader | AddRecipient | DeleteRecipient | ChangeSender | Quarantine
"""What goes out as it was asked for."""

Edit = SetHeader | DeleteHeaders | AppendHeader | NewBody | PacketEdit


def spooled(source: _AtOnce) -> bytes | IO[bytes]:
    """Return a new body as bytes, or drained into a temporary file; errors of ``source`` come through.

    ``TypeError`` for ``str`` and for what yields anything but bytes.
    """
    if isinstance(source, bytes):
        return source
    if isinstance(source, bytearray | memoryview):
        return bytes(source)
    if isinstance(source, str):
        raise TypeError("a body must be bytes, not str: encode it first")
    read = getattr(source, "read", None)
    if read is None and not isinstance(source, Iterable):
        raise TypeError(f"a body must be bytes, a binary file or an iterable of bytes, not {type(source).__name__}")
    pieces: Iterator[bytes] = iter(lambda: read(MAX_DATA_BYTES), b"") if read is not None else iter(source)
    spool = _new_spool()
    try:
        for piece in pieces:
            spool.write(_piece(piece))
    except BaseException:
        spool.close()
        raise
    return spool


async def spooled_from(source: AsyncIterable[bytes]) -> IO[bytes]:
    """Return a new body that comes bit by bit, drained into a temporary file; errors as ``spooled``."""
    spool = _new_spool()
    try:
        async for piece in source:
            spool.write(_piece(piece))
    except BaseException:
        spool.close()
        raise
    return spool


def _new_spool() -> IO[bytes]:
    return tempfile.SpooledTemporaryFile(max_size=SPOOL_MEMORY_BYTES)  # closed when it was sent


def _piece(piece: Any) -> bytes | bytearray | memoryview:
    if not isinstance(piece, bytes | bytearray | memoryview):
        raise TypeError(f"a body must be made of bytes, not {type(piece).__name__}")
    return piece


def discard(edits: Iterable[Edit]) -> None:
    """Let go of what ``edits`` hold open."""
    for edit in edits:
        if isinstance(edit, NewBody) and not isinstance(edit.source, bytes):
            edit.source.close()


class Composed:
    """Edits as they go on the wire: ``head``, then the body's packets from ``body``, then ``foot``."""

    head: list[bytes]
    body: bytes | IO[bytes] | None
    foot: list[bytes]


def compose(
    edits: list[Edit],
    shown: list[str] | None,
    appends_in_place: bool,
    may_add: bool = True,
    recipients: Iterable[RcptTo] = (),
) -> Composed:
    """Put ``edits`` in order.

    ``shown``: the names of the header fields that the filter was shown, ``None`` if it asked for none.
    ``appends_in_place``: the MTA puts an added field where one of that name is (Sendmail) instead of at the end.
    ``may_add``: the MTA granted additions; without it a field that is not there is still changed, which adds it.
    ``recipients``: those of the message so far.
    """
    changes, additions, others = _settle(edits, shown)
    if len(changes) > 1:  # Postfix renumbers after a deletion: the highest index goes first
        changes = sorted(changes, key=_index_of, reverse=True)
    head = [_change(edit) for edit in changes]
    added: list[str] = []
    for addition in additions:
        kind = type(addition)
        if kind is InsertHeader:
            head.append(encode(addition))
        elif kind is SetHeader and not may_add:
            head.append(_change(addition))
        else:
            in_the_way = appends_in_place and _may_be_there(addition.name, shown, added)
            head.append(_append(addition.name, addition.value, in_the_way))
        if appends_in_place:
            added.append(to_text(addition.name))
    if not others:
        return _composed(head, None, [])
    head += _envelope(others, recipients)
    bodies = [edit.source for edit in others if type(edit) is NewBody]
    body = bodies[-1] if bodies else None
    discard([edit for edit in others if type(edit) is NewBody and edit.source is not body])
    quarantines = [encode(edit) for edit in others if type(edit) is Quarantine]
    return _composed(head, body, quarantines[-1:])


def _composed(head: list[bytes], body: bytes | IO[bytes] | None, foot: list[bytes]) -> Composed:
    made = Composed.__new__(Composed)
    made.head, made.body, made.foot = head, body, foot
    return made


def _change(edit: SetHeader) -> bytes:
    return header_packet(_CHANGE, edit.index, edit.name, edit.value or b"")


def _append(name: bytes, value: bytes, in_the_way: bool) -> bytes:
    return header_packet(_INSERT, APPEND_INDEX, name, value) if in_the_way else header_packet(_ADD, None, name, value)


_ADD, _INSERT, _CHANGE = b"him"


def _may_be_there(name: bytes, shown: list[str] | None, added: list[str]) -> bool:
    """Tell whether a field of that name is in the message, or may be.

    Without the header section one may be there. Date, From and Message-Id of Sendmail's own making are replaced by
    ADDHEADER only.
    """
    if count(added, name):
        return True
    return count(shown, name) > 0 if shown is not None else name.lower() not in _MADE_BY_MTA


def count(names: list[str], name: bytes) -> int:
    """Return how many of ``names`` are ``name``, in upper or lower case."""
    found = 0
    for other in names:
        if is_same_name(name, other):
            found += 1
    return found


def _envelope(edits: Iterable[Edit], recipients: Iterable[RcptTo]) -> list[bytes]:
    """Return the changes of the envelope in call order.

    A recipient who is there already is not added again: Postfix would deliver twice, Sendmail once. With parameters
    it is, since they say something new.
    """
    there: set[bytes] | None = None
    packets = []
    for edit in edits:
        if isinstance(edit, (AddRecipient, DeleteRecipient)):
            if there is None:
                paths = [recipient.recipient for recipient in recipients]
                there = {path if path[:1] == b"<" else b"<" + path + b">" for path in paths}
            if isinstance(edit, DeleteRecipient):
                there.discard(edit.recipient)
            elif edit.recipient in there and not edit.params:
                continue
            else:
                there.add(edit.recipient)
            packets.append(encode(edit))
        elif isinstance(edit, ChangeSender):
            packets.append(encode(edit))
    return packets


def _index_of(edit: SetHeader) -> int:
    return edit.index


_Place = tuple[bytes, int]
"""A field: its name in lower case and its index."""


def _settle(edits: list[Edit], shown: list[str] | None) -> tuple[list[SetHeader], list[Any], list[Edit]]:
    """Let the last change of each field win; return the changes, the additions and all other edits, each in call order.

    A change of a field that is not there becomes an addition: as a change, Postfix would append it, and Sendmail put
    it before the first of that name and shift the others.
    """
    changes: dict[_Place, SetHeader] = {}
    additions: dict[int | _Place, Any] = {}  # by a number, and changes that became additions by their place
    others: list[Edit] = []
    number = 0
    # One look through the fields is cheaper for a few edits; the mail decides how many fields there are.
    counted = _counted(shown) if shown is not None and len(edits) > _FEW else None
    for edit in edits:
        kind = type(edit)
        if kind is AppendHeader or kind is InsertHeader:
            additions[number] = edit
            number += 1
        elif isinstance(edit, SetHeader):
            change = edit  # of a type that C knows
            lower = change.name.lower()
            place = lower, change.index
            if shown is None or change.index <= _number_of(lower, shown, counted):
                changes[place] = change
            elif change.value is not None:
                additions[place] = change
            else:
                additions.pop(place, None)
        elif isinstance(edit, DeleteHeaders):
            there = 0 if shown is None else _number_of(edit.name, shown, counted)
            changes = {place: made for place, made in changes.items() if not _names(made, edit)}
            additions = {place: made for place, made in additions.items() if not _names(made, edit)}
            for index in range(1, there + 1):
                changes[edit.name.lower(), index] = SetHeader(edit.name, index, None)
        else:
            others.append(edit)
    return [made for made in changes.values()], [made for made in additions.values()], others  # faster than list()


_FEW: Final = 8


def _counted(shown: list[str]) -> dict[str, int]:
    """Return how many fields there are of each name, in lower case."""
    counted: dict[str, int] = {}
    for name in shown:
        key = name.lower()
        counted[key] = counted.get(key, 0) + 1
    return counted


def _number_of(name: bytes, shown: list[str], counted: dict[str, int] | None) -> int:
    return count(shown, name) if counted is None else counted.get(to_text(name).lower(), 0)


def _names(made: Any, edit: DeleteHeaders) -> bool:
    """Whether ``made`` is a change of a field that ``edit`` deletes; what was added to the message stays."""
    return isinstance(made, SetHeader) and made.name.lower() == edit.name.lower()


def body_packets(source: bytes | IO[bytes], max_data: int, foot: bytes) -> Iterator[bytes]:
    """Yield the packets of a new body, one run of them as Postfix demands, then ``foot``.

    ``max_data``: most bytes of a packet. ``foot`` ends with the verdict. If the body cannot be read to its end,
    TEMPFAIL takes the place of ``foot``: edits have left by then, and the message must not be delivered half changed.
    """
    body = io.BytesIO(source) if isinstance(source, bytes) else source  # shares the bytes, copies nothing
    try:
        body.seek(0)
        chunk = body.read(max_data)
        yield encode(ReplaceBody(chunk), max_data)  # an empty body is one empty packet
        while chunk := body.read(max_data):
            yield encode(ReplaceBody(chunk), max_data)
    except OSError:
        foot = TEMPFAIL.packet
    finally:
        body.close()
    yield foot
