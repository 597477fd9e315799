"""No file that cannot be read in one sitting, no function that cannot be seen at once."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_LINES_OF_A_FILE = 600
MOST_LINES_OF_A_FUNCTION = 50
SOURCES = sorted(
    path
    for folder in ("fastmilter", "tests", "bench", "examples")
    for suffix in ("*.py", "*.pyi", "*.pyx", "*.pxd")
    for path in (ROOT / folder).rglob(suffix)
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Each function and its lines, without decorators and docstring, unless a comment ``# long:`` says why."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            has_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            start = (first.end_lineno or 0) + 1 if has_docstring else node.lineno
            end = node.end_lineno or node.lineno
            if not any("# long:" in line for line in lines[node.lineno - 1 : end]):
                yield node.name, end - start + 1


def test_there_is_something_to_look_at() -> None:
    assert len(SOURCES) > 50


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES_OF_A_FILE


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.suffix == ".py"], ids=lambda path: str(path.relative_to(ROOT))
)
def test_functions(path: Path) -> None:
    too_long = {name: lines for name, lines in functions(path) if lines > MOST_LINES_OF_A_FUNCTION}
    assert too_long == {}
