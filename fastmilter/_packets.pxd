# What decoding and encoding share.
# Letters stand as characters there: 'C' is CONNECT and so on, as in constants.py and in every dump of the protocol.

from libc.stdint cimport uint8_t, uint32_t

cdef enum:
    LENGTH = 4
    HEAD = 5  # length and letter: enough to know whether the packet can be right
    DATA_BYTES = 65535  # constants.MAX_DATA_BYTES, as a number of C


cdef struct Bounds:
    bint known
    Py_ssize_t lowest
    Py_ssize_t highest


cdef Bounds[256] COMMANDS, RESPONSES
cdef dict WITHOUT_DATA

cdef bint fits(uint8_t letter, bint command, Py_ssize_t size, Py_ssize_t limit) noexcept
cdef bint is_command(uint8_t letter) noexcept


cdef inline uint32_t read_u32(const uint8_t *at) noexcept:
    return (<uint32_t> at[0] << 24) | (<uint32_t> at[1] << 16) | (<uint32_t> at[2] << 8) | at[3]


cdef inline void write_u32(uint8_t *at, uint32_t value) noexcept:
    at[0], at[1], at[2], at[3] = value >> 24, (value >> 16) & 255, (value >> 8) & 255, value & 255
