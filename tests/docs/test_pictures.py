"""The pictures in docs/monitoring.md have the words and the columns of what the commands write today."""

import html
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from contrib.pictures.svg import svg
from tests.process.harness import ROOT, clean_environment

PAGE = (ROOT / "docs" / "monitoring.md").read_text()
NAMES = ("status", "top")
MAKE = "make pictures"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the pictures of a run of now."""
    directory = tmp_path_factory.mktemp("pictures")
    words = ["-m", "contrib.pictures.make_pictures", "--port", "0", "--into", str(directory)]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
    return directory


def shown(picture: Path) -> list[str]:
    """The lines of text in a picture."""
    lines = re.findall(r"<text [^>]*>(.*)</text>", picture.read_text())
    return [" ".join(html.unescape(piece) for piece in re.findall(r"<tspan [^>]*>([^<]*)<", line)) for line in lines]


def labels(lines: list[str]) -> list[str]:
    """Lines without what differs each time: numbers, and rows of tables but for their kinds."""
    masked = [" ".join(re.sub(r"[\d.:]*\d", "N", line).split()) for line in lines]
    return sorted(set(masked) - {line for line in masked if line.startswith("N")} | states(lines))


def states(lines: list[str]) -> set[str]:
    """The states of workers that are shown."""
    return {
        word for line in lines if re.match(r" *\d", line) for word in line.split() if word.isalpha() and len(word) > 2
    }


@pytest.mark.parametrize("name", NAMES)
def test_they_show_what_the_commands_write(made: Path, name: str) -> None:
    new, old = (labels(shown(directory / f"{name}.svg")) for directory in (made, ROOT / "docs"))
    assert new == old, f"{MAKE} makes them anew"
    assert any(line.startswith("worker pid gen state conns") for line in new)
    assert any(line.startswith("in flight step age worker") for line in new)
    assert {"serving", "draining"} <= set(new)


@pytest.mark.parametrize("name", NAMES)
def test_the_page_shows_them(name: str) -> None:
    assert f"]({name}.svg)" in PAGE


@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_them_is_of_the_machine_that_made_them(made: Path, name: str) -> None:
    for directory in (made, ROOT / "docs"):
        text = "\n".join(shown(directory / f"{name}.svg"))
        assert not re.search(r"/(?:root|home|tmp|work|usr|var)\b", text)
        assert socket.gethostname() not in text


def test_colours_and_columns_are_those_of_the_terminal() -> None:
    drawn = svg(["a \x1b[32mserving\x1b[0m <1>"], "title")
    assert '<tspan x="14.0" textLength="16.8">a </tspan>' in drawn
    assert '<tspan x="30.8" textLength="58.8" fill="#7ee787">serving</tspan>' in drawn
    assert '<tspan x="89.6" textLength="33.6"> &lt;1&gt;</tspan>' in drawn
    with pytest.raises(KeyError):
        svg(["\x1b[35mpurple\x1b[0m"], "a code that the commands do not use")
