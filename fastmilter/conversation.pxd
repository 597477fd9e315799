# The types that make the compiled conversation fast; what the code means stands in conversation.py alone.

cimport cython

from fastmilter._call cimport call_method
from fastmilter._messages cimport Body, Connect, Header, MailFrom, RcptTo
from fastmilter._text cimport to_text
from fastmilter.addresses cimport address_of, params_of, socket_address
from fastmilter.filter cimport Binding
from fastmilter.message cimport Connection, EditableMessage
from fastmilter.session cimport Session

cdef int BODY, DATA, END_OF_HEADERS, END_OF_MESSAGE, HEADER, MAIL, RCPT
cdef int _HEADER_BIT
cdef object _ACCEPT, _DISCARD, _SKIP
cdef int _STEP, _ERROR, _LAST_CHUNK, _MAKE, _NEGOTIATE, _NOTICE, _MESSAGE_END, _CLOSE
cdef bint _is_answered(int purpose) noexcept


cdef class Conversation(Binding):
    cdef readonly object plan
    cdef readonly Session session
    cdef readonly object filter
    cdef readonly double last_read
    cdef object _host
    cdef frozenset _overridden
    cdef bint _reused
    cdef bint _unmade
    cdef int _purpose
    cdef int _steps
    cdef int _asked
    cdef int _interrupted
    cdef tuple _arguments
    cdef Py_ssize_t _mark
    cdef readonly str callback
    cdef object _held
    cdef list _todo
    cdef object _recipient
    cdef readonly tuple broken

    cdef object _begin_with(self, plan, host)
    cdef object _complain(self, text)
    @cython.locals(in_headers=bint)
    cpdef bint next_call(self) except -1
    cpdef object invoke(self)
    cpdef bint next_in_row(self) except -1
    cdef bint _take(self, event) except -1
    cdef bint _take_for_connection(self, kind, event) except -1
    cdef object _later(self, int purpose, str name, tuple arguments)
    cdef bint _take_up(self) except -1
    cdef bint _call(self, int purpose, str name, tuple arguments) except -1
    cdef bint _begin(self, int purpose, str name, tuple arguments) except -1
    cdef bint _make(self) except -1
    cdef bint _negotiate(self, event) except -1
    cdef object _agree(self, wish)
    cdef bint _connect(self, Connect event) except -1
    cdef bint _helo(self, event) except -1
    cdef Connection _connected(self)
    cdef bint _mail(self, MailFrom event) except -1
    cdef bint _rcpt(self, RcptTo event) except -1
    cdef bint _refused_by_mta(self) except -1
    cdef bint _asks(self, int step) except -1
    cdef EditableMessage _in_work(self)
    cdef object _spare(self)
    cdef bint _header(self, Header event) except -1
    @cython.locals(field=tuple)
    cdef bint _next_field(self) except -1
    cdef bint _ask(self, int step, str name, tuple arguments) except -1
    cdef bint _end_of_message(self, event) except -1
    cdef bint _unknown(self, event) except -1
    cdef object _dropped(self)
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
    cdef object _ended(self, verdict, Py_ssize_t edits=*)
    cdef object _finish(self, verdict)
    cdef Py_ssize_t _finish_with_edits(self, EditableMessage message, verdict) except -1
