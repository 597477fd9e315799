"""One worker process: a select-based loop over its connections, callbacks run in the loop.

Per wake of a connection there is one receive and one send, however many packets came; every complete packet of a
receive is worked off before the next one. The sends of a few connections go out together. A connection whose MTA does
not read is not read either until it does.

What waits where: the listeners (shared with all workers), the connections, and the channel to the master. There are
no threads and no signals here: orders come through the channel, and its end says that the master died.

Errors end in three places: a callback's in ``_run_calls`` (answered by the conversation), a connection's in
``_handle`` and ``_answer_due`` (that connection closes), and everything else in the process, which the master replaces.
"""

import contextlib
import gc
import logging
import math
import socket
from typing import Any, Final

from fastmilter.constants import STEPS
from fastmilter.conversation import Conversation, Host
from fastmilter.filter import Filter
from fastmilter.plan import Plan, build_options, refuse_awaitable
from fastmilter.replies import Verdict
from fastmilter.server import channel as master_channel
from fastmilter.server._in_work import InWork
from fastmilter.server._sockets import Stream, monotonic
from fastmilter.server.counted import Counted, show_guards, show_in_flight
from fastmilter.server.counters import Count, Tally
from fastmilter.server.ends import EXIT_OK
from fastmilter.server.intake import Intake
from fastmilter.server.log_context import note_on_records
from fastmilter.server.log_file import take_log_files
from fastmilter.server.log_lines import ConnectionLog, end_of_line
from fastmilter.server.message_log import open_message_log
from fastmilter.server.pace import (
    ANSWERS_TOGETHER,
    ANSWERS_WAIT_S,
    HEADROOM,
    RECEIVE_BYTES,
    SEND_BYTES,
    TICK_S,
)
from fastmilter.server.recycle import open_recycler
from fastmilter.server.settings import Settings
from fastmilter.server.silence import limit_of, sweep_s
from fastmilter.server.slots import Slots
from fastmilter.server.syslog_handler import send_what_waits
from fastmilter.server.tiers import ALL, AT_REST, Tiers
from fastmilter.server.titles import mark_draining
from fastmilter.session import Phase

log = logging.getLogger(__name__)

_HEADROOM = HEADROOM
_BYTES_READ = int(Count.BYTES_READ)
_NEW: Final = Phase.NEW
_CLOSED: Final = Phase.CLOSED


class Link(Counted):
    """A conversation with its socket."""

    def __init__(self, plan: Plan, host: Host, tally: Tally, stream: Stream, now: float) -> None:
        self._begin_with(plan, host)  # what __init__ above does, at a third of the cost
        self.count_in(tally)
        self.stream = stream
        self.fd = stream.fileno()
        self.last_read = now
        self.unsent: bytes | None = None
        self.sent = 0  # how much of ``unsent`` has left all the same
        self.peer: str | None = None  # the MTA, if a proxy has named it
        self.next_ready: Link | None = None  # another one at the same step that is to be handled in this turn


