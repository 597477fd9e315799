"""Shows a filter at work: starts the server, is the MTA, and prints what happened. `make demo` runs it.

    python examples/demo.py [TARGET] [MESSAGE]

Nothing is sent anywhere: the server listens on a free port of 127.0.0.1 and is stopped at the end. Ends with 0 if the
message got its verdict and came back changed.
"""

import difflib
import email
import io
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from fastmilter import Step, codec
from fastmilter.client import Client, Outcome
from fastmilter.errors import FastmilterError

EXAMPLES = Path(os.path.relpath(Path(__file__).parent))
TARGET = f"{EXAMPLES / 'tagger.py'}:Tagger"
MESSAGE = EXAMPLES / "message.eml"
WORKERS = 2
START_S = 30.0
STOP_S = 30.0

HOST, CLIENT, PORT = "mail.orchard.example", "192.0.2.25", 40522
SENDER = "jiri@orchard.example"
RECIPIENTS = ["anna@harbour.example", "office@harbour.example"]


class DemoFailed(Exception):
    """Something did not work as it should."""


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def title(text: str) -> None:
    """Print the heading of a part."""
    print(f"\n{text}\n{'-' * len(text)}")


def start(target: str, address: str) -> "subprocess.Popen[str]":
    """Start the server, show its log, and return when all workers are ready."""
    command = ["fastmilter", "serve", target, "--workers", str(WORKERS), "--listen", address]
    if os.geteuid() == 0:
        command.append("--allow-root")  # for a demonstration; a real filter has a user of its own (--user)
    title("The server")
    print(f"$ {' '.join(command)}")
    server = subprocess.Popen(
        [sys.executable, "-m", *command], stderr=subprocess.PIPE, text=True, errors="backslashreplace"
    )
    assert server.stderr is not None
    too_late = threading.Timer(START_S, server.kill)  # which ends its log, and so the loop
    too_late.start()
    ready = 0
    for line in server.stderr:
        print(f"  {line.rstrip()}")
        ready += " is ready " in line
        if ready == WORKERS:
            break
    too_late.cancel()
    if ready < WORKERS:
        raise DemoFailed(f"the server did not start (exit status {server.wait()})")
    return server


def stop(server: "subprocess.Popen[str]") -> None:
    """Stop the server as a service manager does, and show the rest of its log."""
    title("The server stops (SIGTERM)")
    server.terminate()
    try:
        _, log = server.communicate(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.communicate()
        raise DemoFailed(f"the server did not stop within {STOP_S:.0f} s") from None
    for line in log.splitlines():
        print(f"  {line}")
    print(f"  exit status {server.returncode}")
    if server.returncode != 0:
        raise DemoFailed("the server did not stop cleanly")


def play(address: str, message: bytes) -> Outcome:
    """Play a message over the wire as Postfix would, and print every step."""
    title("The SMTP session, as Postfix tells it to the filter")
    with Client(address) as client:
        outcome = client.send_message(
            message,
            SENDER,
            RECIPIENTS,
            hostname=HOST,
            address=CLIENT,
            port=PORT,
            helo=HOST,
        )
    fields = iter(email.message_from_bytes(message).keys())
    recipients = iter(RECIPIENTS)
    for step, verdict, milliseconds in outcome.steps:
        match step:
            case Step.CONNECT:
                told = f"{HOST} [{CLIENT}]:{PORT}"
            case Step.HELO:
                told = HOST
            case Step.MAIL:
                told = f"FROM:<{SENDER}>"
            case Step.RCPT:
                told = f"TO:<{next(recipients)}>"
            case Step.HEADER:
                told = next(fields)
            case _:
                told = ""
        unasked = "not shown" if step in client.agreed.suppressed else "not awaited"
        answer = unasked if verdict is None else str(verdict)
        print(f"  {step:<15} {told:<41} {answer:<12} {milliseconds:7.2f} ms")
    return outcome


def in_words(modification: codec.Modification) -> str:
    """Return a modification on one line."""
    fields = (getattr(modification, name) for name in modification.__match_args__)
    texts = (value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value) for value in fields)
    return f"{type(modification).__name__}({', '.join(texts)})".replace("\n", "\\n")


def lines(message: bytes) -> list[str]:
    """Return a message as lines to print; bytes that are not UTF-8 are shown as \\x.."""
    return message.decode("utf-8", "backslashreplace").replace("\r\n", "\n").splitlines()


def changes(before: bytes, after: bytes) -> Iterator[str]:
    """Yield the difference of two messages."""
    yield from difflib.unified_diff(lines(before), lines(after), "before", "after", lineterm="", n=2)


def report(message: bytes, outcome: Outcome) -> None:
    """Print what became of the message; DemoFailed if there is no verdict or no change."""
    title("What the filter answered")
    if outcome.verdict is None:
        raise DemoFailed("the message got no verdict")
    print(f"  verdict        {outcome.verdict}")
    for recipient in outcome.recipients:
        print(f"  accepted       {recipient}")
    for recipient, verdict in outcome.refused.items():
        print(f"  refused        {recipient}: {verdict}")
    for modification in outcome.modifications:
        print(f"  modification   {in_words(modification)}")
    title("The message before")
    print("\n".join(f"  {line}" for line in lines(message)))
    after = outcome.apply().message
    title("The message after")
    print("\n".join(f"  {line}" for line in lines(after)))
    title("The difference")
    difference = list(changes(message, after))
    print("\n".join(f"  {line}" for line in difference))
    if not difference:
        raise DemoFailed("the message came back unchanged")


def run(target: str, path: Path) -> None:
    """Run the demonstration."""
    message = path.read_bytes()
    address = f"inet:{free_port()}@127.0.0.1"
    server = start(target, address)
    try:
        report(message, play(address, message))
    finally:
        stop(server)


def main(arguments: list[str]) -> int:
    """Run the demonstration with the arguments of the command line; return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 is no reason to stop
    target = arguments[0] if arguments else TARGET
    path = Path(arguments[1]) if len(arguments) > 1 else MESSAGE
    try:
        run(target, path)
    except (DemoFailed, FastmilterError, OSError) as error:
        print(f"\nThe demonstration failed: {error}", file=sys.stderr)
        return 1
    print("\nThe demonstration worked: the message got its verdict and came back changed.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
