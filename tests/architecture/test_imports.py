"""The floors of the house: imports go strictly downward, read from the sources."""

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "fastmilter"

FLOORS: list[set[str]] = [
    {"_version", "constants", "purpose"},
    {"errors", "_text", "_call"},
    {"_bounds", "_messages"},
    {"_packets", "_scan"},
    {"_codec", "_encode"},
    {"codec"},
    {"replies", "addresses", "endpoints", "events"},
    {"negotiation", "macros", "limits"},
    {"session", "mta", "edits"},
    {"client_session", "plan"},
    {"message"},
    {"filter"},
    {"conversation"},
]
"""The protocol, from the ground up; a module imports only what lies below it, never its neighbours."""

BESIDE = {"guard"}
"""Stands on the protocol alone but has a clock and locks: filters import it, and all that is no protocol may."""

WINGS = {"server", "client"}
TOP = {"commands", "testing", "__main__", "__init__"}

WORLD = {
    "asyncio",
    "concurrent",
    "ctypes",
    "datetime",
    "fcntl",
    "logging",
    "mmap",
    "multiprocessing",
    "os",
    "pathlib",
    "psutil",
    "random",
    "select",
    "selectors",
    "setproctitle",
    "shutil",
    "signal",
    "socket",
    "socketserver",
    "ssl",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
}
"""What the protocol does not know: sockets, processes, clocks, logs, files."""

ALLOWED = {("edits", "tempfile")}
"""A new body may be larger than memory: it waits in a temporary file."""


def sources() -> Iterator[tuple[str, Path]]:
    """Every module by its dotted name below the package."""
    for path in sorted(PACKAGE.rglob("*.py*")):
        if path.suffix in (".py", ".pyx") and "__pycache__" not in path.parts:
            yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts), path


class _AtRunTime(ast.NodeTransformer):
    """Takes out what is imported for annotations only."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        is_for_types = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return None if is_for_types else self.generic_visit(node)


_CYTHON_IMPORT = re.compile(r"^(?:from ([\w.]+) )?c?import (\([^)]*\)|[^\n#]*)", re.MULTILINE)


def _named_by_python(source: str, at_run_time: bool) -> Iterator[tuple[str, list[str]]]:
    """What the import statements name: each module, and the names that are taken from it."""
    tree: ast.AST = ast.parse(source)
    if at_run_time:
        tree = _AtRunTime().visit(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            yield node.module or "", [alias.name for alias in node.names]


def _named_by_cython(source: str) -> Iterator[tuple[str, list[str]]]:
    """The same of a ``.pyx`` or ``.pxd`` file, which Python cannot parse: ``cimport`` counts too."""
    for module, text in _CYTHON_IMPORT.findall(source):
        names = [name.split(" as ")[0].strip() for name in text.strip("()").split(",") if name.strip()]
        if module:
            yield module, names
        else:
            yield from ((name, []) for name in names)


def imported(path: Path, *, at_run_time: bool = False) -> set[str]:
    """The modules that a file imports, with dots; a name taken from a package counts as a module where it is one.

    What the C side of a module imports (its ``.pxd``) counts as well.
    """
    with tokenize.open(path) as source:
        text = source.read()
    statements = [*_named_by_cython(text)] if path.suffix == ".pyx" else [*_named_by_python(text, at_run_time)]
    side = path.with_suffix(".pxd")
    if side.exists():
        statements += _named_by_cython(side.read_text())
    found = set()
    for module, names in statements:
        assert not module.startswith("."), f"{path}: a relative import"
        if not names:
            found.add(module)
        for name in names:
            inner = PACKAGE.joinpath(*module.split(".")[1:], name)
            is_module = module.split(".")[0] == "fastmilter" and (
                inner.is_dir() or inner.with_suffix(".py").exists() or inner.with_suffix(".pyx").exists()
            )
            found.add(f"{module}.{name}" if is_module else module)
    return found


def own(path: Path, *, at_run_time: bool = False) -> set[str]:
    """The modules of the package that a file imports, without ``fastmilter.``."""
    names = {name for name in imported(path, at_run_time=at_run_time) if name.split(".")[0] == "fastmilter"}
    return {name.removeprefix("fastmilter").removeprefix(".") or "__init__" for name in names}


def test_cython_imports_are_seen() -> None:
    """So that the tests below cannot pass because nothing was found."""
    assert {"_bounds", "_messages", "_packets", "_text", "constants", "errors"} <= own(PACKAGE / "_codec.pyx")
    assert {"_codec", "macros"} <= own(PACKAGE / "session.py"), "session.pxd counts"
    assert "os" in imported(PACKAGE / "server" / "_sockets.pyx")


MODULES = dict(sources())
PROTOCOL = {name: path for name, path in MODULES.items() if "." not in name and name not in TOP | BESIDE}


def floor(name: str) -> int:
    return next(number for number, names in enumerate(FLOORS) if name in names)


def test_every_module_has_its_place() -> None:
    assert set(PROTOCOL) == set().union(*FLOORS)
    assert {name.split(".")[0] for name in MODULES if name not in PROTOCOL} <= WINGS | TOP | BESIDE


@pytest.mark.parametrize("name", PROTOCOL)
def test_imports_go_downward(name: str) -> None:
    for other in own(PROTOCOL[name]):
        assert other in PROTOCOL, f"{name} imports {other}, which stands on it"
        assert floor(other) < floor(name), f"{name} imports {other}"


@pytest.mark.parametrize("name", PROTOCOL)
def test_the_protocol_knows_nothing_of_the_world(name: str) -> None:
    taken = {module.split(".")[0] for module in imported(PROTOCOL[name])} & WORLD
    assert {(name, module) for module in taken} <= ALLOWED


@pytest.mark.parametrize("name", [name for name in MODULES if name.split(".")[0] in WINGS])
def test_server_and_client_do_not_know_each_other(name: str) -> None:
    wing = name.split(".")[0]
    for other in own(MODULES[name]):
        assert other.split(".")[0] in {wing} | BESIDE | set(PROTOCOL), f"{name} imports {other}"


@pytest.mark.parametrize("name", sorted(BESIDE))
def test_what_stands_beside_stands_on_the_protocol_alone(name: str) -> None:
    assert own(MODULES[name]) <= set(PROTOCOL)


def test_nothing_imports_the_commands_or_the_test_kit() -> None:
    """They stand on everything else. (``fastmilter.serve`` starts the command, it does not import it.)"""
    for name, path in MODULES.items():
        if name.split(".")[0] not in ("commands", "__main__"):
            assert not {other for other in own(path) if other.split(".")[0] in ("commands", "testing")}, name


def test_there_are_no_circles() -> None:
    """Also between the modules of a wing, where there are no floors."""
    edges = {name: own(path, at_run_time=True) & set(MODULES) for name, path in MODULES.items()}
    done: set[str] = set()
    while left := {name for name in edges if name not in done}:
        free = {name for name in left if edges[name] - {name} <= done}
        assert free, f"these import each other: {sorted(left)}"
        done |= free
