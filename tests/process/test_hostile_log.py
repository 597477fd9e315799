"""What peers that do wrong may cause in the log: who they were, nothing of a message, and no flood."""

import socket

import pytest

from fastmilter import codec
from fastmilter.client import Client
from tests.process.harness import PATIENCE_S, Server, wait_until

FILTERS = """
import fastmilter

class Plain(fastmilter.Filter):
    def on_mail(self, sender, params):
        if sender.local_part == "fail":
            raise ValueError("no")

class Blocking(Plain):
    blocking = True
"""

NEGOTIATION = codec.encode(codec.Negotiate(6, 0x1FF, 0x1FFFFF, ()))
SESSION: list[codec.Command] = [
    codec.Connect(b"client.example", b"4", 25, b"192.0.2.1"),
    codec.Helo(b"client.example"),
    codec.Macros(b"M", ((b"i", b"4QUEUE"),)),
    codec.MailFrom(b"<a@example.org>"),
]


def connect(server: Server, place: int) -> socket.socket:
    address = server.address(place)
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE_S)
        sock.connect(address.removeprefix("unix:"))
        return sock
    return socket.create_connection(("127.0.0.1", int(address.split(":")[1].split("@")[0])), timeout=PATIENCE_S)


def started(server: Server, kind: str) -> Server:
    (server.directory / "filters.py").write_text(FILTERS)
    listen = ["inet:0@127.0.0.1", f"unix:{server.directory}/fm.sock"]
    return server.start("--workers=1", target=f"filters.py:{kind}", listen=listen)


@pytest.mark.parametrize("kind", ["Plain", "Blocking"])
@pytest.mark.parametrize(("place", "peer"), [(0, "127.0.0.1"), (1, r"user \d+")])
def test_who_broke_the_protocol_is_told_and_nothing_of_the_message(
    server: Server, kind: str, place: int, peer: str
) -> None:
    started(server, kind)
    with connect(server, place) as sock:
        sock.sendall(NEGOTIATION + b"".join([codec.encode(message) for message in SESSION]))
        wait_until(lambda: sock.recv(4096), "it is answered")
        content = b"LSubject\0a secret"  # without the last NUL
        sock.sendall(len(content).to_bytes(4, "big") + content)
        while sock.recv(4096):
            pass
    (line,) = server.wait_log(r"the peer broke the protocol.*")
    assert "no NUL ends the field value: 16 bytes" in line[0]
    server.wait_log(rf"{line[0][:40]}.* qid='4QUEUE' client='192\.0\.2\.1:25' mta='{peer}'")
    with connect(server, place) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        while sock.recv(4096):
            pass
    server.wait_log(rf"looks like HTTP.* mta='{peer}'")
    assert server.stop() == 0
    assert "secret" not in server.log()


@pytest.mark.parametrize("kind", ["Plain", "Blocking"])
def test_neither_packets_out_of_order_nor_messages_that_fail_fill_the_log(server: Server, kind: str) -> None:
    started(server, kind)
    with connect(server, 0) as sock:
        sock.sendall(NEGOTIATION + codec.encode(codec.Body(b"outside of any message")) * 500)
        server.wait_log("BODY|body")
        sock.sendall(codec.encode(codec.Quit()))
        while sock.recv(4096):
            pass
    with Client(server.address()) as client:
        client.connect("client.example", "192.0.2.1", 25)
        client.helo("client.example")
        for _ in range(100):
            client.mail("fail@example.org")
            client.abort()
    assert server.stop() == 0
    log = server.log()
    assert 0 < log.count(" warning ") <= 40
    assert "more like it" in log
    assert log.count("Traceback") == 10
    assert log.count("on_mail failed again with ValueError") == 90, "each is told, but in one line"
