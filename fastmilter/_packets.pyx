"""What decoding and encoding share: the sizes that each letter may have, numbers, and the messages without data."""

from fastmilter import _bounds
from fastmilter._messages import (
    Abort, Accept, ConnectionFail, Continue, Data, Discard, EndOfHeaders, EndOfMessage, Progress, Quit, QuitNewConnection,
    Reject, Shutdown, Skip, TempFail,
)


cdef int fill(Bounds *table, dict bounds) except -1:
    for letter, (lowest, highest) in bounds.items():
        table[<uint8_t> ord(letter)] = Bounds(known=True, lowest=lowest, highest=highest)
    return 0


fill(COMMANDS, _bounds.COMMAND_BOUNDS)
fill(RESPONSES, _bounds.RESPONSE_BOUNDS)


cdef bint fits(uint8_t letter, bint command, Py_ssize_t size, Py_ssize_t limit) noexcept:
    """Whether a packet may have this letter with ``size`` bytes of data."""
    cdef Bounds *bounds = &COMMANDS[letter] if command else &RESPONSES[letter]
    return bounds.known and bounds.lowest <= size <= min(bounds.highest, limit)


cdef bint is_command(uint8_t letter) noexcept:
    return COMMANDS[letter].known


# One object is enough for each message without data.
WITHOUT_DATA = {
    ord(letter): message
    for letter, message in {
        b"T": Data(), b"N": EndOfHeaders(), b"E": EndOfMessage(), b"A": Abort(), b"Q": Quit(), b"K": QuitNewConnection(),
        b"c": Continue(), b"a": Accept(), b"r": Reject(), b"t": TempFail(), b"d": Discard(), b"s": Skip(), b"p": Progress(),
        b"4": Shutdown(), b"f": ConnectionFail(),
    }.items()
}
