# The types that make the compiled session fast; what the code means stands in session.py alone.

from fastmilter._codec cimport CommandDecoder
from fastmilter._messages cimport Body, Connect, Header, Macros, MailFrom, RcptTo
from fastmilter.limits cimport Extent, Limits
from fastmilter.macros cimport clear, cleared, for_message, stored

cimport cython


cdef int CONNECT, HELO, MAIL, RCPT, DATA, HEADER, END_OF_HEADERS, BODY, END_OF_MESSAGE, UNKNOWN
cdef int _HELO_STAGE, _MAIL_STAGE, _RCPT_STAGE, _DATA_STAGE
cdef int _CONTENT
cdef bytes _CONTINUE_PACKET
cdef object _CONTINUE, _SKIP
cdef object _NEW, _NEGOTIATING, _OPEN, _CONNECTED, _CLOSED


cdef class Session:
    cdef readonly object agreement
    cdef readonly object phase
    cdef readonly object stages
    cdef readonly list out
    cdef public object tail
    cdef readonly object error
    cdef readonly object over
    cdef public object kept
    cdef public object kept_for_connection
    cdef public Limits limits
    cdef readonly Extent extent
    cdef public int drain
    cdef public bint is_held_up
    cdef bint _carried
    cdef bint _delivered
    cdef bint _eof
    cdef int _answered
    cdef readonly bint shows_rejected
    cdef readonly int step
    cdef CommandDecoder _decoder
    cdef object _pushed

    cpdef object receive(self, data)
    cpdef object receive_lent(self, view, Py_ssize_t start, Py_ssize_t size)
    cpdef object settle(self)
    cpdef object agree(self, agreement)
    cpdef object next_event(self)
    @cython.locals(decoder=CommandDecoder)
    cpdef bint is_worked_off(self) except -1
    @cython.locals(field=tuple, name=str, value=str)
    cpdef tuple next_field(self)
    cdef object _take(self, message)
    cdef object _take_for_connection(self, kind, message)
    cdef object _fail(self, error)
    cdef object _end_of_stream(self)
    cdef object _drop(self)
    cdef object _negotiate(self, message)
    cdef object _connect(self, message)
    cdef object _helo(self, message)
    cdef object _mail(self, message)
    @cython.locals(extent=Extent)
    cdef object _recipient(self, RcptTo message)
    @cython.locals(extent=Extent, size=Py_ssize_t)
    cdef object _header(self, Header message)
    cdef object _refuse_header(self, Extent extent)
    cdef object _envelope_step(self, int step, message)
    cdef object _message_step(self, int step, message)
    cdef object _unknown(self, message)
    cdef object _abort(self)
    cdef object _quit(self, message)
    cdef object _quit_new_connection(self, message)
    cdef object _begin_again(self)
    cdef object _out_of_order(self, int step)
    cdef bint _is_answered(self, int step) noexcept
    cdef object _answer_over(self, int step)
    cdef object _deliver_for_connection(self, int step)
    cpdef bint answer(self, verdict) except -1
    cdef object _keep(self, verdict)
    cpdef object carry(self, verdict)
    cpdef bint spare(self) except -1
    cdef bint _deliver(self, verdict) except -1
    cpdef object abandon(self)
    cdef object _end(self, verdict)
    cpdef object finish(self, verdict, edits=*, tail=*)
