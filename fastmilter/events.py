"""Events of a session: those that are no message of the MTA; the others are the messages themselves."""

from typing import Final

from fastmilter._messages import (
    Body,
    Connect,
    Data,
    EndOfHeaders,
    EndOfMessage,
    Header,
    Helo,
    MailFrom,
    Negotiate,
    RcptTo,
    Unknown,
)
from fastmilter.constants import Step


class Dropped:
    """Event: the message in work was dropped by the MTA."""


class Closed:
    """Event: the SMTP connection ends; with QUIT_NC the milter connection stays open for another."""


class OutOfOrder:
    """Event: a step came where there is none such; it was answered, and the filter must not see it."""

    __slots__ = ("step", "text")

    def __init__(self, step: Step) -> None:
        """Name the step."""
        self.step = step
        self.text = f"the MTA sent {step} out of order; it was answered with a temporary failure"
        """For the log."""


class BeyondLimit:
    """Event: more came than the filter takes; it was answered, or will be, and the filter must not see it."""

    __slots__ = ("step", "text")

    def __init__(self, step: Step, text: str) -> None:
        """Name the step; ``text`` is for the log."""
        self.step = step
        self.text = text


DROPPED: Final = Dropped()
CLOSED: Final = Closed()

Event = (
    Negotiate
    | Connect
    | Helo
    | MailFrom
    | RcptTo
    | Data
    | Header
    | EndOfHeaders
    | Body
    | EndOfMessage
    | Unknown
    | Dropped
    | OutOfOrder
    | BeyondLimit
    | Closed
)