class Worker(Intake):
    """A process that serves connections; made after the fork. ``WaitingWorker``'s callbacks run beside its loop."""

    def __init__(
        self,
        filter_class: type[Filter[Any]],
        settings: Settings,
        listeners: list[socket.socket],
        channel: socket.socket,
        slots: Slots,
        slot: int,
    ) -> None:
        """Take what the master hands over; ``run`` does the rest."""
        super().__init__(settings, listeners, slots, slot)
        self.plan = filter_class._fastmilter_plan
        self._filter_class = filter_class
        self._recycler = open_recycler(settings, channel)
        self._channel = channel
        self._reader = master_channel.Reader()
        self._in_work = InWork(slots, slot)
        self._log = ConnectionLog(log)
        self._links: dict[int, Link] = {}
        self._message_log = open_message_log(settings, slots.number(slot), self._poller)
        self._buffer = memoryview(bytearray(HEADROOM + RECEIVE_BYTES))
        self._room = self._buffer[HEADROOM:]
        self._next_sweep = 0.0
        self._sweep_s = sweep_s(settings)
        self._stop_now = False
        self._due: list[Link | None] = [None] * ANSWERS_TOGETHER  # kept: a list that grows is made anew each turn
        self._due_count = 0
        self._ready: list[Link | None] = [None] * (len(STEPS) + 1)  # the first connection of each step, if one is ready
        self._alarm = -1

    # -- life ----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until the master says otherwise; return the exit status of the process.

        Raises ``ConfigError`` if the filter cannot be used; what ``worker_started`` raises comes through.
        """
        refuse_awaitable(self._filter_class, "worker_started", self._start_filter())
        self._begin()
        while not self._finished():
            self._turn(True)
        self._close_all()
        self._close_logs()
        refuse_awaitable(self._filter_class, "worker_stopped", self._filter_class.worker_stopped())
        return EXIT_OK

    def _start_filter(self) -> Any:
        """Call ``worker_started``; return what it returns."""
        return self._filter_class.worker_started(build_options(self._filter_class, self._settings.filter_options))

    def _begin(self) -> None:
        """Begin to serve: the filter is ready."""
        self._poller.add(self._channel.fileno())
        if self._slots.bell is not None:
            self._poller.add_bell(self._slots.bell)
        self._slots.set_listening(self._slot, True)
        self._listen()
        note_on_records(self._in_work)
        gc.collect()
        gc.freeze()  # what was imported is never looked at again, and stays shared with the other workers
        master_channel.send(self._channel, master_channel.Ready())

    def _finished(self) -> bool:
        return self._stop_now or (self._tiers is not None and not self._count())

    def _wake_at(self) -> float:
        return self._next_tick

    def _turn(self, may_wait: bool) -> None:
        """Handle what happens, and wait for it if there is time."""
        ready = self._poller.wait(max(0.0, self._wake_at() - monotonic()) if may_wait else 0.0)
        now = monotonic()
        if self._tiers is not None and now >= self._next_tick:
            self._refuse_more(self._tiers, now)  # what has come since a tier ended belongs to the next one
        self._turn_number += 1
        for place in range(len(ready) - 1, -1, -1):  # from the last: each one goes before those of its step
            fd = ready[place]
            link = self._links.get(fd)
            if link is None:
                self._look_at(fd, now)
            elif len(ready) == 1:
                self._handle(link, now)
            else:
                step = 0 if link.session.phase is _NEW else link.session.step + 1
                link.next_ready, self._ready[step] = self._ready[step], link
        if len(ready) > 1:
            self._handle_all(now)
        self._answer_due()
        if now >= self._next_tick:
            self._tick(now)
        self._flush_log()

    def _handle_all(self, now: float) -> None:
        """Handle the connections that are ready, those that are as far as each other one after the other.

        Then the code of their step, and what it works on, is in the processor's cache for all but the first.
        """
        for step in range(len(self._ready)):
            link, self._ready[step] = self._ready[step], None
            while link is not None:
                if link.stream.fd >= 0:  # it was not closed meanwhile
                    self._handle(link, now)
                    if self._due_count and (self._due_count >= ANSWERS_TOGETHER or monotonic() - now > ANSWERS_WAIT_S):
                        self._answer_due()
                link.next_ready, link = None, link.next_ready

    def _look_at(self, fd: int, now: float) -> None:
        """Do what a descriptor that is no connection to an MTA is ready for."""
        if fd in self._listeners:
            self._take_new(fd, now)
        elif self._lobby is not None and fd in self._lobby.guests:
            self._meet(fd, now)
        elif fd == self._channel.fileno():
            self._take_orders(now)
        elif fd == self._slots.bell:
            self._come_back()
        elif fd == self._alarm:
            self._on_alarm()

    def _flush_log(self) -> None:
        if self._message_log is not None:
            self._message_log.flush()

    def _tick(self, now: float) -> None:
        self._next_tick = now + TICK_S
        self._slots.beat(self._slot, now)
        if self._tally.watched:
            self._publish()
        if self._tiers is not None:
            self._close_drained(self._tiers, now)
        elif self._accept_again_at is None or now >= self._accept_again_at:
            self._accept_again_at = None
            self._come_back()
            self._take_what_waits()
        self._log.on_time(now)
        send_what_waits()
        if self._door is not None:
            self._door.on_time(now)
        if self._lobby is not None:
            self._lobby.on_time(now)
            self._count_again()
        if self._recycler is not None and self._tiers is None:
            self._recycler.look(now, self._tally.messages())
        if now >= self._next_sweep:
            self._next_sweep = now + self._sweep_s
            self._close_silent(now)

    def _publish(self) -> None:
        """Show what is going on to whoever watches."""
        show_in_flight(self._tally, self._links.values())
        show_guards(self._tally)

    # -- new connections -----------------------------------------------------------------------------------------

    def _add_link(self, stream: Stream, now: float) -> Link:
        link = self._make_link(stream, now)
        self._crowd.limit(link.session)
        self._links[link.fd] = link
        self._poller.add(link.fd)
        return link

    def _meet(self, fd: int, now: float) -> None:
        """Let in a connection that has told who it is."""
        guest = None if self._lobby is None else self._lobby.hear(fd, now)
        if guest is not None:
            self._add_link(guest.stream, now).peer = guest.peer
        self._count_again()

    def _count(self) -> int:
        """Return the number of connections, those that have not told yet who they are included."""
        return len(self._links) if self._lobby is None else len(self._links) + len(self._lobby.guests)

    def _make_link(self, stream: Stream, now: float) -> Link:
        return Link(self.plan, self, self._tally, stream, now)

    def _on_alarm(self) -> None:
        """Do what ``_alarm``, a descriptor of a subclass, is readable for."""

    # -- connections ---------------------------------------------------------------------------------------------

    def _handle(self, link: Link, now: float) -> None:
        """Take in what a connection has to read, or send on what it has room for; answers are due then."""
        try:
            if link.unsent is not None:
                if not self._send(link, link.unsent, link.sent):
                    return
                self._poller.await_room(link.fd, False)
            else:
                count = link.stream.receive(self._room)
                if count == 0:
                    self._end(link)
                    self._close(link)
                    return
                if count > 0:
                    link.last_read = now
                    self._tally.add(_BYTES_READ, count)
                    link.session.receive_lent(self._buffer, _HEADROOM, count)
            self._run_calls(link)
            if link.session.out or link.session.tail is not None:
                self._due[self._due_count] = link
                self._due_count += 1
            elif link.session.phase is _CLOSED:
                self._close(link)
            else:
                # Sendmail's next packet, and Postfix's after an unanswered DATA, wait for our acknowledgement, which
                # the kernel would delay by 40 ms. It forgets this option all the time.
                link.stream.acknowledge()
        except OSError:
            self._lose(link)  # the MTA broke the connection off
        except Exception as error:  # noqa: BLE001 - logged there
            self._lose_by_fault(link, error)
        finally:
            link.session.settle()

    def _answer_due(self) -> None:
        """Send the answers of several connections together.

        A send wakes its reader. Where that is one process for many connections, it is woken once, not once for each.
        """
        for place in range(self._due_count):
            link, self._due[place] = self._due[place], None
            assert link is not None
            try:
                self._answer(link)
            except OSError:
                self._lose(link)
            except Exception as error:  # noqa: BLE001 - logged there
                self._lose_by_fault(link, error)
        self._due_count = 0

    def _answer(self, link: Link) -> None:
        """Send what there is, and work off what came behind a message whose answer had a tail."""
        session = link.session
        while self._flush(link):
            if session.tail is None:
                if session.phase is _CLOSED:
                    self._close(link)
                return
            session.tail = None
            self._run_calls(link)

    def _run_calls(self, link: Link) -> None:
        while link.next_call():
            self._in_work.enter(link)
            try:
                result = link.invoke()
                while result is None and link.next_in_row():
                    self._in_work.enter(link)
                    result = link.invoke()
            except BaseException as error:  # noqa: BLE001 - not even sys.exit() of a callback may end us
                link.failed(error)
            else:
                link.returned(result)
        self._in_work.leave()

    def _flush(self, link: Link) -> bool:
        """Send what there is; return whether all of it left."""
        if link.unsent is not None:
            return False  # from a send within a callback: what is newer must not overtake it
        session = link.session
        out = session.out
        while True:
            size = sum(map(len, out)) if session.tail is not None else 0
            while session.tail is not None and size < SEND_BYTES:
                packet = next(session.tail, None)
                if packet is None:
                    break
                out.append(packet)
                size += len(packet)
            if not out:
                return True
            data = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
            if not self._send(link, data, 0):
                self._poller.await_room(link.fd, True)
                return False
            if session.tail is None:
                return True

    def _send(self, link: Link, data: bytes, start: int) -> bool:
        """Send ``data`` from ``start`` on, once; return whether all of it left, else keep the rest in ``unsent``."""
        start += link.stream.send(data, start)
        if start == len(data):
            link.unsent = None
            return True
        link.unsent = data
        link.sent = start
        return False

    def _end(self, link: Link) -> None:
        """Finish a connection whose MTA has said its last: packets before the end are still worked off."""
        link.session.receive_eof()
        link.session.tail = None
        self._run_calls(link)

    def _lose_by_fault(self, link: Link, error: Exception) -> None:
        """Give up a connection because of an exception that nobody foresaw."""
        self._tally.add(Count.INTERNAL_ERRORS)
        log.error("internal error, the connection is closed%s", end_of_line(link), exc_info=error)
        self._lose(link)

    def _lose(self, link: Link) -> None:
        """Give up a connection that broke."""
        try:
            self._end(link)
        except Exception:
            log.exception("internal error while closing a connection%s", end_of_line(link))
        self._close(link)

    def _close(self, link: Link) -> None:
        if self._links.pop(link.fd, None) is None:
            return
        error = link.session.error
        if error is not None:
            self._tally.add(self._log.ended(link, error, link.stream.fileno()))
        if self._door is not None:
            self._door.leave(link.fd)
        self._poller.remove(link.fd)
        link.stream.close()
        self._count_again()

    # -- time ----------------------------------------------------------------------------------------------------

    def _close_silent(self, now: float) -> None:
        for link in list(self._links.values()):
            silence = now - link.last_read
            limit, what, count = limit_of(link, self._settings)
            if silence > limit:
                self._tally.add(count)
                self._log.silent(link, silence, what, now)
                self._lose(link)

    # -- orders --------------------------------------------------------------------------------------------------

    def _take_orders(self, now: float) -> None:
        log_files: list[int] = []
        messages, gone = master_channel.receive(self._channel, self._reader, log_files)
        take_log_files(log_files)
        for message in messages:
            if isinstance(message, master_channel.StopNow):
                self._stop_now = True
            elif isinstance(message, master_channel.Drain):
                self._drain(message.limits, now)
        if gone:
            self._poller.remove(self._channel.fileno())
            if self._tiers is None:
                log.error("the master is gone; this worker finishes its connections and leaves")
                self._drain(self._settings.drain_stop, now)

    def _drain(self, limits: tuple[float, float, float], now: float) -> None:
        """Accept nothing more, let sessions come to an end until ``limits``, leave."""
        self._take_last(now)
        self._close_listeners()
        if self._tiers is None:
            mark_draining()
        self._tiers = Tiers(limits, now)
        self._refuse_more(self._tiers, now)
        self._next_tick = now  # the rest of what it asks for is done at the end of this turn

    def _refuse_more(self, tiers: Tiers, now: float) -> None:
        """Have 421 said at MAIL, then also at RCPT and DATA, as the tiers ask for that are over."""
        over = tiers.over(now)
        for link in self._links.values():
            link.session.drain = min(over, 2)

    def _close_drained(self, tiers: Tiers, now: float) -> None:
        """Close what the tiers ask for that are over: what is at rest, at last all."""
        over = tiers.over(now)
        if over >= AT_REST:
            for link in list(self._links.values()):
                if over == ALL or self._is_at_rest(link, now):
                    self._lose(link)
            if self._lobby is not None:
                self._lobby.close_all()
        self._next_tick = min(self._next_tick, tiers.next_end(now))

    def _is_at_rest(self, link: Link, now: float) -> bool:
        """Tell whether no answer is due on a connection that drains, not even to what has come and was not read yet."""
        if link.session.past_data:
            return False
        self._handle(link, now)
        self._answer_due()
        return link.last_read < now and link.unsent is None and self._links.get(link.fd) is link

    def _close_all(self) -> None:
        for link in list(self._links.values()):
            self._lose(link)
        if self._lobby is not None:
            self._lobby.close_all()
        self._close_listeners()

    def _close_logs(self) -> None:
        self._slots.beat(self._slot, 0.0)  # what comes now is not the loop
        if self._tally.watched:
            self._publish()  # what has happened since the last tick counts too
        self._log.on_time(math.inf)
        if self._message_log is not None:
            self._message_log.close()

    # -- for the conversations (conversation.Host) ---------------------------------------------------------------

    def callback_failed(self, conversation: Conversation, callback: str, error: BaseException) -> None:
        """Count and log a callback that raised."""
        self._tally.exception(callback)
        self._log.raised(conversation, f"{self._filter_class.__name__}.{callback}", error)

    def complain(self, conversation: Conversation, text: str) -> None:
        """Count and log a fault of the filter's author or an oddity of the peer."""
        self._tally.add(Count.COMPLAINTS)
        self._log.complain(conversation, text)

    def transmit(self, conversation: Conversation) -> None:
        """Send what is written so far, from within a callback."""
        assert isinstance(conversation, Link)
        with contextlib.suppress(OSError):  # a broken connection is the loop's business, not the callback's
            unsent = conversation.unsent
            if unsent is not None and self._send(conversation, unsent, conversation.sent):
                self._poller.await_room(conversation.fd, False)
            self._flush(conversation)

    def message_ended(self, conversation: Conversation, verdict: Verdict | None, edits: int) -> None:
        """Count a message, and note it in the log that was asked for."""
        self._tally.message(verdict, edits)
        if self._message_log is not None:
            peer = conversation.peer if isinstance(conversation, Link) else None
            self._message_log.add(conversation, peer, verdict, edits)
