"""Addresses with ``?proxy=yes``: whom a header of the PROXY protocol makes the peer, and who may send one."""

import contextlib
import re
import signal
import socket
from collections.abc import Iterator

import psutil
import pytest

from fastmilter import codec
from fastmilter.client import Client
from fastmilter.server.proxy_header import V2_BEGINNING
from tests.process.activation import activate
from tests.process.harness import PATIENCE_S, Server, begin, complete, wait_until, whole_message
from tests.process.watching import http
from tests.support.playing import V6

REFUSED = "connection refused before its first packet: "
PROXY = "127.0.0.2"
"""Another address of this machine, so that a test can be proxy and MTA at will."""


def v1(source: str) -> bytes:
    return f"PROXY TCP4 {source} 192.0.2.1 40522 8894\r\n".encode()


def v2(source: str, additions: bytes = b"") -> bytes:
    rest = socket.inet_aton(source) + socket.inet_aton("192.0.2.1") + bytes(4) + additions
    return V2_BEGINNING + b"\x21\x11" + len(rest).to_bytes(2) + rest


MODELS = """
class Slow(Tagger):
    blocking = True

class Async(Tagger):
    async def on_helo(self, name):
        pass
"""

LOCAL = V2_BEGINNING + b"\x20\x00\0\0"


def connected(server: Server, source: str = PROXY) -> socket.socket:
    port = int(re.split("[:@]", server.address())[1])
    peer = socket.create_connection(("127.0.0.1", port), PATIENCE_S, source_address=(source, 0))
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return peer


def is_closed(peer: socket.socket) -> bool:
    try:
        return not peer.recv(1000)
    except (ConnectionResetError, BrokenPipeError):
        return True


@contextlib.contextmanager
def through_proxy(server: Server, header: bytes) -> Iterator[Client]:
    """A client behind a proxy that sent ``header``."""
    peer = connected(server)
    peer.sendall(header)
    with Client(peer) as client:
        yield client


@pytest.fixture
def proxied(server: Server) -> Server:
    """A server as the tests start it, but for the options."""
    server.filter.write_text(server.filter.read_text() + MODELS)
    return server


def start(server: Server, *options: str, target: str = "tagger:Tagger") -> Server:
    options = ("--workers=1", f"--proxy-from={PROXY}", *options)
    return server.start(*options, target=target, listen=["inet:0@127.0.0.1?proxy=yes"])


@pytest.mark.parametrize("target", ["Tagger", "Slow", "Async"])
def test_the_mta_that_the_proxy_names_is_allowed_counted_and_logged(proxied: Server, target: str) -> None:
    server = start(
        proxied, "--allow=192.0.2.25", "--max-connections-per-peer=1", "--log-messages", target=f"tagger:{target}"
    )
    for header in (v1("192.0.2.25"), v2("192.0.2.25"), v2("192.0.2.25", b"\x20\0\x01x" * 100)):
        with through_proxy(server, header) as client:
            whole_message(client)
            with connected(server) as second:
                second.sendall(v1("192.0.2.25") + codec.encode(V6))
                assert is_closed(second)
            client.quit()
        wait_until(lambda: not connections(server), "the connection ends")
    server.wait_log(r"client='192\.0\.2\.1:25' mta='192\.0\.2\.25' ", 3)
    server.wait_log(
        rf"{REFUSED}192\.0\.2\.25 has 1 connections \(--max-connections-per-peer\) \(by the proxy {PROXY}\) pid=\d+"
    )
    with connected(server) as other:
        other.sendall(v2("192.0.2.26"))
        assert is_closed(other)
    server.wait_log(rf"{REFUSED}192\.0\.2\.26 is in no network of --allow \(by the proxy {PROXY}\)")
    assert server.stop() == 0


def connections(server: Server) -> list[object]:
    (worker,) = server.workers()
    return [found for found in psutil.Process(worker).net_connections("tcp") if found.status == "ESTABLISHED"]


def test_a_header_may_come_in_pieces_and_with_packets_behind_it(proxied: Server) -> None:
    server = start(proxied)
    for header in (v1("192.0.2.25"), v2("192.0.2.25"), LOCAL, b"PROXY UNKNOWN\r\n"):
        data = header + codec.encode(V6)
        with connected(server) as peer:
            for place in range(len(data)):
                peer.sendall(data[place : place + 1])
            assert peer.recv(1000)[4:5] == b"O"
        with connected(server) as peer:
            peer.sendall(data)
            assert peer.recv(1000)[4:5] == b"O"
    assert server.stop() == 0


def test_a_broken_connection_is_logged_with_its_mta(proxied: Server) -> None:
    server = start(proxied)
    with connected(server) as peer:
        peer.sendall(v1("192.0.2.25") + b"GET / HTTP/1.0\r\n\r\n")
        assert is_closed(peer)
    server.wait_log(r"this looks like HTTP, not like the milter protocol pid=\d+ mta='192\.0\.2\.25'\n")
    assert server.stop() == 0


