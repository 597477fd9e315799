"""Verdicts: what a filter answers at a step, valid by construction.

``CONTINUE ACCEPT REJECT TEMPFAIL DISCARD SKIP`` are the plain verdicts, ``reply()`` makes one with an SMTP reply of
its own. A reply that cannot be sent cannot be made, and text that came from a client cannot change its meaning: the
text is split into lines, cleaned of control characters, wrapped, and ``%`` is doubled (both MTAs read the packet as a
format string).

Which verdict is admissible at which step is the session's business, not this module's.

Sources: RFC 5321 section 4.2, RFC 3463, libmilter ``smfi_setreply`` and ``smfi_setmlreply``, Postfix
``src/milter/milter8.c`` (SMFIR_REPLYCODE), Sendmail ``sendmail/milter.c`` (MILTER_CHECK_REPLYCODE).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from fastmilter import codec
from fastmilter.constants import MAX_REPLY_LINE_BYTES, MAX_REPLY_LINES, MAX_SMTP_LINE_BYTES
from fastmilter.errors import RemoteProtocolError


class VerdictKind(StrEnum):
    """What a verdict does; ``reply`` refuses with a text of its own."""

    CONTINUE = "continue"
    ACCEPT = "accept"
    REJECT = "reject"
    TEMPFAIL = "tempfail"
    DISCARD = "discard"
    SKIP = "skip"
    REPLY = "reply"


@dataclass(frozen=True, slots=True)
class Verdict:
    """An answer at a step (SMFIS_*). Compare with ``==``; take the constants or ``reply()`` instead of making one.

    ``code``, ``enhanced`` and ``text`` are ``None`` unless ``kind`` is ``"reply"``.

    >>> reply(550, "5.7.1", "no thanks").code
    550
    """

    kind: VerdictKind
    code: int | None = None
    enhanced: str | None = None
    text: str | None = None
    packet: bytes = field(default=b"", repr=False, compare=False)
    """The verdict as it goes on the wire, made once."""

    def __post_init__(self) -> None:
        """Make the packet of a verdict that was put together by hand: without one the MTA would wait forever."""
        if self.packet:
            return
        kind = VerdictKind(self.kind)
        if kind is not VerdictKind.REPLY:
            made = _PLAIN[kind]
            if (self.code, self.enhanced, self.text) != (None, None, None):
                raise ValueError(f"the verdict {kind} has no code and text: use reply(code, enhanced, text)")
        elif self.code is None or self.text is None:
            raise ValueError("a reply has a code and a text: use reply(code, enhanced, text)")
        else:
            made = reply(self.code, self.enhanced, self.text).packet
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "packet", made)

    def __str__(self) -> str:
        """Return the verdict as a log line shows it."""
        if self.kind is not VerdictKind.REPLY:
            return self.kind.value
        return " ".join(str(part) for part in (self.code, self.enhanced, self.text) if part is not None)

    @property
    def is_temporary(self) -> bool:
        """Whether the client is told to try again later."""
        return self.kind is VerdictKind.TEMPFAIL or (self.code is not None and self.code < 500)

    @property
    def is_refusal(self) -> bool:
        """Whether the client is told no, for now or for good."""
        return self.kind in (VerdictKind.REJECT, VerdictKind.TEMPFAIL, VerdictKind.REPLY)


_PLAIN: Final = {
    VerdictKind.CONTINUE: codec.encode(codec.Continue()),
    VerdictKind.ACCEPT: codec.encode(codec.Accept()),
    VerdictKind.REJECT: codec.encode(codec.Reject()),
    VerdictKind.TEMPFAIL: codec.encode(codec.TempFail()),
    VerdictKind.DISCARD: codec.encode(codec.Discard()),
    VerdictKind.SKIP: codec.encode(codec.Skip()),
}

CONTINUE: Final = Verdict(VerdictKind.CONTINUE)
"""Go on (SMFIS_CONTINUE); at the end of the message: deliver it."""

ACCEPT: Final = Verdict(VerdictKind.ACCEPT)
"""Deliver without asking further (SMFIS_ACCEPT): at CONNECT and HELO the session, later the whole message."""

REJECT: Final = Verdict(VerdictKind.REJECT)
"""Refuse for good (SMFIS_REJECT): at RCPT that recipient, at CONNECT and HELO the session, else the message."""

TEMPFAIL: Final = Verdict(VerdictKind.TEMPFAIL)
"""Refuse for now (SMFIS_TEMPFAIL), with the same reach as REJECT."""

DISCARD: Final = Verdict(VerdictKind.DISCARD)
"""Say 250 and throw the message away (SMFIS_DISCARD); not at CONNECT or HELO."""

SKIP: Final = Verdict(VerdictKind.SKIP)
"""No more of this step for this message (SMFIS_SKIP): for instance no more pieces of the body."""


class Answer(Exception):
    """Raise it from any depth of a callback to answer with ``verdict``; edits made so far are kept.

    >>> raise Answer(REJECT)
    Traceback (most recent call last):
        ...
    fastmilter.replies.Answer: reject
    """

    def __init__(self, verdict: Verdict) -> None:
        """Keep ``verdict``; ``TypeError`` if it is not one."""
        if not isinstance(verdict, Verdict):
            raise TypeError(f"Answer takes a verdict such as REJECT or reply(...), not {verdict!r}")
        super().__init__(verdict)
        self.verdict = verdict


_ENHANCED = re.compile(r"[45]\.\d{1,3}\.\d{1,3}")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


def reply(code: int, enhanced: str | None, text: str) -> Verdict:
    r"""Make a refusal with an SMTP reply of its own (smfi_setreply, smfi_setmlreply).

    ``code``: 400 to 599 (421 also ends the SMTP session). ``enhanced``: an RFC 3463 status code of the same class,
    or ``None`` for none. ``text``: one line or several separated by newlines; control characters become ``?``,
    lines that are too long for SMTP (512 bytes with the codes) are wrapped, ``%`` needs no care.

    Raises ``ValueError`` for another code, an enhanced code of another class, an empty text or more than 32 lines.

    >>> reply(451, None, "try\nlater").text
    'try\nlater'
    >>> reply(550, "4.7.1", "no")
    Traceback (most recent call last):
        ...
    ValueError: enhanced status code '4.7.1' does not fit reply code 550: it must begin with 5
    """
    if isinstance(code, bool) or not isinstance(code, int) or not 400 <= code <= 599:
        raise ValueError(f"reply code {code!r} is not a refusal: it must be a number from 400 to 599")
    if enhanced is not None:
        enhanced = _checked_enhanced(code, enhanced)
    if not isinstance(text, str):
        raise ValueError(f"the text of a reply must be str, not {type(text).__name__}")
    clean = _CONTROL.sub("?", text.replace("\r\n", "\n")).rstrip("\n")
    if not clean.strip():
        raise ValueError("the text of a reply must not be empty")
    prefix = f"{enhanced} " if enhanced else ""
    lines = [piece for line in clean.split("\n") for piece in _wrap(line, prefix)]
    if len(lines) > MAX_REPLY_LINES:
        raise ValueError(f"the text of a reply has {len(lines)} lines; an SMTP reply holds at most {MAX_REPLY_LINES}")
    packet = codec.encode(codec.ReplyCode(_wire_text(code, prefix, lines)))
    return Verdict(VerdictKind.REPLY, code, enhanced, clean, packet)


def _checked_enhanced(code: int, enhanced: str) -> str | None:
    if enhanced == "":
        return None  # libmilter would turn the author's 550 into a 451 here
    if not isinstance(enhanced, str) or not _ENHANCED.fullmatch(enhanced):
        raise ValueError(f"enhanced status code {enhanced!r} must look like '{code // 100}.7.1' (RFC 3463), or be None")
    if int(enhanced[0]) != code // 100:
        # Postfix takes such a reply for a configuration error and answers 451 4.3.5 instead.
        raise ValueError(
            f"enhanced status code {enhanced!r} does not fit reply code {code}: it must begin with {code // 100}"
        )
    return enhanced


def _wrap(line: str, prefix: str) -> Iterator[bytes]:
    """Cut ``line`` into pieces that fit an SMTP reply line, between characters, at spaces where there are any."""
    guard = 0 if prefix else 1  # the space that _wire_text puts before a digit
    smtp_room = MAX_SMTP_LINE_BYTES - len("550-\r\n") - len(prefix) - guard
    packet_room = MAX_REPLY_LINE_BYTES - len("550-") - len(prefix) - guard
    start = used = used_escaped = 0
    space = -1
    for position, character in enumerate(line):
        size = len(character.encode("utf-8", "surrogateescape"))
        used += size
        used_escaped += 2 if character == "%" else size
        if used > smtp_room or used_escaped > packet_room:
            cut = space + 1 if space >= start else position
            yield line[start:cut].rstrip(" ").encode("utf-8", "surrogateescape")
            start, space = cut, -1
            rest = line[cut : position + 1].encode("utf-8", "surrogateescape")
            used, used_escaped = len(rest), len(rest) + rest.count(b"%")
        if character == " ":
            space = position
    yield line[start:].encode("utf-8", "surrogateescape")


def _wire_text(code: int, prefix: str, lines: list[bytes]) -> bytes:
    out = []
    for number, line in enumerate(lines, start=1):
        mark = b" " if number == len(lines) else b"-"
        head = b"%d%s%s" % (code, mark, prefix.encode("ascii"))
        if not prefix and line[:1].isdigit():
            # Postfix reads a digit here as the start of an enhanced code and demands the class of the reply.
            head += b" "
        out.append(head + line.replace(b"%", b"%%"))
    return b"\r\n".join(out)


_VERDICTS: Final[dict[type, Verdict]] = {
    codec.Continue: CONTINUE,
    codec.Accept: ACCEPT,
    codec.Reject: REJECT,
    codec.TempFail: TEMPFAIL,
    codec.Discard: DISCARD,
    codec.Skip: SKIP,
}

_REPLY_LINE = re.compile(rb"([45]\d\d)([ -])(?:([245]\.\d{1,3}\.\d{1,3})(?:[ ]|$))?(.*)", re.DOTALL)
_SINGLE_PERCENT = re.compile(rb"%(.?)", re.DOTALL)


def verdict_of(response: codec.Response) -> Verdict:
    """Return the verdict that ``response`` stands for, read as Postfix reads it.

    In a reply text ``%%`` becomes ``%`` and a single ``%`` is dropped. Raises ``RemoteProtocolError`` for a response
    that is no verdict, and for a reply text that Postfix refuses (not 4xx or 5xx, an enhanced code of another class).
    """
    plain = _VERDICTS.get(type(response))
    if plain is not None:
        return plain
    if not isinstance(response, codec.ReplyCode):
        raise RemoteProtocolError(f"{type(response).__name__} is not a verdict")
    text = response.text
    lines: list[str] = []
    code = enhanced = None
    for number, line in enumerate(text.replace(b"\r\n", b"\n").split(b"\n")):
        match = _REPLY_LINE.fullmatch(line)
        if match is None or (match[3] and match[3][:1] != match[1][:1]):
            if number == 0:
                raise RemoteProtocolError(f"malformed SMTP reply {text[:80]!r}: it must look like '550 5.7.1 text'")
            # Both MTAs pass later lines on as they are.
            lines.append(_unescape(line))
            continue
        if number == 0:
            code, enhanced = int(match[1]), match[3].decode() if match[3] else None
        lines.append(_unescape(match[4]))
    packet = codec.encode(response)
    return Verdict(VerdictKind.REPLY, code, enhanced, "\n".join(lines), packet)


def _unescape(line: bytes) -> str:
    kept = _SINGLE_PERCENT.sub(lambda match: b"%" if match[1] == b"%" else match[1], line)
    return kept.decode("utf-8", "surrogateescape")
