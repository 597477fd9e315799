"""The clients of a soak: SMTP sessions in threads, which send, abort, hang up anywhere, dawdle and do nothing.

Every answer is compared with what the message's script says, or is one that time explains (out of time, or 421 since
the worker leaves); the client's own state machine refuses an answer that nobody waits for, and an answer that does not
come is a fault too.
"""

import random
import threading
import time
from collections.abc import Sequence
from typing import Final

from fastmilter import CONTINUE, TEMPFAIL, Step, Verdict
from fastmilter.client import Client, Timeouts
from fastmilter.codec import AddHeader
from fastmilter.errors import ConnectionLost, FastmilterError
from tests.soak.account import Account, Fault, Moved
from tests.soak.filters import SLOW, Act, script_of
from tests.soak.wire import PATIENCE_S, CutOff, Wire

PAUSE_S: Final = 0.01
"""How long a client rests between two messages: the load is constant, not a race for the processor."""
HELD: Final = 10
"""Idle connections of a client that holds some."""
HANGS_UP: Final = 0.3
ROLES: Final = ("keeps", "new", "keeps", "slow", "new", "holds", "keeps", "leaves early")
"""What the clients do, by their number; of each two neighbours one uses the unix socket and one TCP."""

_PORT: Final = 25
_PATIENT: Final = Timeouts(PATIENCE_S, PATIENCE_S, PATIENCE_S, PATIENCE_S)


class Session:
    """One connection to the milter."""

    def __init__(self, account: Account, address: str, *, in_time: bool, slow: bool = False) -> None:
        """Connect; ``in_time``: callbacks of this server cannot run out of time."""
        self.account = account
        number = account.next_number()
        self.name = f"c{number}.example"
        self.address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        self.in_time = in_time
        self.is_slow = slow
        self.was_idle = False
        self.opened = time.monotonic()
        self.wire = Wire(address, pause=account.over.wait if slow else None)
        self.client = Client(self.wire, timeouts=_PATIENT)
        account.saw("connections")

    def greet(self) -> None:
        if not self.client.is_open:
            self.client.open()
        self.client.connect(self.name, self.address, _PORT)
        self.client.helo(self.name)
        self.client.send()  # what no answer is due for would wait for MAIL, and nobody know whose connection this is

    @property
    def _in_log(self) -> str:
        return f"{self.address}:{_PORT}"

    def hang_up(self) -> None:
        self.account.saw("hung up")
        self.client.close()

    def leave(self) -> None:
        """Say QUIT; nothing may come behind the last answer."""
        self.wire.farewell = True
        self.client.quit()
        if self.wire.stray:
            raise Fault(f"{self.name}: {self.wire.stray} bytes that nobody asked for before the connection ended")

    def message(self, dice: random.Random) -> bool:
        """Play one message, or a part of one; tell whether the session goes on."""
        number = self.account.next_number()
        stop_at = dice.choice([*Step, None, None, None, None, None, None])
        kept: list[Verdict] = []
        for step, act in script_of(number).items():
            verdict, marks = self._step(step, number)
            self.was_idle = False
            if verdict is not None and verdict.code == 421:
                self._moved(number, step)
                return False
            self._check(number, step, act, verdict, marks, kept)
            if step == stop_at:
                return self._give_up(dice)
            if step == Step.END_OF_MESSAGE:
                self.account.saw("messages")
            elif step not in (Step.HEADER, Step.BODY) and verdict != CONTINUE:
                self.account.saw("refused")
                self.client.abort()
                return True
        return True

    def _step(self, step: Step, number: int) -> tuple[Verdict | None, list[int]]:
        match step:
            case Step.MAIL:
                return self.client.mail(f"{number}@example.org"), []
            case Step.RCPT:
                return self.client.rcpt("b@example.net"), []
            case Step.DATA:
                return self.client.data(), []
            case Step.HEADER:
                self.client.header("From", f"{number}@example.org")
                return self.client.header("Subject", "soak"), []
            case Step.BODY:
                self.client.end_of_headers()
                return self.client.body(b"x" * (100 if self.is_slow else 5000)), []
            case _:
                verdict, changes = self.client.end_of_message()
                return verdict, [int(change.value) for change in changes if isinstance(change, AddHeader)]

    def _check(
        self, number: int, step: Step, act: Act, verdict: Verdict | None, marks: list[int], kept: list[Verdict]
    ) -> None:
        """Compare an answer with the script; ``kept`` are verdicts that are delivered at the end of the message."""
        expected = TEMPFAIL if act.raises else act.verdict or CONTINUE
        if verdict is not None:
            self.account.saw(f"answers {verdict.kind}")
            late = verdict == SLOW and not self.in_time and verdict != expected
            if late:
                self.account.told_late(self._in_log)
            if not late and verdict != expected and verdict not in kept:
                raise Fault(f"message {number}, {step}: {verdict}, expected {expected}")
        if step in (Step.HEADER, Step.BODY):
            kept.extend([] if expected == CONTINUE else [expected])
        if step == Step.END_OF_MESSAGE and marks != ([number] if verdict == CONTINUE else []):
            raise Fault(f"message {number} came back as {verdict} with the marks {marks}")

    def _moved(self, number: int, step: Step) -> None:
        if step not in (Step.MAIL, Step.RCPT, Step.DATA):
            raise Fault(f"message {number} was told 421 at {step}, past all that could be refused")
        self.account.told_421(Moved(self.name, self._in_log, step))

    def _give_up(self, dice: random.Random) -> bool:
        if dice.random() < HANGS_UP:
            self.hang_up()
            return False
        if self.client.in_message:
            self.account.saw("aborted")
            self.client.abort()
        return True


