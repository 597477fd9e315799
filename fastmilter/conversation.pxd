# The types that make the compiled conversation fast; what the code means stands in conversation.py alone.

from fastmilter._messages cimport Body, Header
from fastmilter.addresses cimport params_of, to_text
from fastmilter.edits cimport Composed, compose
from fastmilter.message cimport Connection, EditableMessage
from fastmilter.session cimport Session

cdef int BODY, DATA, END_OF_HEADERS, END_OF_MESSAGE, HEADER, MAIL, RCPT
cdef int _ADD_HEADERS
cdef int _STEP, _ERROR, _LAST_CHUNK, _MAKE, _NEGOTIATE, _NOTICE, _MESSAGE_END, _CLOSE
cdef bint _is_answered(int purpose) noexcept


cdef class Conversation:
    cdef readonly object plan
    cdef readonly Session session
    cdef readonly object filter
    cdef readonly Connection connection
    cdef readonly EditableMessage message
    cdef object _host
    cdef frozenset _overridden
    cdef bint _reused
    cdef bint _unmade
    cdef int _purpose
    cdef int _steps
    cdef int _asked
    cdef int _interrupted
    cdef Py_ssize_t _mark
    cdef readonly str callback
    cdef object _held
    cdef list _todo
    cdef object _recipient

    cdef object _complain(self, text)
    cpdef object next_call(self)
    cdef object _take(self, event)
    cdef object _take_for_connection(self, kind, event)
    cdef object _take_up(self)
    cdef object _call(self, int purpose, str name, tuple arguments)
    cdef object _begin(self, int purpose, str name, tuple arguments)
    cdef object _make(self)
    cdef object _negotiate(self, event)
    cdef object _agree(self, wish)
    cdef object _connect(self, event)
    cdef object _helo(self, event)
    cdef Connection _connected(self)
    cdef object _mail(self, event)
    cdef object _rcpt(self, event)
    cdef bint _refused_by_mta(self) except -1
    cdef bint _asks(self, int step) except -1
    cdef EditableMessage _in_work(self)
    cdef object _spare(self)
    cdef object _header(self, event)
    cdef object _plain_step(self, str name, int step)
    cdef object _body(self, event)
    cdef object _end_of_message(self, event)
    cdef object _unknown(self, event)
    cdef object _dropped(self)
    cdef object _out_of_order(self, event)
    cdef object _closed(self)
    cpdef object returned(self, result)
    cdef object _refuse_result(self, result)
    cpdef object failed(self, error)
    cdef object _negotiate_failed(self)
    cdef object _make_failed(self)
    cdef object _noticed(self, int purpose)
    cdef object _go_on(self)
    cdef object _conclude(self, verdict)
    cdef object _conclude_end(self, verdict)
    cdef object _conclude_rcpt(self, verdict)
    cdef object _let_go(self, verdict)
    cdef object _ended(self, verdict)
    cdef object _finish(self, verdict)
    cdef object _finish_with_edits(self, EditableMessage message, verdict)
