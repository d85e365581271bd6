"""Builds the native parts for the package: `native/Makefile` makes them, this puts them in place.

`pintok/_native` is the Cython extension over libptk_core.a; `pintok_server/bin` receives the
datapath process and the XDP program. The metadata stands in pyproject.toml.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
NATIVE = ROOT / "native"
BUILD = NATIVE / "build" / "release"
SHIPPED_FILES = ("ptk-datapath", "ptk_steer.bpf.o")


class NativeBuild(build_ext):
    """Runs make before the extension is linked, and copies the programs beside the Python code."""

    def run(self) -> None:
        subprocess.run(
            ["make", "-C", str(NATIVE), f"-j{os.cpu_count() or 1}", "BUILD=release", "all"],
            check=True,
        )
        super().run()
        base = ROOT if self.inplace else Path(self.build_lib)
        target = base / "pintok_server" / "bin"
        target.mkdir(parents=True, exist_ok=True)
        for name in SHIPPED_FILES:
            # A new file under the name: a running server keeps the one it was started from.
            shutil.copy2(BUILD / name, target / f".{name}.new")
            (target / f".{name}.new").replace(target / name)

    def get_outputs(self) -> list[str]:
        target = Path(self.build_lib) / "pintok_server" / "bin"
        return [*super().get_outputs(), *(str(target / name) for name in SHIPPED_FILES)]


# Paths are relative to this file, as setuptools asks; pip runs it from here.
extension = Extension(
    "pintok._native",
    sources=["native/py/_native.pyx"],
    include_dirs=["native", "native/py", numpy.get_include()],
    define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"), ("_GNU_SOURCE", "1")],
    extra_compile_args=["-std=c11", "-O3"],
    extra_objects=["native/build/release/libptk_core.a"],
    libraries=["pcre2-8", "m"],
    depends=["native/ptk.h", "native/py/ptk.pxd", "native/build/release/libptk_core.a"],
)

setup(
    ext_modules=cythonize([extension], include_path=["native/py"]),
    cmdclass={"build_ext": NativeBuild},
)
