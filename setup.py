"""Builds the extension; everything else is in pyproject.toml.

FASTMILTER_DEBUG=1     unoptimised, with line tracing
FASTMILTER_SANITIZE=1  with the address and undefined-behaviour sanitizers
"""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = bool(os.environ.get("FASTMILTER_DEBUG"))
JOBS = os.cpu_count() or 1
SANITIZE = ["-fsanitize=address,undefined"] if os.environ.get("FASTMILTER_SANITIZE") else []
WARNINGS = ["-Wall", "-Wextra", "-Wno-array-bounds"]
# Functions with arrays are guarded. Debian's Python would have each guarded that takes the address of a variable, which
# is most of those that run for each packet.
CODE = ["-fno-plt", "-fstack-protector"]
DIRECTIVES = {
    "language_level": 3,
    "binding": True,
    "embedsignature": True,
    "auto_pickle": False,
    "autotestdict": False,
    "linetrace": DEBUG,
}

# The messages are a file of their own for size alone; the codec reaches into them through _messages.pxd.
CYTHON = (
    "_text",
    "_call",
    "_messages",
    "_packets",
    "_scan",
    "_codec",
    "_encode",
    "server._sockets",
    "server._in_work",
    "server._orphan",
)

# Python files that are compiled as they are: their side files (.pxd) say which names are C.
COMPILED = (
    "addresses",
    "macros",
    "limits",
    "edits",
    "message",
    "filter",
    "session",
    "conversation",
    "server.counters",
    "server.slots",
    "server.line_writer",
    "server.message_log",
    "server.counted",
    "server.crowd",
    "server.intake",
    "server.worker",
    "server.overtime",
    "server.waiting",
)


def extension(name: str, suffix: str) -> Extension:
    """Return the compiled module ``name`` of the package."""
    return Extension(
        f"fastmilter.{name}",
        [f"fastmilter/{name.replace('.', '/')}.{suffix}"],
        extra_compile_args=[*WARNINGS, *CODE, "-O0" if DEBUG else "-O2", *SANITIZE],
        extra_link_args=SANITIZE,
        define_macros=[("CYTHON_TRACE_NOGIL", "1")] if DEBUG else [],
    )


setup(
    options={"build_ext": {"parallel": JOBS}},
    ext_modules=[
        *cythonize(
            [extension(name, "pyx") for name in CYTHON],
            compiler_directives=DIRECTIVES,
            annotate=DEBUG,
            nthreads=JOBS,
        ),
        *cythonize(
            [extension(name, "py") for name in COMPILED],
            # Annotations are for people and mypy: a subclass of str would not pass where Cython reads "str".
            compiler_directives={**DIRECTIVES, "annotation_typing": False},
            annotate=DEBUG,
            nthreads=JOBS,
        ),
    ],
)
