# The call of a callback for the compiled conversation.

cpdef object call_method(object target, str name, tuple arguments)
