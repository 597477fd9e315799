"""Which new connections a worker takes: the listeners that all workers share, when to leave them, when to come back.

A worker that is woken accepts at least one (``_sockets.Epoll``), and only after that it may leave the listeners to
those with fewer connections. Where connections come one behind the other, it takes more of them at each turn of its
loop: one at a turn means a turn for each, and each turn wakes whoever waits for its answers.
"""

import errno
import logging
import socket
from typing import Any

from fastmilter.server._sockets import Stream, accept
from fastmilter.server.counters import Count
from fastmilter.server.crowd import Crowd
from fastmilter.server.descriptors import hint_on
from fastmilter.server.lobby import open_lobby
from fastmilter.server.pace import ACCEPT_PAUSE_S, ACCEPTS_TOGETHER, HANDOVER_S, LEAVE_ABOVE, TAKEN_BACK
from fastmilter.server.peers import open_door
from fastmilter.server.poller import best_poller, can_accept
from fastmilter.server.settings import Settings
from fastmilter.server.slots import Slots
from fastmilter.server.tiers import Tiers

log = logging.getLogger(__name__)

_ACCEPTED = int(Count.ACCEPTED)


class Intake:
    """The side of a worker that takes connections; ``Worker`` serves them."""

    def __init__(self, settings: Settings, listeners: list[socket.socket], slots: Slots, slot: int) -> None:
        """Take what the master hands over; ``_listen`` begins."""
        self._settings = settings
        self._slots = slots
        self._slot = slot
        self._tally = slots.counters.tally(slot, timed=settings.is_timed, watched=settings.is_watched)
        self._poller = best_poller()
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._tcp = {listener.fileno() for listener in listeners if listener.family != socket.AF_UNIX}
        self._door = open_door(settings, slots, slot, listeners)
        self._lobby = open_lobby(settings, listeners, self._door, self._poller)
        self._crowd = Crowd(settings, slots)
        self._listening = False
        self._is_shut = False
        self._turn_number = 0
        self._last_taken = -1  # the turn in which the last connections came
        self._at_once = 1  # how many are accepted at this turn if there are so many
        self._may_have = 0  # connections, although that is more than its share
        self._accept_again_at: float | None = None
        self._next_tick = 0.0
        self._tiers: Tiers | None = None  # of the drain, if it has begun

    def _count(self) -> int:
        """Return the number of connections, those that have not told yet who they are included."""
        raise NotImplementedError

    def _add_link(self, stream: Stream, now: float) -> Any:
        """Serve a new connection; return what stands for it."""
        raise NotImplementedError

    def _listen(self) -> None:
        """Wait for new connections from now on."""
        if not self._listening:
            for fd in self._listeners:
                self._poller.add_listener(fd)
            self._listening = True
            self._slots.set_polling(self._slot, True)

    def _leave_listeners(self) -> None:
        if self._listening:
            for fd in self._listeners:
                self._poller.remove(fd)
            self._listening = False
            self._slots.set_polling(self._slot, False)

    def _take_last(self, now: float) -> None:
        """Leave the listeners for good, and accept what waits there: it may have woken us, and then nobody else.

        What comes after we have left wakes others, so no more than a whole queue can be ours.
        """
        was_listening = self._listening
        self._leave_listeners()
        if not was_listening:
            return
        for listener in self._listeners:
            for _ in range(self._settings.backlog + 1):
                if self._crowd.is_full(self._count()) or not self._accept(listener, now):
                    break

    def _close_listeners(self) -> None:
        """Accept nothing more, ever: a copy that nobody accepts from would still make ``connect()`` succeed."""
        self._leave_listeners()
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()
        self._accept_again_at = None
        self._slots.set_listening(self._slot, False)

    def _take_new(self, listener: int, now: float) -> None:
        """Accept what has come: one connection, and twice as many as the last time while they come turn after turn."""
        follows = self._last_taken >= self._turn_number - 1  # or came at this turn, from another listener
        self._at_once = min(2 * self._at_once, ACCEPTS_TOGETHER) if follows else 1
        self._last_taken = self._turn_number
        for _ in range(self._at_once):
            if not self._accept(listener, now) or not self._listening:
                self._at_once = 1
                break

    def _accept(self, listener: int, now: float) -> bool:
        """Take one connection; return whether there was one: who was woken for it must, before it may leave."""
        if self._crowd.all_are_full():  # so nobody else may take it either: the first who has room comes back for it
            self._leave_listeners()
            return False
        try:
            stream = accept(listener, listener in self._tcp)
        except ConnectionAbortedError:
            return True  # the MTA has gone again
        except OSError as error:
            if error.errno == errno.EINVAL and not self._is_shut:
                self._is_shut = True  # the master has shut it down, and tells why in a moment
            else:
                self._tally.add(Count.ACCEPT_FAILURES)
                log.error("cannot accept a connection for now: %s%s", error.strerror, hint_on(error))
            self._leave_listeners()
            self._accept_again_at = self._next_tick = now + ACCEPT_PAUSE_S
            return False
        if stream is None:
            return False  # another worker was faster
        if self._lobby is not None and listener in self._lobby.listeners:
            if not self._lobby.enter(stream, listener, now):
                self._tally.add(Count.REFUSED)
                return True
        elif self._door is not None and not self._door.admit(stream.fileno(), listener, now):
            self._tally.add(Count.REFUSED)
            stream.close()
            return True
        else:
            self._add_link(stream, now)
        self._tally.add(_ACCEPTED)
        self._share(now)
        return True

    def _share(self, now: float) -> None:
        """Tell how many connections there are now, and leave the listeners to others if these are enough."""
        self._slots.set_connections(self._slot, self._count())
        if self._has_enough():
            self._hand_over(now)
        elif self._crowd.is_full(self._count()):
            self._hand_over(now)
            self._leave_listeners()
            self._slots.ring()  # the others may be full too: that of all workers together is a limit of each

    def _count_again(self) -> None:
        """Tell how many connections there are now that there are fewer."""
        self._slots.set_connections(self._slot, self._count())
        self._come_back()

    def _has_enough(self) -> bool:
        mean = self._slots.mean_connections()
        return self._count() > max(LEAVE_ABOVE * mean, mean + 1, self._may_have)

    def _hand_over(self, now: float) -> None:
        """Leave the listeners to the workers with fewer connections; the one with the fewest is rung for.

        The last one leaves too: if it went on till the others are awake, the worker that the system happens to run
        would take most of a burst. Whether they came shows in the queue, ``HANDOVER_S`` later.
        """
        slots = self._slots
        if slots.bell is None or self._tiers is not None:
            return
        least = slots.least_loaded()
        if least is not None and not slots.polling(least):
            slots.ring()
        self._may_have = 0
        self._leave_listeners()
        self._next_tick = min(self._next_tick, now + HANDOVER_S)

    def _come_back(self) -> None:
        """Wait for new connections again if this worker has room for them, and no longer if there is none."""
        if self._tiers is not None or self._accept_again_at is not None:
            return
        if self._crowd.is_full(self._count()):
            self._leave_listeners()
        elif not self._listening and not self._has_enough():
            self._listen()

    def _take_what_waits(self) -> None:
        """Come back with more than one's share if nobody takes what has come: the others may hang in callbacks."""
        if self._listening or self._crowd.is_full(self._count()):
            return
        if can_accept(self._listeners):
            self._may_have = self._count() + TAKEN_BACK
            self._listen()
