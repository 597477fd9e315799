"""How a method of the user's filter is called: by its name, without an object for the bound method in between."""

from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE

cdef extern from "Python.h":
    ctypedef struct PyObject
    size_t PY_VECTORCALL_ARGUMENTS_OFFSET
    object PyObject_VectorcallMethod(object name, PyObject *const *arguments, size_t count, PyObject *keywords)

cdef enum:
    MOST = 4  # arguments of a callback; a test compares


cpdef object call_method(object target, str name, tuple arguments):
    """Return ``getattr(target, name)(*arguments)``; at most 4 arguments."""
    cdef PyObject *stack[MOST + 2]
    cdef Py_ssize_t count = PyTuple_GET_SIZE(arguments)
    cdef Py_ssize_t place
    if count > MOST:
        raise ValueError(f"{count} arguments, expected at most {MOST}")
    stack[1] = <PyObject *> target
    for place in range(count):
        stack[place + 2] = <PyObject *> PyTuple_GET_ITEM(arguments, place)
    return PyObject_VectorcallMethod(name, stack + 1, <size_t> (count + 1) | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL)
