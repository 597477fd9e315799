"""The standard filter of these tests (see README.md) with pymilter, for the system's Python: FILE SOCKET."""

# mypy: ignore-errors

import sys

import Milter


class Standard(Milter.Base):
    """One SMTP connection."""

    def setsymlist(self, stage, *macros):
        # That of pymilter 1.0.5 hands bytes to its own C part, which takes str only; and the negotiation is lost.
        return self._ctx.setsymlist(stage, " ".join(macros))

    def hello(self, name):
        self.helo = name
        return Milter.CONTINUE

    @Milter.symlist("i", "{auth_authen}", "{client_addr}")
    def envfrom(self, sender, *params):
        self.fields = 0
        self.subject = ""
        self.text = b""
        self.auth = self.getsymval("{auth_authen}") or "-"
        self.client = self.getsymval("{client_addr}") or "-"
        return Milter.TEMPFAIL if sender.startswith("<later@") else Milter.CONTINUE

    def envrcpt(self, recipient, *params):
        if recipient.startswith("<refused@"):
            self.setreply("550", "5.7.1", "no such user")
            return Milter.REJECT
        return Milter.CONTINUE

    @Milter.noreply
    def header(self, name, value):
        self.fields += 1
        if name == "Subject":
            self.subject = value
        return Milter.CONTINUE

    def body(self, chunk):
        self.text += chunk
        return Milter.CONTINUE

    def eom(self):
        if self.subject == "discard":
            return Milter.DISCARD
        self.progress()
        if self.subject == "hold":
            self.quarantine("held for a test")
        self.chgheader("Subject", 1, f"[seen] {self.subject}")
        self.chgheader("X-Old", 2, "")
        self.addheader("X-First", "1", 0)
        self.addheader("X-Seen", f"helo={self.helo} fields={self.fields} auth={self.auth}\n\tclient={self.client}")
        self.addrcpt("<extra@to.test>")
        self.delrcpt("<gone@to.test>")
        self.chgfrom("<bounce@from.test>")
        self.replacebody(self.text.upper())
        return Milter.CONTINUE


Milter.factory = Standard
Milter.set_flags(
    Milter.ADDHDRS
    | Milter.CHGHDRS
    | Milter.CHGBODY
    | Milter.ADDRCPT
    | Milter.DELRCPT
    | Milter.QUARANTINE
    | Milter.CHGFROM
    | Milter.SETSYMLIST
)
Milter.runmilter("standard", sys.argv[1], 60)
