"""Every verdict at every step on both MTAs: what the client hears, what is delivered, what the filter is shown."""

from __future__ import annotations

from typing import Any

import pytest

from . import verdicts
from .case import MESSAGE, Case, act
from .lab import Mta, Reply, SmtpClient
from .lab.served import Stage
from .verdicts import CONTENT, STEPS, VERDICTS, effective, refusal, refuses

EVENTS = set(verdicts.SCRIPT)
MATRIX = [("Default", step, verdict) for step in STEPS for verdict in VERDICTS]
# Asked for a reply, the content's steps answer at once; the others are the same.
MATRIX += [("Early", step, verdict) for step in CONTENT for verdict in VERDICTS]
SENDER = "m1@from.test"


class Played:
    """A session: one message that meets the verdict, and another one after it."""

    def __init__(self, case: Case, with_unknown: bool) -> None:
        self.replies: dict[str, Reply] = {}
        self.second: int | None = None
        with case.client() as client:
            self.replies["greeting"] = client.greeting
            self._client = client
            self._play(case, with_unknown)
            if self.ended:
                assert client.at_end()
                return
            if self.replies.get("data", client.greeting).code >= 400:
                client.expect(250, "RSET")
            self.second = self._second(case, client)
            client.quit()

    @property
    def ended(self) -> bool:
        """Whether the server left."""
        return any(reply.code == 421 for reply in self.replies.values())

    def _say(self, key: str, line: str) -> bool:
        """Say a line; False if there is no going on after its reply."""
        self.replies[key] = reply = self._client.command(line)
        return reply.code != 421

    def _play(self, case: Case, with_unknown: bool) -> None:
        if self.ended or not self._say("helo", "EHLO client.test"):
            return
        if with_unknown and not self._say("unknown", "FROBNICATE now"):
            return
        if not self._say("mail", f"MAIL FROM:<{SENDER}>") or self.replies["mail"].code >= 400:
            return
        for number, recipient in enumerate(case.to("r1", "r2", "r3"), start=1):
            if not self._say(f"rcpt{number}", f"RCPT TO:<{recipient}>"):
                return
        if self._say("data", "DATA") and self.replies["data"].code == 354:
            self.replies["dot"] = self._client.content(MESSAGE)

    @staticmethod
    def _second(case: Case, client: SmtpClient) -> int:
        mail = client.command("MAIL FROM:<m2@from.test>")
        if mail.code != 250:
            return mail.code
        client.expect(250, f"RCPT TO:<{case.to('again')[0]}>")
        return client.data(MESSAGE).code


@pytest.fixture
def case(stage: Stage, mta: Mta, filter_class: str) -> Case:
    return Case(mta, stage.serve(f"planned.py:{filter_class}"))


@pytest.mark.parametrize(("filter_class", "step", "verdict"), MATRIX)
def test_verdict(case: Case, step: str, verdict: str) -> None:
    case.plan(planned(case, step, verdict))
    played = Played(case, with_unknown=step == "unknown")
    effect = effective(step, verdict)
    check_replies(case, played, step, effect)
    check_delivery(case, played, step, effect)
    check_events(case, step, effect)
    assert case.filter_failed() == []


def planned(case: Case, step: str, verdict: str) -> dict[str, Any]:
    message = None if step in ("connect", "helo", "unknown") else 1
    return act(step, verdict=VERDICTS[verdict], message=message, shown="r2@" if step == "rcpt" else "")


def check_replies(case: Case, played: Played, step: str, effect: str) -> None:
    replies = dict(played.replies)
    if refuses(effect):
        argument = case.to("r2")[0] if step == "rcpt" else SENDER
        expected = refusal(case.mta.name, step, effect, argument)
        reply = replies.pop(expected.at)
        assert reply.code == expected.code, reply
        if expected.lines is not None:
            assert without_default_codes(reply) == expected.lines
        if expected.at == "greeting":
            return  # what an MTA says to a client that goes on regardless is its own
    elif step == "unknown":
        assert replies.pop("unknown").code == 500
    codes = {key: reply.code for key, reply in replies.items()}
    good = {"greeting": 220, "data": 354}
    assert codes == {key: good.get(key, 250) for key in codes}


