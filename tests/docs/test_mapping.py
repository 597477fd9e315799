"""The table "Coming from go-milter" of the README: every name of the Go library is there, and every row works.

``go_names.txt`` lists the exported names of that library. What a row must do is told here in the bytes that the
function of the Go library puts on the wire, or in its constants.
"""

import re
import socket
import struct
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Final

import pytest

import fastmilter
from fastmilter import Client, Filter, codec, constants
from fastmilter.endpoints import parse_endpoint
from fastmilter.replies import verdict_of
from fastmilter.testing import run
from tests.examples.support import ROOT, free_port
from tests.process.harness import wait_until
from tests.support.playing import BODY, EOH, EOM, HEADER, HELO, MAIL, RCPT, Mta
from tests.support.scripted_milter import Play, friendly, playing

from .pages import PATIENCE_S, running

README = (ROOT / "README.md").read_text()
SECTION = README.partition("\n## Coming from go-milter\n")[2].partition("\n## ")[0]

Row = tuple[tuple[str, ...], str]
"""The names of a row, and the code for them."""


def table(title: str) -> list[Row]:
    text = SECTION.partition(f"\n**{title}**")[2].partition("\n**")[0]
    cells = re.findall(r"^\| (`.*`) \| `(.*)` \|$", text, re.MULTILINE)
    return [(tuple(name.strip("`") for name in names.split()), code) for names, code in cells]


TITLES: Final = (
    "Level 1, client",
    "Level 1, server",
    "Level 2, client",
    "Level 2, server",
    "Level 3",
    "Types and constants",
)
ROWS: Final = {title: table(title) for title in TITLES}
NAMES: Final = {
    **{name: getattr(fastmilter, name) for name in fastmilter.__all__},
    **{name: value for name, value in vars(constants).items() if name[0] != "_"},
    "codec": codec,
    "verdict_of": verdict_of,
}
"""What the rows may name."""


def first_name(row: Row) -> str:
    return row[0][0]


