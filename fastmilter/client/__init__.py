"""The client: be the MTA, and talk to any milter.

``Client`` has one method per step of an SMTP session; ``send`` and ``receive`` exchange single messages of
``fastmilter.codec``. What goes wrong between the two sides is in ``fastmilter.client.errors``.
"""

from fastmilter.client.connection import Client, Timeouts
from fastmilter.client.errors import ConnectFailed, ConnectionLost, ProtocolBroken, TimedOut

__all__ = ["Client", "ConnectFailed", "ConnectionLost", "ProtocolBroken", "TimedOut", "Timeouts"]
