"""Filters that do what a test planned, and write down what they were shown.

A test and the filter meet in a directory (the option ``directory``): ``plan-ADDRESS.json`` says what to do for the
SMTP client with that address, ``events`` gets one line of JSON for each callback.

A plan is a list of acts. Each names a step, and happens when all that it also names is so: ``message`` (its number on
the connection, from 1), ``shown`` (part of the callback's first argument). It may hold ``edits`` (a name of a method
of ``Message`` and its arguments), a ``verdict``, ``fail`` (raise) and ``wait`` (until the test writes to the pipe
``go`` in the directory).

Those of the filters that wait happen once, and hold instead ``takes`` (seconds), ``held`` (until the test makes the
file ``go-ADDRESS``) and what ``on_timeout`` returns then (``timeout``).
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fastmilter import (
    ACCEPT,
    CONTINUE,
    DISCARD,
    REJECT,
    SKIP,
    TEMPFAIL,
    Address,
    Answer,
    Filter,
    Params,
    SocketAddress,
    Step,
    Verdict,
    early_verdict,
    no_reply,
    reply,
)
from fastmilter.constants import POSTFIX_KNOWN_MACROS
from fastmilter.errors import FastmilterError, NoConnection, NoMessage

PLAIN = {
    "accept": ACCEPT,
    "continue": CONTINUE,
    "discard": DISCARD,
    "reject": REJECT,
    "skip": SKIP,
    "tempfail": TEMPFAIL,
}


_connections = itertools.count(1)


class Failure(Exception):
    """What a callback raises that was planned to fail."""


def verdict_of(planned: str | list[Any] | None) -> Verdict | None:
    """The verdict that a plan names: a word, or the arguments of ``reply``."""
    if planned is None:
        return None
    if isinstance(planned, str):
        return PLAIN[planned]
    code, enhanced, text = planned
    return reply(code, enhanced, text)


def argument_of(planned: Any) -> Any:
    """An argument of an edit: bytes come as their Latin-1 text, marked."""
    if isinstance(planned, dict):
        return planned["latin-1"].encode("latin-1") * int(planned.get("times", 1))
    return planned


class Planned(Filter):
    """Common ground; the subclasses say which steps are asked for, and how."""

    @dataclass
    class Options:
        """The ``[filter]`` table."""

        directory: str

    directory: ClassVar[Path]
    plan: list[dict[str, Any]] | None = None
    number = 0
    name = ""

    @classmethod
    def worker_started(cls, options: Any) -> None:
        Planned.directory = Path(options.directory)

    def client(self) -> str:
        """What names the plan: the client's address, or ``local``."""
        try:
            return self.connection.address.host or "local"
        except NoConnection:
            return "local"

    def note(self, event: str, *data: Any) -> None:
        """Write down an event; a single write to a file opened for appending is not torn."""
        if not self.name:
            self.name = f"{os.getpid()}-{next(_connections)}"
        fields = {"client": self.client(), "connection": self.name, "event": event, "data": data}
        line = json.dumps({**fields, "message": self.number})
        file = os.open(self.directory / "events", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, line.encode() + b"\n")
        finally:
            os.close(file)

    def acts(self, step: str, shown: str) -> list[dict[str, Any]]:
        """What is planned for a step."""
        if self.plan is None:
            path = self.directory / f"plan-{self.client()}.json"
            self.plan = json.loads(path.read_text()) if path.exists() else []
        return [
            act
            for act in self.plan
            if act["step"] == step and act.get("message") in (None, self.number) and act.get("shown", "") in shown
        ]

    def act(self, step: str, shown: str = "") -> Verdict | None:
        """Do what is planned for a step; the last verdict counts."""
        verdict = None
        for planned in self.acts(step, shown):
            for method, arguments, keywords in planned.get("edits", ()):
                getattr(self.message, method)(*map(argument_of, arguments), **keywords)
            if planned.get("kill"):
                os.kill(os.getpid(), signal.SIGKILL)
            if planned.get("wait"):
                (self.directory / "go").read_bytes()
            if planned.get("fail"):
                raise Failure(f"planned for {step}")
            verdict = verdict_of(planned.get("verdict")) or verdict
        return verdict


