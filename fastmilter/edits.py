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
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Final

from fastmilter import codec
from fastmilter.addresses import to_bytes
from fastmilter.constants import MAX_DATA_BYTES, MAX_HEADER_INDEX
from fastmilter.replies import TEMPFAIL

BodySource = bytes | bytearray | memoryview | IO[bytes] | Iterable[bytes]
"""What ``replace_body`` takes."""

SPOOL_MEMORY_BYTES: Final = 1 << 20
"""How much of a new body is held in memory before it goes into a temporary file."""

APPEND_INDEX: Final = 10000
"""An index for INSHEADER that is beyond the end of every header section, and no large number to either MTA."""

_MADE_BY_MTA: Final = frozenset({b"date", b"from", b"message-id"})

_FIELD_NAME = re.compile(rb"[!-9;-~]+")  # RFC 5322 section 3.6.8: printable ASCII without the colon
_NOT_FOLDING = re.compile(rb"\n(?![ \t])")


def field_name(name: str | bytes) -> bytes:
    """Return the name of a header field; ``ValueError`` unless it is printable ASCII without colon and space."""
    encoded = to_bytes(name) if isinstance(name, str) else name
    if not isinstance(encoded, bytes) or not _FIELD_NAME.fullmatch(encoded):
        raise ValueError(f"header field name {name!r} must be printable ASCII without colon and space")
    return encoded


def field_value(name: bytes, value: str | bytes) -> bytes:
    """Return the value of a header field as both MTAs take it: folded with LF and white space.

    One newline at the end is dropped. ``ValueError`` for NUL, bare CR, a newline that is not folding, and a field
    that does not fit a packet.
    """
    if not isinstance(value, str | bytes):
        raise ValueError(f"the value of {name!r} must be str or bytes, not {type(value).__name__}")
    encoded = to_bytes(value) if isinstance(value, str) else value
    if b"\r" in encoded:
        encoded = encoded.replace(b"\r\n", b"\n")  # Postfix and Sendmail would deliver CR CR LF
    if encoded[-1:] == b"\n":
        encoded = encoded[:-1]
    for wrong, what in ((b"\0", "a NUL"), (b"\r", "a bare CR")):
        if wrong in encoded:
            raise ValueError(f"the value of {name.decode()} contains {what}")
    if _NOT_FOLDING.search(encoded):
        raise ValueError(
            f"the value of {name.decode()} contains a newline that is not folding: a space or tab must follow it"
        )
    if len(name) + len(encoded) + len("....\0\0") > MAX_DATA_BYTES:
        raise ValueError(f"the field {name.decode()} has {len(encoded)} bytes and does not fit a packet")
    return encoded


def header_index(index: int, lowest: int) -> int:
    """Return an index that both MTAs understand; ``ValueError`` outside ``lowest`` to 2147483647."""
    if isinstance(index, bool) or not isinstance(index, int) or not lowest <= index <= MAX_HEADER_INDEX:
        raise ValueError(f"index {index!r} must be a number from {lowest} to {MAX_HEADER_INDEX}")
    return index


@dataclass(frozen=True, slots=True)
class SetHeader:
    """Change the field number ``index`` (from 1) of that name; ``value`` ``None`` deletes it."""

    name: bytes
    index: int
    value: bytes | None


@dataclass(frozen=True, slots=True)
class DeleteHeaders:
    """Delete every field of that name."""

    name: bytes


@dataclass(frozen=True, slots=True)
class AppendHeader:
    """Add a field after all others."""

    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class NewBody:
    """Replace the body."""

    source: bytes | IO[bytes]


Edit = (
    SetHeader
    | DeleteHeaders
    | AppendHeader
    | NewBody
    | codec.InsertHeader
    | codec.AddRecipient
    | codec.DeleteRecipient
    | codec.ChangeSender
    | codec.Quarantine
)


def spooled(source: BodySource) -> bytes | IO[bytes]:
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
    pieces = iter(lambda: read(MAX_DATA_BYTES), b"") if read is not None else iter(source)
    spool = tempfile.SpooledTemporaryFile(max_size=SPOOL_MEMORY_BYTES)  # noqa: SIM115 - closed when it was sent
    try:
        for piece in pieces:
            if not isinstance(piece, bytes | bytearray | memoryview):
                raise TypeError(f"a body must be made of bytes, not {type(piece).__name__}")
            spool.write(piece)
    except BaseException:
        spool.close()
        raise
    return spool


def discard(edits: Iterable[Edit]) -> None:
    """Let go of what ``edits`` hold open."""
    for edit in edits:
        if isinstance(edit, NewBody) and not isinstance(edit.source, bytes):
            edit.source.close()


@dataclass(frozen=True, slots=True)
class Composed:
    """Edits as they go on the wire: ``head``, then the body's packets from ``body``, then ``foot``."""

    head: list[bytes]
    body: bytes | IO[bytes] | None
    foot: list[bytes]


