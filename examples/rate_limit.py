"""RateLimit: as many messages of a client in a while, and no more. Needs redis: pip install redis

The counts are kept in a Redis or Valkey server, so that they hold for all workers, and all machines, together.

    fastmilter serve examples/rate_limit.py:RateLimit --config limit.toml

    [filter]
    server = "unix:///run/redis/redis.sock"     # or redis://127.0.0.1:6379/0
    messages = 100                              # of one client
    seconds = 60                                # in that time
    trusted = ["192.0.2.0/24"]                  # networks that are not counted
    unavailable = "continue"                    # when the server cannot be asked: no limit; "tempfail": no mail

An IPv6 client is counted by its /64, of which it has all addresses.
"""

import asyncio
import ipaddress
import logging
from dataclasses import dataclass, field
from typing import Any, ClassVar

import redis.asyncio
import redis.asyncio.retry
import redis.backoff
import redis.exceptions

from fastmilter import CONTINUE, TEMPFAIL, Address, Answer, Filter, Params, Verdict, reply
from fastmilter.guard import Guard

log = logging.getLogger(__name__)

Client = ipaddress.IPv4Address | ipaddress.IPv6Address

# One step for the server, so that a counter never stays behind without an end: two commands could be cut in between.
COUNT = """
local count = redis.call('INCR', KEYS[1])
if count == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return count
"""


class RateLimit(Filter):
    """Answers 451 to MAIL of a client that has sent too much."""

    @dataclass
    class Options:
        """The [filter] table of the configuration."""

        server: str = "redis://127.0.0.1:6379/0"
        messages: int = 100
        seconds: float = 60.0
        trusted: list[str] = field(default_factory=list)
        text: str = "too many messages from {client}, please try again later"
        prefix: str = "fastmilter:rate:"
        unavailable: str = "continue"
        patience: float = 2.0
        at_once: int = 50
        failures: int = 5
        recovery: float = 10.0

        def __post_init__(self) -> None:
            """Refuse what would be found out with the first message."""
            redis.asyncio.connection.parse_url(self.server)
            for network in self.trusted:
                ipaddress.ip_network(network)
            if self.unavailable not in ("continue", "tempfail"):
                raise ValueError(f'unavailable must be "continue" or "tempfail", not {self.unavailable!r}')
            if not (self.messages > 0 and self.seconds >= 0.001 and self.patience > 0):
                raise ValueError("messages, seconds and patience must be more than 0")
            reply(451, "4.7.1", self.text)

    options: ClassVar[Options]
    trusted: ClassVar[list[ipaddress.IPv4Network | ipaddress.IPv6Network]]
    server: ClassVar[Any]
    guard: ClassVar[Guard]

    @classmethod
    async def worker_started(cls, options: Options) -> None:
        """Take the options, once in each worker; connections are opened when they are needed."""
        cls.options = options
        cls.trusted = [ipaddress.ip_network(network) for network in options.trusted]
        once_more = redis.asyncio.retry.Retry(redis.backoff.NoBackoff(), 1)  # a connection may be closed meanwhile
        cls.server = redis.asyncio.Redis.from_url(options.server, max_connections=options.at_once, retry=once_more)
        cls.guard = Guard(
            "redis",
            limit=options.at_once,
            wait=options.patience,
            failures=options.failures,
            recovery=options.recovery,
            verdict=TEMPFAIL if options.unavailable == "tempfail" else CONTINUE,
        )

    @classmethod
    async def worker_stopped(cls) -> None:
        """Close the connections."""
        await cls.server.aclose()

    async def on_mail(self, sender: Address, params: Params) -> Verdict | None:
        """Count the message."""
        client = self.connection.address.ip
        if client is None or client.is_loopback or any(client in network for network in self.trusted):
            return None
        name = counted_as(client)
        if await self.count(name) > self.options.messages:
            return reply(451, "4.7.1", self.options.text.replace("{client}", name))
        return None

    async def count(self, name: str) -> int:
        """Count one more message; raise the answer that is due when the server cannot be asked."""
        try:
            # Where the guard does not let the call through, its verdict is the answer.
            async with self.guard, asyncio.timeout(self.options.patience):
                milliseconds = int(self.options.seconds * 1000)
                return int(await self.server.eval(COUNT, 1, self.options.prefix + name, milliseconds))
        except (redis.exceptions.RedisError, OSError) as error:
            log.warning("no count from the server for %s: %r", name, error)
            raise Answer(self.guard.verdict) from error


def counted_as(client: Client) -> str:
    """Return the name under which a client is counted.

    >>> counted_as(ipaddress.ip_address("2001:db8::1:2:3:4"))
    '2001:db8::/64'
    """
    return str(client) if client.version == 4 else str(ipaddress.ip_network((client, 64), strict=False))
