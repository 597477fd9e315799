"""The programs in C: where they are, how they are made, and which cannot be made here."""

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
OUT = ROOT / "build" / "bench"
NATIVE = OUT / "native"
DEBIAN_PYTHON = "/usr/bin/python3"

KINDS = ("fastmilter", "raw", "threads", "debian", "pymilter")
"""The contestants; ``threads`` and ``debian`` are libmilter's builds."""


class BenchFailed(Exception):
    """The measurement could not be made."""


def program(name: str) -> str:
    """Return the path of a program in C."""
    return str(NATIVE / name)


def build() -> None:
    """Compile what has changed; without libmilter, what does without."""
    if shutil.which("cc") is None or shutil.which("make") is None:
        raise BenchFailed("a C compiler and make are needed (Debian: apt-get install gcc libc6-dev make)")
    done = subprocess.run(
        ["make", "--no-print-directory", "-C", str(HERE / "native"), f"OUT={NATIVE}", f"LIBMILTER={OUT / 'libmilter'}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BenchFailed(f"the programs in C did not compile:\n{done.stdout}{done.stderr}")


def why_missing(kind: str, options: tuple[str, ...] = ()) -> str | None:
    """Why a contestant cannot run here, in words; ``None`` if it can."""
    if kind == "pymilter":
        found = Path(DEBIAN_PYTHON).exists() and (
            subprocess.run([DEBIAN_PYTHON, "-c", "import Milter"], capture_output=True, check=False).returncode == 0
        )
        return None if found else "python3-milter is not installed (bench/get_libmilter.sh)"
    if kind in ("threads", "debian") and not (NATIVE / f"libmilter_{kind}").exists():
        return "libmilter is not there (bench/get_libmilter.sh)"
    if kind == "fastmilter" and options:
        serve = [sys.executable, "-m", "fastmilter", "serve", "--help"]
        known = subprocess.run(serve, capture_output=True, text=True, check=True, cwd=ROOT).stdout
        unknown = [option for option in options if option.startswith("--") and option not in known]
        return f"fastmilter serve does not know {', '.join(unknown)} yet" if unknown else None
    return None
