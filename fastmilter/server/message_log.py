"""The message log: one line for each message, when it has its verdict or is dropped before one.

The line is put together by hand, since a record of ``logging`` costs as much as a third of a message; it looks the same
as the lines of the other loggers. As JSON, an object a line, it costs some microseconds more. The lines of one turn of
the loop are written together at its end. What the peer has a say in is quoted, and cut; no content of the message is in
it.

Times: ``ms`` is from the read that brought MAIL to the verdict, on the clock of ``time.monotonic()``.
"""

import os
import time
from typing import Final

from fastmilter._text import path_text, to_bytes, to_text
from fastmilter.conversation import Conversation
from fastmilter.replies import CONTINUE, Verdict
from fastmilter.server._sockets import Poller
from fastmilter.server.line_writer import LineWriter
from fastmilter.server.settings import Settings
from fastmilter.server.syslog import TOOK_NO_MORE, Syslog, SyslogWriter, tell_on_stderr

_MOST_OF_SENDER: Final = 256  # bytes of a path, RFC 5321 section 4.5.3.1.3
_MOST_OF_HELO: Final = 80
_MOST_OF_CLIENT: Final = 80
_MOST_OF_QUEUE_ID: Final = 40
# A byte is at most 6 characters when quoted (\udcff), a character at most 10; in JSON 7 (\\udcff) and 12. So a line is
# below PIPE_BUF of Linux, but for the head of syslog, where each is a datagram.

CLOSE_S: Final = 1.0
"""How long a worker that leaves waits for a reader that is slow."""
TELL_S: Final = 0.2
"""How long it waits then, to tell how many lines were lost."""

_STDERR: Final = 2
_LOGGER: Final = "fastmilter.message"


def open_message_log(settings: Settings, number: int, poller: Poller) -> "MessageLog | None":
    """Return the log of this process, worker ``number``, where all its lines go; ``None`` if none is wanted.

    ``poller`` is what its loop waits with.
    """
    if not settings.log_messages:
        return None
    syslog = settings.syslog
    writer = LineWriter(_STDERR) if syslog is None else SyslogWriter(syslog)
    return MessageLog(number, writer, poller, as_json=settings.log_format == "json", syslog=syslog)


def quoted(data: bytes, most: int) -> str:
    r"""Return what came from outside as the log shows it: at most its first ``most`` bytes, in quotes, with escapes.

    >>> print(quoted(b"caf\xc3\xa9\r\n\xff", 80))
    'café\r\n\udcff'
    """
    return repr(_cut(data, most))


def _cut(data: bytes, most: int) -> str:
    """Return at most the first ``most`` bytes as text."""
    if len(data) > most:
        least = max(most - 3, 0)
        while most > least and data[most] & 0xC0 == 0x80:  # not in the middle of a character
            most -= 1
        data = data[:most]
    return to_text(data)


