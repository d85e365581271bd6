"""The project rules hold on the tree, and each finds the mistake that it is there for."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _load_tidy():
    spec = importlib.util.spec_from_file_location("tidy", ROOT / "scripts" / "tidy.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tidy"] = module
    spec.loader.exec_module(module)
    return module


tidy = _load_tidy()


@pytest.mark.parametrize("rule", tidy.RULES, ids=lambda rule: rule.__name__)
def test_rule_holds_on_this_tree(rule):
    """What `scripts/dev tidy` checks stays true between two runs of it."""
    if rule is tidy.check_hot_calls:
        subprocess.run(["make", "-C", str(ROOT / "native"), "-s", "-j2", "lib"], check=True)
    assert rule(ROOT) == []


def _write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# (rule, file, its wrong text, its right text)
CASES = [
    ("check_include_layers", "native/text/a.c", '#include "algo/b.h"\n', '#include "base/b.h"\n'),
    ("check_include_layers", "native/store/a.c", '#include "image/b.h"\n', '#include "base/b.h"\n'),
    ("check_include_layers", "native/net/a.c", '#include "wire/b.h"\n', '#include "base/b.h"\n'),
    (
        "check_include_layers",
        "native/serve/a.c",
        '#include "bpf/inner.h"\n',
        '#include "bpf/ptk_steer_shared.h"\n',
    ),
    ("check_c_text", "native/base/a.c", "int x;\n", "/* What it is. */\nint x;\n"),
    ("check_c_text", "native/base/a.c", "/* A. */\n" + "/" * 101, "/* A. */\n" + "/" * 100),
    ("check_c_text", "native/base/a.c", "/* A. */\n\tint x;\n", "/* A. */\n    int x;\n"),
    ("check_c_text", "native/base/a.c", "/* A. */\nint x; \n", "/* A. */\nint x;\n"),
    (
        "check_c_text",
        "native/base/a.c",
        "/* A. */\n#include <assert.h>\n",
        "/* A. */\n#include <stdint.h>\n",
    ),
    ("check_unfinished", "native/base/a.c", "#if 0\n#endif\n", "#if 1\n#endif\n"),
    ("check_unfinished", "pintok/a.py", "# FIX" + "ME: later\n", "# Fixed.\n"),
    ("check_file_names", "pintok/string_utils.py", '"""A."""\n', None),
    ("check_python_layers", "pintok/a.py", "import click\n", "import socket\n"),
    (
        "check_python_layers",
        "pintok/a.py",
        "def f():\n    from pintok_server.control import x\n",
        "def f():\n    from pintok_server.vocab import x\n",
    ),
    (
        "check_python_layers",
        "pintok_server/vocab/a.py",
        "from pintok_server import control\n",
        "from pintok_server import errors\n",
    ),
    ("check_python_docstrings", "pintok/a.py", "x = 1\n", '"""A."""\nx = 1\n'),
    ("check_readme_paths", "README.md", "See scripts/nothing.\n", "See scripts/.\n"),
]


@pytest.mark.parametrize(("rule", "name", "wrong", "right"), CASES)
def test_rule_finds_its_mistake(tmp_path, rule, name, wrong, right):
    """A rule that cannot fail would be worse than none."""
    (tmp_path / "scripts").mkdir()
    check = getattr(tidy, rule)
    _write(tmp_path, name, wrong)
    assert len(check(tmp_path)) >= 1
    if right is not None:
        _write(tmp_path, name, right)
        assert check(tmp_path) == []


def test_unused_header_is_found(tmp_path):
    """The include of another file keeps a header alive, its own existence does not."""
    _write(tmp_path, "native/base/a.h", "/* A. */\n")
    assert tidy.check_headers_used(tmp_path) == ["native/base/a.h:1: nobody includes this header"]
    _write(tmp_path, "native/base/a.c", '#include "base/a.h"\n')
    assert tidy.check_headers_used(tmp_path) == []


def test_call_on_the_hot_path_is_found(tmp_path):
    """The ban looks at the symbols of the compiled object, so a macro cannot hide a call."""
    folder = tmp_path / "native" / "text"
    objects = tmp_path / "native" / "build" / "release" / "text"
    folder.mkdir(parents=True)
    objects.mkdir(parents=True)
    compile_it = ["gcc", "-c", str(folder / "a.c"), "-o", str(objects / "a.o")]
    (folder / "a.c").write_text("#include <stdlib.h>\nvoid *a(void) { return malloc(8); }\n")
    subprocess.run(compile_it, check=True)
    assert tidy.check_hot_calls(tmp_path) == ["native/text/a.c:1: a, on the hot path, uses malloc"]
    for allowed in ("int a(void) { return 8; }", "void *a_open(void) { return malloc(8); }"):
        (folder / "a.c").write_text(f"#include <stdlib.h>\n{allowed}\n")
        subprocess.run(compile_it, check=True)
        assert tidy.check_hot_calls(tmp_path) == []
