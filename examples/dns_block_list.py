"""DnsBlockList: refuses clients that a DNS block list names (RFC 5782). Needs dnspython: pip install dnspython

    fastmilter serve examples/dns_block_list.py:DnsBlockList --config list.toml

    [filter]
    zone = "bl.example.org"             # a list that you may use; ask its owner
    resolvers = ["127.0.0.1"]           # by default those of /etc/resolv.conf
    trusted = ["192.0.2.0/24"]          # networks that are never looked up
    unavailable = "continue"            # without an answer the client may go on; "tempfail": it comes again later

The client 192.0.2.99 is listed if 99.2.0.192.bl.example.org has an address in 127.0.0.0/8. Any other address, or one in
127.255.255.0/24, is no listing but what a list answers that is gone, or that does not want to be asked by you.

A resolver that does not answer delays `failures` clients in a row at most; then nobody waits for `recovery` seconds.
"""

import ipaddress
import logging
from dataclasses import dataclass, field
from typing import ClassVar

import dns.asyncresolver
import dns.exception
import dns.name
import dns.resolver

from fastmilter import CONTINUE, TEMPFAIL, Answer, Filter, SocketAddress, Verdict, reply
from fastmilter.guard import Guard

log = logging.getLogger(__name__)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
LISTED = ipaddress.IPv4Network("127.0.0.0/8")
NO_LISTING = ipaddress.IPv4Network("127.255.255.0/24")


class DnsBlockList(Filter):
    """Answers 550 to clients on a list; the whole SMTP session ends with that."""

    @dataclass
    class Options:
        """The [filter] table of the configuration."""

        zone: str
        resolvers: list[str] = field(default_factory=list)
        port: int = 53
        trusted: list[str] = field(default_factory=list)
        text: str = "{address} is listed at {zone}"
        unavailable: str = "continue"
        seconds: float = 3.0
        at_once: int = 500
        failures: int = 5
        recovery: float = 30.0

        def __post_init__(self) -> None:
            """Refuse what would be found out with the first client."""
            try:
                dns.name.from_text(ipaddress.ip_address("::1").reverse_pointer + "." + self.zone)
            except dns.exception.DNSException as error:
                raise ValueError(f"zone must be a name such as bl.example.org, not {self.zone!r}: {error}") from error
            for address in self.resolvers:
                ipaddress.ip_address(address)
            for network in self.trusted:
                ipaddress.ip_network(network)
            if self.unavailable not in ("continue", "tempfail"):
                raise ValueError(f'unavailable must be "continue" or "tempfail", not {self.unavailable!r}')
            if not self.seconds > 0:
                raise ValueError("seconds must be more than 0")
            reply(550, "5.7.1", self.text)

    options: ClassVar[Options]
    trusted: ClassVar[list[Network]]
    resolver: ClassVar[dns.asyncresolver.Resolver]
    guard: ClassVar[Guard]

    @classmethod
    def worker_started(cls, options: Options) -> None:
        """Take the options, once in each worker."""
        cls.options = options
        cls.trusted = [ipaddress.ip_network(network) for network in options.trusted]
        cls.resolver = dns.asyncresolver.Resolver(configure=not options.resolvers)
        if options.resolvers:
            cls.resolver.nameservers = list(options.resolvers)
            cls.resolver.port = options.port
        cls.resolver.lifetime = options.seconds  # of a look-up with all its repetitions
        cls.resolver.cache = dns.resolver.LRUCache(10_000)
        cls.guard = Guard(
            f"list {options.zone}",
            limit=options.at_once,
            failures=options.failures,
            recovery=options.recovery,
            verdict=TEMPFAIL if options.unavailable == "tempfail" else CONTINUE,
            ignore=dns.resolver.NXDOMAIN,  # not listed: that is an answer too
        )

    async def on_connect(self, hostname: str, address: SocketAddress) -> Verdict | None:
        """Look the client up."""
        client = address.ip
        if client is None or client.is_loopback or any(client in network for network in self.trusted):
            return None
        if await self.is_listed(client):
            text = self.options.text.replace("{address}", str(client)).replace("{zone}", self.options.zone)
            return reply(550, "5.7.1", text)
        return None

    async def is_listed(self, client: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        """Ask the list about a client; without an answer raise what the client is told."""
        # 192.0.2.99 is asked for as 99.2.0.192, an IPv6 address by its 32 digits, the last one first.
        reverse = client.reverse_pointer.removesuffix(".in-addr.arpa").removesuffix(".ip6.arpa")
        try:
            # Where the guard does not let the question through, its verdict is the answer.
            async with self.guard:
                found = await self.resolver.resolve(f"{reverse}.{self.options.zone}.", "A", raise_on_no_answer=False)
                addresses = [ipaddress.IPv4Address(record.address) for record in found.rrset or ()]
        except dns.resolver.NXDOMAIN:
            return False
        except (dns.exception.DNSException, OSError) as error:
            log.warning("no answer from %s about %s: %s", self.options.zone, client, error)
            raise Answer(self.guard.verdict) from error
        if odd := [answer for answer in addresses if answer not in LISTED or answer in NO_LISTING]:
            log.warning("%s refuses to be asked, or is gone: it answers %s", self.options.zone, odd[0])
            return False
        return bool(addresses)
