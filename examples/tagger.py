"""Tagger: marks mail that came from outside.

Puts a prefix in front of the Subject, unless it is there already (in a reply, for instance), and adds two fields that
say which client the message came from. What the header section holds in 8-bit text comes back byte by byte.

    fastmilter serve examples/tagger.py:Tagger

The prefix is set in the file that is given with --config:

    [filter]
    prefix = "[outside]"
"""

from dataclasses import dataclass
from typing import ClassVar

from fastmilter import Filter


class Seen:
    """What is remembered of one message."""

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self.subject = False


class Tagger(Filter[Seen]):
    """Prefixes Subject and adds X-Tagged-By and X-Client."""

    @dataclass
    class Options:
        """The [filter] table of the configuration."""

        prefix: str = "[external]"

        def __post_init__(self) -> None:
            """Refuse what would not do in a header field."""
            if not isinstance(self.prefix, str) or not self.prefix.isprintable() or not self.prefix.strip():
                raise ValueError(f"prefix must be some printable text, not {self.prefix!r}")

    prefix: ClassVar = Options.prefix

    @classmethod
    def worker_started(cls, options: Options) -> None:
        """Take the options, once in each worker."""
        cls.prefix = options.prefix

    def on_header(self, name: str, value: str) -> None:
        """Prefix the first Subject; there should be one only, but senders differ."""
        if name.lower() != "subject" or self.message.state.subject:
            return
        self.message.state.subject = True
        if self.prefix not in value:
            self.message.change_header(name, f"{self.prefix} {value}")

    def on_end_of_message(self) -> None:
        """Add what holds for every message."""
        if not self.message.state.subject:
            self.message.add_header("Subject", self.prefix)
        self.message.add_header("X-Tagged-By", "fastmilter")
        self.message.add_header("X-Client", f"{self.connection.hostname} ({self.connection.address})")