def test_who_is_no_proxy_connects_as_ever_and_must_not_claim_to_be_another(proxied: Server) -> None:
    server = start(proxied, "--allow=127.0.0.1", "--max-connections-per-peer=1")
    with server.client() as client:
        whole_message(client)
    for header in (v1("192.0.2.25"), LOCAL):
        wait_until(lambda: not connections(server), "the one before has gone, and is not counted any more")
        with connected(server, "127.0.0.1") as peer:
            peer.sendall(header + codec.encode(V6))
            assert is_closed(peer)
    server.wait_log(
        rf"{REFUSED}127\.0\.0\.1 sends a header of the PROXY protocol, and is in no network of --proxy-from pid="
    )
    with connected(server, "127.0.0.3") as peer:
        assert is_closed(peer)
    server.wait_log(r"127\.0\.0\.3 is in no network of --allow")
    assert server.stop() == 0


def test_a_proxy_without_a_header_is_closed(proxied: Server) -> None:
    server = start(proxied)
    for _ in range(20):
        with connected(server) as peer:
            peer.sendall(codec.encode(V6))
            assert is_closed(peer)
    server.wait_log(rf"{REFUSED}{PROXY} is in --proxy-from, and sends no header of the PROXY protocol, but b'")
    assert server.log().count(REFUSED) < 20
    assert server.stop() == 0


def test_a_proxy_that_speaks_for_itself_needs_no_other_permission(proxied: Server) -> None:
    server = start(proxied, "--allow=192.0.2.25", "--max-connections-per-peer=1")
    with through_proxy(server, LOCAL), through_proxy(server, LOCAL) as client:
        whole_message(client)
    with connected(server) as peer:
        peer.sendall(b"PROXY UNKNOWN\r\n")
        assert is_closed(peer), "who it is is not known, and not everybody is allowed"
    assert server.stop() == 0


def test_silence_ends_and_whoever_has_gone_is_forgotten(proxied: Server) -> None:
    server = start(proxied, "--negotiation-timeout=1")
    with connected(server) as silent, connected(server, "127.0.0.1") as other, connected(server) as gone:
        gone.sendall(b"PROXY TC")
        gone.close()
        assert is_closed(silent)
        assert is_closed(other)
    server.wait_log(rf"{REFUSED}127\.0\.0\.\d sent no (packet|header of the PROXY protocol) for 1 s")
    wait_until(lambda: not connections(server), "all are closed")
    assert server.stop() == 0


def test_guests_count_for_the_limit_of_connections(proxied: Server) -> None:
    server = start(proxied, "--max-connections-per-worker=2")
    with connected(server) as first, connected(server), connected(server) as third:
        third.sendall(LOCAL + codec.encode(V6))
        server.wait_log("this worker has 2 connections, its limit")
        first.sendall(LOCAL + codec.encode(V6))
        assert first.recv(1000)[4:5] == b"O"
        first.close()
        assert third.recv(1000)[4:5] == b"O", "it waited, and got its place"
    assert server.stop() == 0


def test_a_server_that_drains_still_hears_who_came_before(proxied: Server) -> None:
    server = start(proxied, "--drain-stop=60,60,60")
    with connected(server) as peer:
        wait_until(lambda: connections(server), "it is accepted")
        server.send(signal.SIGTERM)
        server.wait_log("stopping|drain")
        peer.sendall(v1("192.0.2.25"))
        with Client(peer) as client:
            begin(client)
            complete(client)
    assert server.finish() == 0


def test_half_a_configuration_is_refused(proxied: Server) -> None:
    proxied.start("--workers=1", listen=["inet:0@127.0.0.1?proxy=yes"], wait=False)
    assert proxied.finish() == 78
    assert "inet:0@127.0.0.1?proxy=yes: name the proxies with --proxy-from NETWORK" in proxied.log()
    proxied.start("--workers=1", "--proxy-from=192.0.2.1", wait=False)
    assert proxied.finish() == 78
    assert "--proxy-from: no address has ?proxy=yes" in proxied.log()


def test_the_address_that_is_meant_is_found_among_those_of_systemd(server: Server) -> None:
    """One ``systemd`` stands for all sockets that it has opened."""
    with contextlib.ExitStack() as stack:
        plain = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        options = ("--listen=systemd", "--listen=inet:0@127.0.0.1?proxy=yes", f"--proxy-from={PROXY}")
        activate(server, [sock.fileno() for sock in plain], *options)
        proxied = int(server.wait_log(r"listening on inet:(\d+)@127\.0\.0\.1\?proxy=yes")[-1][1])
        for port in (proxied, *(sock.getsockname()[1] for sock in plain)):
            peer = stack.enter_context(
                socket.create_connection(("127.0.0.1", port), PATIENCE_S, source_address=(PROXY, 0))
            )
            peer.sendall(v1("192.0.2.33") if port == proxied else b"")
            with Client(peer) as client:
                whole_message(client)
        assert server.stop() == 0


@pytest.mark.parametrize("proxies", [PROXY, "127.0.0.1"])
def test_healthz_connects_as_who_it_is(proxied: Server, proxies: str) -> None:
    proxied.start(
        "--workers=1",
        f"--proxy-from={proxies}",
        "--metrics=127.0.0.1:0",
        target="tagger:Tagger",
        listen=["inet:0@127.0.0.1?proxy=yes"],
    )
    assert http(proxied, "/healthz") == (200, "a milter connection was made and negotiated\n")
    assert proxied.stop() == 0
    assert "refused" not in proxied.log()
