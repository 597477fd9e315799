"""Conformance cases of the MTA's side, by their numbers (see README.md): both clients, on real sockets."""

from collections.abc import Callable, Iterator

import pytest

from fastmilter import codec
from fastmilter.client import Chain, ConnectionLost, ProtocolBroken, Timeouts
from fastmilter.codec import encode
from fastmilter.constants import MAX_RESPONSE_BYTES, STEPS, CommandLetter, ProtocolFlag, Step
from fastmilter.errors import FastmilterError
from fastmilter.mta import MTAS
from fastmilter.replies import CONTINUE, Verdict, VerdictKind
from tests.support.both_clients import BOTH, MakeClient
from tests.support.scripted_milter import Milter, Peer, Play, answer_all, friendly, playing

PATIENT = Timeouts(connect=20, command=20, content=20)
EVERY_STEP = [step for step in STEPS if step is not Step.UNKNOWN]


@pytest.fixture
def play() -> Iterator[Play]:
    yield from playing()


@pytest.fixture(params=BOTH)
def make_client(request: pytest.FixtureRequest) -> MakeClient:
    made: MakeClient = request.param
    return made


def seen(milter: Milter) -> list[codec.Command]:
    milter.close()
    return [command for peer in milter.peers for command in peer.seen]


def answering(play: Play, answer: Callable[[codec.Command], list[codec.Response]], protocol: int = 0) -> Milter:
    def script(peer: Peer) -> None:
        peer.negotiate(protocol, 0x1FF)
        peer.serve(answer)

    return play(script)


@pytest.mark.parametrize(("version", "fits"), [(2, True), (4, True), (6, True), (7, False), (0xFFFFFFFF, False)])
def test_case_29_version_of_the_answer(play: Play, make_client: MakeClient, version: int, fits: bool) -> None:
    def script(peer: Peer) -> None:
        peer.read()
        peer.say(codec.Negotiate(version, 0, 0))
        peer.serve(answer_all)

    milter = play(script)
    client = make_client(milter.address, timeouts=PATIENT)
    if not fits:
        with pytest.raises(ProtocolBroken, match="answers with milter protocol version"):
            client.open()
        return
    with client:
        client.send_message(b"A: b\r\n\r\n", "a@b", ["c@d"])
        client.unknown("FOO")
    kinds = {type(command) for command in seen(milter)}
    assert (codec.Data in kinds) is (version >= 4)
    assert (codec.Unknown in kinds) is (version >= 3)


def test_case_30_requested_macros_are_told_and_no_others(play: Play, make_client: MakeClient) -> None:
    def script(peer: Peer) -> None:
        peer.negotiate(0, 0, ((0, b"j {client_port}"), (2, b"{mail_addr},{tag}")))  # without SETSYMLIST
        peer.serve(answer_all)

    milter = play(script)
    with make_client(milter.address, timeouts=PATIENT) as client:
        client.send_message(b"A: b\r\n\r\n", "a@b", ["c@d"], port=4711, macros={"mail": {"tag": "1", "other": "2"}})
    macros = {command.command: dict(command.values) for command in seen(milter) if isinstance(command, codec.Macros)}
    assert macros[b"C"] == {b"j": b"mx.example.org", b"{client_port}": b"4711"}
    assert macros[b"M"] == {b"{mail_addr}": b"a@b", b"{tag}": b"1"}
    assert set(macros[b"R"]) >= {b"{rcpt_addr}", b"{rcpt_host}", b"{rcpt_mailer}"}


