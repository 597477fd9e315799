# C names of message.py for the compiled modules above it.

cimport cython

from fastmilter._text cimport to_bytes, to_text
from fastmilter.addresses cimport address_of, params_of, socket_address
from fastmilter.edits cimport Composed, DeleteHeaders, NewBody, append_header, compose, field_name, field_value, set_header
from fastmilter.macros cimport look_up
from fastmilter.session cimport Session

cdef int _ADD_HEADERS, _CHANGE_HEADERS, _ADD_RECIPIENT, _ADD_RECIPIENT_PARAMS, _DELETE_RECIPIENT
cdef int _CHANGE_SENDER, _CHANGE_BODY, _QUARANTINE


@cython.locals(version=str)
cdef object _mta_of(object stages)


cdef class Connection:
    cdef Session _session
    cdef object _connect
    cdef public bytes _helo
    cdef object _known_mta

    cpdef object _find_mta(self)


cdef class EditableMessage:
    cdef readonly object _agreement
    cdef readonly int _actions
    cdef object _stages
    cdef object _macros
    cdef object _sender
    cdef public object _state
    cdef readonly object _plan
    cdef object _unread_body
    cdef readonly list _recipients
    cdef readonly list _shown
    cdef readonly list _edits
    cdef readonly bint _sealed
    cdef readonly double _began

    cdef object _add(self, int action, edit)
    cdef object _add_packet(self, int action, edit)
    cdef object _check(self, int action)
    cpdef object _roll_back(self, Py_ssize_t mark)
    cpdef Composed _compose(self, bint appends_in_place)
    cpdef object _seal(self)
    cpdef bint _wants_quarantine(self) except -1
