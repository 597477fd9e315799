"""A second decoder, in plain Python, slow and short: what the codec must agree with. It shares no code with it.

Written from the description of the packets: what libmilter takes from an MTA, what Postfix takes from a filter.
"""

from typing import Any, Literal, TypeAlias

Side: TypeAlias = Literal["command", "response"]
Message: TypeAlias = tuple[Any, ...]
"""The name of the class and its fields."""

NO_DATA = {
    "command": {"T": "Data", "N": "EndOfHeaders", "A": "Abort", "Q": "Quit", "K": "QuitNewConnection"},
    "response": {
        "c": "Continue",
        "a": "Accept",
        "r": "Reject",
        "t": "TempFail",
        "d": "Discard",
        "s": "Skip",
        "p": "Progress",
        "4": "Shutdown",
        "f": "ConnectionFail",
    },
}
MAY_BE_LARGE = {"command": "DLBE", "response": "yhim+2-ebq"}


class Refused(Exception):
    """The peer broke the protocol."""


def must(condition: object) -> None:
    if not condition:
        raise Refused


def strings(data: bytes, least: int, most: int | None = None) -> list[bytes]:
    """The strings that a NUL ends. ``most``: there may be no more, and nothing behind them."""
    *found, tail = data.split(b"\0")
    must(len(found) >= least)
    must(most is None or (len(found) <= most and not tail))
    return found


def negotiation(data: bytes, side: Side) -> Message:
    must(len(data) >= 12)
    numbers = [int.from_bytes(data[at : at + 4], "big") for at in (0, 4, 8)]
    lists: list[tuple[int, bytes]] = []
    rest = data[12:]
    while b"\0" in rest[4:]:
        names, _, after = rest[4:].partition(b"\0")
        lists.append((int.from_bytes(rest[:4], "big"), names))
        rest = after
    if side == "command" and rest:
        lists = []
    return ("Negotiate", *numbers, tuple(lists))


def connect(data: bytes) -> Message:
    hostname, nul, rest = data.partition(b"\0")
    must(nul)
    family, port, address = rest[:1], rest[1:3], rest[3:]
    if family == b"U":
        return "Connect", hostname, family, 0, b""
    must(family in (b"4", b"6", b"L") and b"\0" in address)
    return "Connect", hostname, family, int.from_bytes(port, "big"), address.partition(b"\0")[0]


def command(letter: str, data: bytes) -> Message:
    if letter == "C":
        return connect(data)
    if letter == "D":
        must(data)
        found = strings(data[1:], 0)
        return "Macros", data[:1], tuple((found[at], found[at + 1]) for at in range(0, len(found) - 1, 2))
    if letter in "MR":
        path, *params = strings(data, 1)
        return {"M": "MailFrom", "R": "RcptTo"}[letter], path, tuple(params)
    if letter in "HU":
        return {"H": "Helo", "U": "Unknown"}[letter], strings(data, 1)[0]
    if letter == "L":
        name, value, *_ = strings(data, 2)
        must(name)
        return "Header", name, value
    must(letter == "E" or (letter == "B" and data))
    return {"E": "EndOfMessage", "B": "Body"}[letter], data


def response(letter: str, data: bytes) -> Message:
    if letter == "b":
        return "ReplaceBody", data
    if letter in "yq-+":
        (text,) = strings(data, 1, 1)
        name = {"y": "ReplyCode", "q": "Quarantine", "-": "DeleteRecipient", "+": "AddRecipient"}[letter]
        return (name, text, ()) if letter == "+" else (name, text)
    if letter in "2e":
        path, *joined = strings(data, 1, 2)
        params = tuple(joined[0].split(b" ")) if joined else ()
        return {"2": "AddRecipient", "e": "ChangeSender"}[letter], path, params
    must(letter in "him" and (letter == "h" or len(data) > 4))
    index = [] if letter == "h" else [int.from_bytes(data[:4], "big")]
    field, value = strings(data if letter == "h" else data[4:], 2, 2)
    must(field)
    return {"h": "AddHeader", "i": "InsertHeader", "m": "ChangeHeader"}[letter], *index, field, value


def packet(side: Side, letter: str, data: bytes) -> Message:
    if letter in NO_DATA[side]:
        must(side == "command" or not data)
        return (NO_DATA[side][letter],)
    if letter == "O":
        return negotiation(data, side)
    must(letter in ("DCMRHULEB" if side == "command" else "yhim+2-ebq"))
    return command(letter, data) if side == "command" else response(letter, data)


def decode(side: Side, stream: bytes, max_data: int) -> tuple[list[Message], bool]:
    """The messages of a stream up to its end or its first fault, and whether there was a fault."""
    messages: list[Message] = []
    at = 0
    try:
        while len(stream) - at >= 4:
            length = int.from_bytes(stream[at : at + 4], "big")
            must(1 <= length <= max_data + 1)
            if len(stream) - at < 5:
                break
            letter = chr(stream[at + 4])
            large = letter in MAY_BE_LARGE[side]
            whole = len(stream) - at >= 4 + length
            # What can be seen to be wrong before the packet is complete is refused at once: letter and size.
            must(large or length - 1 <= 65535)
            must(whole or possible(side, letter, length - 1))
            if not whole:
                break
            messages.append(packet(side, letter, stream[at + 5 : at + 4 + length]))
            at += 4 + length
    except Refused:
        return messages, True
    return messages, False


def possible(side: Side, letter: str, size: int) -> bool:
    """Whether any packet has this letter and size: NULs only, behind an index and around a name where there is one."""
    if letter in NO_DATA[side]:
        return side == "command" or size == 0
    if letter == "O":
        return size >= 12
    least = dict.fromkeys("DHUMRB", 1) | {"C": 2, "L": 3, "E": 0} if side == "command" else RESPONSE_LEAST
    return letter in least and size >= least[letter]


RESPONSE_LEAST = dict.fromkeys("yq-+2e", 1) | {"b": 0, "h": 3, "i": 7, "m": 7}
