"""docs/operators-guide.md: what it names is there, and its settings can be used."""

import re

import pytest

from fastmilter.endpoints import parse_endpoint
from tests.process.harness import ROOT

GUIDE = (ROOT / "docs" / "operators-guide.md").read_text()
SOURCES = [path.read_text() for path in (ROOT / "fastmilter").rglob("*.py")]
LINKS = re.findall(r"\]\(([^)#]+)#([^)]+)\)", GUIDE)
LOG_LINES = re.findall(r"^\| (`[^|]+) \|", GUIDE.partition("## Reading the log")[2].partition("\n## ")[0], re.MULTILINE)


def anchors(path: str) -> set[str]:
    """What the headings of a document are called in links, as GitHub makes it of them."""
    headings = re.findall(r"^#+ (.*)$", (ROOT / "docs" / path).read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_there_is_something_to_look_at() -> None:
    assert len(LINKS) > 6
    assert len(LOG_LINES) > 6


@pytest.mark.parametrize(("path", "anchor"), sorted(set(LINKS)))
def test_every_link_leads_to_a_heading(path: str, anchor: str) -> None:
    assert anchor in anchors(path)


@pytest.mark.parametrize("line", LOG_LINES)
def test_every_line_of_the_log_is_one_that_the_server_writes(line: str) -> None:
    for quoted in re.findall(r"`([^`]+)`", line):
        for piece in re.split(r"\bN\b|\.\.\.", quoted):
            assert any(piece.strip() in source for source in SOURCES), piece


def test_the_settings_of_the_mtas_name_addresses_that_can_be_used() -> None:
    (postfix,) = re.findall(r"^    smtpd_milters = \{ (\S+),", GUIDE, re.MULTILINE)
    (sendmail,) = re.findall(
        r"^    INPUT_MAIL_FILTER\(`fastmilter', `S=(\S+), F=T, T=C:10s;S:10s;R:30s;E:5m'\)$", GUIDE, re.M
    )
    assert parse_endpoint(postfix) == parse_endpoint(sendmail)
    proxy = (ROOT / "contrib" / "haproxy" / "haproxy.cfg").read_text()
    (bind,) = re.findall(r"^    bind (\S+)$", proxy, re.MULTILINE)
    assert parse_endpoint(f"inet:{bind}") == parse_endpoint(postfix)
