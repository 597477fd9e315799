"""TARGET: reading it, importing it, and every way in which that fails."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastmilter.errors import ConfigError
from fastmilter.server.load import Target, importing, load_filter, parse_target

FILTER = """
import fastmilter

class Tagger(fastmilter.Filter):
    class Inner(fastmilter.Filter):
        pass

class Tagger2(fastmilter.Filter):
    pass

class Plain:
    pass

number = 3
"""


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Run in an empty directory, and leave modules and their places as they were."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        module_file = getattr(sys.modules[name], "__file__", None) or ""
        if module_file.startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "target", "name"),
    [
        ("tagger:Tagger", Target("tagger", "", "Tagger"), "Tagger"),
        ("a.b.c:Outer.Inner", Target("a.b.c", "", "Outer.Inner"), "Inner"),
        ("tagger.py:Tagger", Target("", "tagger.py", "Tagger"), "Tagger"),
        ("/srv/my-filter.py:Tagger", Target("", "/srv/my-filter.py", "Tagger"), "Tagger"),
        ("./odd:dir/x.py:Tagger", Target("", "./odd:dir/x.py", "Tagger"), "Tagger"),
    ],
)
def test_every_form_is_read_and_written_back(text: str, target: Target, name: str) -> None:
    assert parse_target(text) == target
    assert str(target) == text
    assert target.name == name


@pytest.mark.parametrize("text", ["tagger", "tagger:", ":Tagger", "tagger:1", "tagger:A..B", "my-filter:Tagger", ""])
def test_what_names_no_class_is_refused_with_the_right_form(text: str) -> None:
    with pytest.raises(ConfigError, match=r"module:Class or path/to/file\.py:Class"):
        parse_target(text)


def test_a_module_is_found_in_the_current_directory(tmp_path: Path) -> None:
    (tmp_path / "in_here.py").write_text(FILTER)
    found = load_filter(parse_target("in_here:Tagger"))
    assert found.__name__ == "Tagger"
    assert sys.path[0] == str(tmp_path)


def test_nested_classes_are_reached(tmp_path: Path) -> None:
    (tmp_path / "nesting.py").write_text(FILTER)
    assert load_filter(parse_target("nesting:Tagger.Inner")).__qualname__ == "Tagger.Inner"


def test_a_file_is_found_by_its_path_and_imports_from_its_directory(tmp_path: Path) -> None:
    directory = tmp_path / "else where"
    directory.mkdir()
    (directory / "helper_of_it.py").write_text("WORD = 'help'\n")
    (directory / "my-filter.py").write_text("import helper_of_it\n" + FILTER + "\nTagger.word = helper_of_it.WORD\n")
    found = load_filter(parse_target("else where/my-filter.py:Tagger"))
    assert found.__name__ == "Tagger"
    assert sys.path[0] == str(directory)


def test_a_package_is_found(tmp_path: Path) -> None:
    (tmp_path / "gateway_pkg").mkdir()
    (tmp_path / "gateway_pkg" / "__init__.py").write_text("")
    (tmp_path / "gateway_pkg" / "filters.py").write_text(FILTER)
    assert load_filter(parse_target("gateway_pkg.filters:Tagger2")).__module__ == "gateway_pkg.filters"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("nowhere_at_all:Tagger", "there is no module 'nowhere_at_all' in the current directory"),
        ("nowhere.py:Tagger", "the file 'nowhere.py' does not exist"),
        ("./:Tagger", "the file './' is a directory"),
        ("good.py:Tager", "there is no 'Tager' in good.py; did you mean Tagger"),
        ("good.py:Milter", r"its filters are: Tagger, Tagger2"),
        ("good.py:Plain", "Plain is a class, but not a subclass of fastmilter.Filter"),
        ("good.py:number", "number is a int, not a subclass of fastmilter.Filter"),
        ("empty.py:Tagger", "nor any other subclass of fastmilter.Filter"),
        ("email.py:Tagger", "hides Python's own module 'email'"),
        ("good.txt/x:Tagger", "does not exist"),
    ],
)
def test_what_cannot_be_found_is_told_with_what_could_be_meant(tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "good.py").write_text(FILTER)
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "email.py").write_text(FILTER)
    with pytest.raises(ConfigError, match=error):
        load_filter(parse_target(text))


@pytest.mark.parametrize("form", ["broken_one:Tagger", "broken_one.py:Tagger"])
@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("x = (\n", "SyntaxError"),
        ("raise RuntimeError('no data base')\n", "RuntimeError: no data base"),
        ("import sys\nsys.exit('enough')\n", "SystemExit: enough"),
        ("import not_installed_here\n", "No module named 'not_installed_here'"),
        ("import fastmilter\nclass A(fastmilter.Filter):\n    def on_heder(self): pass\n", "did you mean on_header"),
    ],
)
def test_a_broken_module_is_shown_with_the_place_of_its_fault(
    tmp_path: Path, form: str, source: str, error: str
) -> None:
    (tmp_path / "broken_one.py").write_text(source)
    with pytest.raises(ConfigError, match="cannot be imported") as caught:
        load_filter(parse_target(form))
    text = str(caught.value)
    assert error in text
    assert "broken_one.py" in text
    assert "importlib" not in text  # only what is the user's


def test_while_a_filter_is_imported_that_can_be_told(tmp_path: Path) -> None:
    (tmp_path / "curious.py").write_text("from fastmilter.server.load import importing\nSEEN = importing()\n" + FILTER)
    assert not importing()
    load_filter(parse_target("curious:Tagger"))
    assert sys.modules["curious"].SEEN
    assert not importing()
