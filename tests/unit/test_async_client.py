"""What only ``AsyncClient`` has: cancellation, calls side by side, other tasks. The rest is in ``test_client``."""

import asyncio
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from fastmilter import codec
from fastmilter.client import AsyncClient, ConnectionLost, TimedOut, Timeouts
from fastmilter.codec import encode
from fastmilter.constants import ProtocolFlag, Step
from fastmilter.errors import LocalProtocolError, NoConnection
from fastmilter.replies import CONTINUE
from tests.support.scripted_milter import Milter, Peer, Play, answer_all, friendly, playing, silent, silent_later

PATIENT = Timeouts(connect=20, command=20, content=20)


@pytest.fixture
def play() -> Iterator[Play]:
    yield from playing()


async def opened(address: str) -> AsyncClient:
    client = await AsyncClient(address, timeouts=PATIENT).open()
    await client.connect("localhost")
    return client


def test_many_connections_on_one_loop() -> None:
    """Each conversation is its own, whatever order the answers come in."""

    def script(peer: Peer) -> None:
        peer.negotiate(actions=0x1FF)
        name = b""

        def answer(command: codec.Command) -> list[codec.Response]:
            nonlocal name
            if isinstance(command, codec.Helo):
                name = command.name
            if isinstance(command, codec.EndOfMessage):
                return [codec.AddHeader(b"X-Name", name), codec.Continue()]
            return answer_all(command)

        peer.serve(answer)

    async def one(milter: Milter, name: str) -> None:
        async with AsyncClient(milter.address, timeouts=PATIENT) as client:
            for _ in range(3):
                outcome = await client.send_message(b"A: b\r\n\r\nc\r\n", "a@b", ["c@d"], helo=name)
                assert outcome.modifications == (codec.AddHeader(b"X-Name", name.encode()),)

    async def all_of_them() -> None:
        async with asyncio.TaskGroup() as group:
            for number, milter in enumerate(milters):
                group.create_task(one(milter, f"name-{number}"))

    milters = [Milter(socket.create_server(("127.0.0.1", 0)), script) for _ in range(20)]
    try:
        asyncio.run(all_of_them())
    finally:
        for milter in milters:
            milter.close()


WAITS: dict[str, Callable[[AsyncClient], Awaitable[object]]] = {
    "step": lambda client: client.helo("x"),
    "message": lambda client: client.send_message(b"A: b\r\n\r\n", "a@b", ["c@d"]),
    "receive": lambda client: client.receive(),
    "level 2": lambda client: client.receive(timeout=30, progress=True),
}


@pytest.mark.parametrize("wait", list(WAITS))
def test_a_cancelled_call_closes_the_connection(play: Play, wait: str) -> None:
    def script(peer: Peer) -> None:
        peer.negotiate()
        peer.read()
        peer.say(codec.Continue())
        silent(peer)

    async def main() -> None:
        before = descriptors()
        client = await opened(play(script).address)
        task = asyncio.ensure_future(WAITS[wait](client))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not client.is_open
        with pytest.raises(LocalProtocolError):
            await client.helo("y")
        await client.quit()
        assert descriptors() <= before + 2  # the milter's own: what listens, and what it may not have closed yet

    asyncio.run(main())


def descriptors() -> int:
    return len(os.listdir("/dev/fd"))


def test_a_timeout_around_a_call(play: Play) -> None:
    async def main() -> None:
        client = await AsyncClient(play(silent_later).address, timeouts=PATIENT).open()
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.05):
                await client.connect("localhost")
        assert not isinstance(caught.value, TimedOut)
        assert not client.is_open

    asyncio.run(main())


def test_cancelled_while_opening(play: Play) -> None:
    async def main() -> None:
        client = AsyncClient(play(silent).address, timeouts=PATIENT)
        task = asyncio.create_task(client.open())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(task, 0.1)
        assert not client.is_open
        assert client._socket is None

    asyncio.run(main())


def test_cancelled_while_sending(play: Play) -> None:
    stop = threading.Event()

    def script(peer: Peer) -> None:
        peer.negotiate(ProtocolFlag.NR_BODY)
        for _ in range(3):
            peer.read()
            peer.say(codec.Continue())
        stop.wait(20)

    async def main() -> None:
        client = await opened(play(script).address)
        await client.mail("a@b")
        await client.rcpt("c@d")
        task = asyncio.create_task(client.body(b"x" * 50_000_000))
        done, _ = await asyncio.wait([task], timeout=0.3)
        assert not done
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not client.is_open
        stop.set()

    asyncio.run(main())


