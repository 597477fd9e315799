"""What a worker is in, in its slot of shared memory, so that the master sees it even if the loop never turns again.

This stands in the hottest path of all, once for each callback: mostly an increment and a comparison. There is no clock;
who reads twice and finds the same number of calls knows that it is still the same callback.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

from fastmilter._messages cimport Macros
from fastmilter.conversation cimport Conversation
from fastmilter.message cimport EditableMessage
from fastmilter.server.slots cimport _CALLBACK, _CALLS, _QUEUE_ID, Slots

from fastmilter.macros import CONNECTION_STAGES as _CONNECTION_STAGES
from fastmilter.server.slots import CALLBACK_NAMES as _CALLBACK_NAMES, QUEUE_ID_BYTES as _QUEUE_ID_BYTES

cdef extern from "Python.h":
    PyObject *PyList_GET_ITEM(object items, Py_ssize_t place)  # borrowed
    Py_ssize_t PyList_GET_SIZE(object items)

cdef extern from "<string.h>":
    void *memccpy(void *to, const void *start, int end, size_t most)

cdef enum:
    MOST_NAMES = 32

cdef tuple NAMES = _CALLBACK_NAMES  # keeps those below
cdef PyObject *NAME[MOST_NAMES]
cdef Py_ssize_t COUNT = len(NAMES)
cdef size_t MOST = _QUEUE_ID_BYTES
cdef Py_ssize_t FIRST_STAGE = _CONNECTION_STAGES
if COUNT > MOST_NAMES:
    raise ImportError("more callbacks than there is room for")
for _place in range(COUNT):
    NAME[_place] = <PyObject *> NAMES[_place]


@cython.final
cdef class InWork:
    """The writer's side of one slot: ``enter`` before each callback, ``leave`` when there is none left to call."""

    def __init__(self, Slots slots, Py_ssize_t slot):
        self._slots = slots  # keeps the memory
        self._calls = &slots._words[slots._at(slot, _CALLS)]
        self._callback = &slots._words[slots._at(slot, _CALLBACK)]
        self._queue_id = <char *> &slots._words[slots._at(slot, _QUEUE_ID)]

    cpdef void enter(self, Conversation conversation) noexcept:
        """Note the callback that ``conversation.invoke()`` is about to run."""
        self._calls[0] += 1
        if <PyObject *> conversation.callback is not self._name:
            self._change(conversation)

    cpdef void leave(self) noexcept:
        """Note that no callback is in work."""
        if self._name is not NULL:
            self._callback[0] = 0
            self._queue_id[0] = 0
            self._name = NULL
            self._message = None
            self.conversation = None

    cdef void _change(self, Conversation conversation) noexcept:
        cdef Py_ssize_t number = self._number
        self.conversation = conversation
        # Names of callbacks are literals, so there is one object of each. They come in the order of the tuple, more or
        # less, so the search begins at the last one.
        self._name = <PyObject *> conversation.callback
        while NAME[number] is not self._name:
            number = number + 1 if number + 1 < COUNT else 0
            if number == self._number:
                number = 0  # none that we know
                break
        self._number = number
        self._callback[0] = <uint64_t> number
        if conversation.message is not self._message:
            self._message = conversation.message
            self._queue_id[0] = 0
        if self._queue_id[0] == 0 and self._message is not None:
            self._look_for_queue_id()

    cdef void _look_for_queue_id(self) noexcept:
        """Note the queue id if the MTA has told it: it stands first in a set of macros, by default of every MTA."""
        cdef object stages = self._message._stages
        cdef PyObject *macros
        cdef const char *start
        cdef Py_ssize_t stage
        if type(stages) is not list:
            return  # no macros at all
        stage = PyList_GET_SIZE(stages)
        while stage > FIRST_STAGE:
            stage -= 1
            macros = PyList_GET_ITEM(stages, stage)
            if macros is <PyObject *> None or (<Macros> macros).raw is None:
                continue
            start = PyBytes_AS_STRING((<Macros> macros).raw)
            if start[0] == b"i" and start[1] == 0:
                memccpy(self._queue_id, start + 2, 0, MOST)
                break
            if start[0] == b"{" and start[1] == b"i" and start[2] == b"}" and start[3] == 0:
                memccpy(self._queue_id, start + 4, 0, MOST)
                break


@cython.final
cdef class Turns:
    """What an async callback is waited for with: each of its turns on the loop is its callback in work."""

    def __init__(self, InWork in_work, Conversation conversation, awaited):
        self._in_work = in_work
        self._conversation = conversation
        self.awaited = awaited
        self._turns = awaited.__await__() if hasattr(awaited, "__await__") else awaited  # a generator of types.coroutine

    def __await__(self):
        return self

    def __next__(self):
        self._in_work.enter(self._conversation)
        try:
            return next(self._turns)
        finally:
            self._in_work.leave()

    def throw(self, *error):
        if not hasattr(self._turns, "throw"):
            raise error[0]  # as the interpreter does with an iterator that takes none
        self._in_work.enter(self._conversation)
        try:
            return self._turns.throw(*error)
        finally:
            self._in_work.leave()

    def close(self):
        if hasattr(self._turns, "close"):
            self._turns.close()
