"""RecipientPolicy: refuses some recipients, accepts the rest.

A refused recipient gets its own SMTP reply; the message goes to the others. The list stands in the file that is given
with --config; an entry is an address or, with nothing before the @, a whole domain:

    target = "examples/recipient_policy.py:RecipientPolicy"

    [filter]
    refuse = ["former.colleague@harbour.example", "@old.example"]
    text = "this mailbox is closed, please write to office@harbour.example"

    fastmilter serve --config policy.toml

Upper and lower case do not count. `fastmilter serve --config policy.toml --check-config` says whether the list can be
used; kill -HUP of the master reads it again.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from fastmilter import Address, Filter, Params, Verdict, reply


class RecipientPolicy(Filter):
    """Answers 550 to the recipients of a list."""

    @dataclass
    class Options:
        """The [filter] table of the configuration."""

        refuse: list[str] = field(default_factory=list)
        text: str = "this mailbox is closed"

        def __post_init__(self) -> None:
            """Refuse a list that could never match what it means, and a text that cannot be sent."""
            reply(550, "5.1.1", self.text)
            if not isinstance(self.refuse, list) or not all(isinstance(entry, str) for entry in self.refuse):
                raise ValueError('refuse must be a list such as ["a@b.example", "@c.example"]')
            for entry in self.refuse:
                if entry.count("@") != 1 or entry.endswith("@"):
                    raise ValueError(f"refuse: {entry!r} is neither an address (a@b) nor a domain (@b)")

    refused: ClassVar[frozenset[str]] = frozenset()
    verdict: ClassVar[Verdict] = reply(550, "5.1.1", Options.text)

    @classmethod
    def worker_started(cls, options: Options) -> None:
        """Take the options, once in each worker."""
        cls.refused = frozenset(entry.lower() for entry in options.refuse)
        cls.verdict = reply(550, "5.1.1", options.text)

    def on_rcpt(self, recipient: Address, params: Params) -> Verdict | None:
        """Refuse this recipient alone, if it is on the list."""
        # .domain is lower case already; the local part may differ by case, but nobody gives out two such mailboxes.
        domain = f"@{recipient.domain}"
        if domain in self.refused or recipient.local_part.lower() + domain in self.refused:
            return self.verdict
        return None