def packet(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


SENT: Final = {
    "OptNeg": b"O" + struct.pack(">III", 6, 0x1FF, 0),
    "Macro": b"DCj\0mx.example\0",
    "Connect": b"Clocalhost\0" + b"4" + struct.pack(">H", 25) + b"127.0.0.1\0",
    "Helo": b"Hclient.example\0",
    "Mail": b"M<a@b.example>\0SIZE=9\0",
    "Rcpt": b"R<c@d.example>\0",
    "Header": b"LSubject\0hello\0",
    "EOH": b"N",
    "Body": b"Bbody\r\n",
    "BodyEOB": b"E",
    "Abort": b"A",
    "Quit": b"Q",
    "Accept": b"a",
    "Continue": b"c",
    "Discard": b"d",
    "Reject": b"r",
    "Tempfail": b"t",
    "ReplyCode": b"y550 5.7.1 no thanks\0",
    "Progress": b"p",
    "AddRcpt": b"+<c@d.example>\0",
    "DelRcpt": b"-<c@d.example>\0",
    "AddHeader": b"hX-New\0yes\0",
    "ChgHeader": b"m" + struct.pack(">I", 1) + b"Subject\0hi\0",
    "DelHeader": b"m" + struct.pack(">I", 1) + b"Subject\0\0",
    "ReplBody": b"bnew body\r\n",
    "Quarantine": b"qlook at this\0",
}
"""The payload of each packet with the values of the table, by the end of the function's name."""


def sent_by(name: str) -> bytes:
    """What the function of that name sends."""
    return SENT[re.sub(r"^(Encode|Client\.Send|Client\.Exchange|(Server\.)?(Send|Action|Modification))", "", name)]


# -- the table itself ----------------------------------------------------------------------------------------------


def test_every_name_is_there_once() -> None:
    known = Path(__file__).with_name("go_names.txt").read_text().split()
    assert len(known) == 229
    told = [name for rows in ROWS.values() for names, _ in rows for name in names]
    assert sorted(told) == sorted(known)


def test_no_row_is_overlooked() -> None:
    assert sum(map(len, ROWS.values())) == SECTION.count("\n| `")
    assert set(re.findall(r"^\*\*(.*?)\*\*", SECTION, re.MULTILINE)) == set(TITLES)


# -- level 1, client -----------------------------------------------------------------------------------------------


@pytest.fixture
def play() -> Iterator[Play]:
    yield from playing()


def test_level_1_client(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    milter = play(friendly)
    port = parse_endpoint(milter.address).port
    names: dict[str, Any] = dict(NAMES)
    told: dict[str, Any] = {}
    for row, code in ROWS["Level 1, client"]:
        if row[0] == "Client.ExchangeAbort":  # a message that can be dropped
            names["client"].mail("x@y.example")
        if row[0] == "ClientNewFromConn":
            names["connected"] = socket.create_connection(("127.0.0.1", port))
        if row[0] == "Client.MacroGet":
            assert eval(code, names) == "25"
        else:
            exec(code.replace("inet:8894@127.0.0.1", milter.address), names)
        if "ClientNew" in row:
            names["client"].open().quit()
        elif row[0] == "Client.MacroDebug":
            assert "daemon_port" in capsys.readouterr().out
        elif "MacroAdd" in row[0]:
            told |= macros_of(row, code)
        elif row[0] == "Client.ExchangeAbort":
            assert not names["client"].in_message
    assert verdict_of(codec.Continue()) == names["verdict"]
    assert not names["client"].is_open
    wait_until(lambda: [peer.letters[-1:] for peer in milter.peers] == ["Q", "Q"], "both connections end with QUIT")
    first, second = milter.peers
    assert first.letters == "OQ"

    commands = [codec.encode(command)[4:] for command in second.seen]
    exchanges = [row[0] for row, _ in ROWS["Level 1, client"] if "Exchange" in row[0]]
    assert exchanges[0] == "Client.ExchangeOptNeg"
    wanted = [sent_by(name) for name in exchanges[1:]]
    plain = [command for command in commands[1:] if command[:1] not in b"DT"]
    # Postfix sends an ABORT behind every message, and drops one with the next command.
    assert [command for command in plain if command[:1] != b"A" and b"x@y" not in command] == [
        command for command in wanted if command[:1] != b"A"
    ]
    assert plain.count(b"A") >= 2
    macros = [command for command in second.seen if isinstance(command, codec.Macros)]
    for name, value in told.items():
        assert any((name.encode(), value.encode()) in packet.values for packet in macros), name


def macros_of(row: tuple[str, ...], code: str) -> dict[str, str]:
    """The macros in a row, which must be those of its names."""
    values = dict(re.findall(r'"([^":]+)": "([^"]+)"', code))
    bare = {name.strip("{}") for name in values}
    if row != ("Client.MacroAdd",):
        assert bare == {name.removeprefix("Client.MacroAdd_") for name in row}
        assert all((len(name) == 1) == (name[0] != "{") for name in values)
    return values


# -- level 1, server -----------------------------------------------------------------------------------------------


CALLBACKS: Final = [row for row in ROWS["Level 1, server"] if row[1].startswith("def ")]


def test_callbacks() -> None:
    called: list[str] = []
    body: dict[str, Any] = {}
    for _, code in CALLBACKS:
        exec(code.replace("...", "note(self, locals())"), {"note": lambda *_: None}, body)

    def noting(name: str, callback: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *arguments: Any) -> Any:
            called.append(name)
            callback(self, *arguments)
            if name == "on_helo":
                raise ValueError("for on_error")

        return call

    made = type("Made", (Filter,), {name: noting(name, callback) for name, callback in body.items()})
    mta = Mta(made)
    mta.send(codec.Connect(b"localhost", b"4", 25, b"127.0.0.1"))
    mta.send(HELO)
    mta = Mta(made)
    mta.send(codec.Connect(b"localhost", b"4", 25, b"127.0.0.1"), MAIL, RCPT, HEADER, EOH, BODY, EOM)
    mta.send(MAIL, codec.Abort(), codec.Quit())
    assert set(called) == set(body)
    libmilter = {"OPTNEG": "negotiate", "EOH": "end_of_headers", "BODYEOB": "end_of_message", "QUIT": "close"}
    for (name,), code in CALLBACKS:
        event = name.removeprefix("ServerCallbacks.On")
        assert code.startswith(f"def on_{libmilter.get(event, event.lower())}(self"), name


def test_a_class_is_served(tmp_path: Path) -> None:
    (names, code), *_ = ROWS["Level 1, server"]
    assert "Exchange" in names
    first = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)[0]
    (tmp_path / "first.py").write_text(first)
    port = free_port()
    program = f"from fastmilter import serve\nfrom first import First\n{code.replace('8894', str(port))}\n"
    with running(tmp_path, "-c", program, port=port), Client(f"inet:{port}@127.0.0.1") as client:
        assert client.send_message(b"Subject: x\r\n\r\n", "a@b.example", ["c@d.example"]).modifications


WITHIN: Final = [row for row in ROWS["Level 1, server"] if not row[1].startswith(("def ", "serve("))]


@pytest.mark.parametrize("row", WITHIN, ids=first_name)
def test_what_a_callback_may_do(row: Row, capsys: pytest.CaptureFixture[str]) -> None:
    ((name,), code) = row
    names = dict(NAMES)
    exec(f"def on_end_of_message(self):\n    {code.replace('self.macros[', 'return self.macros[')}\n", names)
    callback = names["on_end_of_message"]
    returned: list[Any] = []

    class Made(Filter):
        def on_end_of_message(self) -> Any:
            returned.append(callback(self))
            return None if name.startswith("Server.Macro") else returned[0]

    recipients = ["b@d.example"] if name == "ModificationAddRcpt" else ["b@d.example", "c@d.example"]
    outcome = run(Made, b"Subject: hello\r\n\r\nbody\r\n", recipients=recipients)
    if name.startswith("Server.Macro"):
        assert "mx.example.org" in (returned[0] or capsys.readouterr().out)
    elif name.startswith("Action"):
        assert outcome.verdict.packet == packet(sent_by(name))
    else:
        assert [codec.encode(modification) for modification in outcome.modifications] == [packet(sent_by(name))]


# -- level 2 -------------------------------------------------------------------------------------------------------


def receive(peer: socket.socket) -> bytes:
    """One packet, without its length."""
    length = struct.unpack(">I", peer.recv(4, socket.MSG_WAITALL))[0]
    return peer.recv(length, socket.MSG_WAITALL)


def test_level_2_client() -> None:
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE_S)
    names = {**NAMES, "client": Client(ours).open(negotiate=False)}
    with theirs:
        for (name, *_), code in ROWS["Level 2, client"]:
            if name.startswith("Client.Receive"):
                theirs.sendall(packet(b"p") + packet(SENT["Reject"]))
                assert eval(code, names) == (codec.Reject() if name.endswith("Message") else b"r")
            elif name.startswith("AnswerTo"):
                value = eval(code, names)
                assert value is True or value.packet == packet(SENT["ReplyCode"])
            else:
                exec(code, names)
                assert receive(theirs) == sent_by(name)
        names["client"].close()


