"""The stubs of the compiled modules say what the binaries are."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("module", ["fastmilter._codec", "fastmilter._messages"])
def test_stub_and_binary_agree(module: str) -> None:
    allowlist = Path(__file__).with_name("stubtest-allowlist.txt")
    command = [
        sys.executable,
        "-m",
        "mypy.stubtest",
        module,
        "--allowlist",
        str(allowlist),
        "--ignore-unused-allowlist",
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_wrong_stub_would_be_noticed(tmp_path: Path) -> None:
    """So the test above cannot pass because stubtest found nothing to compare."""
    package = tmp_path / "fastmilter"
    shutil.copytree(ROOT / "fastmilter", package, ignore=shutil.ignore_patterns("*.c", "*.pyx", "*.pxd", "__pycache__"))
    stub = package / "_codec.pyi"
    stub.write_text(stub.read_text(encoding="utf-8").replace("def decode_command(payload", "def decode_command(packet"))
    command = [sys.executable, "-m", "mypy.stubtest", "fastmilter._codec"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode != 0
    assert "decode_command" in run.stdout