class Minimal(Planned):
    """Only what has no choice: MAIL and the end."""

    def on_mail(self, sender: Address, params: Params) -> Verdict | None:
        self.number += 1
        self.note("mail", sender, list(params))
        return self.act(Step.MAIL, sender)

    def on_end_of_message(self) -> Verdict | None:
        recipients = [(str(recipient), list(recipient.params)) for recipient in self.message.recipients]
        self.note("end_of_message", recipients, self.message.sender, self.message.queue_id)
        return self.act(Step.END_OF_MESSAGE)

    def on_abort(self) -> None:
        self.note("abort")
        self.act("abort")

    def on_message_end(self, verdict: Verdict | None) -> None:
        self.note("message_end", None if verdict is None else str(verdict), self.message.sender)
        self.act("message_end")

    def on_close(self) -> None:
        self.note("close")
        self.act("close")


class Default(Minimal):
    """Every step, asked for as the library does by default."""

    def on_connect(self, hostname: str, address: SocketAddress) -> Verdict | None:
        self.note("connect", hostname, address.family, address.host, address.port, self.connection.mta)
        return self.act(Step.CONNECT)

    def on_helo(self, name: str) -> Verdict | None:
        self.note("helo", name)
        return self.act(Step.HELO, name)

    def on_rcpt(self, recipient: Address, params: Params) -> Verdict | None:
        self.note("rcpt", recipient, list(params), self.macros.get("rcpt_addr"))
        return self.act(Step.RCPT, recipient)

    def on_data(self) -> Verdict | None:
        self.note("data")
        return self.act(Step.DATA)

    def on_header(self, name: str, value: str) -> Verdict | None:
        self.note("header", name, value)
        return self.act(Step.HEADER, name)

    def on_end_of_headers(self) -> Verdict | None:
        self.note("end_of_headers")
        return self.act(Step.END_OF_HEADERS)

    def on_body(self, chunk: bytes) -> Verdict | None:
        self.note("body", len(chunk), hashlib.sha256(chunk).hexdigest())
        return self.act(Step.BODY)

    def on_unknown(self, command: str) -> Verdict | None:
        self.note("unknown", command)
        return self.act(Step.UNKNOWN, command)


class Early(Default):
    """The content is answered piece by piece."""

    @early_verdict
    def on_header(self, name: str, value: str) -> Verdict | None:
        return super().on_header(name, value)

    @early_verdict
    def on_end_of_headers(self) -> Verdict | None:
        return super().on_end_of_headers()

    @early_verdict
    def on_body(self, chunk: bytes) -> Verdict | None:
        return super().on_body(chunk)


class Noting(Default):
    """Returns nothing where then nobody waits: a verdict that is planned there is raised."""

    def on_connect(self, hostname: str, address: SocketAddress) -> None:
        self.answer(super().on_connect(hostname, address))

    def on_helo(self, name: str) -> None:
        self.answer(super().on_helo(name))

    def on_data(self) -> None:
        self.answer(super().on_data())

    def answer(self, verdict: Verdict | None) -> None:
        if verdict is not None:
            raise Answer(verdict)


class Silent(Default):
    """Nothing is answered but MAIL and the end."""

    @no_reply
    def on_connect(self, hostname: str, address: SocketAddress) -> Verdict | None:
        return super().on_connect(hostname, address)

    @no_reply
    def on_helo(self, name: str) -> Verdict | None:
        return super().on_helo(name)

    @no_reply
    def on_rcpt(self, recipient: Address, params: Params) -> Verdict | None:
        return super().on_rcpt(recipient, params)

    @no_reply
    def on_data(self) -> Verdict | None:
        return super().on_data()


class Mute(Silent):
    """Nothing is answered but the end."""

    @no_reply
    def on_mail(self, sender: Address, params: Params) -> Verdict | None:
        return super().on_mail(sender, params)


