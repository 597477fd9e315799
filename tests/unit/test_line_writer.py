"""Lines for a descriptor of many processes: whole, in order, and never waited for."""

import errno
import fcntl
import os
import pty
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastmilter.server.line_writer import LineWriter

SMALL_PIPE = 4096
SOON_S = 5.0


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe of one page, the least there is: its ends for reading and for writing."""
    source, sink = os.pipe()
    fcntl.fcntl(sink, fcntl.F_SETPIPE_SZ, SMALL_PIPE)
    yield source, sink
    for end in (source, sink):
        if is_open(end):
            os.close(end)


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def lines(count: int, size: int = 100) -> list[bytes]:
    return [f"{number} ".encode().ljust(size - 1, b"x") + b"\n" for number in range(count)]


def read_now(source: int) -> bytes:
    """What is there to read, without waiting for more."""
    data = b""
    while select.select([source], [], [], 0)[0]:
        piece = os.read(source, 1 << 16)
        if not piece:
            break
        data += piece
    return data


def put_all(writer: LineWriter, all_lines: list[bytes]) -> None:
    for line in all_lines:
        writer.put(line)


def test_nothing_is_written_before_it_is_asked_for(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1])
    put_all(writer, lines(3))
    assert (writer.waiting, read_now(pipe[0])) == (300, b"")
    assert writer.flush() == 0
    assert (writer.waiting, read_now(pipe[0])) == (0, b"".join(lines(3)))


def test_a_full_pipe_is_not_waited_for_and_gets_everything_in_the_end(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1])
    put_all(writer, lines(1000))
    received = b""
    while writer.waiting:
        before = writer.waiting
        assert writer.flush() == 0
        assert writer.flush() == 0  # full again: nothing changes
        piece = read_now(pipe[0])
        assert piece
        assert piece.endswith(b"\n"), "a line was torn"
        assert before - writer.waiting == len(piece)
        received += piece
    assert received == b"".join(lines(1000))


def test_the_mode_of_the_pipe_stays_as_it_was(pipe: tuple[int, int]) -> None:
    """It belongs to all who have the pipe: the master, the other workers, the shell."""
    writer = LineWriter(pipe[1])
    put_all(writer, lines(1000))
    writer.flush()
    assert os.get_blocking(pipe[1])


def test_what_does_not_fit_is_counted_and_told_when_half_is_free_again(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1], limit=20_000)
    put_all(writer, lines(200))
    put_all(writer, lines(30))  # lost
    assert (writer.waiting, writer.flush()) == (20_000, 0)
    writer.put(b"lost too\n")  # as long as lines are lost, each is: the gap is one
    received = read_now(pipe[0])
    while len(received) < 10_000 - SMALL_PIPE:
        assert writer.flush() == 0
        received += read_now(pipe[0])
    lost = 0
    while not lost:
        lost = writer.flush()
        received += read_now(pipe[0])
    assert lost == 31
    assert writer.flush() == 0, "it is told once"
    writer.put(b"the next\n")
    while writer.waiting:
        writer.flush()
        received += read_now(pipe[0])
    assert received == b"".join(lines(200)) + b"the next\n"


def test_a_reader_that_has_gone_is_no_error(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1], limit=1000)
    os.close(pipe[0])
    for _ in range(3):
        put_all(writer, lines(20))
        assert writer.flush() == 0
    assert writer.waiting <= 1000
    writer.drain(SOON_S)  # does not wait: nobody will ever read


def test_a_reader_that_begins_to_read_gets_the_rest_at_the_end(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1])
    put_all(writer, lines(200))
    child = os.fork()
    if child == 0:
        os.close(pipe[1])
        count = 0
        while data := os.read(pipe[0], 1 << 16):
            count += len(data)
        os._exit(count == 20_000)
    writer.drain(SOON_S)
    assert writer.waiting == 0
    writer.close()
    os.close(pipe[1])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_the_wait_at_the_end_has_an_end(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1])
    put_all(writer, lines(1000))
    begun = time.monotonic()
    writer.drain(0.05)
    assert 0.05 <= time.monotonic() - begun < SOON_S
    assert writer.waiting > 0


@pytest.mark.parametrize("limit", [2000, 20_000])
def test_what_is_lost_is_told_at_the_end_however_little_is_free(pipe: tuple[int, int], limit: int) -> None:
    """That which still waits then, too: its writer leaves."""
    writer = LineWriter(pipe[1], limit=limit)
    put_all(writer, lines(300))
    lost = writer.drain(0)
    received = read_now(pipe[0])
    writer.flush()
    received += read_now(pipe[0])
    assert (writer.waiting, lost) == (0, 300 - received.count(b"\n"))
    assert lost >= 300 - limit // 100
    writer.put(b"the next\n")
    assert writer.drain(SOON_S) == 0, "it is told once"
    assert read_now(pipe[0]) == b"the next\n"


def test_close_gives_back_what_it_opened(pipe: tuple[int, int]) -> None:
    before = os.listdir("/proc/self/fd")
    writer = LineWriter(pipe[1])
    writer.close()
    writer.close()
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert is_open(pipe[1])


def test_a_socket_is_not_waited_for_and_stays_as_it_was() -> None:
    near, far = socket.socketpair()
    with near, far:
        writer = LineWriter(near.fileno())
        put_all(writer, lines(10_000))
        writer.flush()
        assert 0 < writer.waiting < 1_000_000, "the socket took nothing, or everything"
        assert os.get_blocking(near.fileno())
        received = b""
        while writer.waiting:
            received += read_now(far.fileno())
            writer.flush()
        assert received + read_now(far.fileno()) == b"".join(lines(10_000))


def test_a_datagram_that_is_too_long_for_the_socket_holds_up_nothing() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # gets the least there is
        size = near.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        writer = LineWriter(near.fileno(), together=False)
        put_all(writer, [b"before\n", b"x" * size, b"after\n"])
        assert (writer.flush(), writer.waiting) == (1, 0)
        assert (far.recv(100), far.recv(100)) == (b"before\n", b"after\n")
        writer.put(b"next\n")
        assert writer.flush() == 0, "it is told once"
        assert far.recv(100) == b"next\n"


def test_a_file_gets_all_at_once(tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab", buffering=0) as file:
        writer = LineWriter(file.fileno())
        put_all(writer, lines(5000))
        assert (writer.flush(), writer.waiting) == (0, 0)
        file.write(b"of another\n")
        writer.put(b"of the writer\n")
        writer.flush()
    assert (tmp_path / "log").read_bytes() == b"".join(lines(5000)) + b"of another\nof the writer\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_full_disk_is_no_error() -> None:
    sink = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            os.write(sink, b"x")
        writer = LineWriter(sink)
        put_all(writer, lines(3))
        assert (writer.flush(), writer.waiting) == (0, 300)
    finally:
        os.close(sink)


def test_a_terminal_that_stands_still_is_not_waited_for() -> None:
    master, terminal = pty.openpty()
    try:
        writer = LineWriter(terminal)
        put_all(writer, lines(1000))
        writer.flush()
        assert writer.waiting > 0
        received = b""
        while writer.waiting:
            received += read_now(master)
            writer.flush()
        received += read_now(master)
        assert received.replace(b"\r\n", b"\n") == b"".join(lines(1000))
    finally:
        os.close(master)
        os.close(terminal)


@pytest.mark.parametrize("writers", [4])
def test_lines_of_many_processes_stay_whole(pipe: tuple[int, int], writers: int) -> None:
    def write_all() -> None:
        writer = LineWriter(pipe[1])
        for line in lines(2000):
            writer.put(line)
            writer.flush()
        writer.drain(SOON_S)
        assert writer.waiting == 0

    children = [forked(write_all, pipe[0]) for _ in range(writers)]
    os.close(pipe[1])
    data = b""
    while piece := os.read(pipe[0], 1 << 16):
        data += piece
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * writers
    assert sorted(data.splitlines(keepends=True)) == sorted(lines(2000) * writers)


def forked(work: Callable[[], None], unused: int) -> int:
    """Do ``work`` in another process, which ends with status 0 if it did."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(unused)
            work()
            status = 0
        finally:
            os._exit(status)
    return child
