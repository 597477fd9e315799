"""A message as an MTA sees it: header fields and a body, taken apart and put together without loss.

A field's value is everything behind the colon, the space included; folding is LF and white space; bytes are never
decoded. What is not kept: CRLF or LF as the end of a line (the result has CRLF), white space between a name and its
colon (neither MTA keeps it), a last line without an end (it gets one).

Sources: RFC 5322 section 2.2; Postfix ``src/global/is_header.c``, ``src/cleanup/cleanup_message.c``; Sendmail
``sendmail/collect.c``.
"""

import re
from collections.abc import Iterable
from email.message import Message
from email.policy import EmailPolicy
from typing import NamedTuple, Protocol, TypeAlias

_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:(.*)", re.DOTALL)


class BinaryFile(Protocol):
    """Anything with ``read`` that gives bytes."""

    def read(self) -> bytes:
        """Return all of it."""


MessageSource: TypeAlias = "bytes | BinaryFile | Message"
"""A message: its bytes, a binary file, or an ``email.message.EmailMessage``."""


class Field(NamedTuple):
    """One header field; ``value`` is all that stands behind the colon, folded with LF."""

    name: bytes
    value: bytes


def message_bytes(message: MessageSource) -> bytes:
    """Return the bytes of a message; ``TypeError`` for ``str`` and for a file that was opened as text."""
    if isinstance(message, Message):
        # What came from a parser is not folded anew: a filter should see what the sender wrote.
        modern = isinstance(message.policy, EmailPolicy)
        policy = message.policy.clone(
            linesep="\r\n", **({"refold_source": "none"} if modern else {"max_line_length": 0})
        )
        return message.as_bytes(policy=policy)
    raw: object = message.read() if hasattr(message, "read") else message
    if not isinstance(raw, bytes | bytearray | memoryview):
        raise TypeError(f"a message is bytes, a binary file or an EmailMessage, not {type(raw).__name__}")
    return bytes(raw)


def split_message(raw: bytes, mailbox_line: bytes = b"") -> tuple[list[Field], bytes]:
    r"""Return the header fields and the body, whose lines end in CRLF.

    The header section ends at an empty line, or before the first line that is no field. A first line ``From ...`` (as
    in mailbox files) becomes a field ``mailbox_line``, or is dropped if that is empty.

    >>> split_message(b"A: 1\nB : 2\n\tmore\n\nbody")
    ([Field(name=b'A', value=b' 1'), Field(name=b'B', value=b' 2\n\tmore')], b'body\r\n')
    """
    fields: list[Field] = []
    lines: list[bytes] = []
    at = 0
    while at < len(raw):
        end = raw.find(b"\n", at)
        following = len(raw) if end < 0 else end + 1
        line = raw[at : len(raw) if end < 0 else end]
        line = line[:-1] if line[-1:] == b"\r" else line
        if not line:
            at = following
            break
        if line[:1] in b" \t" and lines:
            lines.append(line)
        elif _FIELD.fullmatch(line):
            fields += _field(lines)
            lines = [line]
        elif at == 0 and line[:5] == b"From ":
            fields += [Field(mailbox_line, b" " + line)] if mailbox_line else []
        else:
            break
        at = following
    fields += _field(lines)
    return fields, crlf(raw[at:])


def _field(lines: list[bytes]) -> list[Field]:
    if not lines:
        return []
    match = _FIELD.fullmatch(b"\n".join(lines))
    assert match is not None  # the first line matched, and continuation lines match anything
    return [Field(match[1], match[2])]


def crlf(text: bytes) -> bytes:
    r"""Return ``text`` with CRLF at the end of each line, the last one included; a CR alone stays.

    >>> crlf(b"a\nb\r\nc")
    b'a\r\nb\r\nc\r\n'
    """
    if text and text[-1:] != b"\n":
        text += b"\n"
    return text.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def join_message(fields: Iterable[Field], body: bytes) -> bytes:
    r"""Return the message of these fields and this body.

    >>> join_message([Field(b"A", b" 1\n 2")], b"body\r\n")
    b'A: 1\r\n 2\r\n\r\nbody\r\n'
    """
    head = b"".join(b"%s:%s\r\n" % (name, value.replace(b"\n", b"\r\n")) for name, value in fields)
    return head + b"\r\n" + body
