"""What the calls of a conversation are for."""

from enum import IntEnum, auto


class Purpose(IntEnum):
    """What the call in work is for."""

    STEP = auto()
    ERROR = auto()  # on_error, in place of a callback that raised
    LAST_CHUNK = auto()  # on_body for data that came with the end of the message
    MAKE = auto()  # the filter object
    NEGOTIATE = auto()
    NOTICE = auto()  # the result means nothing
    MESSAGE_END = auto()  # on_message_end, after which the message is gone
    CLOSE = auto()  # on_close, after which the filter object is gone