class Asking(Default):
    """Asks for macros that are in no MTA's default list, and for refused recipients."""

    request_macros = {  # noqa: RUF012 - the names of the API
        "connect": ["{client_addr}"],
        "rcpt": ["{client_port}"],
        "end_of_headers": ["{client_addr}"],
        "end_of_message": ["{client_addr}", "{mail_addr}"],
    }

    def on_connect(self, hostname: str, address: SocketAddress) -> Verdict | None:
        self.note("macros", "connect", dict(self.macros))
        return super().on_connect(hostname, address)

    def on_rcpt(self, recipient: Address, params: Params) -> Verdict | None:
        self.note("macros", "rcpt", dict(self.macros))
        return super().on_rcpt(recipient, params)

    def on_rejected_rcpt(self, recipient: Address, params: Params, reason: str) -> Verdict | None:
        self.note("rejected_rcpt", recipient, list(params), reason)
        return self.act("rejected_rcpt", recipient)

    def on_end_of_headers(self) -> Verdict | None:
        self.note("macros", "end_of_headers", dict(self.macros))
        return super().on_end_of_headers()

    def on_end_of_message(self) -> Verdict | None:
        self.note("macros", "end_of_message", dict(self.macros))
        return super().on_end_of_message()


class AskingLate(Default):
    """Asks at the end of the message for all that Postfix has."""

    request_macros = {"end_of_message": sorted(POSTFIX_KNOWN_MACROS)}  # noqa: RUF012

    def on_end_of_message(self) -> Verdict | None:
        self.note("macros", "end_of_message", dict(self.macros))
        return super().on_end_of_message()


class Raw(Default):
    """Header values with the space after the colon."""

    leading_space = True


class Lenient(Default):
    """What fails lets mail through."""

    error_verdict = CONTINUE


class Answering(Default):
    """Says itself what is answered when it fails."""

    def on_error(self, step: Step, exception: Exception) -> Verdict:
        return reply(550, "5.6.0", f"failed at {step}")


HELD_S = 60.0
"""When a callback that is held goes on, whatever its test does."""

LOOK_S = 0.02


class Waiting(Planned):
    """Takes time in callbacks; the subclasses say how. Writes down only that, and how messages end."""

    has_waited = False
    planned_verdict: Verdict | None = None

    def begin(self, step: str, shown: str = "") -> dict[str, Any]:
        """What is planned for a step, if it is not done yet; its edits are made."""
        if step == Step.MAIL:
            self.number += 1
        acts = [] if self.has_waited else self.acts(step, shown)
        if not acts:
            return {}
        self.has_waited = True
        self.note("waits", step)
        self.planned_verdict = verdict_of(acts[0].get("timeout"))
        for method, arguments, keywords in acts[0]["edits"]:
            getattr(self.message, method)(*arguments, **keywords)
        return {**acts[0], "message": self.message_in_work(), "go": self.directory / f"go-{self.client()}"}

    def message_in_work(self) -> Any:
        """The message, if there is one."""
        try:
            return self.message
        except NoMessage:
            return None

    def end(self, planned: dict[str, Any]) -> Verdict | None:
        """Edit the message once more, as it was known before and as it is known now; tell what comes of that."""
        outcomes = []
        for name, message in (("X-After", planned["message"]), ("X-Now", self.message_in_work())):
            try:
                if message is not None:
                    message.add_header(name, "v")
                outcomes.append("no message" if message is None else "done")
            except FastmilterError as error:
                outcomes.append(type(error).__name__)
        self.note("goes on", *outcomes)
        return verdict_of(planned.get("verdict"))

    def on_message_end(self, verdict: Verdict | None) -> None:
        self.note("message_end", None if verdict is None else str(verdict))

    def on_close(self) -> None:
        self.note("close")


class HeadersOnly(Waiting):
    """In threads, and nothing else is asked for: no step comes between a header field and the end of the message."""

    blocking = True

    def step(self, step: str, shown: str = "") -> Verdict | None:
        planned = self.begin(step, shown)
        if not planned:
            return None
        time.sleep(planned["takes"])
        until = time.monotonic() + HELD_S
        while planned["held"] and not planned["go"].exists() and time.monotonic() < until:
            time.sleep(LOOK_S)
        return self.end(planned)

    def on_header(self, name: str, value: str) -> Verdict | None:
        return self.step(Step.HEADER, name)


