"""What became of a message, for ``check``: the steps, the verdict, the changes; for people and for programs."""

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple

from fastmilter import codec
from fastmilter._text import to_bytes
from fastmilter.client import Applied, Outcome, apply_modifications
from fastmilter.client.fields import split_message
from fastmilter.client_session import Agreed
from fastmilter.commands.terminal import Paper, as_json, fields_as_json, harmless, quoted, safe
from fastmilter.commands.wording import answer
from fastmilter.constants import Step
from fastmilter.replies import Verdict, VerdictKind

MOST_LINES: Final = 10_000
"""Bodies with more lines are not compared line by line: that takes time by the square."""

_NUMBER_COLUMNS: Final = 9


class Row(NamedTuple):
    """A line of the table of steps."""

    step: str
    told: str
    answer: str
    milliseconds: float
    verdict: Verdict | None


class Report:
    """What is told of one message."""

    def __init__(
        self, outcome: Outcome, agreed: Agreed, asked: Sequence[str], target: str, name: str, status: int
    ) -> None:
        """Prepare a report; ``asked``: the recipients in their order; ``name``: what the message is called."""
        self._outcome = outcome
        self._agreed = agreed
        self._asked = asked
        self._fields, _ = split_message(outcome.message, outcome.mta.mailbox_line)
        self._target = target
        self._name = name
        self._status = status
        self._applied = outcome.apply()
        self._before = apply_modifications(outcome.message, outcome.sender, outcome.recipients, (), mta=outcome.mta)

    # -- for people ----------------------------------------------------------------------------------------------------

    def as_lines(self, paper: Paper) -> Iterator[str]:
        """Yield the report."""
        room = min(paper.width, 100) - 16 - 26 - _NUMBER_COLUMNS - 2
        told_columns = max(room, 24)
        yield paper.coloured(f"{'step':<16}{'':<{told_columns}}  {'answer':<24}{'ms':>{_NUMBER_COLUMNS}}", "bold")
        for row in self._rows():
            told = row.told if len(row.told) <= told_columns else row.told[: told_columns - 3] + "..."
            shown = paper.coloured(f"{row.answer:<24}", _colour(row.verdict))
            yield f"{row.step:<16}{told:<{told_columns}}  {shown}{row.milliseconds:>{_NUMBER_COLUMNS}.2f}"
        yield ""
        yield paper.coloured(self.conclusion(), _colour(self._outcome.verdict) or "green")
        yield from (f"problem: {harmless(problem)}" for problem in self._applied.problems)
        yield from self._envelope()
        difference = list(self._difference())
        if difference:
            yield ""
            yield from (paper.coloured(line, _colour_of_line(line)) for line in difference)
        elif self._has_effect:
            yield "the message itself is unchanged"

    def conclusion(self) -> str:
        """Return the verdict and what the MTA makes of it."""
        verdict, applied = self._outcome.verdict, self._applied
        words = f"verdict: {answer(verdict, full=True)}: "
        if verdict.is_refusal:
            return words + f"refused {'for now' if verdict.is_temporary else 'for good'}"
        if verdict.kind is VerdictKind.DISCARD:
            return words + "accepted and thrown away"
        if applied.quarantined:
            return words + f"held by the MTA: {quoted(to_bytes(applied.quarantine_reason), full=True)}"
        if applied.delivered:
            return words + f"delivered to {', '.join(harmless(str(to)) for to in applied.recipients)}"
        return words + ("no recipient is left" if not applied.recipients else "the MTA cannot do what was asked for")

    @property
    def _has_effect(self) -> bool:
        return not self._outcome.verdict.is_refusal and self._outcome.verdict.kind is not VerdictKind.DISCARD

    def _rows(self) -> Iterator[Row]:
        names = iter(self._fields)
        recipients = iter(self._asked)
        skipped: set[Step] = set()
        for (step, verdict), group in groupby(self._outcome.steps, key=lambda played: (played.step, played.verdict)):
            steps = list(group)
            if step is Step.HEADER and verdict is None:
                milliseconds = sum(played.milliseconds for played in steps)
                count = f"{len([next(names) for _ in steps])} field{'' if len(steps) == 1 else 's'}"
                yield Row(step, count, self._no_answer(step, skipped), milliseconds, None)
                continue
            for played in steps:
                told = {Step.MAIL: lambda: f"from <{harmless(str(self._outcome.sender))}>"}.get(step, str)()
                if step is Step.RCPT:
                    told = f"to <{harmless(next(recipients).strip('<>'))}>"
                elif step is Step.HEADER:
                    told = safe(next(names).name)
                shown = self._no_answer(step, skipped) if verdict is None else answer(verdict)
                yield Row(step, told, shown, played.milliseconds, verdict)
            if verdict is not None and verdict.kind is VerdictKind.SKIP:
                skipped.add(step)

    def _no_answer(self, step: Step, skipped: set[Step]) -> str:
        if step in self._agreed.suppressed:
            return "- (not wanted)"
        return "- (skipped)" if step in skipped else "- (not awaited)"

    def _envelope(self) -> Iterator[str]:
        before, after = self._before, self._applied
        if not self._has_effect:
            return
        refused = [f"  {safe(to.raw)}: {answer(verdict)}" for to, verdict in self._outcome.refused.items()]
        if refused:
            yield "refused recipients:"
            yield from refused
        changes = []
        if (before.sender, self._outcome.sender_params) != (after.sender, after.sender_params):
            old, new = (harmless(str(each)) for each in (before.sender, after.sender))
            params = "".join(f" {harmless(param)}" for param in after.sender_params)
            changes.append(f"  sender: <{old}> becomes <{new}>{params}")
        old_ones, new_ones = set(map(str, before.recipients)), set(map(str, after.recipients))
        changes += [f"  - <{harmless(str(to))}>" for to in before.recipients if str(to) not in new_ones]
        for to in after.recipients:
            if str(to) not in old_ones:
                changes.append(f"  + <{harmless(str(to))}>" + "".join(f" {harmless(param)}" for param in to.params))
        if changes:
            yield "envelope:"
            yield from changes

    def _difference(self) -> Iterator[str]:
        """Yield the changes of the message as a unified diff, line ends apart."""
        if not self._has_effect or self._before.message == self._applied.message:
            return
        before, after = (_parts(each) for each in (self._before, self._applied))
        too_long = before[1] != after[1] and before[1].count(b"\n") + after[1].count(b"\n") > MOST_LINES
        old, new = (_lines(part[0] if too_long else part[0] + part[1]) for part in (before, after))
        yield from difflib.unified_diff(old, new, harmless(self._name), "after the filter", lineterm="")
        if too_long:
            yield f"(body: {len(before[1])} bytes become {len(after[1])} bytes; too long to compare line by line)"

    # -- for programs --------------------------------------------------------------------------------------------------

    def as_object(self) -> dict[str, Any]:
        """Return the report for JSON."""
        outcome, applied = self._outcome, self._applied
        return {
            "target": self._target,
            "mta": outcome.mta.name,
            "status": self._status,
            "verdict": _verdict(outcome.verdict),
            "steps": [
                {"step": step, "verdict": _verdict(verdict), "milliseconds": round(milliseconds, 3)}
                for step, verdict, milliseconds in outcome.steps
            ],
            "recipients": [as_json(to.raw) for to in outcome.recipients],
            "refused": [
                {"recipient": as_json(to.raw), "verdict": _verdict(why)} for to, why in outcome.refused.items()
            ],
            "modifications": [_modification(each) for each in outcome.modifications],
            "result": {
                "delivered": applied.delivered,
                "quarantined": applied.quarantined,
                "quarantine_reason": as_json(to_bytes(applied.quarantine_reason)),
                "sender": as_json(to_bytes(str(applied.sender))),
                "sender_params": [as_json(to_bytes(param)) for param in applied.sender_params],
                "recipients": [as_json(to_bytes(str(to))) for to in applied.recipients],
                "problems": list(applied.problems),
                "message": as_json(applied.message),
            },
            "diff": list(self._difference()),
        }


