"""``Client`` over real sockets, against a scripted peer in a thread of its own."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastmilter import codec
from fastmilter.client import Client, ConnectFailed, ConnectionLost, ProtocolBroken, TimedOut, Timeouts
from fastmilter.codec import encode
from fastmilter.constants import Action, ProtocolFlag, Step
from fastmilter.endpoints import parse_endpoint
from fastmilter.errors import ConfigError, FastmilterError, LocalProtocolError, NoConnection, RemoteProtocolError
from fastmilter.replies import ACCEPT, CONTINUE, REJECT, SKIP
from tests.support.both_clients import BOTH, MakeClient
from tests.support.scripted_milter import (
    Milter,
    Peer,
    Play,
    Script,
    answer_all,
    friendly,
    playing,
    silent,
    silent_later,
)

SHORT = Timeouts(connect=5, command=0.2, content=0.2, progress=1)
PATIENT = Timeouts(connect=20, command=20, content=20)


@pytest.fixture(params=BOTH)
def make_client(request: pytest.FixtureRequest) -> MakeClient:
    made: MakeClient = request.param
    return made


@pytest.fixture
def play() -> Iterator[Play]:
    yield from playing()


def play_message(client: Client) -> tuple[object, list[codec.Modification]]:
    client.connect("localhost", "127.0.0.1", 25)
    client.helo("client.test")
    client.mail("a@from.test")
    client.rcpt("b@rcpt.test")
    client.data()
    client.header("Subject", " hi")
    client.end_of_headers()
    client.body(b"body\r\n")
    return client.end_of_message()


def test_a_message_step_by_step(make_client: MakeClient, play: Play) -> None:
    milter = play(friendly)
    with make_client(milter.address, timeouts=PATIENT) as client:
        assert client.agreed.actions == Action(0x1FF)
        assert client.connect("localhost") == CONTINUE
        assert client.helo("client.test") == CONTINUE
        assert client.mail("a@from.test", ["SIZE=9"]) == CONTINUE
        assert client.in_message
        assert client.rcpt("<b@rcpt.test>") == CONTINUE
        assert client.data() == CONTINUE
        assert client.header("Subject", " hi") == CONTINUE
        assert client.end_of_headers() == CONTINUE
        assert client.body(b"body\r\n") == CONTINUE
        assert client.end_of_message() == (CONTINUE, [])
        assert not client.in_message
    milter.close()
    (peer,) = milter.peers
    assert peer.letters == "ODCDHDMDRDTDLDNDBDEAAQ"
    steps = [command for command in peer.seen if not isinstance(command, codec.Macros)]
    assert steps[1:6] == [
        codec.Connect(b"localhost", b"4", 0, b"127.0.0.1"),
        codec.Helo(b"client.test"),
        codec.MailFrom(b"<a@from.test>", (b"SIZE=9",)),
        codec.RcptTo(b"<b@rcpt.test>"),
        codec.Data(),
    ]


def test_modifications_come_back_in_order_and_progress_is_absorbed(make_client: MakeClient, play: Play) -> None:
    edits: list[codec.Modification] = [
        codec.AddHeader(b"X-A", b"1"),
        codec.ReplaceBody(b"one"),
        codec.ReplaceBody(b"two"),
        codec.Quarantine(b"odd"),
    ]

    def answer(command: codec.Command) -> list[codec.Response]:
        if isinstance(command, codec.EndOfMessage):
            return [codec.Progress(), *edits, codec.Progress(), codec.ReplyCode(b"550 5.7.1 100%% no")]
        return answer_all(command)

    def script(peer: Peer) -> None:
        peer.negotiate()
        peer.serve(answer)

    with make_client(play(script).address, timeouts=PATIENT) as client:
        verdict, modifications = play_message(client)
    assert modifications == edits
    assert str(verdict) == "550 5.7.1 100% no"


def test_case_70_macros_and_command_leave_in_one_write(make_client: MakeClient, play: Play) -> None:
    milter = play(friendly)
    with make_client(milter.address, timeouts=PATIENT) as client:
        client.macros("helo", {"tls_version": "TLSv1.3"})
        client.connect("localhost")
        client.helo("client.test")
    milter.close()
    reads = milter.peers[0].reads
    assert reads[1].startswith(encode(codec.Macros(b"C", ()))[:3])
    assert reads[2] == encode(codec.Macros(b"H", ((b"{tls_version}", b"TLSv1.3"),))) + encode(
        codec.Helo(b"client.test")
    )


def test_steps_without_reply_travel_with_the_next_one_that_has_one(make_client: MakeClient, play: Play) -> None:
    silent = (
        ProtocolFlag.NR_CONNECT
        | ProtocolFlag.NR_HELO
        | ProtocolFlag.NR_MAIL
        | ProtocolFlag.NR_RCPT
        | ProtocolFlag.NR_DATA
        | ProtocolFlag.NR_HEADER
        | ProtocolFlag.NR_END_OF_HEADERS
        | ProtocolFlag.NR_BODY
    )

    def script(peer: Peer) -> None:
        peer.negotiate(silent)
        while not isinstance(peer.read(), codec.EndOfMessage):
            pass
        peer.say(codec.Accept())
        assert isinstance(peer.read(), codec.Abort)

    milter = play(script)
    with make_client(milter.address, timeouts=PATIENT) as client:
        assert client.connect("localhost") is None
        assert client.helo("client.test") is None
        assert client.mail("a@from.test") is None
        assert client.rcpt("b@rcpt.test") is None
        assert client.data() is None
        assert client.header("Subject", " hi") is None
        assert client.end_of_headers() is None
        assert client.body(b"body\r\n") is None
        assert client.end_of_message() == (ACCEPT, [])
    milter.close()
    assert milter.peers[0].letters == "ODCDHDMDRDTDLDNDBDEA"


def test_a_large_body_without_replies_is_cut_and_not_piled_up(make_client: MakeClient, play: Play) -> None:
    def script(peer: Peer) -> None:
        peer.negotiate(ProtocolFlag.NR_BODY)
        peer.serve(lambda command: [] if isinstance(command, codec.Body) else answer_all(command))

    body = bytes(range(256)) * 1024
    milter = play(script)
    with make_client(milter.address, timeouts=PATIENT) as client:
        client.connect("localhost")
        client.mail("a@from.test")
        client.rcpt("b@rcpt.test")
        client.body(b"")
        assert client.body(body) is None
        assert client.end_of_message()[0] == CONTINUE
    milter.close()
    chunks = [command.chunk for command in milter.peers[0].seen if isinstance(command, codec.Body)]
    assert b"".join(chunks) == body
    assert [len(chunk) for chunk in chunks] == [65535, 65535, 65535, 65535, 4]


def test_skip_ends_the_body(make_client: MakeClient, play: Play) -> None:
    def script(peer: Peer) -> None:
        peer.negotiate(ProtocolFlag.SKIP)
        peer.serve(lambda command: [codec.Skip()] if isinstance(command, codec.Body) else answer_all(command))

    milter = play(script)
    with make_client(milter.address, timeouts=PATIENT) as client:
        client.connect("localhost")
        for _ in range(2):
            client.mail("a@from.test")
            client.rcpt("b@rcpt.test")
            assert client.body(b"x" * 200_000) == SKIP
            assert client.body(b"more") is None
            client.end_of_message()
    milter.close()
    assert sum(isinstance(command, codec.Body) for command in milter.peers[0].seen) == 2


def test_the_larger_data_size_is_used_when_agreed(make_client: MakeClient, play: Play) -> None:
    def script(peer: Peer) -> None:
        peer.negotiate(ProtocolFlag.MDS_256K)
        peer.serve(answer_all)

    milter = play(script)
    offered = 0x1FFFFF | ProtocolFlag.MDS_256K
    with make_client(milter.address, mta="sendmail", protocol=offered, timeouts=PATIENT) as client:
        client.connect("localhost")
        client.mail("a@from.test")
        client.rcpt("b@rcpt.test")
        client.body(b"x" * 262_144)
        client.end_of_message()
    milter.close()
    sizes = [len(command.chunk) for command in milter.peers[0].seen if isinstance(command, codec.Body)]
    assert sizes == [262_143, 1]


def test_level_2(make_client: MakeClient, play: Play) -> None:
    def script(peer: Peer) -> None:
        peer.negotiate()
        assert peer.read() == codec.Helo(b"x")
        peer.say(codec.Progress(), codec.AddHeader(b"A", b"b"), codec.Progress(), codec.Shutdown())

    client = make_client(play(script).address, timeouts=PATIENT).open(negotiate=False)
    try:
        client.send(codec.Negotiate(6, 0x1FF, 0x1FFFFF))
        assert client.receive() == codec.Negotiate(6, 0, 0)
        with pytest.raises(NoConnection):
            _ = client.agreed
        client.send(codec.Helo(b"x"))
        assert client.receive() == codec.AddHeader(b"A", b"b")
        assert client.receive(progress=True) == codec.Progress()
        assert client.receive() == codec.Shutdown()
    finally:
        client.quit()


@pytest.mark.parametrize("family", ["unix", "inet6"])
def test_other_families(make_client: MakeClient, family: str, tmp_path: Path) -> None:
    if family == "unix":
        listener = socket.socket(socket.AF_UNIX)
        address = f"unix:{tmp_path}/m"
        listener.bind(f"{tmp_path}/m")
    else:
        listener = socket.socket(socket.AF_INET6)
        listener.bind(("::1", 0))
        address = f"inet6:{listener.getsockname()[1]}@::1"
    listener.listen()
    milter = Milter(listener, friendly)
    try:
        with make_client(parse_endpoint(address), timeouts=PATIENT) as client:
            assert play_message(client) == (CONTINUE, [])
    finally:
        milter.close()


def test_a_socket_that_is_connected_already(make_client: MakeClient, play: Play) -> None:
    milter = play(friendly)
    address = parse_endpoint(milter.address)
    given = socket.create_connection(("127.0.0.1", address.port))
    with make_client(given, timeouts=PATIENT) as client:
        assert play_message(client)[0] == CONTINUE
    assert given.fileno() == -1
    with pytest.raises(NoConnection, match="used up"):
        client.open()
    never_opened = socket.socket()
    make_client(never_opened).close()
    assert never_opened.fileno() == -1


def test_errors_of_a_given_socket_name_no_address(make_client: MakeClient) -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with pytest.raises(ConnectionLost, match=r"^the milter closed the connection"):
        make_client(ours).open()


def test_nobody_there(make_client: MakeClient, tmp_path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    listener.close()
    for address in (f"inet:{port}@127.0.0.1", f"unix:{tmp_path}/none", "inet:25@host.invalid"):
        with pytest.raises(ConnectFailed, match="cannot connect to the milter at") as caught:
            make_client(address).open()
        assert isinstance(caught.value, ConnectionError)
        assert isinstance(caught.value, FastmilterError)


def test_a_full_queue_times_out_or_fails(make_client: MakeClient) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as stack:
        address = f"inet:{listener.getsockname()[1]}@127.0.0.1"

        def fill() -> None:
            for _ in range(10):
                client = make_client(address, timeouts=Timeouts(connect=0.2))
                stack.callback(client.open(negotiate=False).close)

        with pytest.raises((TimedOut, ConnectFailed)):
            fill()


def test_no_client_for_a_descriptor_or_an_unknown_mta(make_client: MakeClient) -> None:
    with pytest.raises(ConfigError, match="cannot connect to fd:3"):
        make_client("fd:3")
    with pytest.raises(ConfigError, match="'exim' is not one of postfix, sendmail"):
        make_client("inet:1@127.0.0.1", mta="exim")


def test_never_an_answer(make_client: MakeClient, play: Play) -> None:
    with pytest.raises(TimedOut, match="did not answer in time") as caught:
        make_client(play(silent).address, timeouts=SHORT).open()
    assert isinstance(caught.value, TimeoutError)
    client = make_client(play(silent_later).address, timeouts=SHORT).open()
    with pytest.raises(TimedOut, match="at connect") as caught:
        client.connect("localhost")
    assert caught.value.step is Step.CONNECT
    with pytest.raises(LocalProtocolError):
        client.helo("x")
    client.quit()


def test_one_byte_at_a_time_does_not_prolong_the_wait(make_client: MakeClient, play: Play) -> None:
    stop = threading.Event()

    def script(peer: Peer) -> None:
        peer.negotiate()
        packet = encode(codec.ReplyCode(b"550 " + b"x" * 60_000))
        for byte in packet:
            if stop.wait(0.02):
                return
            peer.connection.sendall(bytes([byte]))

    client = make_client(play(script).address, timeouts=SHORT).open()
    with pytest.raises(TimedOut):
        client.connect("localhost")
    stop.set()


def test_progress_prolongs_the_wait(make_client: MakeClient, play: Play) -> None:
    never = threading.Event()

    def script(peer: Peer) -> None:
        peer.negotiate()
        peer.read()
        for response in (codec.Progress(), codec.Continue()):
            never.wait(1.2)
            peer.say(response)
        silent(peer)

    # The answer takes 2.4 seconds in all.
    with make_client(play(script).address, timeouts=Timeouts(command=2)) as client:
        assert client.connect("localhost") == CONTINUE


def test_progress_does_not_prolong_it_forever(make_client: MakeClient, play: Play) -> None:
    def script(peer: Peer) -> None:
        peer.negotiate()
        while True:
            peer.say(codec.Progress())

    client = make_client(play(script).address, timeouts=SHORT).open()
    with pytest.raises(TimedOut):
        client.connect("localhost")


def test_a_peer_that_takes_no_data(make_client: MakeClient, play: Play) -> None:
    stop = threading.Event()

    def script(peer: Peer) -> None:
        peer.negotiate(0x1FFFFF & ~ProtocolFlag.NO_BODY & ~ProtocolFlag.NO_MAIL & ~ProtocolFlag.NR_MAIL)
        peer.read()
        peer.say(codec.Continue())
        stop.wait(20)

    client = make_client(play(script).address, timeouts=SHORT).open()
    client.connect("localhost")
    client.mail("a@b")
    with pytest.raises(TimedOut, match="takes no data at body"):
        client.body(b"x" * 50_000_000)
    stop.set()


@pytest.mark.parametrize(
    ("garbage", "saying"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP"),
        (b"\0\0\0\0\0", "length 0"),
        (b"\xff\xff\xff\xffc", "length"),
        (b"\0\0\0\x01Z", "Z"),
        (b"\0\0\0\x02cc", "last received"),
        (encode(codec.ReplyCode(b"250 2.0.0 fine")), "malformed SMTP reply"),
        (encode(codec.Negotiate(6, 0, 0)), "answers Negotiate to connect"),
        (encode(codec.Shutdown()), "answers Shutdown to connect"),
        (encode(codec.AddHeader(b"A", b"b")), "sends AddHeader in answer to connect"),
    ],
)
def test_case_110_a_broken_answer(make_client: MakeClient, play: Play, garbage: bytes, saying: str) -> None:
    def script(peer: Peer) -> None:
        peer.negotiate()
        peer.read()
        peer.connection.sendall(garbage)
        silent(peer)

    client = make_client(play(script).address, timeouts=PATIENT).open()
    with pytest.raises(ProtocolBroken, match=saying) as caught:
        client.connect("localhost")
    assert isinstance(caught.value, RemoteProtocolError)
    assert isinstance(caught.value, ConnectionError)
    assert caught.value.received == garbage[:64]
    with pytest.raises(FastmilterError):
        client.connect("localhost")


def test_the_offending_bytes_are_capped(make_client: MakeClient, play: Play) -> None:
    def script(peer: Peer) -> None:
        peer.negotiate()
        peer.read()
        peer.connection.sendall(b"A" * 10_000)
        silent(peer)

    client = make_client(play(script).address, timeouts=PATIENT).open()
    with pytest.raises(ProtocolBroken) as caught:
        client.connect("localhost")
    assert caught.value.received == b"A" * 64
    assert len(str(caught.value)) < 400


def test_an_answer_too_many_is_noticed(make_client: MakeClient, play: Play) -> None:
    def script(peer: Peer) -> None:
        peer.negotiate()
        peer.read()
        peer.say(codec.Continue(), codec.Reject())
        silent(peer)

    client = make_client(play(script).address, timeouts=PATIENT).open()
    assert client.connect("localhost") == CONTINUE
    with pytest.raises(ProtocolBroken, match="sent Reject before it was asked about helo"):
        client.helo("x")


@pytest.mark.parametrize("in_message", [False, True])
def test_case_111_closed_by_the_milter(make_client: MakeClient, play: Play, in_message: bool) -> None:

    def script(peer: Peer) -> None:
        peer.negotiate()
        for _ in range(2 if in_message else 0):
            peer.read()
            peer.say(codec.Continue())
        peer.read()

    client = make_client(play(script).address, timeouts=PATIENT).open()
    with pytest.raises(ConnectionLost, match="closed the connection at") as caught:
        play_message(client)
    assert isinstance(caught.value, ConnectionError)
    assert caught.value.in_message is in_message
    assert ("in the middle of a message" in str(caught.value)) is in_message
    assert caught.value.step is (Step.MAIL if in_message else Step.CONNECT)


def test_closed_in_the_middle_of_a_packet(make_client: MakeClient, play: Play) -> None:
    def script(peer: Peer) -> None:
        peer.negotiate()
        peer.read()
        peer.connection.sendall(encode(codec.ReplyCode(b"550 no"))[:-1])

    client = make_client(play(script).address, timeouts=PATIENT).open()
    with pytest.raises(ConnectionLost):
        client.connect("localhost")


def test_rejected_and_next_message(make_client: MakeClient, play: Play) -> None:
    def answer(command: codec.Command) -> list[codec.Response]:
        if isinstance(command, codec.MailFrom) and b"bad" in command.sender:
            return [codec.Reject()]
        return answer_all(command)

    def script(peer: Peer) -> None:
        peer.negotiate()
        peer.serve(answer)

    milter = play(script)
    with make_client(milter.address, timeouts=PATIENT) as client:
        client.connect("localhost")
        assert client.mail("bad@from.test") == REJECT
        with pytest.raises(LocalProtocolError, match="no MTA sends rcpt now: the filter answered reject to mail"):
            client.rcpt("b@rcpt.test")
        assert client.mail("good@from.test") == CONTINUE
    milter.close()
    assert milter.peers[0].letters == "ODCDMADMAQ"


def test_a_block_that_fails_says_no_quit(make_client: MakeClient, play: Play) -> None:
    milter = play(friendly)

    def fail() -> None:
        with make_client(milter.address, timeouts=PATIENT) as client:
            client.connect("localhost")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    milter.close()
    assert milter.peers[0].letters == "ODC"


def test_quit_nc_begins_another_connection(make_client: MakeClient, play: Play) -> None:
    milter = play(friendly)
    with make_client(milter.address, timeouts=PATIENT) as client:
        play_message(client)
        client.new_connection()
        assert client.connect("other", "::1") == CONTINUE
        client.mail("a@b")
        client.abort()
    milter.close()
    assert milter.peers[0].letters == "ODCDHDMDRDTDLDNDBDEAKDCDMAQ"


def test_nothing_leaks(make_client: MakeClient, play: Play) -> None:
    """Every way to end, a thousand times in all: the number of descriptors stays."""
    kinds: list[Script] = [
        friendly,
        silent_later,
        lambda peer: None,
        lambda peer: peer.connection.sendall(b"\0\0\0\0\0"),
    ]
    milters = [play(script) for script in kinds]
    before = len(os.listdir("/dev/fd"))
    for round_number in range(1000):
        milter = milters[round_number % len(milters)]
        client = make_client(milter.address, timeouts=Timeouts(connect=20, command=0.01, content=0.01))
        with contextlib.suppress(FastmilterError), client:
            client.connect("localhost")
    for milter in milters:
        milter.close()
    after = len(os.listdir("/dev/fd"))
    assert after <= before
