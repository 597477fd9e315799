"""Asking a server that runs: finding its control socket, one request, one answer; for status, stop and the like."""

import argparse
import contextlib
import glob
import json
import os
import socket
import stat
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, Final

from fastmilter.commands.options import Option
from fastmilter.errors import ConfigError
from fastmilter.server.places import AUTO, CONTROL_NAME, NONE, parse_control
from fastmilter.server.settings import UsageError

EXIT_STATUS: Final = """\
exit status:
  0   done
  1   the server could not do it
  4   the server could not be asked
  64  the command line cannot be used
"""

EXIT_REFUSED: Final = 1
EXIT_UNREACHABLE: Final = 4

ANSWER_S: Final = 5.0
"""Longest wait for the first word of a server, which says itself if the answer to an order may take longer."""
MARGIN_S: Final = 5.0
"""What a server gets beyond the time that it has said."""
UNKNOWN_S: Final = 600.0
"""How long a server may take to leave that does not say how long."""
MOST_S: Final = 30 * 86400.0
"""Longest time that a server is believed: three options of the longest time there is."""

_MOST_BYTES: Final = 16 << 20
_PLACES: Final = (f"/run/fastmilter/{CONTROL_NAME}", f"/run/fastmilter-*/{CONTROL_NAME}")
"""Where the unit in contrib/systemd makes control sockets."""

CONTROL: Final = Option(
    "control",
    parse_control,
    None,
    "PATH",
    "the control socket of the server; without it $FASTMILTER_CONTROL, or the only one in /run/fastmilter and"
    " /run/fastmilter-*",
)


class Unreachable(ConfigError):
    """No answer came."""


class Refused(ConfigError):
    """The server says that it could not do it, or something that makes no sense."""


def find_control(asked: str | None, places: tuple[str, ...] = _PLACES) -> str:
    """Return the path of the control socket; ``UsageError`` if nobody said which and it is not plain.

    ``Unreachable`` if there are several places where one could be, and no server at any of them.
    """
    variable = CONTROL.variable
    given, source = (asked, CONTROL.switch) if asked else (os.environ.get(variable), variable)
    try:
        path = parse_control(given) if given else AUTO
    except ConfigError as error:
        raise UsageError(f"{source}: {error}") from None
    if path == NONE:
        raise UsageError(f"{source} is none: no control socket is used; name one with --control PATH")
    if path != AUTO:
        return path
    found = sorted(path for place in places for path in glob.glob(place))
    if len(found) > 1:  # a server that was killed leaves its socket behind
        stale, found = found, [path for path in found if answers(path)]
        if not found:
            raise Unreachable(f"no server can be reached at {' or '.join(stale)}")
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"there are several servers: say which with --control {' or --control '.join(found)}")
    raise UsageError("no control socket found: name it with --control PATH, with which the server was started too")


def answers(path: str) -> bool:
    """Tell whether somebody who lets us connect is behind a control socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        try:
            connection.connect(path)
        except BlockingIOError:  # so many wait already
            return True
        except OSError:
            return False
    return True


def ask(
    path: str, request: dict[str, Any], connected: Callable[[socket.socket], None] = lambda _connection: None
) -> dict[str, Any]:
    """Return the answer of the server at ``path``; ``Unreachable`` if there is none, ``Refused`` if it says no.

    ``connected`` is called before anything is asked.
    """
    limit = ANSWER_S
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, connection.makefile("rb") as reader:
            connection.settimeout(limit)
            connection.connect(path)
            connected(connection)
            with contextlib.suppress(BrokenPipeError):  # answered already: we may not
                connection.sendall(json.dumps(request).encode() + b"\n")
            answer = _read(path, reader)
            if "ok" not in answer and _is_time(answer.get("within")):
                if answer.get("text"):
                    print(answer["text"], flush=True)
                limit = answer["within"] + MARGIN_S
                connection.settimeout(limit)
                answer = _read(path, reader)
    except TimeoutError:
        raise Unreachable(f"{path}: no answer within {limit:.0f} s") from None
    except OSError as error:
        raise Unreachable(f"{path}: {_why(path, error)}") from None
    text = answer.get("text")
    if answer.get("ok") is not True:
        raise Refused(text if text and isinstance(text, str) else "the server refused, and did not say why")
    return {**answer, "text": text if isinstance(text, str) else ""}


def ask_status(path: str) -> dict[str, Any]:
    """Return the status of the server at ``path``; ``Unreachable`` or ``Refused``."""
    status = ask(path, {"command": "status"}).get("status")
    if not isinstance(status, dict):
        raise Refused("there is no status in the answer")
    return status


def order(
    arguments: argparse.Namespace,
    request: dict[str, Any],
    *,
    connected: Callable[[socket.socket], None] = lambda _connection: None,
    after: Callable[[str, dict[str, Any]], int] = lambda _path, _answer: 0,
) -> int:
    """Give an order, say what came of it; return the exit status, that of ``after`` if all went well.

    ``connected`` gets the connection before the order is given, ``after`` the path of the socket and the answer.
    """
    try:
        path = find_control(arguments.control)
        answer = ask(path, {**request, "interim": True}, connected)
    except (Unreachable, Refused) as error:
        print(f"fastmilter: {error}", file=sys.stderr)
        return EXIT_UNREACHABLE if isinstance(error, Unreachable) else EXIT_REFUSED
    print(answer["text"], flush=True)
    return after(path, answer)


def limit_in(answer: dict[str, Any]) -> float:
    """Return within how many seconds the server is gone, by its answer to ``stop``."""
    within: Any = answer.get("within")
    return float(within) if _is_time(within) else UNKNOWN_S


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST_S


def _read(path: str, reader: BinaryIO) -> dict[str, Any]:
    """Read one object; ``Unreachable`` if there is none."""
    try:
        answer = json.loads(reader.readline(_MOST_BYTES))
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise Unreachable(f"{path}: the connection was closed without an answer: too many clients at a time?")
    return answer


def _why(path: str, error: OSError) -> str:
    match error:
        case FileNotFoundError():
            return f"there is no such socket: is the server started with --control {path}?"
        case ConnectionRefusedError():
            return "the server is gone" if _is_socket(path) else "this is not a socket"
        case PermissionError():
            return "only the user that the server belongs to, and root, may use it"
    return error.strerror or str(error)


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:  # it has just gone
        return True
