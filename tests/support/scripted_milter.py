"""A milter that plays a script: a real listening socket, a thread, and what came over it."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

from fastmilter import codec
from fastmilter.codec import CommandDecoder, encode

Script = Callable[["Peer"], None]


class Peer:
    """The milter's side of one connection: reads commands, writes what the script says."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.connection.settimeout(20)
        self.decoder = CommandDecoder(1048575)
        self.seen: list[codec.Command] = []
        self.reads: list[bytes] = []

    def read(self, *, macros: bool = False) -> codec.Command | None:
        """The next command, or ``None`` at the end of the stream; macros are only noted unless asked for."""
        while True:
            for command in self.decoder:
                self.seen.append(command)
                if macros or not isinstance(command, codec.Macros):
                    return command
            data = self.connection.recv(65536)
            if not data:
                return None
            self.reads.append(data)
            self.decoder.feed(data)

    def say(self, *responses: codec.Response) -> None:
        self.connection.sendall(b"".join(map(encode, responses)))

    def negotiate(self, protocol: int = 0, actions: int = 0, macros: tuple[tuple[int, bytes], ...] = ()) -> None:
        offer = self.read()
        assert isinstance(offer, codec.Negotiate)
        self.say(codec.Negotiate(6, actions, protocol, macros))

    def serve(self, answer: Callable[[codec.Command], list[codec.Response]]) -> None:
        """Answer each command with what ``answer`` gives, until QUIT or the end of the stream."""
        while (command := self.read()) is not None and not isinstance(command, codec.Quit):
            self.say(*answer(command))

    @property
    def letters(self) -> str:
        """The commands seen, by letter."""
        return "".join(chr(encode(command, 1048575)[4]) for command in self.seen)


class Milter:
    """A listening socket and the thread that plays one script per connection."""

    def __init__(self, listener: socket.socket, script: Script) -> None:
        self.listener = listener
        self.script = script
        self.peers: list[Peer] = []
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                peer = Peer(connection)
                self.peers.append(peer)
                try:
                    self.script(peer)
                except (ConnectionError, TimeoutError):
                    pass  # the client went away, which is what these tests are about
                except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
                    self.failure = error

    @property
    def address(self) -> str:
        name = self.listener.getsockname()
        if isinstance(name, str):
            return f"unix:{name}"
        return f"inet:{name[1]}@[{name[0]}]" if ":" in name[0] else f"inet:{name[1]}@{name[0]}"

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(20)
        assert not self.thread.is_alive()
        if self.failure is not None:
            raise self.failure


Play = Callable[[Script], Milter]


def playing() -> Iterator[Play]:
    """What a fixture yields: a function that starts a milter with a script; all are ended at the end of the test."""
    milters: list[Milter] = []

    def start(script: Script) -> Milter:
        listener = socket.create_server(("127.0.0.1", 0))
        milters.append(Milter(listener, script))
        return milters[-1]

    yield start
    for milter in milters:
        milter.close()


def answer_all(command: codec.Command) -> list[codec.Response]:
    return [] if isinstance(command, codec.Abort | codec.QuitNewConnection) else [codec.Continue()]


def friendly(peer: Peer) -> None:
    peer.negotiate(actions=0x1FF)
    peer.serve(answer_all)


def silent(peer: Peer) -> None:
    while peer.read() is not None:
        pass


def silent_later(peer: Peer) -> None:
    peer.negotiate()
    silent(peer)
