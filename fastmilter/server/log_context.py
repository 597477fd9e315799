"""Which connection and message a record of a filter's own loggers is about: noted on it, for whoever writes it.

A filter logs from callbacks of many connections, and should not have to say each time which one it is.
"""

import logging
import threading
from contextvars import ContextVar
from typing import Any, Final

from fastmilter.conversation import Conversation
from fastmilter.server._in_work import InWork
from fastmilter.server.log_lines import about, end_of_line

_OURS: Final = "fastmilter."
"""The loggers whose lines say themselves what they are about."""
_conversation: Final[ContextVar[Conversation | None]] = ContextVar("conversation", default=None)


def log_about(conversation: Conversation | None) -> None:
    """Say what is logged from now on in this thread or context is about, where callbacks run beside the loop."""
    _conversation.set(conversation)


def note_on_records(in_work: InWork) -> None:
    """Have each record made in this process say what it is about; to be called by the loop.

    ``record.about`` has it as a dictionary, ``record.end_of_line`` as the lines of our log end. ``in_work`` knows whose
    callback runs in the loop itself.
    """
    make = logging.getLogRecordFactory()
    loop = threading.get_ident()

    def make_with_note(name: str, *arguments: Any, **more: Any) -> logging.LogRecord:
        record = make(name, *arguments, **more)
        if not name.startswith(_OURS):
            conversation = _conversation.get()
            if conversation is None and threading.get_ident() == loop:
                conversation = in_work.conversation
            if conversation is not None:
                record.about = about(conversation)
                record.end_of_line = end_of_line(conversation)
        return record

    logging.setLogRecordFactory(make_with_note)
