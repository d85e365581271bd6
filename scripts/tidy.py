#!/usr/bin/env python3
"""The project's own rules, checked by machine: what formatters and type checkers do not know.

Each rule is a function from the repository root to a list of findings, "path:line: sentence".
`scripts/dev tidy` runs them after the formatters; tests/lint shows that each can fail.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COLUMNS_MAX = 100

# A file includes its own folder and folders to the left.
LAYERS = ("base", "gen", "text", "image", "algo", "store", "wire", "net", "serve", "py")
# Narrower than the order: folder, and the only folders it may include beside its own.
# gen/ is the exception to the order: its headers are constants alone, so base/ may name them.
ONLY = {
    "base": ("gen",),
    "store": ("base",),
    "net": ("base", "gen"),
    "bpf": (),
}
# The one header of bpf/ that user code may include.
SHARED_HEADER = "bpf/ptk_steer_shared.h"

# Imports that the applications' package must not make: a client loads no part of the server.
APPLICATION_BANS = (
    "click",
    "pyroute2",
    "prometheus_client",
    "pintok_server.control",
    "pintok_server.cli",
)
# A module imports its own package and packages to the left.
SERVER_LAYERS = ("_spec", "errors", "vocab", "control", "cli")

# What runs between a frame's arrival and its reply calls nothing of libc but these.
HOT_FOLDERS = ("text", "image", "algo", "store", "wire")
HOT_FILES = ("serve/ptk_engine.c", "serve/ptk_poller.c")
HOT_CALLS = frozenset(
    (
        "memcpy",
        "memcmp",
        "memset",
        "memmove",
        "memchr",
        # Compilers write a loop to the end of a string as this.
        "strlen",
        "__stack_chk_fail",
        # What __builtin_cpu_supports() reads where a SIMD variant is chosen, once, at start.
        "__cpu_model",
        "__cpu_indicator_init",
    )
)
# Functions with these verbs run before the first frame or after the last. So do the helpers named
# here, the builders of an image, and the compiler of split patterns.
SETUP_FUNCTION = re.compile(
    r"(?:\w+_)?(?:open|close|init|fini|verify)|make_leaves|set_literal|ptk_decode_table_add"
)
SETUP_FILES = frozenset(
    (
        "image/ptk_image_build.c",
        "image/ptk_image_build_trie.c",
        "text/ptk_regex_parse.c",
        "text/ptk_regex_set.c",
        "text/ptk_segments_open.c",
    )
)
# The regular expressions of split patterns that have no scanner.
REGEX_FILE = "text/ptk_regex.c"

BANNED_NAMES = ("utils", "util", "common", "helpers", "helper", "misc")


def native_files(root: Path, *suffixes: str) -> Iterator[Path]:
    for path in sorted((root / "native").rglob("*")):
        parts = path.relative_to(root).parts
        # What Cython writes is not ours, and what is in build/ is made from the rest.
        if path.suffix in suffixes and "build" not in parts and path.name != "_native.c":
            yield path


def python_files(root: Path) -> Iterator[Path]:
    for folder in ("pintok", "pintok_server", "scripts", "bench", "tests"):
        for path in sorted((root / folder).rglob("*.py")):
            # bench/out holds results and the environments of other libraries.
            if "out" not in path.relative_to(root).parts:
                yield path


def is_generated(path: Path) -> bool:
    with path.open("rb") as file:
        return b"enerated" in file.read(400)


def check_include_layers(root: Path) -> list[str]:
    """Includes point to the left; store uses base only, net knows no message."""
    findings = []
    for path in native_files(root, ".c", ".h"):
        name = path.relative_to(root / "native").as_posix()
        folder = name.split("/")[0]
        for number, line in enumerate(path.read_text().splitlines(), 1):
            found = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
            if found is None or "/" not in found[1]:
                continue
            target = found[1].split("/")[0]
            if target == folder or found[1] == SHARED_HEADER:
                continue
            if folder in ONLY:
                allowed = target in ONLY[folder]
            elif folder in LAYERS:
                allowed = target in LAYERS[: LAYERS.index(folder)]
            else:
                allowed = target in LAYERS
            if not allowed:
                findings.append(f"native/{name}:{number}: {folder}/ must not include {found[1]}")
    return findings


def check_hot_calls(root: Path) -> list[str]:
    """Objects of the hot path call nothing outside the core but HOT_CALLS."""
    build = root / "native" / "build" / "release"
    objects = {
        path.relative_to(build).with_suffix(".c").as_posix(): path
        for path in sorted(build.rglob("*.o"))
        if not path.name.endswith(".bpf.o")
    }
    hot = {
        name: path
        for name, path in objects.items()
        if (root / "native" / name).exists()
        and (name.split("/")[0] in HOT_FOLDERS or name in HOT_FILES)
        and name not in SETUP_FILES
    }
    if not hot:
        return ["native/build/release: no objects; run scripts/dev build first"]
    findings = []
    for name, path in hot.items():
        for function, symbol in sorted(calls_outside(path)):
            if name == REGEX_FILE and symbol.startswith("pcre2_"):
                continue
            if symbol not in HOT_CALLS and not SETUP_FUNCTION.fullmatch(function):
                findings.append(f"native/{name}:1: {function}, on the hot path, uses {symbol}")
    return findings


def calls_outside(path: Path) -> set[tuple[str, str]]:
    """(function, symbol) for every reference in the object to a symbol outside of the core."""
    listing = subprocess.run(
        ["objdump", "--disassemble", "--reloc", "--no-show-raw-insn", str(path)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    undefined = set(
        subprocess.run(
            ["nm", "--undefined-only", "--format=just-symbols", str(path)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
    )
    found = set()
    function = ""
    for line in listing.splitlines():
        if head := re.match(r"[0-9a-f]+ <([^>.]+)[^>]*>:", line):
            function = head[1]
        elif relocation := re.search(r"R_X86_64_\w+\s+([A-Za-z_]\w*)", line):
            symbol = relocation[1]
            if symbol in undefined and not symbol.startswith(("ptk_", "_GLOBAL_OFFSET")):
                found.add((function, symbol))
    return found


def check_c_text(root: Path) -> list[str]:
    """100 columns, no tabs, no assert.h; at the top, what the file is or its header."""
    findings = []
    paths = [*native_files(root, ".c", ".h")]
    for folder in ("tests/native", "tests/fuzz", "bench/native"):
        paths += sorted((root / folder).glob("*.[ch]"))
    for path in paths:
        name = path.relative_to(root).as_posix()
        if name.startswith("native/py/") or is_generated(path):
            continue
        text = path.read_text()
        own_header = re.match(rf'#include "(?:\w+/)?{path.stem}\w*\.h"', text)
        if not text.startswith(("/*", "// SPDX")) and own_header is None:
            findings.append(f"{name}:1: a file begins with a comment that says what it is")
        for number, line in enumerate(text.splitlines(), 1):
            if len(line) > COLUMNS_MAX:
                findings.append(
                    f"{name}:{number}: {len(line)} columns, {COLUMNS_MAX} are the limit"
                )
            if "\t" in line or line != line.rstrip():
                findings.append(f"{name}:{number}: a tab, or blanks at the end")
            if re.match(r"\s*#\s*include\s+<assert\.h>", line):
                findings.append(f"{name}:{number}: PTK_ASSERT instead of assert.h")
    return findings


def check_unfinished(root: Path) -> list[str]:
    """Nothing marked as to be mended, no code disabled by the preprocessor."""
    pattern = re.compile(r"\bFIX" + r"ME\b|^\s*#\s*if\s+0\b")
    findings = []
    for path in [*native_files(root, ".c", ".h", ".pyx"), *python_files(root)]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if pattern.search(line):
                findings.append(f"{path.relative_to(root)}:{number}: unfinished work does not land")
    return findings


def check_headers_used(root: Path) -> list[str]:
    """A header nobody includes is deleted."""
    sources = [*native_files(root, ".c", ".h", ".pyx", ".pxd")]
    for folder in ("tests/native", "tests/fuzz", "bench/native"):
        sources += sorted((root / folder).glob("*.[ch]"))
    included = set()
    for path in sources:
        quoted = re.findall(r'(?:include|from)\s+"([^"]+)"', path.read_text())
        included |= {name.split("/")[-1] for name in quoted}
    return [
        f"{path.relative_to(root)}:1: nobody includes this header"
        for path in native_files(root, ".h")
        if path.name not in included and path.name != "ptk.h"  # ptk.h is for users outside
    ]


def check_file_names(root: Path) -> list[str]:
    """One file, one idea: names that say nothing are not used."""
    paths = [*native_files(root, ".c", ".h"), *python_files(root)]
    return [
        f"{path.relative_to(root)}:1: the name {path.stem} does not say what is in it"
        for path in paths
        if set(path.stem.lower().split("_")) & set(BANNED_NAMES)
    ]


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module name) of every import in the file, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield node.lineno, node.module
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def check_python_layers(root: Path) -> list[str]:
    """pintok/ imports nothing of the server; inside pintok_server imports point to the left."""
    findings = []
    for path in sorted((root / "pintok").rglob("*.py")):
        for number, module in imported_modules(path):
            if any(module == name or module.startswith(f"{name}.") for name in APPLICATION_BANS):
                findings.append(
                    f"{path.relative_to(root)}:{number}: pintok must not import {module}"
                )
    server = root / "pintok_server"
    for path in sorted(server.rglob("*.py")):
        own = path.relative_to(server).parts[0].removesuffix(".py")
        for number, module in imported_modules(path):
            parts = module.split(".")
            if parts[0] != "pintok_server" or len(parts) < 2 or parts[1] not in SERVER_LAYERS:
                continue
            if own in SERVER_LAYERS and SERVER_LAYERS.index(parts[1]) > SERVER_LAYERS.index(own):
                findings.append(
                    f"{path.relative_to(root)}:{number}: {own} must not import {module}"
                )
    return findings


def check_python_docstrings(root: Path) -> list[str]:
    """Every module says what it is."""
    findings = []
    for path in python_files(root):
        text = path.read_text()
        if text.strip() and ast.get_docstring(ast.parse(text)) is None:
            findings.append(f"{path.relative_to(root)}:1: the module has no docstring")
    return findings


def check_readme_paths(root: Path) -> list[str]:
    """Files and folders that the README names exist."""
    findings = []
    tops = "native|pintok|pintok_server|bench|deploy|scripts|tests|LICENSES"
    built = ("pintok_server/bin", "native/build", "bench/out")
    for number, line in enumerate((root / "README.md").read_text().splitlines(), 1):
        for name in re.findall(rf"(?<![\w./-])((?:{tops})/[\w./*-]*)", line):
            name = name.rstrip(".,")
            if name.startswith(built) or any(root.glob(name.rstrip("/"))):
                continue
            findings.append(f"README.md:{number}: {name} does not exist")
    return findings


RULES: tuple[Callable[[Path], list[str]], ...] = (
    check_include_layers,
    check_hot_calls,
    check_c_text,
    check_unfinished,
    check_headers_used,
    check_file_names,
    check_python_layers,
    check_python_docstrings,
    check_readme_paths,
)


def main() -> int:
    findings = [finding for rule in RULES for finding in rule(ROOT)]
    print("\n".join(findings) or f"tidy: {len(RULES)} rules hold")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
