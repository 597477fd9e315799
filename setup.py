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

codec = Extension(
    "fastmilter._codec",
    ["fastmilter/_codec.pyx"],
    extra_compile_args=["-Wall", "-Wextra", "-O0" if DEBUG else "-O2", *SANITIZE],
    extra_link_args=SANITIZE,
    define_macros=[("CYTHON_TRACE_NOGIL", "1")] if DEBUG else [],
)

setup(ext_modules=cythonize([codec], compiler_directives=DIRECTIVES, annotate=DEBUG))
