"""Our MTA's side against the real ones: given what they were asked to tell, it says what they said, packet for packet.

Each recorded connection is played again by a ``ClientSession`` with the same offer: the steps are read from the
recording, the answers are the filter's. When ABORT goes out, where a MACRO packet stands and which macros it names is
our side's own doing and has to come out as recorded. The values of macros are the laboratory's and not compared.
"""

import contextlib
from functools import cache

import pytest

from fastmilter import codec
from fastmilter.client_session import ClientSession
from fastmilter.codec import CommandDecoder, ResponseDecoder, encode
from fastmilter.constants import STEPS
from fastmilter.errors import RemoteProtocolError
from tests.support import recordings

SUBMISSION = "mail that did not come over SMTP: Postfix tells other macros and says no ABORT then; not played"
REFUSED = "no MTA goes on after this answer, and neither do we"
DIFFERENT = {
    "postfix/local-submission#1": SUBMISSION,
    "postfix/stdin-smtp#1": SUBMISSION,
    "postfix/verdict-mail#5": "the discarded mail a second time, through non_smtpd_milters: " + SUBMISSION,
    "postfix/starttls#1": "STARTTLS resets HELO, with an ABORT before the next EHLO; it is no step of ours",
    "postfix/mod-body#3": "a body replaced in two runs: Postfix takes that for a mistake and hangs up without ABORT",
    "postfix/raw-connfail#1": REFUSED,
    "postfix/raw-shutdown-connect#1": REFUSED,
    "postfix/raw-shutdown-mail#1": REFUSED,
    "sendmail/neg-mds-1m#1": REFUSED,
    "sendmail/raw-connfail#1": REFUSED,
    "sendmail/raw-shutdown-connect#1": REFUSED,
}
"""Connections where we differ, each with the reason; one that does not must not stand here."""

UNWANTED: dict[bytes, codec.Command] = {
    b"C": codec.Connect(b"localhost", b"4", 25, b"127.0.0.1"),
    b"H": codec.Helo(b"client.test"),
    b"M": codec.MailFrom(b"<a@from.test>"),
    b"R": codec.RcptTo(b"<b@rcpt.test>"),
    b"T": codec.Data(),
}
"""What was not sent, where only its macros are recorded."""

STEP_OF = {facts.letter.value: step for step, facts in STEPS.items()}


class FilterGone(Exception):
    """The recorded filter closed the connection here."""


def commands_of(conversation: recordings.Conversation) -> list[codec.Command]:
    decoder = CommandDecoder(1048575)
    decoder.feed(conversation.stream("mta>filter"))
    return list(decoder)


class Replay:
    """Plays one recorded connection."""

    def __init__(self, conversation: recordings.Conversation) -> None:
        self.commands = commands_of(conversation)
        offer = self.commands[0]
        assert isinstance(offer, codec.Negotiate)
        mta = conversation.recording.partition("/")[0]
        self.session = ClientSession(mta=mta, version=offer.version, actions=offer.actions, protocol=offer.protocol)
        self.responses = ResponseDecoder()
        self.responses.feed(conversation.stream("filter>mta"))
        self.sent = bytearray()

    def run(self) -> list[codec.Command]:
        """Return what our side sent, up to where the filter broke off."""
        with contextlib.suppress(FilterGone):
            self.play()
        decoder = CommandDecoder(1048575)
        decoder.feed(bytes(self.sent) + self.session.take_output())
        return list(decoder)

    def answer(self) -> None:
        response = next(self.responses, None)
        if response is None:
            raise FilterGone
        self.session.feed(encode(response))

    def play(self) -> None:
        self.session.negotiate()
        self.answer()
        self.session.take_agreement()
        macros: codec.Macros | None = None
        for command in [*self.commands[1:], None]:
            if macros is not None and (command is None or encode(command, 1048575)[4:5] != macros.command):
                # Macros of a step that the filter did not want to be sent.
                self.step(UNWANTED[macros.command], macros)
                macros = None
            if isinstance(command, codec.Macros):
                macros = command
            elif command is not None:
                self.step(command, macros)
                macros = None

    def step(self, command: codec.Command, macros: codec.Macros | None) -> None:
        session = self.session
        due = False
        for name, value in macros.values if macros is not None else ():
            if name.startswith((b"{auth", b"{tls", b"{c")):
                session.macros(STEP_OF[macros.command] if macros else "", {name.decode(): value})
        match command:
            case codec.Connect():
                due = session.connect(command)
            case codec.Helo(name):
                due = session.helo(name)
            case codec.MailFrom(sender, params):
                due = session.mail(sender, params)
            case codec.RcptTo(recipient, params):
                told = dict(macros.values) if macros is not None else {}
                if told.get(b"{rcpt_mailer}") == b"error":
                    due = session.rejected_rcpt(recipient, params, told[b"{rcpt_host}"], told[b"{rcpt_addr}"])
                else:
                    due = session.rcpt(recipient, params)
            case codec.Data():
                due = session.data()
            case codec.Header(name, value):
                due = session.header(name, value if session.agreed and session.agreed.leading_space else b" " + value)
            case codec.EndOfHeaders():
                due = session.end_of_headers()
            case codec.Body(chunk):
                due = session.body(chunk)
            case codec.EndOfMessage():
                due = session.end_of_message()
            case codec.Unknown(line):
                due = session.unknown(line)
            case codec.Abort():
                session.abort()
            case codec.Quit():
                session.quit()
        self.sent += session.take_output()
        if due:
            verdict = None
            while verdict is None:
                self.answer()
                verdict = session.take_answer()


def spelled(commands: list[codec.Command]) -> list[object]:
    """Return what is compared: the commands, and of macros the step and the names."""
    return [
        (command.command, tuple(sorted(name for name, _ in command.values)))
        if isinstance(command, codec.Macros)
        else command
        for command in commands
    ]


@cache
def played() -> dict[str, recordings.Conversation]:
    """Every connection on which the MTA said anything."""
    return {
        conversation.name: conversation
        for conversation in recordings.conversations()
        if conversation.stream("mta>filter")
    }


def same(conversation: recordings.Conversation) -> bool:
    try:
        ours = Replay(conversation).run()
    except RemoteProtocolError:
        return False
    return spelled(ours) == spelled(commands_of(conversation))


@pytest.mark.parametrize("name", list(played()))
def test_we_say_what_the_mta_said(name: str) -> None:
    conversation = played()[name]
    if name in DIFFERENT:
        assert not same(conversation), f"{name} is the same now"
        return
    assert spelled(Replay(conversation).run()) == spelled(commands_of(conversation))


def test_enough_is_compared() -> None:
    assert len(played()) >= 300
    assert set(played()) >= set(DIFFERENT)
