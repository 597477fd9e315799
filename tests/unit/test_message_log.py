"""The message log: what a line says, and that nobody outside can make it say something else."""

import ast
import fcntl
import json
import logging
import os
import re
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastmilter import ACCEPT, CONTINUE, DISCARD, REJECT, TEMPFAIL, Verdict, codec, reply
from fastmilter.commands import LogFormat
from fastmilter.conversation import Conversation
from fastmilter.server import message_log
from fastmilter.server.line_writer import LineWriter
from fastmilter.server.message_log import MessageLog, quoted
from fastmilter.server.poller import best_poller
from fastmilter.server.syslog import Syslog, SyslogWriter
from tests.support.playing import ABORT, BODY, DATA, EOH, EOM, HEADER, QUIT, RCPT, Mta, everything, made

PIPE_BUF = 4096
SOON_S = 10.0
CONNECT = codec.Connect(b"client.example", b"4", 40522, b"192.0.2.25")
HELO = codec.Helo(b"client.example")
MAIL = codec.MailFrom(b"<ann@from.example>")
QUEUE_ID = codec.Macros(b"R", ((b"i", b"4ZkT9c"),))
HEAD = (CONNECT, HELO, MAIL, QUEUE_ID, RCPT)
CONTENT = (DATA, HEADER, EOH, BODY, EOM)

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d{4}"


class Log:
    """A message log on a pipe."""

    def __init__(self) -> None:
        self.source, self.sink = os.pipe()
        self.writer = LineWriter(self.sink, limit=8000)
        self.poller = best_poller()
        self.log = MessageLog(2, self.writer, self.poller)

    def lines(self) -> list[str]:
        """What was noted since the last call, as lines without what is the same in all."""
        return [without_frame(line) for line in self.raw_lines()]

    def raw_lines(self) -> list[str]:
        """What was noted since the last call."""
        self.log.flush()
        os.set_blocking(self.source, False)
        data = b""
        try:
            while piece := os.read(self.source, 1 << 16):
                data += piece
        except BlockingIOError:
            pass
        assert data[-1:] in (b"", b"\n")
        lines = data.split(b"\n")[:-1]
        assert all(len(line) < PIPE_BUF for line in lines)
        return [line.decode() for line in lines]


def without_frame(line: str) -> str:
    match = re.fullmatch(rf"{STAMP} (info|warning) fastmilter\.message: (.*) worker=2 pid={os.getpid()}", line)
    assert match, line
    return match[2]


@pytest.fixture
def log() -> Iterator[Log]:
    made = Log()
    yield made
    made.log.close()
    made.poller.close()
    os.close(made.source)
    os.close(made.sink)


class Logged(Mta):
    """Plays commands to a filter class whose messages are logged."""

    def __init__(self, log: Log, filter_class: object = everything(), peer: str | None = None) -> None:
        self.log = log
        self.peer = peer
        super().__init__(filter_class)  # type: ignore[arg-type]

    def message_ended(self, conversation: Conversation, verdict: Verdict | None, edits: int) -> None:
        self.log.log.add(conversation, self.peer, verdict, edits)


def test_a_line_tells_what_there_is_to_know(log: Log) -> None:
    Logged(log).send(*HEAD, RCPT, *CONTENT)
    (line,) = log.lines()
    assert re.fullmatch(
        r"qid='4ZkT9c' client='192\.0\.2\.25:40522' helo='client\.example' from='ann@from\.example' rcpts=2"
        r" verdict=continue edits=0 ms=\d+\.\d",
        line,
    )


def test_the_mta_is_told_if_a_proxy_has_named_it(log: Log) -> None:
    Logged(log, peer="2001:db8::25").send(*HEAD, ABORT)
    assert " client='192.0.2.25:40522' mta='2001:db8::25' helo='client.example' " in log.lines()[0]


