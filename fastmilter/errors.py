"""Who did wrong, in types.

``LocalProtocolError``: the program that uses fastmilter asked for what the protocol does not allow.
``RemoteProtocolError``: the peer sent what the protocol does not allow.
``ConfigError``: an option, a file or a class cannot be used as it stands.
"""


class FastmilterError(Exception):
    """The root of every error that fastmilter raises on purpose."""


class LocalProtocolError(FastmilterError):
    """The caller asked for something that the protocol does not allow; nothing was sent."""


class InvalidMessage(LocalProtocolError, ValueError):
    """A message or an argument cannot be put on the wire: NUL inside, too long, out of range."""


class NotNegotiated(LocalProtocolError):
    """The other side did not agree to this when the connection was opened."""


class MessageEnded(LocalProtocolError):
    """The message had its verdict or was dropped; it cannot be changed any more."""


class NoMessage(LocalProtocolError):
    """There is no message now: ``Filter.message`` lives from MAIL to the end of the message."""


class NoConnection(LocalProtocolError):
    """There is no connection now: ``Filter.connection`` lives from CONNECT to the close."""


class RemoteProtocolError(FastmilterError):
    """The peer broke the protocol; its connection ends, and nothing else notices."""


class ConfigError(FastmilterError):
    """An option, a configuration file or a filter class cannot be used; the text says what would be right."""