def _verdict(verdict: Verdict | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    found: dict[str, Any] = {"kind": str(verdict.kind)}
    if verdict.code is not None:
        found |= {"code": verdict.code, "enhanced": verdict.enhanced, "text": as_json(to_bytes(verdict.text or ""))}
    return found


def _modification(modification: codec.Modification) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(modification)]
    return {
        "kind": type(modification).__name__,
        **{name: fields_as_json(getattr(modification, name)) for name in names},
    }


def _parts(applied: Applied) -> tuple[bytes, bytes]:
    _, body = split_message(applied.message)
    return applied.message[: len(applied.message) - len(body)], body


def _lines(part: bytes) -> list[str]:
    """Return lines that can be shown; a tab may stay."""
    lines = part.decode("utf-8", "surrogateescape").split("\r\n")
    return [
        "\t".join(harmless(piece) for piece in line.split("\t")) for line in lines[: -1 if lines[-1] == "" else None]
    ]


def _colour(verdict: Verdict | None) -> str:
    if verdict is None:
        return "dim"
    if verdict.is_refusal:
        return "yellow" if verdict.is_temporary else "red"
    return {VerdictKind.ACCEPT: "green", VerdictKind.DISCARD: "yellow"}.get(verdict.kind, "")


def _colour_of_line(line: str) -> str:
    if line.startswith(("---", "+++")):
        return "bold"
    return {"-": "red", "+": "green", "@": "cyan"}.get(line[:1], "")
