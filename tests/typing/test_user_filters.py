"""What a user's type checker says of filters: nothing of right ones, and every mistake of wrong ones."""

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MARK = re.compile(r"  # type: ignore\[(.+)\]$")
ERROR = re.compile(r"^.+?:(\d+): error: .* \[([\w-]+)\]$", re.MULTILINE)


def checked(path: Path) -> str:
    """What mypy says of a file, as strict as it can be."""
    words = ["--strict", "--no-error-summary", "--config-file=", "--cache-dir=.mypy_cache/users", str(path)]
    run = subprocess.run(
        [sys.executable, "-m", "mypy", *words], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode in (0, 1), run.stderr
    return run.stdout


def test_right_filters_pass() -> None:
    assert checked(HERE / "right_filter.py") == ""


def test_wrong_filters_do_not(tmp_path: Path) -> None:
    lines = (HERE / "wrong_filter.py").read_text(encoding="utf-8").splitlines()
    expected = {
        (number, code)
        for number, line in enumerate(lines, 1)
        if (mark := MARK.search(line))
        for code in mark[1].split(", ")
    }
    bare = tmp_path / "wrong_filter.py"
    bare.write_text("\n".join(MARK.sub("", line) for line in lines))
    found = {(int(number), code) for number, code in ERROR.findall(checked(bare))}
    assert found == expected
    assert len(expected) > 10