class Player(threading.Thread):
    """One client, which has one session after the other."""

    def __init__(
        self, account: Account, place: int, addresses: Sequence[str], seed: int, *, in_time: bool, hold_s: float
    ) -> None:
        """``hold_s``: how long a connection is idle, at most."""
        super().__init__(name=f"client {place}")
        self._account = account
        self._dice = random.Random(f"{seed} {place}")
        self._role = ROLES[place % len(ROLES)]
        self._address = addresses[(place + place // len(ROLES)) % len(addresses)]
        self._in_time = in_time
        self._hold_s = hold_s
        self.ended_well = False

    def run(self) -> None:
        play = {"holds": self._hold, "leaves early": self._leave_early}.get(self._role, self._send)
        while not self._account.over.wait(PAUSE_S):
            try:
                play()
            except (Fault, FastmilterError, OSError) as fault:
                self._account.fault(f"{type(fault).__name__}: {fault} ({self._role}, {self._address})")
        self.ended_well = True

    def _open(self) -> Session:
        return Session(self._account, self._address, in_time=self._in_time, slow=self._role == "slow")

    def _guarded(self, session: Session, messages: int) -> None:
        """Play some messages, and end the session in good manners if it lasts so long."""
        account = self._account
        try:
            if not session.client.is_open:
                session.greet()
            for _ in range(messages):
                if account.over.is_set() or not session.message(self._dice):
                    break
                account.over.wait(PAUSE_S)
            if session.client.is_open:
                session.leave()
        except ConnectionLost as lost:
            if isinstance(lost.__cause__, CutOff):
                account.saw("cut off in a packet")
            else:
                account.broke(session.name, session.opened, str(lost), was_idle=session.was_idle)
        finally:
            session.client.close()

    def _send(self) -> None:
        self._guarded(self._open(), 1 if self._role == "new" else self._dice.randint(1, 12))

    def _hold(self) -> None:
        """Have some connections idle, each longer than the one before; then each has a message, or is hung up."""
        sessions = [self._open() for _ in range(HELD)]
        for session in sessions:
            try:
                session.greet()
            except ConnectionLost as lost:
                self._account.broke(session.name, session.opened, str(lost), was_idle=False)
        for session in sessions:
            self._account.over.wait(self._dice.uniform(0, self._hold_s / HELD))
            if not session.client.is_open:
                continue
            session.was_idle = True
            if self._dice.random() < HANGS_UP:
                session.hang_up()
            else:
                self._guarded(session, 1)

    def _leave_early(self) -> None:
        """Hang up before there is a message, or in the middle of a packet."""
        session = self._open()
        step = self._dice.randrange(8)
        try:
            if step == 1:
                session.wire.sendall(b"\0\0\0")
            elif step == 2:
                session.wire.cut = True  # in the negotiation
                session.client.open()
            elif step >= 3:
                session.client.open()
            if step == 4:
                session.client.connect(session.name, session.address, _PORT)
                session.client.send()
            elif step >= 5:
                session.greet()
                if session.client.mail(f"{self._account.next_number()}@example.org") == CONTINUE:
                    session.wire.cut = step > 5
                    session.client.rcpt("b@example.net")
            session.hang_up()
        except ConnectionLost as lost:
            if isinstance(lost.__cause__, CutOff):
                self._account.saw("cut off in a packet")
            else:
                self._account.broke(session.name, session.opened, str(lost), was_idle=False)
        finally:
            session.client.close()
