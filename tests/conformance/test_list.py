"""The list in README.md: complete, and true."""

import re
from pathlib import Path

HERE = Path(__file__).parent
NUMBERS = range(1, 121)
ROW = re.compile(r"^\| (\d+) \| (.+?) \| .*\|$", re.MULTILINE)
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")
NUMBERED = re.compile(r"^(?:async )?def (test_(?:case|conformance)_((?:\d+_)+)\w+)\(", re.MULTILINE)


def rows() -> dict[int, str]:
    found = ROW.findall((HERE / "README.md").read_text(encoding="utf-8"))
    assert [int(number) for number, _ in found] == list(NUMBERS)
    return {int(number): where for number, where in found}


def numbered_in(path: Path) -> dict[str, list[int]]:
    """The numbered tests of a file, and the cases that each is about."""
    found = NUMBERED.findall(path.read_text(encoding="utf-8"))
    return {name: [int(number) for number in numbers.strip("_").split("_")] for name, numbers in found}


def test_every_case_is_a_test_or_says_why_not() -> None:
    for number, where in rows().items():
        named = NAMED.findall(where)
        assert named or where.startswith("does not apply, because "), number
        for file, name in named:
            assert number in numbered_in(HERE.parent / file).get(name, []), f"{file}::{name}"


def test_every_numbered_test_is_in_the_list() -> None:
    listed = {(file, name) for where in rows().values() for file, name in NAMED.findall(where)}
    for path in [*HERE.glob("test_*.py"), HERE.parent / "unit" / "test_listen.py"]:
        for name in numbered_in(path):
            assert (path.relative_to(HERE.parent).as_posix(), name) in listed, name