class Blocking(HeadersOnly):
    """In threads, every step."""

    def on_connect(self, hostname: str, address: SocketAddress) -> Verdict | None:
        return self.step(Step.CONNECT)

    def on_helo(self, name: str) -> Verdict | None:
        self.note("helo")
        return self.step(Step.HELO, name)

    def on_mail(self, sender: Address, params: Params) -> Verdict | None:
        return self.step(Step.MAIL, sender)

    def on_rcpt(self, recipient: Address, params: Params) -> Verdict | None:
        return self.step(Step.RCPT, recipient)

    def on_data(self) -> Verdict | None:
        return self.step(Step.DATA)

    def on_end_of_headers(self) -> Verdict | None:
        return self.step(Step.END_OF_HEADERS)

    def on_body(self, chunk: bytes) -> Verdict | None:
        return self.step(Step.BODY)

    def on_end_of_message(self) -> Verdict | None:
        return self.step(Step.END_OF_MESSAGE)

    def on_unknown(self, command: str) -> Verdict | None:
        return self.step(Step.UNKNOWN, command)


class Async(Waiting):
    """On asyncio, every step."""

    async def step(self, step: str, shown: str = "") -> Verdict | None:
        planned = self.begin(step, shown)
        if not planned:
            return None
        await asyncio.sleep(planned["takes"])
        until = time.monotonic() + HELD_S
        while planned["held"] and not planned["go"].exists() and time.monotonic() < until:
            try:
                await asyncio.sleep(LOOK_S)
            except asyncio.CancelledError:
                self.note("cancelled")
                if planned["held"] == "unless cancelled":
                    raise
        return self.end(planned)

    async def on_connect(self, hostname: str, address: SocketAddress) -> Verdict | None:
        return await self.step(Step.CONNECT)

    async def on_helo(self, name: str) -> Verdict | None:
        self.note("helo")
        return await self.step(Step.HELO, name)

    async def on_mail(self, sender: Address, params: Params) -> Verdict | None:
        return await self.step(Step.MAIL, sender)

    async def on_rcpt(self, recipient: Address, params: Params) -> Verdict | None:
        return await self.step(Step.RCPT, recipient)

    async def on_data(self) -> Verdict | None:
        return await self.step(Step.DATA)

    async def on_header(self, name: str, value: str) -> Verdict | None:
        return await self.step(Step.HEADER, name)

    async def on_end_of_headers(self) -> Verdict | None:
        return await self.step(Step.END_OF_HEADERS)

    async def on_body(self, chunk: bytes) -> Verdict | None:
        return await self.step(Step.BODY)

    async def on_end_of_message(self) -> Verdict | None:
        return await self.step(Step.END_OF_MESSAGE)

    async def on_unknown(self, command: str) -> Verdict | None:
        return await self.step(Step.UNKNOWN, command)


class Mixed(Blocking):
    """On asyncio for the sake of one callback, the others in threads."""

    async def on_abort(self) -> None:
        await asyncio.sleep(0)


LATE_S = 3.0
"""The deadline of the filters that have one of their own: less than any MTA waits, enough for a busy machine."""

LATE_VERDICT = reply(451, "4.7.1", "later")


class BlockingLate(Blocking):
    """With a deadline."""

    deadline = LATE_S
    timeout_verdict = LATE_VERDICT


class AsyncLate(Async):
    """With a deadline."""

    deadline = LATE_S
    timeout_verdict = LATE_VERDICT


class MixedLate(Mixed):
    """With a deadline."""

    deadline = LATE_S
    timeout_verdict = LATE_VERDICT


class BlockingAsked(Blocking):
    """With a deadline for each step, and asked what to answer then."""

    deadline = dict.fromkeys(Step, LATE_S)

    def on_timeout(self, step: Step) -> Verdict | None:
        return self.planned_verdict


class AsyncAsked(Async):
    """With a deadline for each step, and asked what to answer then."""

    deadline = dict.fromkeys(Step, LATE_S)

    async def on_timeout(self, step: Step) -> Verdict | None:
        await asyncio.sleep(0)
        return self.planned_verdict


class MixedAsked(Mixed):
    """With a deadline for each step, and asked what to answer then."""

    deadline = dict.fromkeys(Step, LATE_S)

    async def on_timeout(self, step: Step) -> Verdict | None:
        await asyncio.sleep(0)
        return self.planned_verdict
