"""How a worker's loop goes: sizes and times, each with its reason."""

from typing import Final

from fastmilter.constants import MAX_DATA_BYTES

RECEIVE_BYTES: Final = 1 << 18
"""How much is received at once, more than the kernel holds of a unix socket, into the one buffer of a worker: a fresh
large buffer for each receive would cost a factor 3."""

HEADROOM: Final = MAX_DATA_BYTES + 5
"""Room in front of it for what has come of a packet already: for the largest, unless larger ones were agreed."""

ACCEPTS_TOGETHER: Final = 16
"""How many connections are accepted at a turn at most where they come one behind the other."""

ANSWERS_TOGETHER: Final = 32
"""How many connections are worked off at most before their answers leave: the first waits for the last."""

ANSWERS_WAIT_S: Final = 0.001
"""How long answers wait for those of other connections, beyond the callback in work."""

SEND_BYTES: Final = 1 << 18
"""How much of a replaced body is put together for one send."""

TICK_S: Final = 1.0
"""How often, at most, the loop turns without an event: heartbeat, time-outs, balance."""

ACCEPT_PAUSE_S: Final = 0.5
"""How long no connection is accepted after descriptors or memory ran out."""

LEAVE_ABOVE: Final = 1.125
"""A worker with more than this times the mean of connections leaves the listeners to the others."""

HANDOVER_S: Final = 0.01
"""How long a connection is left to workers with fewer of them before one that has enough takes it all the same."""

TAKEN_BACK: Final = 8
"""How many connections more a worker takes then before it leaves again."""

FINAL_GRACE_S: Final = 5.0
"""How long messages that are past DATA may go on after the last limit of a drain."""