@pytest.mark.parametrize("tail", [b"\0", b"abc", b"\0\0\0\1", b"\0\0\0\1no end", b"\xff" * 100])
def test_case_31_garbage_behind_the_answer(play: Play, make_client: MakeClient, tail: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.read()
        payload = encode(codec.Negotiate(6, 0x1FF, 0))[4:] + tail
        peer.connection.sendall(len(payload).to_bytes(4, "big") + payload)
        peer.serve(answer_all)

    with make_client(play(script).address, timeouts=PATIENT) as client:
        assert client.connect("localhost") == CONTINUE


def test_case_55_esmtp_parameters(play: Play, make_client: MakeClient) -> None:
    milter = play(friendly)
    with make_client(milter.address, timeouts=PATIENT) as client:
        client.connect("localhost")
        client.mail("a@b", ["SIZE=100", "BODY=8BITMIME"])
        client.rcpt("c@d", ["NOTIFY=NEVER", "ORCPT=rfc822;c@d"])
    commands = seen(milter)
    assert codec.MailFrom(b"<a@b>", (b"SIZE=100", b"BODY=8BITMIME")) in commands
    assert codec.RcptTo(b"<c@d>", (b"NOTIFY=NEVER", b"ORCPT=rfc822;c@d")) in commands


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 131070, 200_000])
def test_case_56_57_bodies_on_the_wire(play: Play, make_client: MakeClient, size: int) -> None:
    """Cut at 65535, never empty; CRLF at the ends of lines; nothing in the end of the message."""
    milter = play(friendly)
    body = (b"0123456789\n" * (size // 11 + 1))[: max(size - 1, 0)] + b"\n" * bool(size)
    with make_client(milter.address, timeouts=PATIENT) as client:
        client.send_message(b"A: b\n\n" + body, "a@b", ["c@d"])
    commands = seen(milter)
    chunks = [command.chunk for command in commands if isinstance(command, codec.Body)]
    assert b"".join(chunks) == body.replace(b"\n", b"\r\n")
    assert all(len(chunk) == 65535 for chunk in chunks[:-1])
    assert all(0 < len(chunk) <= 65535 for chunk in chunks)
    assert codec.EndOfMessage(b"") in commands


@pytest.mark.parametrize("leading_space", [False, True])
def test_case_58_header_values_on_the_wire(play: Play, make_client: MakeClient, leading_space: bool) -> None:
    milter = answering(play, answer_all, ProtocolFlag.LEADING_SPACE if leading_space else 0)
    raw = b"A: one\r\nB:  two\r\nC:none\r\nD:\ttab\r\nE: folded\r\n more\r\nF:\r\n\r\n"
    with make_client(milter.address, timeouts=PATIENT) as client:
        client.send_message(raw, "a@b", ["c@d"])
    values = [command.value for command in seen(milter) if isinstance(command, codec.Header)]
    space = b" " if leading_space else b""
    assert values == [space + b"one", space + b" two", b"none", b"\ttab", space + b"folded\n more", b""]


@pytest.mark.parametrize("mta", MTAS)
def test_case_70_macros_and_command_in_one_write(play: Play, make_client: MakeClient, mta: str) -> None:
    """One segment may hold more than one write, but no write ends behind the macros of a command that is sent."""
    milter = play(friendly)
    with make_client(milter.address, mta=mta, timeouts=PATIENT) as client:
        client.send_message(b"A: b\r\n\r\nc\r\n", "a@b", ["c@d", "e@f"])
        client.unknown("FOO")
    milter.close()
    for data in milter.peers[0].reads:
        decoder = codec.CommandDecoder()
        decoder.feed(data)
        commands = list(decoder)
        assert decoder.buffered == 0
        assert not isinstance(commands[-1], codec.Macros)
        letters = {kind.value for kind in CommandLetter}
        assert all(command.command in letters for command in commands if isinstance(command, codec.Macros))


@pytest.mark.parametrize("verdict", [codec.Continue(), codec.Accept()])
@pytest.mark.parametrize("mta", MTAS)
def test_case_108_modifications_in_order(
    play: Play, make_client: MakeClient, mta: str, verdict: codec.Continue | codec.Accept
) -> None:
    edits: list[codec.Response] = [
        codec.Progress(),
        codec.InsertHeader(0, b"A", b"1"),
        codec.AddHeader(b"B", b"2"),
        codec.Progress(),
        codec.ChangeHeader(1, b"C", b""),
        codec.Quarantine(b"odd"),
        codec.ReplaceBody(b"x" * 65535),
        codec.ReplaceBody(b"y"),
    ]
    milter = answering(
        play, lambda command: [*edits, verdict] if isinstance(command, codec.EndOfMessage) else answer_all(command)
    )
    with make_client(milter.address, mta=mta, timeouts=PATIENT) as client:
        outcome = client.send_message(b"C: 3\r\n\r\n", "a@b", ["c@d"])
    assert list(outcome.modifications) == [edit for edit in edits if not isinstance(edit, codec.Progress)]
    assert outcome.verdict.kind in (VerdictKind.CONTINUE, VerdictKind.ACCEPT)


REPLIES: list[tuple[bytes, str | None]] = [
    (b"550 5.7.1 no\0", "550 5.7.1 no"),
    (b"550 5.7.1 50%% off\0", "550 5.7.1 50% off"),
    (b"550 5.7.1 50% off\0", "550 5.7.1 50 off"),
    (b"451 4.7.1 later%\0", "451 4.7.1 later"),
    (b"550 5.7.1 no end", None),
    (b"550 5.7.1 a\0b\0", None),
    (b"550 4.7.1 wrong class\0", None),
    (b"250 2.0.0 ok\0", None),
]


@pytest.mark.parametrize(("text", "expected"), REPLIES)
def test_case_109_reply_texts(play: Play, make_client: MakeClient, text: bytes, expected: str | None) -> None:
    def script(peer: Peer) -> None:
        peer.negotiate()
        peer.read()
        peer.connection.sendall((len(text) + 1).to_bytes(4, "big") + b"y" + text)
        peer.read()

    client = make_client(play(script).address, timeouts=PATIENT).open()
    if expected is None:
        with pytest.raises(ProtocolBroken) as caught:
            client.connect("localhost")
        assert caught.value.received.endswith(text[:50])
    else:
        assert str(client.connect("localhost")) == expected
        client.quit()


def failing(play: Play, at: Step, data: bytes) -> Milter:
    """A filter that answers a step with ``data`` and closes."""

    def script(peer: Peer) -> None:
        peer.negotiate()
        while (command := peer.read()) is not None:
            if encode(command)[4:5] == STEPS[at].letter.value:
                peer.connection.sendall(data)
                return
            peer.say(*answer_all(command))

    return play(script)


TOO_LARGE = (MAX_RESPONSE_BYTES + 2).to_bytes(4, "big") + b"y"


def default_action_holds(play: Play, make_client: MakeClient, at: Step, data: bytes, error: type[Exception]) -> None:
    for mta, table in MTAS.items():
        for action, reply in table.default_actions.items():
            milter = failing(play, at, data)
            with Chain([(milter.address, action)], mta=mta, timeouts=PATIENT) as chain:
                outcome = chain.send_message(b"A: b\r\n\r\nc\r\n", "a@b", ["c@d"])
                assert isinstance(outcome.milters[0].error, error)
                passes = action in ("accept", "quarantine")
                assert outcome.verdict == (CONTINUE if passes else reply)
                assert outcome.apply().delivered is (action == "accept")
                assert outcome.apply().quarantined is (action == "quarantine")
            assert len(milter.peers) == 1
    client = make_client(failing(play, at, data).address, timeouts=PATIENT)
    client.open()
    with pytest.raises(error):
        client.send_message(b"A: b\r\n\r\nc\r\n", "a@b", ["c@d"])
    assert not client.is_open
    with pytest.raises(FastmilterError):
        client.end_of_message()


@pytest.mark.parametrize("data", [b"\0\0\0\x01Z", TOO_LARGE], ids=["unknown letter", "too large"])
@pytest.mark.parametrize("step", EVERY_STEP)
def test_case_110_default_action_after_a_broken_answer(
    play: Play, make_client: MakeClient, step: Step, data: bytes
) -> None:
    default_action_holds(play, make_client, step, data, ProtocolBroken)


@pytest.mark.parametrize("step", EVERY_STEP)
def test_case_111_default_action_after_an_end_and_no_use_of_the_socket(
    play: Play, make_client: MakeClient, step: Step
) -> None:
    default_action_holds(play, make_client, step, b"", ConnectionLost)


def test_case_111_a_verdict_is_never_made_up(play: Play, make_client: MakeClient) -> None:
    """A client of one milter has no default action: the error is the answer."""
    verdicts: list[Verdict | None] = []
    client = make_client(failing(play, Step.MAIL, b"").address, timeouts=PATIENT).open()
    verdicts.append(client.connect("localhost"))
    with pytest.raises(ConnectionLost):
        verdicts.append(client.mail("a@b"))
    assert verdicts == [CONTINUE]
