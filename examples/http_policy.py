"""HttpPolicy: asks a policy service of yours about every recipient, over HTTP.

The service gets a POST with a JSON object:

    {"client": "192.0.2.25", "helo": "mail.example", "sender": "a@b.example", "recipient": "c@d.example"}

and answers 200 with one: {"action": "continue"}, {"action": "reject", "text": "no such office"}, or "tempfail" in place
of "reject". The text may be left out.

    fastmilter serve examples/http_policy.py:HttpPolicy --config policy.toml

    [filter]
    url = "http://127.0.0.1:8080/policy"    # or https
    unavailable = "tempfail"                # clients come again later; "continue": mail goes through
    seconds = 3                             # that the service may be silent; Sendmail waits 10 for each recipient
    at_once = 20                            # no more questions at a time

It is a blocking filter with the HTTP client of Python's own library, so that nothing need be installed; connections to
the service stay open. The price is a thread for each question at a time.
"""

import collections
import http.client
import json
import logging
import urllib.parse
from dataclasses import dataclass
from typing import Any, ClassVar

from fastmilter import CONTINUE, TEMPFAIL, Address, Answer, Filter, Params, Verdict, reply
from fastmilter.guard import Guard

log = logging.getLogger(__name__)

MOST_BYTES_OF_AN_ANSWER = 10_000


class NotUnderstood(Exception):
    """The service answered something else than it should."""


class HttpPolicy(Filter):
    """Answers RCPT with what the service says."""

    blocking = True

    @dataclass
    class Options:
        """The [filter] table of the configuration."""

        url: str
        unavailable: str = "tempfail"
        seconds: float = 3.0
        at_once: int = 20
        failures: int = 5
        recovery: float = 30.0

        def __post_init__(self) -> None:
            """Refuse what would be found out with the first recipient."""
            url = urllib.parse.urlsplit(self.url)
            if url.scheme not in ("http", "https") or not url.hostname or url.username is not None:
                raise ValueError(f"url must look like http://127.0.0.1:8080/policy, not {self.url!r}")
            if self.unavailable not in ("tempfail", "continue"):
                raise ValueError(f'unavailable must be "tempfail" or "continue", not {self.unavailable!r}')
            if not self.seconds > 0:
                raise ValueError("seconds must be more than 0")

    guard: ClassVar[Guard]
    service: ClassVar["Service"]

    @classmethod
    def worker_started(cls, options: Options) -> None:
        """Take the options, once in each worker."""
        cls.service = Service(options.url, options.seconds)
        cls.guard = Guard(
            "policy",
            limit=options.at_once,
            wait=options.seconds,
            failures=options.failures,
            recovery=options.recovery,
            verdict=CONTINUE if options.unavailable == "continue" else TEMPFAIL,
        )

    @classmethod
    def worker_stopped(cls) -> None:
        """Close the connections."""
        cls.service.close()

    def on_rcpt(self, recipient: Address, params: Params) -> Verdict | None:
        """Ask about this recipient."""
        question = {
            "client": self.connection.address.host,
            "helo": self.connection.helo,
            "sender": self.message.sender,
            "recipient": recipient,
        }
        try:
            # Where the guard does not let the question through, its verdict is the answer.
            with self.guard:
                return verdict_of(self.service.ask(question))
        except (OSError, http.client.HTTPException, NotUnderstood) as error:
            log.warning("%s: no answer from the policy service: %r", self.message.queue_id, error)
            raise Answer(self.guard.verdict) from error


def verdict_of(answer: Any) -> Verdict:
    """Return the verdict that an answer stands for."""
    action, text = (answer.get("action"), answer.get("text")) if isinstance(answer, dict) else (None, None)
    # One line, and none of the halves of characters that JSON can spell.
    line = " ".join(str(text or "").encode("utf-8", "replace").decode().split())[:500] or "refused by local policy"
    if action == "continue":
        return CONTINUE
    if action == "reject":
        return reply(550, "5.7.1", line)
    if action == "tempfail":
        return reply(451, "4.7.1", line)
    raise NotUnderstood(f"{answer!r:.100}")


class Service:
    """The policy service, and the connections to it that are open and not in use."""

    def __init__(self, url: str, seconds: float) -> None:
        """Take its address; connections are opened when they are needed."""
        self._url = urllib.parse.urlsplit(url)
        self._seconds = seconds
        self._idle: collections.deque[http.client.HTTPConnection] = collections.deque()

    def close(self) -> None:
        """Close the connections."""
        while self._idle:
            self._idle.pop().close()

    def ask(self, question: dict[str, Any]) -> Any:
        """Ask, and return the answer; where the service has closed the connection meanwhile, ask on a new one."""
        body = json.dumps(question).encode()
        try:
            connection = self._idle.pop()
        except IndexError:
            return self._ask(self._new_connection(), body)
        try:
            return self._ask(connection, body)
        except ConnectionError:
            return self._ask(connection, body)

    def _new_connection(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        assert self._url.hostname is not None
        return kind(self._url.hostname, self._url.port, timeout=self._seconds)

    def _ask(self, connection: http.client.HTTPConnection, body: bytes) -> Any:
        target = urllib.parse.urlunsplit(("", "", self._url.path or "/", self._url.query, ""))
        try:
            connection.request("POST", target, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read(MOST_BYTES_OF_AN_ANSWER)
            if response.status != 200 or len(answer) == MOST_BYTES_OF_AN_ANSWER:
                raise NotUnderstood(f"status {response.status}, {len(answer)} bytes")
            found = json.loads(answer)
        except (ValueError, RecursionError) as error:
            connection.close()
            raise NotUnderstood("no JSON") from error
        except BaseException:
            connection.close()  # it opens by itself when it is used again
            raise
        self._idle.append(connection)
        return found