def test_one_call_at_a_time(play: Play) -> None:
    async def main() -> None:
        client = await AsyncClient(play(silent_later).address, timeouts=PATIENT).open()
        task = asyncio.create_task(client.connect("localhost"))
        await asyncio.sleep(0)
        for call in (client.helo("x"), client.receive(), client.send(codec.Abort()), client.quit()):
            with pytest.raises(LocalProtocolError, match="another call of this client is not over yet"):
                await call
        assert client.is_open
        await client.close()
        with pytest.raises(ConnectionLost):
            await task

    asyncio.run(main())


def test_send_beside_receive_as_a_proxy_does(play: Play) -> None:
    def script(peer: Peer) -> None:
        peer.negotiate()
        peer.serve(answer_all)

    async def main() -> None:
        async with AsyncClient(play(script).address, timeouts=PATIENT) as client:
            answer = asyncio.create_task(client.receive())
            await asyncio.sleep(0)
            assert not answer.done()
            await client.send(codec.Macros(b"H", ()), codec.Helo(b"x"))
            assert await answer == codec.Continue()

    asyncio.run(main())


def test_closed_by_another_task(play: Play) -> None:
    async def main() -> None:
        client = await AsyncClient(play(silent_later).address, timeouts=PATIENT).open()
        waiting = asyncio.create_task(client.receive())
        await asyncio.sleep(0)
        await client.close()
        # The number of the descriptor is free now, and belongs to the next socket, which must not suffer.
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        reading = asyncio.create_task(asyncio.get_running_loop().sock_recv(ours, 10))
        with pytest.raises(ConnectionLost, match="closed by another call"):
            await waiting
        theirs.sendall(b"hello")
        assert await asyncio.wait_for(reading, 10) == b"hello"
        ours.close()
        theirs.close()
        with pytest.raises(NoConnection):
            await client.receive()

    asyncio.run(main())


def test_a_milter_that_never_stops_talking_does_not_keep_others_from_running(play: Play) -> None:
    def script(peer: Peer) -> None:
        peer.negotiate()
        flood = encode(codec.Progress()) * 50_000
        while True:
            peer.connection.sendall(flood)

    async def main() -> None:
        client = await AsyncClient(play(script).address, timeouts=Timeouts(command=0.5, progress=0.5)).open()
        task = asyncio.create_task(client.connect("localhost"))
        rounds = 0
        while not task.done():
            rounds += 1
            await asyncio.sleep(0)
        assert rounds > 10
        with pytest.raises(TimedOut):
            await task

    asyncio.run(main())


def test_a_full_queue_of_a_unix_socket(tmp_path: Path) -> None:
    """The kernel does not queue the connection then, and wakes nobody when it could."""
    path = f"{tmp_path}/m"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(0)

    async def main() -> None:
        first = await AsyncClient(f"unix:{path}").open(negotiate=False)
        with pytest.raises(TimedOut, match="does not take the connection in time"):
            await AsyncClient(f"unix:{path}", timeouts=Timeouts(connect=0.2)).open(negotiate=False)
        second = asyncio.create_task(AsyncClient(f"unix:{path}", timeouts=PATIENT).open(negotiate=False))
        await asyncio.wait([second], timeout=0.1)
        assert not second.done()
        accepted = [listener.accept()[0]]
        client = await second
        accepted.append(listener.accept()[0])
        for connection in accepted:
            connection.close()
        await first.close()
        await client.close()

    asyncio.run(main())
    listener.close()


def test_a_socket_that_was_given(play: Play) -> None:
    async def main() -> None:
        milter = play(friendly)
        given = socket.create_connection(milter.listener.getsockname())
        async with AsyncClient(given, timeouts=PATIENT) as client:
            assert await client.connect("localhost") == CONTINUE
        assert given.fileno() == -1

    asyncio.run(main())


def test_timed_out_at_a_step_names_it(play: Play) -> None:
    async def main() -> None:
        client = await AsyncClient(play(silent_later).address, timeouts=Timeouts(command=0.1)).open()
        with pytest.raises(TimedOut) as caught:
            await client.connect("localhost")
        assert caught.value.step is Step.CONNECT

    asyncio.run(main())
