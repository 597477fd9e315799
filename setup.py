"""Builds the extension; everything else is in pyproject.toml.

FASTMILTER_DEBUG=1     unoptimised, with line tracing
FASTMILTER_SANITIZE=1  with the address and undefined-behaviour sanitizers
"""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = bool(os.environ.get("FASTMILTER_DEBUG"))
SANITIZE = ["-fsanitize=address,undefined"] if os.environ.get("FASTMILTER_SANITIZE") else []
DIRECTIVES = {
    "language_level": 3,
    "binding": True,
    "embedsignature": True,
    "auto_pickle": False,
    "autotestdict": False,
    "linetrace": DEBUG,
}

# The messages are a file of their own for size alone; the codec reaches into them through _messages.pxd.
extensions = [
    Extension(
        f"fastmilter.{name}",
        [f"fastmilter/{name}.pyx"],
        extra_compile_args=["-Wall", "-Wextra", "-O0" if DEBUG else "-O2", *SANITIZE],
        extra_link_args=SANITIZE,
        define_macros=[("CYTHON_TRACE_NOGIL", "1")] if DEBUG else [],
    )
    for name in ("_messages", "_codec")
]

setup(ext_modules=cythonize(extensions, compiler_directives=DIRECTIVES, annotate=DEBUG))
