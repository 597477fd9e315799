"""What a filter sees of a connection and a message, and what it may ask of the message."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from fastmilter import Action, Filter, MessageEnded, NotNegotiated, Wish, codec
from fastmilter.constants import ALL_ACTIONS, ALL_PROTOCOL, Step
from fastmilter.errors import InvalidMessage
from fastmilter.macros import NO_STAGES
from fastmilter.message import Message
from fastmilter.negotiation import Offer, negotiate
from tests.support import playing
from tests.support.playing import CONNECT, EOM, HELO, MAIL, RCPT, Mta

Playable = Message[SimpleNamespace]

EDITS: dict[str, tuple[Action, Callable[[Playable], None]]] = {
    "add_header": (Action.ADD_HEADERS, lambda message: message.add_header("X", "1")),
    "insert_header": (Action.ADD_HEADERS, lambda message: message.insert_header("X", "1", index=1)),
    "change_header": (Action.CHANGE_HEADERS, lambda message: message.change_header("X", "1")),
    "delete_header": (Action.CHANGE_HEADERS, lambda message: message.delete_header("X", index=1)),
    "delete_headers": (Action.CHANGE_HEADERS, lambda message: message.delete_headers("X")),
    "add_recipient": (Action.ADD_RECIPIENT, lambda message: message.add_recipient("a@b")),
    "add_recipient with params": (
        Action.ADD_RECIPIENT_PARAMS,
        lambda message: message.add_recipient("a@b", ["NOTIFY=NEVER"]),
    ),
    "delete_recipient": (Action.DELETE_RECIPIENT, lambda message: message.delete_recipient("a@b")),
    "change_sender": (Action.CHANGE_SENDER, lambda message: message.change_sender("a@b", ["RET=HDRS"])),
    "replace_body": (Action.CHANGE_BODY, lambda message: message.replace_body(b"new")),
    "quarantine": (Action.QUARANTINE, lambda message: message.quarantine("why")),
}


def message_with(actions: Action = ALL_ACTIONS, **wish: Any) -> Playable:
    agreement = negotiate(Offer(6, ALL_ACTIONS, ALL_PROTOCOL), Wish(actions=actions, **wish))
    return Message(agreement, NO_STAGES, MAIL, Filter._fastmilter_plan)


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_needs_its_action_and_no_other(edit: str) -> None:
    action, ask = EDITS[edit]
    message = message_with(action)
    ask(message)
    assert len(message._edits) == 1
    without = message_with(ALL_ACTIONS & ~action)
    with pytest.raises(NotNegotiated, match=f"did not grant {action.name}"):
        ask(without)
    assert without._edits == []


@pytest.mark.parametrize("edit", EDITS)
def test_a_sealed_message_cannot_be_changed(edit: str) -> None:
    message = message_with()
    message._seal()
    with pytest.raises(MessageEnded):
        EDITS[edit][1](message)
    assert message.sender == "ann@from.example", "reading goes on"


def test_a_body_that_is_not_granted_is_not_drained() -> None:
    def never() -> Iterator[bytes]:
        raise AssertionError("drained")
        yield b""

    with pytest.raises(NotNegotiated):
        message_with(Action.ADD_HEADERS).replace_body(never())


def test_delete_headers_must_see_the_headers() -> None:
    message = message_with(never=frozenset({Step.HEADER}))
    with pytest.raises(NotNegotiated, match="override on_header"):
        message.delete_headers("X")
    message.delete_header("X", index=1)


WRONG: list[tuple[str, Callable[[Playable], None]]] = [
    ("field name", lambda message: message.add_header("a b", "v")),
    ("newline that is not folding", lambda message: message.add_header("X", "v\nBcc: x")),
    ("use delete_header", lambda message: message.change_header("X", "")),
    ("use delete_header", lambda message: message.change_header("X", "\r\n")),
    ("number from 1", lambda message: message.change_header("X", "v", index=0)),
    ("number from 1", lambda message: message.delete_header("X", index=0)),
    ("number from 0", lambda message: message.insert_header("X", "v", index=-1)),
    ("must not be empty", lambda message: message.add_recipient("")),
    ("must not be empty", lambda message: message.delete_recipient("<>")),
    ("must look like", lambda message: message.add_recipient("<a@b")),
    ("must look like", lambda message: message.change_sender("a b")),
    ("sequence such as", lambda message: message.add_recipient("a@b", "NOTIFY=NEVER")),
    ("one word", lambda message: message.change_sender("a@b", ["RET=HDRS ENVID=x"])),
    ("one line of text", lambda message: message.quarantine("")),
    ("one line of text", lambda message: message.quarantine(" ")),
    ("one line of text", lambda message: message.quarantine("a\nb")),
    ("one line of text", lambda message: message.quarantine("a\0")),
]


@pytest.mark.parametrize(("text", "ask"), WRONG)
def test_what_cannot_be_sent_is_refused_at_the_call(text: str, ask: Callable[[Playable], None]) -> None:
    message = message_with()
    with pytest.raises(ValueError, match=text):
        ask(message)
    assert message._edits == []


@pytest.mark.parametrize(
    "ask",
    [
        lambda message: message.quarantine("x" * 70_000),
        lambda message: message.add_recipient("x" * 70_000),
        lambda message: message.change_sender("a@b", ["X=" + "y" * 70_000]),
    ],
)
def test_what_does_not_fit_a_packet_is_refused_at_the_call(ask: Callable[[Playable], None]) -> None:
    message = message_with()
    with pytest.raises(InvalidMessage):
        ask(message)
    assert message._edits == []


def test_an_empty_value_may_be_added() -> None:
    message = message_with()
    message.add_header("X", "")
    message.insert_header("X", "")
    assert len(message._edits) == 2


def test_the_envelope_of_a_message() -> None:
    mail = codec.MailFrom(b"<\xe4@From.Example>", (b"SIZE=100", b"X=\xff"))
    message: Playable = Message(message_with()._agreement, NO_STAGES, mail, Filter._fastmilter_plan)
    assert message.sender == "\udce4@From.Example"
    assert message.sender.raw == b"<\xe4@From.Example>"
    assert message.sender_params.get("size") == "100"
    assert message.recipients == ()
    assert message.queue_id is None
    for name in ("sender", "sender_params", "recipients", "queue_id", "macros", "anything"):
        with pytest.raises(AttributeError):
            setattr(message, name, "x")


def test_state_is_made_when_it_is_wanted_and_may_be_replaced() -> None:
    message = message_with()
    message.state.score = 5
    assert message.state.score == 5
    message.state = SimpleNamespace(score=6)
    assert message.state.score == 6
    assert not hasattr(message_with().state, "score")


# -- the connection ---------------------------------------------------------------------------------------------------


class Looker(Filter):
    """Notes what it sees of its connection at MAIL."""

    def on_mail(self, sender: object, params: object) -> None:
        connection = self.connection
        self.seen = (connection.hostname, connection.address, connection.helo, dict(connection.macros))
        self.mta = (connection.mta, connection.mta_version, connection.protocol_version)
        self.can = connection.can(Action.CHANGE_SENDER)


def looked(*commands: codec.Command, offer: codec.Negotiate = playing.V6) -> Looker:
    mta = Mta(Looker, offer)
    mta.send(*commands, MAIL)
    (looker,) = mta.filters
    assert isinstance(looker, Looker)
    return looker


def test_a_connection() -> None:
    looker = looked(playing.POSTFIX, CONNECT, codec.Helo(b"\xff.example"))
    hostname, address, helo, macros = looker.seen
    assert (hostname, helo) == ("client.example", "\udcff.example")
    assert (address.host, address.port) == ("192.0.2.1", 12345)
    assert macros == {"v": "Postfix 3.7.11", "j": "mx.example"}
    assert looker.mta == ("postfix", "3.7.11", 6)
    assert looker.can


def test_a_connection_of_which_nothing_is_known() -> None:
    looker = looked(offer=playing.V2)
    hostname, address, helo, macros = looker.seen
    assert (hostname, address.family, helo, macros) == ("", "unknown", None, {})
    assert looker.mta == (None, None, 2)
    assert not looker.can


@pytest.mark.parametrize(
    ("macros", "mta", "version"),
    [
        ({"v": "Postfix 3.7.11"}, "postfix", "3.7.11"),
        ({"v": "8.17.1.9"}, "sendmail", "8.17.1.9"),
        ({"v": "OpenSMTPD"}, None, "OpenSMTPD"),
        ({"{daemon_name}": "MTA"}, "sendmail", None),
        ({"{daemon_name}": "MSA"}, "sendmail", None),
        ({"{if_name}": "localhost"}, "sendmail", None),
        ({"{daemon_name}": "mx.example"}, None, None),
        ({}, None, None),
    ],
)
def test_the_mta_is_recognised(macros: dict[str, str], mta: str | None, version: str | None) -> None:
    values = tuple((name.encode(), value.encode()) for name, value in macros.items())
    looker = looked(codec.Macros(b"C", values), CONNECT)
    assert looker.mta == (mta, version, 6)


def test_the_connection_knows_the_last_helo() -> None:
    looker = looked(CONNECT, HELO, codec.Helo(b"second"))
    assert looker.seen[2] == "second"


def test_recipients_keep_their_params() -> None:
    class Reader(Filter):
        def on_end_of_message(self) -> None:
            self.read = [(str(r), r.raw, tuple(r.params)) for r in self.message.recipients]

    mta = Mta(Reader)
    mta.send(CONNECT, MAIL, RCPT, replace_params(RCPT, b"NOTIFY=NEVER"), EOM)
    (reader,) = mta.filters
    assert getattr(reader, "read") == [  # noqa: B009
        ("bob@rcpt.example", b"<bob@rcpt.example>", ()),
        ("bob@rcpt.example", b"<bob@rcpt.example>", ("NOTIFY=NEVER",)),
    ]


def replace_params(rcpt: codec.RcptTo, *params: bytes) -> codec.RcptTo:
    return codec.RcptTo(rcpt.recipient, params)