def compose(
    edits: list[Edit],
    shown: list[bytes] | None,
    *,
    appends_in_place: bool,
    may_add: bool = True,
    recipients: Iterable[bytes] = (),
) -> Composed:
    """Put ``edits`` in order.

    ``shown``: the names of the header fields that the filter was shown, ``None`` if it asked for none.
    ``appends_in_place``: the MTA puts an added field where one of that name is (Sendmail) instead of at the end.
    ``may_add``: the MTA granted additions; without it a field that is not there is still changed, which adds it.
    ``recipients``: the forward-paths of the message as the MTA sent them.
    """
    counts = Counter(name.lower() for name in shown) if shown is not None else None
    settled, additions = _settle(edits, counts)
    head = [
        codec.encode(codec.ChangeHeader(edit.index, edit.name, edit.value or b""))
        for fields in settled.values()
        for _, edit in sorted(fields.items(), reverse=True)
    ]
    present = set(counts or ())
    for addition in additions:
        if isinstance(addition, SetHeader) and not may_add:
            head.append(codec.encode(codec.ChangeHeader(addition.index, addition.name, addition.value or b"")))
        elif isinstance(addition, AppendHeader | SetHeader):
            name = addition.name.lower()
            # Without the header section one of that name may be there. Date, From and Message-Id of Sendmail's own
            # making are replaced by ADDHEADER only.
            in_the_way = name in present or (counts is None and name not in _MADE_BY_MTA)
            head.append(
                codec.encode(
                    codec.InsertHeader(APPEND_INDEX, addition.name, addition.value or b"")
                    if appends_in_place and in_the_way
                    else codec.AddHeader(addition.name, addition.value or b"")
                )
            )
        else:
            head.append(codec.encode(addition))
        present.add(addition.name.lower())
    head += _envelope(edits, recipients)
    bodies = [edit.source for edit in edits if isinstance(edit, NewBody)]
    body = bodies[-1] if bodies else None
    discard(edit for edit in edits if isinstance(edit, NewBody) and edit.source is not body)
    quarantines = [codec.encode(edit) for edit in edits if isinstance(edit, codec.Quarantine)]
    return Composed(head, body, quarantines[-1:])


def _envelope(edits: Iterable[Edit], recipients: Iterable[bytes]) -> list[bytes]:
    """Return the changes of the envelope in call order.

    A recipient who is there already is not added again: Postfix would deliver twice, Sendmail once. With parameters
    it is, since they say something new.
    """
    there: set[bytes] | None = None
    packets = []
    for edit in edits:
        if isinstance(edit, codec.AddRecipient | codec.DeleteRecipient):
            if there is None:
                there = {path if path[:1] == b"<" else b"<" + path + b">" for path in recipients}
            if isinstance(edit, codec.DeleteRecipient):
                there.discard(edit.recipient)
            elif edit.recipient in there and not edit.params:
                continue
            else:
                there.add(edit.recipient)
            packets.append(codec.encode(edit))
        elif isinstance(edit, codec.ChangeSender):
            packets.append(codec.encode(edit))
    return packets


_Settled = dict[bytes, dict[int, SetHeader]]
_Addition = AppendHeader | codec.InsertHeader | SetHeader


def _settle(edits: Iterable[Edit], counts: "Counter[bytes] | None") -> tuple[_Settled, list[_Addition]]:
    """Let the last change of each field win; a change of a field that is not there becomes an addition.

    As a change, Postfix would append it, and Sendmail put it before the first of that name and shift the others.
    """
    settled: _Settled = {}
    additions: dict[object, _Addition] = {}  # in call order, by number; what is not there by name and index
    for number, edit in enumerate(edits):
        if isinstance(edit, AppendHeader | codec.InsertHeader):
            additions[number] = edit
        elif isinstance(edit, DeleteHeaders):
            key = edit.name.lower()
            there = 0 if counts is None else counts[key]
            settled[key] = {n: SetHeader(edit.name, n, None) for n in range(1, there + 1)}
            additions = {place: made for place, made in additions.items() if not _changes(made, key)}
        elif isinstance(edit, SetHeader):
            key = edit.name.lower()
            if counts is None or edit.index <= counts[key]:
                settled.setdefault(key, {})[edit.index] = edit
            elif edit.value is not None:
                additions[key, edit.index] = edit
            else:
                additions.pop((key, edit.index), None)
    return settled, list(additions.values())


def _changes(addition: _Addition, key: bytes) -> bool:
    return isinstance(addition, SetHeader) and addition.name.lower() == key


def body_packets(source: bytes | IO[bytes], max_data: int, foot: bytes) -> Iterator[bytes]:
    """Yield the packets of a new body, one run of them as Postfix demands, then ``foot``.

    ``max_data``: most bytes of a packet. ``foot`` ends with the verdict. If the body cannot be read to its end,
    TEMPFAIL takes the place of ``foot``: edits have left by then, and the message must not be delivered half changed.
    """
    body = io.BytesIO(source) if isinstance(source, bytes) else source  # shares the bytes, copies nothing
    try:
        body.seek(0)
        chunk = body.read(max_data)
        yield codec.encode(codec.ReplaceBody(chunk), max_data)  # an empty body is one empty packet
        while chunk := body.read(max_data):
            yield codec.encode(codec.ReplaceBody(chunk), max_data)
    except OSError:
        foot = TEMPFAIL.packet
    finally:
        body.close()
    yield foot