def test_it_looks_as_the_lines_of_the_other_loggers(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the second changes, and where the offset does."""
    for zone in ("UTC", "Europe/Berlin", "America/St_Johns"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        for now in (1795476237.2134, 1795476237.9999, 1795476238.0, 1774746000.5 - 1, 1774746000.5):
            monkeypatch.setattr(time, "time", lambda now=now: now)
            Logged(log).send(*HEAD, ABORT)
            monkeypatch.undo()
            monkeypatch.setenv("TZ", zone)
            log.log.flush()
            line = os.read(log.source, PIPE_BUF).decode()
            record = logging.LogRecord("fastmilter.message", logging.INFO, "", 0, "x", None, None)
            record.created, record.msecs = now, now % 1 * 1000
            assert line.split(" qid=")[0] == LogFormat().format(record).removesuffix(" x")
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("verdict", "shown"),
    [
        (CONTINUE, "continue"),
        (Verdict(CONTINUE.kind), "continue"),
        (ACCEPT, "accept"),
        (REJECT, "reject"),
        (TEMPFAIL, "tempfail"),
        (DISCARD, "discard"),
        (reply(550, "5.7.1", "Subject was: secret"), "reply code=550"),
        (reply(451, None, "later"), "reply code=451"),
    ],
)
@pytest.mark.parametrize("name", ["on_mail", "on_header", "on_end_of_message"])
def test_the_verdict(log: Log, name: str, verdict: Verdict, shown: str) -> None:
    Logged(log, everything(**{name: verdict})).send(*HEAD, *CONTENT)
    (line,) = log.lines()
    assert f" verdict={shown} edits=0 " in line
    assert "secret" not in line


def test_a_message_that_is_dropped_has_its_line_too(log: Log) -> None:
    mta = Logged(log)
    mta.send(*HEAD, ABORT)
    mta.send(*HEAD[2:], *CONTENT[:-1], MAIL)  # dropped by a new MAIL
    mta.eof()
    lines = log.lines()
    assert [re.findall(r" rcpts=\d verdict=\w+", line) for line in lines] == [
        [" rcpts=1 verdict=dropped"],
        [" rcpts=1 verdict=dropped"],
        [" rcpts=0 verdict=dropped"],
    ]


def test_a_message_has_one_line_whatever_comes_after_it(log: Log) -> None:
    mta = Logged(log, everything(on_header=REJECT))
    mta.send(*HEAD, *CONTENT, ABORT, ABORT, QUIT)
    mta.eof()
    assert len(log.lines()) == 1


def test_edits_are_those_that_are_sent(log: Log) -> None:
    def on_end_of_message(self: object) -> None:
        message = self.message  # type: ignore[attr-defined]
        message.add_header("X-One", "1")
        message.change_header("X-Two", "2")
        message.change_header("X-Two", "3")  # in place of the one before
        message.replace_body(b"new" * 100_000)  # one, in however many packets
        message.quarantine("why not")

    def then_refuse(self: object) -> Verdict:
        on_end_of_message(self)
        return REJECT

    Logged(log, everything(on_end_of_message=on_end_of_message)).send(*HEAD, *CONTENT)
    Logged(log, everything(on_end_of_message=then_refuse)).send(*HEAD, *CONTENT)
    first, second = log.lines()
    assert " verdict=continue edits=4 " in first
    assert " verdict=reject edits=0 " in second


def test_what_the_mta_did_not_tell_is_left_out(log: Log) -> None:
    Logged(log, made()).send(codec.MailFrom(b"<>"), ABORT)
    (line,) = log.lines()
    assert re.fullmatch(r"client='unknown' from='' rcpts=0 verdict=dropped edits=0 ms=\d+\.\d", line)


def test_the_time_is_that_from_mail_on(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    mta = Logged(log)
    assert mta.conversation.last_read == 0.0  # nobody sets it here: the clock of this test begins with MAIL
    for seconds, shown in ((0.0, "0.0"), (0.00349, "3.4"), (1.8, "1800.0"), (7210.0, "7210000.0")):
        monkeypatch.setattr(time, "monotonic", lambda seconds=seconds: seconds)
        mta.send(MAIL, ABORT)
        monkeypatch.undo()
        (line,) = log.lines()
        assert line.endswith(f" ms={shown}")


HOSTILE = [
    b"x\n2026-11-22T23:43:57.213+0000 info fastmilter.message: qid='forged'",
    b"\r\n\t\x1b[2J\x00\x7f",
    b"\xff\xfe not UTF-8",
    "\u202e\u2028\u00a0\ufeff\U000e0001 caf\u00e9".encode(),
    b"'",
    b"\"' verdict=accept from='nobody",
    b"\\",
    b"x" * 70_000,
    b"\xff" * 70_000,
    b"\x80" * 70_000,
    "\U000e0001".encode() * 2000,
    "\u00e9".encode() * 2000,
    b"x" + "\u00e9".encode() * 2000,
]


def without_nul(value: bytes) -> bytes:
    """What of a value there can be on the wire."""
    return value.replace(b"\0", b"")[:60_000]


def said_everywhere(value: bytes, client_and_queue_id: bytes | None = None) -> tuple[codec.Command, ...]:
    """A message with ``value`` wherever something from outside is logged, or with another one in two of the places."""
    other = value if client_and_queue_id is None else client_and_queue_id
    return (
        codec.Connect(b"client.example", b"4", 40522, other),
        codec.Helo(value),
        codec.MailFrom(b"<" + value + b">"),
        codec.Macros(b"R", ((b"i", other),)),
        RCPT,
        ABORT,
    )


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value[:20]))
def test_hostile_values_are_json_for_the_strictest_parser(log: Log, value: bytes) -> None:
    log.log = MessageLog(2, log.writer, log.poller, as_json=True)
    bare = without_nul(value)
    Logged(log, peer="2001:db8:1111:2222:3333:4444:5555:6666").send(*said_everywhere(bare))
    (line,) = log.raw_lines()
    fields = json.loads(line)
    assert "client" in fields
    json.dumps(fields, ensure_ascii=False).encode()  # which no lone surrogate lets pass
    text = bare.decode("utf-8", "surrogateescape").encode("utf-8", "backslashreplace").decode()
    assert all(text.startswith(fields[name]) for name in ("qid", "helo", "from"))


def test_the_longest_line_of_json_leaves_in_one_piece(log: Log) -> None:
    log.log = MessageLog(999, log.writer, log.poller, as_json=True)
    character, byte = "\U0001f4e8".encode() * 300, b"\xff" * 300
    Logged(log, peer="2001:db8:1111:2222:3333:4444:5555:6666").send(*said_everywhere(byte, character))
    (line,) = log.raw_lines()  # which looks at its length
    assert len(line) > PIPE_BUF - 100


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value[:20]))
def test_hostile_values_stay_within_their_quotes(log: Log, value: bytes) -> None:
    bare = without_nul(value)
    Logged(log).send(*said_everywhere(bare))
    (line,) = log.lines()
    assert line.isprintable()
    quotes = r"('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")"
    match = re.fullmatch(
        rf"qid={quotes} client={quotes} helo={quotes} from={quotes} rcpts=1 verdict=dropped edits=0 ms=[\d.]+", line
    )
    assert match
    text = bare.decode("utf-8", "surrogateescape")
    for shown, most in zip(match.groups(), (40, 80, 80, 256), strict=True):
        meant = ast.literal_eval(shown)
        assert len(meant) <= most
        assert f"{text}:40522".startswith(meant)


def test_quoting() -> None:
    assert quoted(b"", 3) == "''"
    assert quoted(b"abc", 3) == "'abc'"
    assert quoted(b"abcd", 3) == "'abc'"
    assert quoted("\u00e9\u00e9".encode(), 3) == "'\u00e9'"  # not in the middle of a character
    assert quoted("\u00e9\u00e9".encode(), 1) == "''"
    assert quoted(b"\x80" * 9, 5) == r"'\udc80\udc80'"
    assert quoted(b"it's", 80) == '"it\'s"'


def test_lines_that_were_lost_are_told(log: Log) -> None:
    mta = Logged(log)
    for _ in range(100):
        mta.send(MAIL, ABORT)
    told: list[str] = []
    while not any("lost" in line for line in told[-1:]):
        told += log.lines()
    assert told[-1] == f"the log took no more: lines of messages are missing lost={100 - (len(told) - 1)}"
    mta.send(MAIL, ABORT)
    assert " verdict=dropped " in log.lines()[0]


def test_lines_that_were_lost_are_told_at_the_end_too(log: Log) -> None:
    mta = Logged(log)
    for _ in range(100):
        mta.send(MAIL, ABORT)
    log.log.close()
    *lines, last = log.lines()
    assert last.endswith(f" lost={100 - len(lines)}")


def test_lines_that_were_lost_are_told_to_a_reader_that_is_slow_at_the_end(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less than half of what waits has left by then; the rest is lost, too."""
    monkeypatch.setattr(message_log, "CLOSE_S", 0.0)
    monkeypatch.setattr(message_log, "TELL_S", SOON_S)
    fcntl.fcntl(log.sink, fcntl.F_SETPIPE_SZ, PIPE_BUF)
    mta = Logged(log)
    for _ in range(200):
        mta.send(MAIL, ABORT)
    closing = threading.Thread(target=log.log.close)
    closing.start()
    lines: list[str] = []
    deadline = time.monotonic() + SOON_S
    while not any(" lost=" in line for line in lines) and time.monotonic() < deadline:
        select.select([log.source], [], [], SOON_S)
        lines += os.read(log.source, PIPE_BUF).decode().splitlines()
    closing.join()
    *told, last = lines
    assert f" lost={200 - len(told)} " in last


@pytest.mark.parametrize("as_json", [False, True])
def test_lines_that_were_lost_to_a_daemon_that_has_gone_are_told_on_standard_error(
    log: Log, tmp_path: Path, capfd: pytest.CaptureFixture[str], as_json: bool
) -> None:
    syslog = Syslog("mail", str(tmp_path / "log"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(syslog.path)
        without_daemon = MessageLog(2, SyslogWriter(syslog), log.poller, as_json=as_json, syslog=syslog)
    log.log, before = without_daemon, log.log
    mta = Logged(log)
    for _ in range(3):
        mta.send(MAIL, ABORT)
    without_daemon.close()
    log.log = before
    text = "the syslog daemon took no more: lines of messages are missing lost=3 worker=2"
    assert capfd.readouterr().err == f"fastmilter: {text} pid={os.getpid()}\n"