class MessageLog:
    """The message log of one worker."""

    def __init__(
        self,
        number: int,
        writer: LineWriter,
        poller: Poller,
        *,
        as_json: bool = False,
        syslog: Syslog | None = None,
    ) -> None:
        """Begin the log of this process, worker ``number``; have ``poller`` wake it when what was full has room."""
        self._syslog = syslog
        self._writer = writer
        self._poller = poller
        self._as_json = as_json
        self._number = number
        self._is_awaited = False
        self._tail = f" worker={number} pid={os.getpid()}\n"
        self._second = -1
        self._to_the_second = ""
        self._behind_it = ""

    def add(self, conversation: Conversation, peer: str | None, verdict: Verdict | None, edits: int) -> None:
        """Note a message that has ended with ``verdict`` (``None``: dropped) and so many edits; it is written later.

        ``peer``: the MTA, if a proxy has named it.
        """
        message, connection = conversation.message, conversation.connection
        assert message is not None
        assert connection is not None
        tenths = int((time.monotonic() - message._began) * 10000)
        if self._as_json:
            self._add_json(conversation, peer, verdict, edits, tenths)
            return
        queue_id = message.queue_id
        qid = "" if queue_id is None else f" qid={queue_id[:_MOST_OF_QUEUE_ID]!r}"
        helo = "" if connection._helo is None else " helo=" + quoted(connection._helo, _MOST_OF_HELO)
        mta = "" if peer is None else f" mta={peer!r}"
        client = str(connection.address)[:_MOST_OF_CLIENT]
        sender = quoted(to_bytes(path_text(message._sender.sender)), _MOST_OF_SENDER)
        rcpts = len(message._recipients)
        line = (
            f"{self._begin('info')}{qid} client={client!r}{mta}{helo} from={sender} rcpts={rcpts}"
            f" verdict={_shown(verdict)} edits={edits} ms={tenths // 10}.{tenths % 10}{self._tail}"
        )
        self._writer.put(to_bytes(line))

    def _add_json(
        self, conversation: Conversation, peer: str | None, verdict: Verdict | None, edits: int, tenths: int
    ) -> None:
        message, connection = conversation.message, conversation.connection
        assert message is not None
        assert connection is not None
        fields: dict[str, object] = {}
        if message.queue_id is not None:
            fields["qid"] = message.queue_id[:_MOST_OF_QUEUE_ID]
        fields["client"] = str(connection.address)[:_MOST_OF_CLIENT]
        if peer is not None:
            fields["mta"] = peer
        if connection._helo is not None:
            fields["helo"] = _cut(connection._helo, _MOST_OF_HELO)
        fields["from"] = _cut(to_bytes(path_text(message._sender.sender)), _MOST_OF_SENDER)
        fields["rcpts"] = len(message._recipients)
        fields["verdict"] = "dropped" if verdict is None else verdict.kind.value
        if verdict is not None and verdict.code is not None:
            fields["code"] = verdict.code
        self._put_json("info", {**fields, "edits": edits, "ms": tenths / 10})

    def _put_json(self, level: str, fields: dict[str, object]) -> None:
        from fastmilter.server.json_line import json_line  # here: most servers do without

        head = {"time": self._stamp(), "level": level, "logger": _LOGGER}
        line = json_line({**head, **fields, "worker": self._number, "pid": os.getpid()})
        before = "" if self._syslog is None else self._syslog.head(level)
        self._writer.put((before + line).encode() + b"\n")

    def flush(self) -> None:
        """Write what was noted, as far as that goes without waiting."""
        writer = self._writer
        if not writer.waiting:
            return
        lost = writer.flush()
        if lost:
            self._tell(lost)
        if writer.is_blocked != self._is_awaited:
            self._is_awaited = writer.is_blocked
            if self._is_awaited:
                self._poller.add(writer.descriptor)
                self._poller.await_room(writer.descriptor, True)
            else:
                self._poller.remove(writer.descriptor)

    def close(self) -> None:
        """Write what was noted; wait for a slow reader, but not for ever, and tell it what it missed."""
        lost = self._writer.drain(CLOSE_S)
        if lost:
            self._tell(lost)
            if self._writer.drain(TELL_S) and self._syslog is not None:
                tell_on_stderr(f"{TOOK_NO_MORE}: lines of messages are missing lost={lost}{self._tail}")
        self._writer.close()

    def _tell(self, lost: int) -> None:
        text = "the log took no more: lines of messages are missing"
        if self._as_json:
            self._put_json("warning", {"message": text, "lost": lost})
        else:
            self._writer.put(to_bytes(f"{self._begin('warning')} {text} lost={lost}{self._tail}"))
        self._writer.flush()

    def _begin(self, level: str) -> str:
        """Return the beginning of a line: time, level, logger (as ``commands.LogFormat``)."""
        if self._syslog is not None:
            return f"{self._syslog.head(level)}{level} {_LOGGER}:"
        return f"{self._stamp()} {level} {_LOGGER}:"

    def _stamp(self) -> str:
        """Return local time with its offset."""
        now = time.time()
        second = int(now)
        if second != self._second:
            local = time.localtime(second)
            self._second = second
            self._to_the_second = time.strftime("%Y-%m-%dT%H:%M:%S", local)
            self._behind_it = time.strftime("%z", local)
        milliseconds = int((now - second) * 1000)
        return f"{self._to_the_second}.{milliseconds:03d}{self._behind_it}"


def _shown(verdict: Verdict | None) -> str:
    """Return a verdict without the text of a reply, which may hold anything."""
    if verdict is CONTINUE:
        return "continue"
    if verdict is None:
        return "dropped"
    return verdict.kind.value if verdict.code is None else f"{verdict.kind.value} code={verdict.code}"