def without_default_codes(reply: Reply) -> tuple[str, ...]:
    """Sendmail writes an enhanced code into a reply that has none."""
    if "no codes" in reply.text:
        return tuple(line.removeprefix("5.0.0 ") for line in reply.lines)
    return reply.lines


def check_delivery(case: Case, played: Played, step: str, effect: str) -> None:
    refused = refuses(effect)
    whole_session = step in ("connect", "helo")
    first = not ((refused and step not in ("rcpt", "unknown")) or effect == "discard") and not played.ended
    second = not (refused and whole_session) and not played.ended
    delivered = case.delivered(first + second)
    assert [delivery.sender for delivery in delivered] == [SENDER] * first + ["m2@from.test"] * second
    if first:
        names = ("r1", "r3") if refused and step == "rcpt" else ("r1", "r2", "r3")
        assert sorted(delivered[0].recipients) == case.to(*names)
    if second:
        assert played.second == 250
    elif not played.ended:
        assert played.second is None or played.second >= 400


def check_events(case: Case, step: str, effect: str) -> None:
    events = case.first_connection()
    of_first = [event["event"] for event in events if event["message"] == 1]
    assert [event for event in of_first if event in EVENTS] == verdicts.shown(step, effect)
    if verdicts.shown(step, effect):
        end = verdicts.message_end(step, effect)
        ends = [event["data"][0] for event in events if event["event"] == "message_end" and event["message"] == 1]
        assert ends == [end]
        assert of_first.count("abort") == (end is None)
    assert [event["event"] for event in events].count("close") == 1


@pytest.mark.parametrize("filter_class", ["Default"])
def test_an_unknown_command_inside_a_transaction(case: Case) -> None:
    case.plan(act("unknown", verdict=VERDICTS["550"], shown="REFUSE"))
    with case.client() as client:
        client.ehlo()
        client.expect(250, "MAIL FROM:<m1@from.test>")
        assert client.command("REFUSE this").lines == ("5.7.1 no: 100% %s",)
        assert client.command("FROBNICATE now").code == 500
        client.expect(250, f"RCPT TO:<{case.to('b')[0]}>")
        assert client.command("FROBNICATE again").code == 500
        assert client.data(MESSAGE).code == 250
        client.quit()
    case.delivered(1)
    said = [event["data"][0] for event in case.events("unknown")]
    whole = ["REFUSE this", "FROBNICATE now", "FROBNICATE again"]
    assert said == (whole if case.mta.name == "sendmail" else [line.split()[0] for line in whole])


@pytest.mark.parametrize("filter_class", ["Default", "Early"])
@pytest.mark.parametrize("step", ["mail", "rcpt", "data", "header", "end_of_headers", "body"])
def test_accept_with_edits_pending_is_carried_to_the_end(case: Case, step: str) -> None:
    case.plan(act("mail", ("add_header", ["X-Early", "kept"], {}), message=1), act(step, verdict="accept", message=1))
    delivery = case.deliver()
    assert delivery.values("X-Early") == [b"kept"]
    ends = [event["data"][0] for event in case.first_connection() if event["event"] == "message_end"]
    assert ends == ["accept"]


@pytest.mark.parametrize("filter_class", ["Default"])
def test_recipients_are_added_after_a_refused_data(case: Case) -> None:
    case.plan(act("data", verdict=VERDICTS["451"], message=1))
    with case.client() as client:
        client.ehlo()
        client.envelope("m1@from.test", case.to("r1"))
        assert client.command("DATA").lines == ("4.7.1 later",)
        client.expect(250, f"RCPT TO:<{case.to('r2')[0]}>")
        assert client.command("DATA").code == 451
        client.quit()
    case.delivered(0)
    events = case.first_connection()
    assert [event["event"] for event in events].count("data") == 2
    assert [event["event"] for event in events if event["event"] in ("abort", "message_end")] == [
        "abort",
        "message_end",
    ]
