"""LogEverything: writes what the MTA tells, step by step, and changes nothing.

To see what an MTA really sends before a filter is written for it:

    fastmilter serve examples/log_everything.py:LogEverything --workers 1

The log goes to standard error. It holds addresses and header fields of real people: not for daily use. Of the body
only sizes are written. What came from outside is quoted, so that no client can write lines of its own into the log.
"""

import logging

from fastmilter import Address, Filter, Offer, Params, SocketAddress, Verdict

log = logging.getLogger("log_everything")


def quoted(text: str) -> str:
    """Return text from outside on one line, and not without end."""
    return ascii(text if len(text) <= 200 else text[:200] + "...")


class LogEverything(Filter):
    """Overrides every callback and returns a verdict from none."""

    def __init__(self) -> None:
        """Begin a connection; nothing was counted yet."""
        self.body_bytes = 0

    def _log(self, step: str, text: str = "") -> None:
        queue_id = self.macros.get("i", "-")
        log.info("%s qid=%s %s", step, quoted(queue_id), text)

    def on_negotiate(self, offer: Offer) -> None:
        """Log what the MTA can do."""
        log.info("negotiate version=%d actions=%r protocol=%r", offer.version, offer.actions, offer.protocol)

    def on_connect(self, hostname: str, address: SocketAddress) -> None:
        """Log the client."""
        self._log("connect", f"hostname={quoted(hostname)} address={quoted(str(address))} mta={self.connection.mta}")

    def on_helo(self, name: str) -> None:
        """Log HELO or EHLO."""
        self._log("helo", f"name={quoted(name)}")

    def on_mail(self, sender: Address, params: Params) -> None:
        """Log the beginning of a message."""
        self.body_bytes = 0
        self._log("mail", f"sender={quoted(sender)} params={quoted(' '.join(params))}")

    def on_rcpt(self, recipient: Address, params: Params) -> None:
        """Log a recipient."""
        self._log("rcpt", f"recipient={quoted(recipient)} params={quoted(' '.join(params))}")

    def on_rejected_rcpt(self, recipient: Address, params: Params, reason: str) -> None:
        """Log a recipient that the MTA refuses by itself."""
        self._log("rejected_rcpt", f"recipient={quoted(recipient)} reason={quoted(reason)}")

    def on_data(self) -> None:
        """Log DATA."""
        self._log("data", f"recipients={len(self.message.recipients)}")

    def on_header(self, name: str, value: str) -> None:
        """Log a header field."""
        self._log("header", f"{quoted(name)}: {quoted(value)}")

    def on_end_of_headers(self) -> None:
        """Log the end of the header section."""
        self._log("end_of_headers")

    def on_body(self, chunk: bytes) -> None:
        """Log the size of a piece of the body."""
        self.body_bytes += len(chunk)
        self._log("body", f"bytes={len(chunk)}")

    def on_end_of_message(self) -> None:
        """Log the end of the message."""
        self._log("end_of_message", f"body_bytes={self.body_bytes}")

    def on_unknown(self, command: str) -> None:
        """Log an SMTP command that the MTA does not know."""
        self._log("unknown", f"command={quoted(command)}")

    def on_abort(self) -> None:
        """Log that the message was dropped."""
        self._log("abort")

    def on_message_end(self, verdict: Verdict | None) -> None:
        """Log how the message ended."""
        self._log("message_end", f"verdict={'dropped' if verdict is None else verdict.kind}")

    def on_close(self) -> None:
        """Log the end of the connection."""
        log.info("close")