def test_level_2_server() -> None:
    accepted, mta = socket.socketpair()
    mta.settimeout(PATIENCE_S)
    names: dict[str, Any] = {**NAMES, "accepted": accepted}
    same = {"Server.SendAction": "Reject", "Server.SendModification": "AddRcpt"}
    with mta:
        for (name, *_), code in ROWS["Level 2, server"]:
            if name.startswith("Server.Receive"):
                mta.sendall(packet(SENT["Helo"]))
                expected = codec.Helo(b"client.example") if name.endswith("Message") else SENT["Helo"]
                assert eval(code, names) == expected
            else:
                exec(code, names)
                if name != "ServerNew":
                    assert receive(mta) == (SENT[same[name]] if name in same else sent_by(name))
        names["connection"].close()


# -- level 3 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS["Level 3"], ids=first_name)
def test_level_3(row: Row) -> None:
    ((name,), code) = row
    value = eval(code, {**NAMES, "packet": packet(SENT["Helo"])})
    if name.startswith("Decode"):
        assert value == (len(SENT["Helo"]) if name == "DecodeLength" else codec.Helo(b"client.example"))
    else:
        assert value == packet(sent_by(name))


# -- types and constants -------------------------------------------------------------------------------------------

VALUES: Final[dict[str, Any]] = {
    **{f"SMFIC_{name}": letter for name, letter in zip(
        ("OPTNEG", "MACRO", "CONNECT", "HELO", "MAIL", "RCPT", "HEADER", "EOH", "BODY", "BODYEOB", "ABORT", "QUIT"),
        "ODCHMRLNBEAQ",
        strict=True,
    )},
    **{f"MS_{name}": letter for name, letter in zip(("CONNECT", "HELO", "MAIL", "RCPT"), "CHMR", strict=True)},
    **{f"{prefix}_{name}": letter for prefix in ("SMFIR", "AC") for name, letter in zip(
        ("ACCEPT", "CONTINUE", "DISCARD", "REJECT", "TEMPFAIL", "REPLYCODE"), "acdrty", strict=True
    )},
    "SMFIR_PROGRESS": "p",
    **{f"{prefix}_{name}": letter for prefix in ("SMFIR", "MC") for name, letter in zip(
        ("ADDRCPT", "DELRCPT", "ADDHEADER", "CHGHEADER", "REPLBODY", "QUARANTINE"), "+-hmbq", strict=True
    )},
    **{f"SMFIA_{name}": letter for name, letter in zip(("UNKNOWN", "UNIX", "INET", "INET6"), "UL46", strict=True)},
    **{f"SMFIF_{name}": 1 << bit for bit, name in enumerate(
        ("ADDHDRS", "CHGBODY", "ADDRCPT", "DELRCPT", "CHGHDRS", "QUARANTINE")
    )},
    **{f"SMFIP_{name}": 1 << bit for bit, name in enumerate(
        ("NOCONNECT", "NOHELO", "NOMAIL", "NORCPT", "NOBODY", "NOHDRS", "NOEOH")
    )},
}  # fmt: skip
"""The constants of the Go library, which are those of the protocol."""

