"""What real MTAs make of a verdict at a step: the expectations of test_verdicts.py, as a table and a few functions.

From recordings of Postfix 3.7.11 and Sendmail 8.17.1.9.
"""

from __future__ import annotations

from dataclasses import dataclass

Plan = str | list[int | str | None]

STEPS = (
    "connect",
    "helo",
    "mail",
    "rcpt",
    "data",
    "header",
    "end_of_headers",
    "body",
    "end_of_message",
    "unknown",
)
CONTENT = STEPS[5:9]

VERDICTS: dict[str, Plan] = {
    "continue": "continue",
    "accept": "accept",
    "reject": "reject",
    "tempfail": "tempfail",
    "discard": "discard",
    "skip": "skip",
    "550": [550, "5.7.1", "no: 100% %s"],
    "451": [451, "4.7.1", "later"],
    "421": [421, "4.7.0", "leaving"],
    "lines": [554, "5.7.1", "one\ntwo\nthree"],
    "plain": [550, None, "no codes"],
}

# The commands of the first message, each with the events that the filter is shown by default.
SCRIPT = ["mail", "rcpt", "rcpt", "rcpt", "data", "header", "header", "header", "header", "end_of_headers", "body"]
SCRIPT += ["end_of_message"]


@dataclass(frozen=True)
class Refusal:
    """Where the SMTP client hears of it, and what."""

    at: str
    code: int
    lines: tuple[str, ...] | None
    """None: the MTA's own words."""


def effective(step: str, verdict: str) -> str:
    """The verdict that counts: what is not possible at a step is answered TEMPFAIL."""
    if verdict in ("discard", "skip") and step in ("connect", "helo", "unknown"):
        return "tempfail"
    if verdict == "accept" and step == "unknown":
        return "tempfail"
    return verdict


def refuses(verdict: str) -> bool:
    """Whether the client is told no."""
    return verdict not in ("continue", "accept", "discard", "skip")


def refusal(mta: str, step: str, verdict: str, argument: str) -> Refusal:
    """What the client hears of a refusal; `argument` is the address that Sendmail repeats at MAIL and RCPT."""
    at = {"connect": "mail", "helo": "mail", "rcpt": "rcpt2"}.get(step, "dot" if step in CONTENT else step)
    plan = VERDICTS[verdict]
    if not isinstance(plan, str):
        code, lines = int(plan[0] or 0), _lines(mta, step, plan, argument)
    elif verdict == "tempfail":
        code, lines = 451, _temporary(mta)
    else:
        code, lines = _rejected(mta, at, step, argument)
    if step == "connect":
        return _at_connect(mta, code, lines)
    if step == "helo" and code == 421:
        at = "helo"
    return Refusal(at, code, lines)


def _temporary(mta: str) -> tuple[str]:
    text = "4.7.1 Service unavailable - try again later" if mta == "postfix" else "4.3.2 Please try again later"
    return (text,)


def _rejected(mta: str, at: str, step: str, argument: str) -> tuple[int, tuple[str]]:
    if mta == "sendmail" and step == "helo":
        return 550, ("5.0.0 Command rejected",)
    repeated = f"<{argument}>... " if mta == "sendmail" and at in ("mail", "rcpt2") else ""
    return 554 if mta == "sendmail" and at == "dot" else 550, (f"5.7.1 {repeated}Command rejected",)


def _lines(mta: str, step: str, plan: list[int | str | None], argument: str) -> tuple[str, ...]:
    code, enhanced, text = plan
    prefix = f"{enhanced} " if enhanced else ""
    lines = [prefix + line for line in str(text).split("\n")]
    if mta == "sendmail" and step in ("mail", "rcpt") and int(code or 0) >= 500 and len(lines) == 1:
        lines = [f"{prefix}<{argument}>... {text}"]
    return tuple(lines)


def _at_connect(mta: str, code: int, lines: tuple[str, ...]) -> Refusal:
    """The greeting is the MTA's own; a temporary refusal comes at MAIL, on Sendmail without the filter's words."""
    if code == 421:
        return Refusal("greeting", 421, None)
    if code >= 500:
        return Refusal("greeting", 554, None)
    return Refusal("mail", 451, lines if mta == "postfix" else _temporary(mta))


def shown(step: str, verdict: str) -> list[str]:
    """The events of the first message that the filter sees; the verdict is given once (at RCPT: the second)."""
    if step in ("connect", "helo"):
        return SCRIPT if verdict == "continue" else []
    if step == "unknown" or verdict == "continue":
        return SCRIPT if verdict != "421" else []
    place = SCRIPT.index(step) + (step == "rcpt")
    if verdict == "skip":
        return [event for number, event in enumerate(SCRIPT) if number <= place or event != step]
    if refuses(verdict) and step == "rcpt":
        return SCRIPT if verdict != "421" else SCRIPT[: place + 1]
    return SCRIPT[: place + 1]


def message_end(step: str, verdict: str) -> str | None:
    """The verdict that on_message_end is told for the first message; None where it was dropped."""
    if step == "unknown" or verdict in ("continue", "skip"):
        return "continue"
    if step == "rcpt" and refuses(verdict):
        return None if verdict == "421" else "continue"
    if step == "data" and refuses(verdict):
        return None
    plan = VERDICTS[verdict]
    return plan if isinstance(plan, str) else " ".join(str(part) for part in plan if part is not None)
