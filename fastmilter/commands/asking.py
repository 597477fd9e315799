"""Asking a server that runs: finding its control socket, one request, one answer; for status, stop and the like."""

import argparse
import contextlib
import glob
import json
import os
import socket
import sys
from collections.abc import Callable
from typing import Any, Final

from fastmilter.commands.options import Option
from fastmilter.errors import ConfigError
from fastmilter.server.options import ENVIRONMENT_PREFIX
from fastmilter.server.places import CONTROL_NAME, parse_control
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

ANSWER_S: Final = 150.0
"""Longest wait for an answer: a reload is answered when its outcome is known, unless that takes too long."""

_READ_BYTES: Final = 65536
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


def find_control(asked: str | None, places: tuple[str, ...] = _PLACES) -> str:
    """Return the path of the control socket; ``UsageError`` if nobody said which and it is not plain."""
    given = asked or os.environ.get(ENVIRONMENT_PREFIX + "CONTROL")
    if given:
        return parse_control(given)
    found = sorted(path for place in places for path in glob.glob(place))
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"there are several servers: say which with --control {' or --control '.join(found)}")
    raise UsageError("no control socket found: name it with --control PATH, with which the server was started too")


def ask(path: str, request: dict[str, Any]) -> dict[str, Any]:
    """Return the answer of the server at ``path``; ``Unreachable`` if there is none."""
    data = bytearray()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(ANSWER_S)
            connection.connect(path)
            with contextlib.suppress(BrokenPipeError):  # answered already: we may not
                connection.sendall(json.dumps(request).encode() + b"\n")
            while not data.endswith(b"\n") and len(data) < _MOST_BYTES:
                piece = connection.recv(_READ_BYTES)
                if not piece:
                    break
                data += piece
    except FileNotFoundError:
        raise Unreachable(f"{path}: there is no such socket: is the server started with --control {path}?") from None
    except ConnectionRefusedError:
        raise Unreachable(f"{path}: the server is gone") from None
    except PermissionError:
        raise Unreachable(f"{path}: only the user that the server belongs to, and root, may use it") from None
    except TimeoutError:
        raise Unreachable(f"{path}: no answer within {ANSWER_S:.0f} s") from None
    except OSError as error:
        raise Unreachable(f"{path}: {error.strerror or error}") from None
    try:
        answer = json.loads(data)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise Unreachable(f"{path}: the connection was closed without an answer: too many clients at a time?")
    return answer


def order(arguments: argparse.Namespace, request: dict[str, Any], after: Callable[[], int] | None = None) -> int:
    """Give an order, say what came of it; return the exit status, that of ``after`` if all went well."""
    try:
        answer = ask(find_control(arguments.control), request)
    except Unreachable as error:
        print(f"fastmilter: {error}", file=sys.stderr)
        return EXIT_UNREACHABLE
    print(
        answer["text"] if answer["ok"] else f"fastmilter: {answer['text']}", file=None if answer["ok"] else sys.stderr
    )
    if not answer["ok"]:
        return EXIT_REFUSED
    return after() if after is not None else 0
