"""How much of a message a filter takes: recipients, header fields, and what is answered beyond.

A message beyond a limit is not the filter's to judge. A recipient too many is refused where recipients are answered;
elsewhere the whole message is, since a filter that knew only some of the recipients could let through what it must not.
"""

from typing import Final

from fastmilter.constants import MAX_HEADER_BYTES, MAX_HEADER_FIELDS, MAX_RECIPIENTS, Step
from fastmilter.events import BeyondLimit
from fastmilter.replies import reply

TOO_MANY_RECIPIENTS: Final = reply(452, "4.5.3", "Too many recipients")
HEADER_TOO_LARGE: Final = reply(552, "5.3.4", "Message header too large")


class Limits:
    """How many recipients and header fields, and bytes of those, a message may have; all connections share one."""

    def __init__(
        self,
        recipients: int = MAX_RECIPIENTS,
        fields: int = MAX_HEADER_FIELDS,
        field_bytes: int = MAX_HEADER_BYTES,
    ) -> None:
        """Take the numbers."""
        self.recipients, self.fields, self.field_bytes = recipients, fields, field_bytes


DEFAULT_LIMITS: Final = Limits()


class Extent:
    """What came of a message; made with it and gone with it, since most connections have none."""

    def __init__(self, limits: Limits) -> None:
        """Begin a message that may have what ``limits`` allow."""
        self._limits = limits
        self.recipients = self.fields = self.field_bytes = 0

    def recipient_is_beyond(self) -> bool:
        """Count a recipient; tell whether it is one too many."""
        self.recipients += 1
        return self.recipients > self._limits.recipients

    def field_is_beyond(self, size: int) -> bool:
        """Count a header field whose name and value have ``size`` bytes together; tell whether that is too much."""
        self.fields += 1
        self.field_bytes += size
        return self.fields > self._limits.fields or self.field_bytes > self._limits.field_bytes

    def beyond_recipients(self) -> BeyondLimit | None:
        """Return the event of the first recipient too many; ``None`` for those after it."""
        if self.recipients != self._limits.recipients + 1:
            return None
        return BeyondLimit(
            Step.RCPT, f"the message has more than {self._limits.recipients} recipients (--max-recipients): 452 4.5.3"
        )

    def beyond_fields(self) -> BeyondLimit:
        """Return the event of a header that is too large."""
        text = (
            f"the header has more than {self._limits.fields} fields (--max-header-fields)"
            if self.fields > self._limits.fields
            else f"the header has more than {self._limits.field_bytes} bytes (--max-header-bytes)"
        )
        return BeyondLimit(Step.HEADER, f"{text}: the message gets 552 5.3.4")
