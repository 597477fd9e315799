"""Ways to run an example: its conversation on bytes, without a socket, and a served process."""

import asyncio
import inspect
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from fastmilter import Filter, Verdict, codec
from fastmilter.constants import ALL_ACTIONS
from fastmilter.conversation import Conversation
from fastmilter.plan import build_options
from fastmilter.server.load import load_filter, parse_target

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"
START_S = 30.0
STOP_S = 30.0


@dataclass
class Host:
    """What a worker does for its conversations; here nothing may go wrong unnoticed."""

    complaints: list[str] = field(default_factory=list)

    def callback_failed(self, conversation: Conversation, callback: str, error: BaseException) -> None:
        raise AssertionError(f"{callback} failed") from error

    def complain(self, conversation: Conversation, text: str) -> None:
        self.complaints.append(text)

    def transmit(self, conversation: Conversation) -> None:
        """Nothing is in the way of what is written."""

    def message_ended(self, conversation: Conversation, verdict: Verdict | None, edits: int) -> None:
        """The responses say it all."""


def load(name: str, **options: Any) -> type[Filter[Any]]:
    """Import an example as a worker does, and start it."""
    filter_class = load_filter(parse_target(f"{EXAMPLES}/{name}"))
    filter_class.worker_started(build_options(filter_class, options))
    return filter_class


class Talk:
    """A conversation of an MTA with a filter class, in memory: encoded commands in, decoded responses out."""

    def __init__(self, filter_class: type[Filter[Any]], actions: int = int(ALL_ACTIONS)) -> None:
        self.host = Host()
        self.conversation = Conversation(filter_class._fastmilter_plan, self.host)
        self._decoder = codec.ResponseDecoder()
        (answer,) = self.tell(codec.Negotiate(6, actions, 0x1FFFFF))
        assert isinstance(answer, codec.Negotiate)
        self.agreed = answer

    def tell(self, *commands: codec.Command) -> list[codec.Response]:
        """Send commands, and return the responses to all of them."""
        session = self.conversation.session
        session.receive(b"".join(map(codec.encode, commands)))
        while True:
            while self.conversation.next_call():
                self._call()
            self._decoder.feed(b"".join(session.out) + b"".join(session.tail or ()))
            session.out.clear()
            if session.tail is None:
                return list(self._decoder)
            session.tail = None

    def _call(self) -> None:
        try:
            result = self.conversation.invoke()
            if inspect.isawaitable(result):
                result = self._await(result)
        except Exception as error:  # noqa: BLE001 - the door around user code; the host raises what is no answer
            self.conversation.failed(error)
        else:
            self.conversation.returned(result)

    def _await(self, result: Awaitable[Any]) -> Any:
        raise AssertionError("async callbacks need a loop: see Session")

    def connect(self, address: bytes = b"192.0.2.25", family: bytes = b"4") -> list[codec.Response]:
        """Come as far as a client that said HELO."""
        return self.tell(
            codec.Macros(b"C", ((b"j", b"mx.harbour.example"), (b"v", b"Postfix 3.7.11"))),
            codec.Connect(b"mail.orchard.example", family, 40522, address),
            codec.Helo(b"mail.orchard.example"),
        )

    def message(
        self,
        fields: Sequence[tuple[bytes, bytes]],
        *chunks: bytes,
        recipients: Sequence[bytes] = (b"<anna@harbour.example>",),
    ) -> list[codec.Response]:
        """Send a whole message; return the responses to its end."""
        self.tell(codec.MailFrom(b"<jiri@orchard.example>"))
        for recipient in recipients:
            self.tell(codec.RcptTo(recipient))
        self.tell(codec.Data(), *(codec.Header(name, value) for name, value in fields), codec.EndOfHeaders())
        self.tell(*map(codec.Body, chunks))
        return self.tell(codec.EndOfMessage())


class Session(Talk):
    """A whole life of an example: started and stopped as in a worker, with a loop for its ``async`` callbacks."""

    def __init__(self, name: str, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self.filter_class: Any = load_filter(parse_target(f"{EXAMPLES}/{name}"))
        self._hook(self.filter_class.worker_started(build_options(self.filter_class, options)))
        super().__init__(self.filter_class)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._hook(self.filter_class.worker_stopped())
        self._runner.close()

    def another(self) -> "Talk":
        """Another connection to the same worker."""
        other = Talk(self.filter_class)
        other._await = self._await  # type: ignore[method-assign]
        return other

    def verdict(self, *chunks: bytes) -> codec.Response:
        """Send a message with that body; return the verdict."""
        return self.message([(b"Subject", b"apples")], *chunks)[-1]

    def _await(self, result: Awaitable[Any]) -> Any:
        async def awaited() -> Any:
            return await result

        return self._runner.run(asyncio.wait_for(awaited(), START_S))

    def _hook(self, result: Any) -> None:
        if inspect.isawaitable(result):
            self._await(result)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def environment(**variables: str) -> dict[str, str]:
    """The environment of a process that finds fastmilter where this one does."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FASTMILTER_")}
    return {**inherited, "PYTHONPATH": str(ROOT), "FASTMILTER_ALLOW_ROOT": "yes", **variables}


@dataclass
class Served:
    """A running server."""

    address: str
    process: "subprocess.Popen[str]"
    log: list[str] = field(default_factory=list)
    status: int | None = None


@contextmanager
def served(target: str, *options: str, cwd: Path = ROOT, workers: int = 1) -> Iterator[Served]:
    """Run ``fastmilter serve`` from the first to the last worker; its whole log is there after the block."""
    address = f"inet:{free_port()}@127.0.0.1"
    command = [sys.executable, "-m", "fastmilter", "serve", target, "--workers", str(workers), "--listen", address]
    process = subprocess.Popen(
        [*command, *options], stderr=subprocess.PIPE, text=True, cwd=cwd, env=environment(), errors="replace"
    )
    running = Served(address, process)
    assert process.stderr is not None
    too_late = threading.Timer(START_S, process.kill)
    too_late.start()
    try:
        for line in process.stderr:
            running.log.append(line.rstrip("\n"))
            if sum(" is ready " in said for said in running.log) == workers:
                break
        else:
            raise AssertionError("the server did not start:\n" + "\n".join(running.log))
        too_late.cancel()
        yield running
    finally:
        too_late.cancel()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            _, rest = process.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            _, rest = process.communicate()
        running.log += rest.splitlines()
        running.status = process.returncode
