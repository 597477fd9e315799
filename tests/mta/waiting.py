"""What test_waiting.py stands on: filters of all models, MTAs of both kinds, sessions that run beside others.

Postfix is one instance that finds the filter by the client's address. Sendmail has an instance for each filter.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from .case import Case
from .conftest import need
from .lab import Mta, Postfix, Sendmail, Sink, SmtpClient, free_port, wait_until
from .lab.served import Served
from .lab.tap import Tap

MODELS = ("Blocking", "Async", "Mixed")
TAPPED = (*MODELS, "HeadersOnly")
"""Filters that are looked at through a tap: those without a deadline of their own."""

FILTERS = (*TAPPED, *(model + kind for kind in ("Late", "Asked") for model in MODELS))

AT_ONCE = 32
"""How many sessions with the other filters run at once: a busy machine must not be late by itself."""


def waits(
    step: str,
    *edits: tuple[str, list[Any], dict[str, Any]],
    takes: float = 0,
    held: str = "",
    timeout: str | list[int | str | None] | None = None,
    message: int | None = None,
    shown: str = "",
) -> dict[str, Any]:
    """The act of a filter that waits, see filters/planned.py; `held`: "unless cancelled", or any other word."""
    return {
        "step": step,
        "edits": edits,
        "takes": takes,
        "held": held,
        "timeout": timeout,
        "message": message,
        "shown": shown,
    }


class WaitingCase(Case):
    """One session with a filter that waits, while others have theirs."""

    def __init__(self, mta: Mta, served: Served, network: str, tap: Tap | None) -> None:
        """Take an address in the network that leads to the filter."""
        super().__init__(mta, served)
        self.network = network
        self.address = f"{network}.{self.address.split('.', 2)[2]}"
        self.tap = tap

    def neighbour(self) -> WaitingCase:
        """Another client, for which nothing is planned; its recipients are those of this one."""
        other = WaitingCase(self.mta, self.served, self.network, self.tap)
        other.domain = self.domain
        return other

    def go(self) -> None:
        """Let the callback go on that is held."""
        (self.served.directory / f"go-{self.address}").touch()

    def waiting(self) -> None:
        """Wait until the callback has begun that waits."""
        wait_until(lambda: self.events("waits"), "the callback that waits")

    def gone_on(self) -> list[str]:
        """What came of the edits that the callback made after it had waited."""
        wait_until(lambda: self.events("goes on"), "the callback to go on")
        return [str(outcome) for outcome in self.events("goes on")[0]["data"]]

    def is_back(self, client: SmtpClient) -> None:
        """Wait, with no transaction open, until the server has seen the late callback come back: others are called.

        Postfix may keep the end of the transaction back until it has something to ask.
        """
        before = len(self.events("helo"))

        def helo_is_called() -> bool:
            client.ehlo()
            return len(self.events("helo")) > before

        wait_until(helo_is_called, "on_helo after the late callback")

    def received(self) -> list[tuple[str, list[str]]]:
        """What was delivered, when nothing is on its way any more: the sender, and the fields that were added."""
        found = sorted(self.sink.matching(self.mine), key=lambda delivery: delivery.sender)
        return [(delivery.sender, [name for name, _ in delivery.fields if name.startswith("X-")]) for delivery in found]

    def log_lines(self, text: str) -> list[str]:
        """Lines of the server's log that hold a text and are about this client."""
        return [line for line in self.served.log().splitlines() if text in line and f"'{self.address}:" in line]


@dataclass(frozen=True)
class Session:
    """What is played, with which filter, on which MTA ("postfix", "sendmail", "sendmail-unix")."""

    play: Callable[[WaitingCase, str], None]
    filter: str
    mta: str
    step: str

    def __str__(self) -> str:
        return "-".join((self.play.__name__, self.filter, self.mta, self.step))


@dataclass
class Field:
    """What runs, and the sessions that were played on it."""

    served: dict[str, Served]
    taps: dict[tuple[str, str], Tap]
    mtas: dict[tuple[str, str], Mta]
    results: dict[Session, Future[WaitingCase]] = field(default_factory=dict)

    def result(self, session: Session) -> WaitingCase:
        """The case of a session, which must have gone well."""
        return self.results[session].result()

    def play(self, sessions: Sequence[Session]) -> None:
        """Play sessions at once, and wait until the MTAs have nothing more to deliver."""
        limited = threading.Semaphore(AT_ONCE)
        with ThreadPoolExecutor(len(sessions)) as pool:
            self.results = {session: pool.submit(self._play, session, limited) for session in sessions}
        for mta in set(self.mtas.values()):
            mta.settle()
        for tap in self.taps.values():
            tap.stop()

    def _play(self, session: Session, limited: threading.Semaphore) -> WaitingCase:
        case = WaitingCase(
            self.mtas[session.mta, session.filter],
            self.served[session.filter],
            _network(session.filter),
            self.taps.get((session.mta, session.filter)),
        )
        guard: AbstractContextManager[Any] = nullcontext() if session.filter in TAPPED else limited
        with guard:
            try:
                session.play(case, session.step)
            except BaseException as error:
                error.add_note(
                    f"events: {case.events()}\nMTA: {case.mta.log()[-3000:]}\nfilter: {case.served.log()[-3000:]}"
                )
                raise
            finally:
                case.go()
        return case


def _network(name: str) -> str:
    """The client addresses that lead to a filter."""
    return f"127.{60 + FILTERS.index(name)}"


@contextmanager
def running_field(sink: Sink) -> Iterator[Field]:
    """Start everything, several parts at once."""
    for name in ("postfix", "sendmail"):
        need(name)
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        served = {name: Served(f"planned.py:{name}", free_port(), options=["--threads=64"]) for name in FILTERS}
        at = {name: f"inet:{server.port}@127.0.0.1" for name, server in served.items()}
        taps: dict[tuple[str, str], Tap] = {}
        for name in TAPPED:
            tap = Tap(f"inet:{free_port()}@127.0.0.1", at[name])
            taps |= {("postfix", name): tap, ("sendmail", name): tap, ("sendmail-unix", name): Tap("unix:", at[name])}
        list(pool.map(stack.enter_context, (*served.values(), *set(taps.values()))))
        mtas: dict[tuple[str, str], Mta] = {}
        for name in FILTERS:
            mtas["sendmail", name] = Sendmail(sink, [_asked(taps, at, "sendmail", name)])
        for name in TAPPED:
            mtas["sendmail-unix", name] = Sendmail(sink, [taps["sendmail-unix", name].address])
        postfix = _postfix(sink, {_network(name): _asked(taps, at, "postfix", name) for name in FILTERS})
        mtas |= dict.fromkeys((("postfix", name) for name in FILTERS), postfix)
        list(pool.map(stack.enter_context, set(mtas.values())))
        yield Field(served, taps, mtas)


def _asked(taps: dict[tuple[str, str], Tap], at: dict[str, str], mta: str, name: str) -> str:
    tap = taps.get((mta, name))
    return at[name] if tap is None else tap.address


def _postfix(sink: Sink, filters: dict[str, str]) -> Postfix:
    """A Postfix that asks the filter of the client's network."""
    rules = []
    for network, address in filters.items():
        port = address.removeprefix("inet:").partition("@")[0]
        rules.append(f"{{ {network}.0.0/16 inet:127.0.0.1:{port} }}")
    return Postfix(sink, [], {"smtpd_milter_maps": f"cidr:{{ {', '.join(rules)} }}"})
