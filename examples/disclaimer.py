"""Disclaimer: appends a text to plain text messages, by replacing the body.

    fastmilter serve examples/disclaimer.py:Disclaimer

The text is set in the file that is given with --config:

    [filter]
    text = "This message is meant for its recipient alone."

Messages where text cannot simply be put at the end are left as they are: multipart and HTML, base64, attachments,
character sets in which ASCII is not ASCII, everything above 10 MB. Signatures (DKIM) cover the body: sign after this
filter, not before.
"""

import email.message
import quopri
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import ClassVar

from fastmilter import SKIP, Action, Filter, Verdict

MAX_BODY_BYTES = 10 << 20
SEPARATOR = "_" * 40
PLAIN_ENCODINGS = ("", "7bit", "8bit", "binary")


class Body:
    """What is remembered of one message: the fields that say what the body is, and the body."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.fields = email.message.Message()
        self.encoding = ""
        self.clear = True
        self.wanted = False
        self.size = 0
        self.ends_line = True
        # In memory up to 1 MB, beyond that in a temporary file.
        self.spool = SpooledTemporaryFile[bytes](max_size=1 << 20)


class Disclaimer(Filter[Body]):
    """Appends a text to text/plain."""

    requires = Action.CHANGE_BODY

    @dataclass
    class Options:
        """The [filter] table of the configuration."""

        text: str = "This message is meant for its recipient alone. If you got it by mistake, please delete it."

        def __post_init__(self) -> None:
            """Refuse what would need more than 7-bit text."""
            if not isinstance(self.text, str) or not self.text.isascii() or not self.text.strip():
                raise ValueError("text must be ASCII: it is added to messages of any character set")
            if max(map(len, self.text.splitlines())) > 990:
                raise ValueError("text has a line that is too long for mail")

    lines: ClassVar[str] = ""

    @classmethod
    def worker_started(cls, options: Options) -> None:
        """Take the options, once in each worker."""
        cls.lines = "\r\n".join(["", SEPARATOR, *options.text.splitlines(), ""])

    def on_header(self, name: str, value: str) -> None:
        """Keep the fields that say what the body is."""
        if name.lower() in ("content-type", "content-transfer-encoding", "content-disposition"):
            self.message.state.fields[name] = value
            self.message.state.clear &= value.isascii()

    def on_end_of_headers(self) -> None:
        """Decide whether text can be appended."""
        body = self.message.state
        # Twice the same field, or raw 8-bit text in it, is read by every program in another way.
        if len(body.fields) != len({name.lower() for name in body.fields}) or not body.clear:
            return
        declared = str(body.fields.get("content-type", "text/plain")).partition(";")[0].strip().lower()
        body.encoding = str(body.fields.get("content-transfer-encoding", "")).strip().lower()
        body.wanted = (
            declared == "text/plain"
            and body.encoding in (*PLAIN_ENCODINGS, "quoted-printable")
            and body.fields.get_content_disposition() in (None, "inline")
            and self._is_ascii_in(body.fields.get_content_charset("us-ascii"))
        )

    def _is_ascii_in(self, charset: str) -> bool:
        try:
            return self.lines.encode(charset) == self.lines.encode("ascii")
        except (LookupError, UnicodeError):
            return False  # unknown, or no text encoding at all

    def on_body(self, chunk: bytes) -> Verdict | None:
        """Collect the body where it is wanted."""
        body = self.message.state
        body.size += len(chunk)
        if not body.wanted or body.size > MAX_BODY_BYTES:
            body.wanted = False
            return SKIP
        body.spool.write(chunk)
        body.ends_line = chunk.endswith(b"\n")
        return None

    def on_end_of_message(self) -> None:
        """Send the body back with the text behind it."""
        body = self.message.state
        if not body.wanted:
            return
        addition = self.lines.encode("ascii")
        if body.encoding == "quoted-printable":
            addition = quopri.encodestring(addition.replace(b"\r\n", b"\n")).replace(b"\n", b"\r\n")
        body.spool.write((b"" if body.ends_line else b"\r\n") + addition)
        body.spool.seek(0)
        self.message.replace_body(body.spool)

    def on_message_end(self, verdict: Verdict | None) -> None:
        """Let go of the temporary file, however the message ended."""
        self.message.state.spool.close()
