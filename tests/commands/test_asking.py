"""What the commands that ask a server make of what they find, and of what it says."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fastmilter.commands import asking
from fastmilter.server.settings import UsageError
from tests.process.harness import PATIENCE_S, wait_until

from .support import Done, run

Asked = list[dict[str, Any]]
GAP_S = 0.5


@contextmanager
def said(path: Path, *lines: object, gap_s: float = 0.0) -> Iterator[Asked]:
    """A server that says these lines to whoever asks, with a pause between two; yields what it was asked."""
    asked: Asked = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=_serve, args=(listener, lines, gap_s, asked), daemon=True)
        thread.start()
        try:
            yield asked
        finally:
            path.unlink(missing_ok=True)
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE_S)


def _serve(listener: socket.socket, lines: Sequence[object], gap_s: float, asked: Asked) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, connection.makefile("rb") as reader:
            request = reader.readline()
            if not request:  # only a look whether somebody is there
                continue
            asked.append(json.loads(request))
            for place, line in enumerate(lines):
                time.sleep(gap_s if place else 0.0)
                with contextlib.suppress(BrokenPipeError):  # it would not wait
                    connection.sendall(json.dumps(line).encode() + b"\n")


def asks(directory: Path, *words: str) -> Done:
    return run(*words, "--control=control", cwd=directory)


# -- time -----------------------------------------------------------------------------------------------------------


def test_an_answer_may_take_as_long_as_the_server_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "ANSWER_S", GAP_S / 5)
    path = tmp_path / "control"
    interim, answer = {"within": 2 * GAP_S, "text": ""}, {"ok": True, "text": "done"}
    with said(path, interim, answer, gap_s=GAP_S):
        assert asking.ask(str(path), {"command": "reload", "interim": True})["text"] == "done"


def test_but_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "MARGIN_S", 0.0)
    path = tmp_path / "control"
    with (
        said(path, {"within": GAP_S / 5, "text": ""}, {"ok": True, "text": "late"}, gap_s=GAP_S),
        pytest.raises(asking.Unreachable, match="no answer within"),
    ):
        asking.ask(str(path), {"command": "reload", "interim": True})


def test_who_waits_is_told_for_what(tmp_path: Path) -> None:
    interim = {"within": 10.0, "text": "2 workers of another generation must finish first"}
    with said(tmp_path / "control", interim, {"ok": True, "text": "generation 3 serves"}) as asked:
        done = asks(tmp_path, "reload")
    assert done == (0, "2 workers of another generation must finish first\ngeneration 3 serves\n", "")
    assert asked == [{"command": "reload", "interim": True}]


# -- what it says ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "status"),
    [("status", 4), ("stop", 1), ("stop --no-wait", 1), ("reload", 1), ("scale 2", 1)],
)
@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"ok": False, "text": "user 7 may not"}, "user 7 may not"),
        ({"ok": False}, "the server refused, and did not say why"),
        ({"text": "what?"}, "what?"),
        ({}, "the server refused, and did not say why"),
    ],
    ids=str,
)
def test_a_refusal_is_told(tmp_path: Path, words: str, status: int, answer: object, text: str) -> None:
    with said(tmp_path / "control", answer):
        assert asks(tmp_path, *words.split()) == (status, "", f"fastmilter: {text}\n")


def test_an_answer_without_a_status(tmp_path: Path) -> None:
    with said(tmp_path / "control", {"ok": True}):
        assert asks(tmp_path, "status") == (4, "", "fastmilter: there is no status in the answer\n")


@pytest.mark.parametrize("answer", [[], "text", 7], ids=str)
def test_what_is_no_answer(tmp_path: Path, answer: object) -> None:
    with said(tmp_path / "control", answer):
        done = asks(tmp_path, "status")
    assert (done.status, "closed without an answer" in done.err) == (4, True)


def test_the_server_counts_its_processors_itself(tmp_path: Path) -> None:
    with said(tmp_path / "control", {"ok": True, "text": "the number of workers is now 3"}) as asked:
        assert asks(tmp_path, "scale", "auto").out == "the number of workers is now 3\n"
    assert asked[0]["workers"] == "auto"


# -- stop -----------------------------------------------------------------------------------------------------------


def test_stop_waits_for_the_socket_where_the_master_is_not_in_sight(tmp_path: Path) -> None:
    """Process 1, which a server in a container tells, is another one here; and who listens here is no master."""
    path, done = tmp_path / "control", list[Done]()
    answer = {"ok": True, "text": "stopping", "within": PATIENCE_S, "status": {"pid": 1}}
    with said(path, answer) as asked:
        thread = threading.Thread(target=lambda: done.append(asks(tmp_path, "stop")))
        thread.start()
        wait_until(lambda: any(each["command"] == "stop" for each in asked), "the order")
        assert not done
    thread.join(PATIENCE_S)
    assert done == [(0, "stopping\nstopped\n", "")]


def test_stop_does_not_wait_longer_than_the_server_says(tmp_path: Path) -> None:
    with said(tmp_path / "control", {"ok": True, "text": "stopping", "within": 1.0, "status": {"pid": 1}}):
        done = asks(tmp_path, "stop")
    assert done == (1, "stopping\n", "fastmilter: the server is still there after 1 s\n")


# -- which socket ---------------------------------------------------------------------------------------------------


def test_none_means_that_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMILTER_CONTROL", "None")
    with pytest.raises(UsageError, match="FASTMILTER_CONTROL is none: no control socket is used"):
        asking.find_control(None)
    with pytest.raises(UsageError, match="--control is none"):
        asking.find_control("none")


@pytest.mark.parametrize("by_option", [True, False])
def test_auto_looks_for_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_option: bool) -> None:
    monkeypatch.setenv("FASTMILTER_CONTROL", "/nonexistent" if by_option else "auto")
    path = tmp_path / "control"
    with said(path):
        assert asking.find_control("auto" if by_option else None, (str(path),)) == str(path)


def test_a_variable_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMILTER_CONTROL", "/" + "x" * 200)
    with pytest.raises(UsageError, match=r"FASTMILTER_CONTROL: .* too long"):
        asking.find_control(None)


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_is_no_socket(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "control"
    if kind == "file":
        path.touch()
    else:
        path.mkdir()
    done = asks(tmp_path, "status")
    assert done == (4, "", f"fastmilter: {path}: this is not a socket\n")


def leave_behind(path: Path) -> None:
    """Make a socket that nobody listens at."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))


def test_a_socket_that_was_left_behind_is_no_server(tmp_path: Path) -> None:
    stale, other = tmp_path / "fastmilter-old", tmp_path / "fastmilter-older"
    leave_behind(stale)
    leave_behind(other)
    places = (str(tmp_path / "fastmilter-*"),)
    with pytest.raises(asking.Unreachable, match=r"no server can be reached at .*-old or .*-older"):
        asking.find_control(None, places)
    with said(tmp_path / "fastmilter-new"):
        assert asking.find_control(None, places) == str(tmp_path / "fastmilter-new")
        with said(tmp_path / "fastmilter-newer"), pytest.raises(UsageError, match="several servers") as refused:
            asking.find_control(None, places)
        assert str(stale) not in str(refused.value)
