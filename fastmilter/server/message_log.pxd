# The types that make the compiled message log fast; what the code means stands in message_log.py alone.

cimport cython

from fastmilter._text cimport path_text, to_bytes, to_text
from fastmilter.conversation cimport Conversation
from fastmilter.message cimport Connection, EditableMessage
from fastmilter.server._sockets cimport Poller
from fastmilter.server.line_writer cimport LineWriter

cdef Py_ssize_t _MOST_OF_SENDER, _MOST_OF_HELO, _MOST_OF_CLIENT, _MOST_OF_QUEUE_ID
cdef str _LOGGER
cpdef str quoted(bytes data, Py_ssize_t most)
@cython.locals(least=Py_ssize_t)
cdef str _cut(bytes data, Py_ssize_t most)


cdef class MessageLog:
    cdef LineWriter _writer
    cdef Poller _poller
    cdef bint _is_awaited
    cdef bint _as_json
    cdef object _syslog
    cdef int _number
    cdef str _tail
    cdef long _second
    cdef str _to_the_second
    cdef str _behind_it

    @cython.locals(
        message=EditableMessage,
        connection=Connection,
        tenths=long,
        rcpts=Py_ssize_t,
        qid=str,
        helo=str,
        mta=str,
        client=str,
        sender=str,
        line=str,
        queue_id=str,
    )
    cpdef object add(self, Conversation conversation, peer, verdict, Py_ssize_t edits)
    @cython.locals(message=EditableMessage, connection=Connection)
    cdef object _add_json(self, Conversation conversation, peer, verdict, Py_ssize_t edits, long tenths)
    cdef object _put_json(self, str level, dict fields)
    @cython.locals(writer=LineWriter, lost=Py_ssize_t)
    cpdef object flush(self)
    cpdef object close(self)
    cdef object _tell(self, Py_ssize_t lost)
    cdef str _begin(self, str level)
    @cython.locals(now=double, second=long, milliseconds=int)
    cdef str _stamp(self)


cdef str _shown(verdict)
