"""The reference filter on pymilter, for the system's Python: pymilter_filter.py JOB ADDRESS WAIT_MS. See filters.py."""

# mypy: ignore-errors

import sys
import time

import Milter

JOB, ADDRESS, WAIT_MS = sys.argv[1:]
WAIT_S = int(WAIT_MS) / 1000


class Typical(Milter.Base):
    """Client, queue id, envelope, all fields and the length of the body; two fields added, Subject changed."""

    def connect(self, hostname, family, address):
        self.client = address[0] if isinstance(address, tuple) else "unknown"
        return Milter.CONTINUE

    def envfrom(self, sender, *params):
        self.sender = sender
        self.recipients = []
        self.fields = []
        self.length = 0
        return Milter.CONTINUE

    def envrcpt(self, recipient, *params):
        self.recipients.append(recipient)
        return Milter.CONTINUE

    def header(self, name, value):
        self.fields.append((name, value))
        return Milter.CONTINUE

    def body(self, chunk):
        self.length += len(chunk)
        return Milter.CONTINUE

    def eom(self):
        self.addheader("X-Bench-1", f"{self.getsymval('i')} from {self.sender} for {len(self.recipients)}")
        self.addheader("X-Bench-2", f"{len(self.fields)} fields, {self.length} bytes, client {self.client}")
        self.chgheader("Subject", 1, "[bench] Minutes of the harbour meeting")
        return Milter.CONTINUE


class Waiting(Typical):
    """The same, and each message waits at its end, as for an answer of someone else."""

    def eom(self):
        time.sleep(WAIT_S)
        return super().eom()


class Noop(Milter.Base):
    """Every callback is there and does nothing."""

    def connect(self, hostname, family, address):
        return Milter.CONTINUE

    def hello(self, name):
        return Milter.CONTINUE

    def envfrom(self, sender, *params):
        return Milter.CONTINUE

    def envrcpt(self, recipient, *params):
        return Milter.CONTINUE

    def data(self):
        return Milter.CONTINUE

    def header(self, name, value):
        return Milter.CONTINUE

    def eoh(self):
        return Milter.CONTINUE

    def body(self, chunk):
        return Milter.CONTINUE

    def eom(self):
        return Milter.CONTINUE

    def unknown(self, command):
        return Milter.CONTINUE


def main():
    Milter.factory = {"typical": Waiting if WAIT_S else Typical, "noop": Noop}[JOB]
    Milter.set_flags(Milter.ADDHDRS | Milter.CHGHDRS)
    Milter.runmilter("bench", ADDRESS, timeout=7210)


main()
