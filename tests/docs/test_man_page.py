"""contrib/man/fastmilter.1 is what its script makes of the tables now."""

import importlib
import subprocess
import sys

from fastmilter.commands import SUBCOMMANDS
from fastmilter.server.options import Option
from tests.process.harness import ROOT

PAGE = ROOT / "contrib" / "man" / "fastmilter.1"


def plain(text: str) -> str:
    return text.replace("\\-", "-").replace("\\(aq", "'").replace("\\(dq", '"').replace("\\e", "\\")


def test_it_is_what_its_script_makes() -> None:
    command = [sys.executable, str(ROOT / "contrib" / "man" / "make_page.py")]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    assert made == PAGE.read_text(), "python contrib/man/make_page.py > contrib/man/fastmilter.1"


def test_every_option_of_every_command_is_in_it() -> None:
    page = plain(PAGE.read_text())
    counted = 0
    for name in SUBCOMMANDS:
        _, _, section = page.partition(f"\n.SH FASTMILTER {name.upper()}\n")
        section = section.partition("\n.SH ")[0]
        options: tuple[Option, ...] = getattr(
            importlib.import_module(f"fastmilter.commands.{name.replace('-', '_')}"), "OPTIONS", ()
        )
        for option in options:
            assert option.help in section, (name, option.name)
            counted += 1
    assert counted > 40


def test_no_line_is_taken_for_a_macro_that_is_none() -> None:
    macros = {line.split()[0] for line in PAGE.read_text().splitlines() if line.startswith((".", "'"))}
    assert macros <= {'.\\"', ".TH", ".SH", ".SS", ".TP", ".B", ".BI", ".br"}
