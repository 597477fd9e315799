"""Text and bytes, and what makes a header field valid: the loops over single bytes that every mail runs through."""

from typing import TypeVar

_S = TypeVar("_S", bound=str)

def to_text(data: bytes) -> str:
    """Return bytes from the wire as ``str``, UTF-8 with ``surrogateescape``; ``to_bytes`` gives the same bytes back."""

def path_text(raw: bytes) -> str:
    """The text of a path as the MTA sent it, without angle brackets and source route."""

def subtype_of_str(kind: type[_S], text: str) -> _S:
    """``str.__new__(kind, text)`` for a subclass of ``str``."""

def to_bytes(text: str) -> bytes:
    """Return the bytes of ``text``, those that ``to_text`` read unchanged.

    A lone surrogate that no byte stands for raises ``ValueError`` (``UnicodeEncodeError``).
    """

def is_field_name(name: bytes) -> bool:
    """Whether a header field may have this name: printable ASCII without colon and space (RFC 5322 section 3.6.8)."""

def is_one_line(value: bytes) -> bool:
    """Whether there is neither NUL nor CR nor LF."""

def is_same_name(one: bytes, other: str) -> bool:
    """Whether two names of header fields are the same: upper and lower case do not count.

    ``one`` is a valid name, ``other`` is as the MTA sent it.
    """
