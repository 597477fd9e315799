"""What fastmilter relies on when it puts edits in order, shown on real MTAs with hand-made packets.

If one of these fails on another version of an MTA, look at fastmilter/edits.py.
"""

from __future__ import annotations

import struct
import uuid

import pytest

from .case import own_fields
from .lab import Delivery, Mta, Sink
from .lab.rawmilter import RawMilter
from .lab.served import Stage

Edit = tuple[bytes, bytes]
BEYOND = 10000

HEAD = [
    ("Date", b"Sun, 22 Nov 2026 20:00:00 +0000"),
    ("From", b"a@from.test"),
    ("Message-Id", b"<1@from.test>"),
    ("X-Many", b"1"),
    ("X-Many", b"2"),
    ("X-Many", b"3"),
    ("X-Last", b"last"),
]


def add(name: bytes, value: bytes) -> Edit:
    return b"h", name + b"\0" + value + b"\0"


def insert(index: int, name: bytes, value: bytes) -> Edit:
    return b"i", struct.pack("!L", index) + name + b"\0" + value + b"\0"


def change(index: int, name: bytes, value: bytes) -> Edit:
    return b"m", struct.pack("!L", index) + name + b"\0" + value + b"\0"


@pytest.fixture(autouse=True)
def _nothing_at_the_milter_port(stage: Stage) -> None:
    stage.clear()


def deliver(mta: Mta, sink: Sink, port: int, edits: list[Edit]) -> tuple[Delivery, str]:
    """The message with HEAD after those edits, and its recipient."""
    recipient = f"{uuid.uuid4().hex}@rcpt.test"
    message = b"".join(b"%b: %b\r\n" % (name.encode(), value) for name, value in HEAD) + b"\r\nbody\r\n"
    letters = [(letter, payload.replace(b"RCPT", recipient.encode())) for letter, payload in edits]
    with RawMilter(f"inet:{port}@127.0.0.1", letters), mta.client() as client:
        client.ehlo()
        assert client.send(message, "a@from.test", [recipient]).code == 250
        client.quit()
    mta.settle()
    return sink.wait(lambda delivery: recipient in delivery.recipients)[0], recipient


# Edits; then the values of X-Many, in order, on Postfix and on Sendmail.
MANY: dict[str, tuple[list[Edit], list[bytes], list[bytes]]] = {
    "ADDHEADER of a name that is there": (
        [add(b"X-Many", b"4"), add(b"X-Many", b"5")],
        [b"1", b"2", b"3", b"4", b"5"],
        [b"5", b"4", b"1", b"2", b"3"],
    ),
    "INSHEADER beyond the end": (
        [insert(BEYOND, b"X-Many", b"4"), insert(BEYOND, b"X-Many", b"5")],
        [b"1", b"2", b"3", b"4", b"5"],
        [b"1", b"2", b"3", b"4", b"5"],
    ),
    "deleting 1 and then 2": ([change(1, b"X-Many", b""), change(2, b"X-Many", b"")], [b"2"], [b"3"]),
    "deleting 2 and then 1": ([change(2, b"X-Many", b""), change(1, b"X-Many", b"")], [b"3"], [b"3"]),
    "deleting 1 twice": ([change(1, b"X-Many", b""), change(1, b"X-Many", b"")], [b"3"], [b"2", b"3"]),
    "changing beyond the last": ([change(9, b"X-Many", b"4")], [b"1", b"2", b"3", b"4"], [b"4", b"1", b"2", b"3"]),
}


@pytest.mark.parametrize("name", MANY)
def test_several_fields_of_a_name(mta: Mta, sink: Sink, milter_port: int, name: str) -> None:
    edits, on_postfix, on_sendmail = MANY[name]
    delivery, _ = deliver(mta, sink, milter_port, edits)
    assert delivery.values("X-Many") == (on_postfix if mta.name == "postfix" else on_sendmail)


def test_insheader_beyond_the_end_is_behind_all_others(mta: Mta, sink: Sink, milter_port: int) -> None:
    edits = [insert(BEYOND, b"X-Many", b"4"), insert(BEYOND, b"X-New", b"n"), add(b"X-Other", b"o")]
    delivery, _ = deliver(mta, sink, milter_port, edits)
    assert own_fields(delivery) == [*HEAD, ("X-Many", b"4"), ("X-New", b"n"), ("X-Other", b"o")]


# Edits; then how often the recipient of the message is delivered to on Postfix and on Sendmail.
RECIPIENTS: dict[str, tuple[list[Edit], int, int]] = {
    "ADDRCPT of one that is there": ([(b"+", b"<RCPT>\0")], 2, 1),
    "DELRCPT and ADDRCPT": ([(b"-", b"<RCPT>\0"), (b"+", b"<RCPT>\0")], 1, 1),
    "ADDRCPT twice of a new one": ([(b"+", b"<new-RCPT>\0"), (b"+", b"<new-RCPT>\0")], 1, 1),
}


@pytest.mark.parametrize("name", RECIPIENTS)
def test_recipients_that_are_there(mta: Mta, sink: Sink, milter_port: int, name: str) -> None:
    edits, on_postfix, on_sendmail = RECIPIENTS[name]
    delivery, recipient = deliver(mta, sink, milter_port, edits)
    assert delivery.recipients.count(recipient) == (on_postfix if mta.name == "postfix" else on_sendmail)
    assert delivery.recipients.count(f"new-{recipient}") == ("twice" in name)
