"""A user's filters that pass ``mypy --strict``; see test_user_filters.py."""

from collections.abc import Awaitable
from dataclasses import dataclass, field, replace
from typing import Any

from fastmilter import (
    ACCEPT,
    REJECT,
    TEMPFAIL,
    Action,
    Address,
    Answer,
    Filter,
    Offer,
    Params,
    SocketAddress,
    Step,
    Verdict,
    Wish,
    early_verdict,
    no_reply,
    reply,
)


class Tagger(Filter):
    """The filter of the README."""

    def on_mail(self, sender: Address, params: Params) -> Verdict | None:
        if sender.domain == "spam.example":
            return reply(550, "5.7.1", "no thanks")
        return None

    def on_header(self, name: str, value: str) -> None:
        if name.lower() == "subject":
            self.message.add_header("X-Subject-Length", str(len(value)))

    def on_end_of_message(self) -> None:
        self.message.add_header("X-Tagged", "yes")


class Waits(Filter):
    """The same, asynchronous."""

    deadline = {Step.MAIL: 5.0, "body": None}  # noqa: RUF012 - what authors write

    async def on_connect(self, hostname: str, address: SocketAddress) -> Verdict | None:
        return REJECT if address.ip is None else None

    @no_reply
    async def on_mail(self, sender: Address, params: Params) -> None:
        self.message.state.size = int(params.get("SIZE", "0") or 0)

    @early_verdict
    async def on_body(self, chunk: bytes) -> Verdict:
        raise Answer(ACCEPT)

    async def on_end_of_message(self) -> Verdict | None:
        return None

    async def on_message_end(self, verdict: Verdict | None) -> None: ...

    async def on_close(self) -> None: ...

    async def on_negotiate(self, offer: Offer) -> Wish | None:
        return replace(self.wish(), actions=offer.actions & Action.QUARANTINE)

    @classmethod
    async def worker_started(cls, options: Any) -> None: ...


@dataclass
class Score:
    points: float = 0.0
    seen: set[str] = field(default_factory=set)


class Grey(Filter[Score]):
    """With data of its own for each message."""

    actions = Action.ADD_HEADERS | Action.CHANGE_BODY
    requires = Action.ADD_HEADERS
    error_verdict = ACCEPT
    request_macros = {"rcpt": ["{rcpt_addr}"]}  # noqa: RUF012

    @dataclass
    class Options:
        limit: int = 5

    options: Options

    @classmethod
    def worker_started(cls, options: Options) -> None:
        cls.options = options

    def on_rcpt(self, recipient: Address, params: Params) -> Verdict | None:
        self.message.state.seen.add(recipient.domain)
        self.message.state.points += len(self.macros.get("rcpt_addr", ""))
        return None

    def on_end_of_message(self) -> Verdict | None:
        for recipient in self.message.recipients:
            self.message.add_header("X-Recipient", recipient.params.get("NOTIFY") or recipient.local_part)
        self.message.replace_body(chunk for chunk in (b"a", b"b"))
        return TEMPFAIL if self.message.state.points > self.options.limit else None

    def on_error(self, step: Step, exception: Exception) -> Verdict:
        return reply(451, "4.3.0", f"{step} failed")


class Either(Filter):
    """Neither plain nor async for sure, as a class between may be."""

    def on_helo(self, name: str) -> Verdict | None | Awaitable[Verdict | None]:  # noqa: RUF036 - as in the reference
        return None


def names(grey: Grey, tagger: Tagger) -> tuple[float, Any, str | None]:
    return grey.message.state.points, tagger.message.state.anything, grey.connection.mta
