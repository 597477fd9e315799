"""The stubs of the compiled modules say what the binaries are."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "fastmilter"
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in PACKAGE.rglob("*.pyx")
    # What exports nothing to Python needs no stub: other compiled modules know it by its .pxd.
    if path.stem != "_packets"
)


def stubtest(*modules: str, cwd: Path = ROOT, allow: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy.stubtest", *modules]
    if allow:
        command += ["--allowlist", str(Path(__file__).with_name("stubtest-allowlist.txt")), "--ignore-unused-allowlist"]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def test_stubs_and_binaries_agree() -> None:
    run = stubtest(*MODULES)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"no issues found in {len(MODULES)} modules" in run.stdout


def test_every_compiled_module_has_a_stub_and_no_other() -> None:
    stubs = {path.relative_to(ROOT).with_suffix("") for path in PACKAGE.rglob("*.pyi")}
    assert {".".join(path.parts) for path in stubs} == set(MODULES)


def test_what_needs_no_stub_exports_nothing() -> None:
    lines = (PACKAGE / "_packets.pyx").read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if re.match(r"cpdef|def |class ", line)]


def test_make_typing_compares_the_same() -> None:
    (line,) = re.findall(r"mypy\.stubtest (.*?) --", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert sorted(line.split()) == MODULES


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("_codec", "def decode_command(payload", "def decode_command(packet"),
        ("_text", "def is_one_line(value", "def is_one_line(line"),
        ("server/_sockets", "def wait(self, timeout_s", "def wait(self, seconds"),
    ],
)
def test_a_wrong_stub_would_be_noticed(tmp_path: Path, name: str, right: str, wrong: str) -> None:
    """So the test above cannot pass because stubtest found nothing to compare."""
    package = tmp_path / "fastmilter"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("*.c", "*.pyx", "*.pxd", "__pycache__"))
    stub = package / f"{name}.pyi"
    text = stub.read_text(encoding="utf-8")
    assert right in text
    stub.write_text(text.replace(right, wrong))
    run = stubtest(f"fastmilter.{name.replace('/', '.')}", cwd=tmp_path, allow=False)
    assert run.returncode != 0
    assert right.partition("(")[0].removeprefix("def ") in run.stdout