TYPES: Final = {
    "MsgOptNeg": "OptNeg",
    "MsgConnect": "Connect",
    "MsgMail": "Mail",
    "MsgHeader": "Header",
    "MsgReply": "ReplyCode",
    "MsgAddHeader": "AddHeader",
    "MsgChgHeader": "ChgHeader",
    "Macro": "Macro",
}
SHOWN: Final = {
    "MsgOptNeg.String": "Header(name=b'Subject', value=b'hello')",
    "Action.String": "550 5.7.1 no thanks",
    "MsgType.String": "ADD_HEADERS",
}


@pytest.mark.parametrize("row", ROWS["Types and constants"], ids=first_name)
def test_types_and_constants(row: Row) -> None:
    names, code = row
    value = eval(code, NAMES)
    if names[0] in TYPES:
        assert codec.encode(value) == packet(SENT[TYPES[names[0]]])
    elif names[0] in SHOWN:
        assert value == SHOWN[names[0]]
    else:
        assert len(value) == len(names)
        for name, ours in zip(names, value, strict=True):
            check_constant(name, ours)


def check_constant(name: str, ours: Any) -> None:
    whole = {"SMFIF_ALL": 0x3F, "SMFIP_ALL": 0x7F}
    if name in VALUES:
        assert (ours.value.decode() if isinstance(ours.value, bytes) else ours.value) == VALUES[name]
    elif name in whole:  # of version 2, which ours go beyond
        assert ours & whole[name] == whole[name]
    elif name in ("MilterVersion", "BodyChunkSize"):
        assert ours == {"MilterVersion": 6, "BodyChunkSize": 65535}[name]
    elif name.endswith("_ERROR"):
        assert issubclass(ours, fastmilter.FastmilterError)
    elif name in ("Action", "Modification"):
        assert isinstance(fastmilter.REJECT if name == "Action" else codec.AddHeader(b"A", b"1"), ours)
    else:
        assert issubclass(ours, Enum), name
