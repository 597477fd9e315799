"""The standard filter of these tests (see README.md) with fastmilter."""

from typing import ClassVar

from fastmilter import DISCARD, TEMPFAIL, Address, Filter, Params, Verdict, reply


class State:
    """One message."""

    def __init__(self) -> None:
        self.fields = 0
        self.subject = ""
        self.body = bytearray()


class Standard(Filter[State]):
    """One SMTP connection."""

    request_macros: ClassVar = {"mail": ["{client_addr}"]}

    def on_mail(self, sender: Address, params: Params) -> Verdict | None:
        return TEMPFAIL if sender.local_part == "later" else None

    def on_rcpt(self, recipient: Address, params: Params) -> Verdict | None:
        return reply(550, "5.7.1", "no such user") if recipient.local_part == "refused" else None

    def on_header(self, name: str, value: str) -> None:
        self.message.state.fields += 1
        if name == "Subject":
            self.message.state.subject = value

    def on_body(self, chunk: bytes) -> None:
        self.message.state.body += chunk

    def on_end_of_message(self) -> Verdict | None:
        message, state = self.message, self.message.state
        if state.subject == "discard":
            return DISCARD
        self.progress()
        if state.subject == "hold":
            message.quarantine("held for a test")
        message.change_header("Subject", f"[seen] {state.subject}")
        message.delete_header("X-Old", index=2)
        message.insert_header("X-First", "1")
        auth, client = (self.macros.get(name, "-") for name in ("auth_authen", "client_addr"))
        helo = self.connection.helo
        message.add_header("X-Seen", f"helo={helo} fields={state.fields} auth={auth}\n\tclient={client}")
        message.add_recipient("extra@to.test")
        message.delete_recipient("gone@to.test")
        message.change_sender("bounce@from.test")
        message.replace_body(bytes(state.body).upper())
        return None
