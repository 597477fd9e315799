"""The filters that are measured, as their authors would write them. ``fastmilter serve bench/filters.py:Typical``."""

import asyncio
import time
from collections.abc import Callable
from types import FunctionType
from typing import TypeVar, cast

from fastmilter import CONTINUE, Address, Filter, Params, SocketAddress, Verdict, early_verdict, no_reply

F = TypeVar("F", bound=Callable[..., object])

NEW_BODY = b"x" * (1 << 20)
WAIT_S = 0.005
WAITING_DOMAIN = "wait.example"


def marked(mark: Callable[[F], F], callback: F) -> F:
    """Return a copy of a callback with a mark, as if it had been written again: no call more than the original."""
    function = cast(FunctionType, callback)
    copied = FunctionType(function.__code__, function.__globals__, function.__name__, closure=function.__closure__)
    return mark(cast(F, copied))


class Typical(Filter):
    """Client, queue id, envelope, all fields and the length of the body; two fields added, Subject changed."""

    def on_connect(self, hostname: str, address: SocketAddress) -> None:
        self.client = address.host

    def on_mail(self, sender: Address, params: Params) -> None:
        self.sender = sender
        self.recipients: list[Address] = []
        self.fields: list[tuple[str, str]] = []
        self.length = 0

    def on_rcpt(self, recipient: Address, params: Params) -> None:
        self.recipients.append(recipient)

    def on_header(self, name: str, value: str) -> None:
        self.fields.append((name, value))

    def on_body(self, chunk: bytes) -> None:
        self.length += len(chunk)

    def on_end_of_message(self) -> None:
        message = self.message
        message.add_header("X-Bench-1", f"{self.macros['i']} from {self.sender} for {len(self.recipients)}")
        message.add_header("X-Bench-2", f"{len(self.fields)} fields, {self.length} bytes, client {self.client}")
        message.change_header("Subject", "[bench] Minutes of the harbour meeting")
        self.fields.clear()  # as the filter in C frees what it kept
        self.recipients.clear()


class TypicalNoReply(Typical):
    """The same, with the marks that spare round trips; MAIL alone is answered before the end."""

    on_connect = marked(no_reply, Typical.on_connect)
    on_rcpt = marked(no_reply, Typical.on_rcpt)

    @no_reply
    def on_helo(self, name: str) -> None:
        self.helo = name

    @no_reply
    def on_data(self) -> None:
        pass


class TypicalAnswered(Typical):
    """The same, and the MTA waits for the answer to CONNECT, to every field and every piece of the body."""

    def on_connect(self, hostname: str, address: SocketAddress) -> Verdict:  # type: ignore[override]
        self.client = address.host
        return CONTINUE

    on_header = marked(early_verdict, Typical.on_header)
    on_body = marked(early_verdict, Typical.on_body)


class TypicalPlainWaiting(Typical):
    """The same, and what it asks elsewhere at the end of the message takes a while: all others wait too."""

    def on_end_of_message(self) -> None:
        time.sleep(WAIT_S)
        super().on_end_of_message()


class TypicalBlocking(TypicalPlainWaiting):
    """The same in threads."""

    blocking = True


class TypicalAsync(Typical):
    """The same on asyncio."""

    async def on_end_of_message(self) -> None:  # type: ignore[override]
        await asyncio.sleep(WAIT_S)
        super().on_end_of_message()


class SenderBlocking(Typical):
    """What it asks elsewhere takes as many seconds as the sender says: ``10@wait.example``; for others nothing."""

    blocking = True

    def on_end_of_message(self) -> None:
        if self.sender.domain == WAITING_DOMAIN:
            time.sleep(float(self.sender.local_part))
        super().on_end_of_message()


class SenderAsync(Typical):
    """The same on asyncio."""

    async def on_end_of_message(self) -> None:  # type: ignore[override]
        if self.sender.domain == WAITING_DOMAIN:
            await asyncio.sleep(float(self.sender.local_part))
        super().on_end_of_message()


class SecondBlocking(Typical):
    """What it asks elsewhere takes a second."""

    blocking = True

    def on_end_of_message(self) -> None:
        time.sleep(1)
        super().on_end_of_message()


class SecondAsync(Typical):
    """The same on asyncio."""

    async def on_end_of_message(self) -> None:  # type: ignore[override]
        await asyncio.sleep(1)
        super().on_end_of_message()


class Noop(Filter):
    """Every callback is there and does nothing, and every step is answered."""

    def on_connect(self, hostname: str, address: SocketAddress) -> Verdict:
        return CONTINUE

    def on_helo(self, name: str) -> Verdict:
        return CONTINUE

    def on_mail(self, sender: Address, params: Params) -> Verdict:
        return CONTINUE

    def on_rcpt(self, recipient: Address, params: Params) -> Verdict:
        return CONTINUE

    def on_data(self) -> Verdict:
        return CONTINUE

    @early_verdict
    def on_header(self, name: str, value: str) -> Verdict:
        return CONTINUE

    @early_verdict
    def on_end_of_headers(self) -> Verdict:
        return CONTINUE

    @early_verdict
    def on_body(self, chunk: bytes) -> Verdict:
        return CONTINUE

    def on_end_of_message(self) -> Verdict:
        return CONTINUE

    def on_unknown(self, command: str) -> Verdict:
        return CONTINUE

    def on_abort(self) -> None:
        pass

    def on_close(self) -> None:
        pass


class Look(Filter):
    """The length of the body."""

    def on_mail(self, sender: Address, params: Params) -> None:
        self.length = 0

    def on_body(self, chunk: bytes) -> None:
        self.length += len(chunk)

    def on_end_of_message(self) -> None:
        pass


class Replace(Look):
    """The same, and a new body of 1 MB."""

    def on_end_of_message(self) -> None:
        self.message.replace_body(NEW_BODY)
