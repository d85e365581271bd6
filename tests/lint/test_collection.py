"""The collection of C programs and the rule about privileged tests do what tests/conftest.py says.

A small project with the real conftest.py and programs of known outcome gets a pytest of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

MAKEFILE = """\
build/$(BUILD)/tests/%: ../tests/native/%.c
\t@mkdir -p $(@D)
\tgcc -Werror $< -o $@
build/$(BUILD)/fuzz/%: ../tests/fuzz/%.c
\t@mkdir -p $(@D)
\tgcc -Werror $< -o $@
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "native").mkdir()
    (tmp_path / "native" / "Makefile").write_text(MAKEFILE)
    (tmp_path / "tests" / "native").mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "tests" / "conftest.py")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def _write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _run(root: Path, *arguments: str, ci: bool = False) -> tuple[int, str]:
    environment = {key: value for key, value in os.environ.items() if key != "CI"}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    if ci:
        environment["CI"] = "true"
    command = [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", *arguments, "tests"]
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def _counts(output: str) -> dict[str, int]:
    line = output.strip().splitlines()[-1]
    return {kind: int(count) for count, kind in re.findall(r"(\d+) (\w+)", line)}


def test_exit_codes_become_outcomes(project):
    """0 passes, 77 with a reason is a skip, the rest fails, also a program that does not build."""
    programs = {
        "test_good": "int main(void) { return 0; }",
        "test_bad": "int main(void) { return 1; }",
        "test_crash": "#include <stdlib.h>\nint main(void) { abort(); }",
        "test_skip": '#include <stdio.h>\nint main(void) { puts("skip: no card"); return 77; }',
        "test_mute": "int main(void) { return 77; }",
        "test_broken": "int main(void) { return }",
    }
    for name, text in programs.items():
        _write(project, f"tests/native/{name}.c", text + "\n")
    code, output = _run(project)
    counts = _counts(output)
    assert code == 1
    assert (counts["passed"], counts["skipped"], counts["failed"]) == (1, 1, 4)
    assert "no card" in output


def test_each_variant_is_an_item(project):
    """The sanitizer builds run the same programs; an unknown variant is refused."""
    _write(project, "tests/native/test_good.c", "int main(void) { return 0; }\n")
    code, output = _run(project, "--native-build=debug,asan,tsan")
    assert code == 0
    assert _counts(output)["passed"] == 3
    code, output = _run(project, "--native-build=debgu")
    assert code == 4
    assert "debgu" in output


def test_corpus_is_replayed(project):
    """Every corpus file reaches the fuzz target; a target without one is an error, not a pass."""
    count_arguments = "int main(int argc, char **argv) { (void)argv; return argc == 3 ? 0 : 1; }\n"
    _write(project, "tests/fuzz/fuzz_door.c", count_arguments)
    code, output = _run(project)
    assert code != 0
    assert "no corpus file" in output
    _write(project, "tests/corpus/door/a", "1")
    _write(project, "tests/corpus/door/b", "2")
    code, output = _run(project, "--native-build=debug,tsan")
    assert code == 0
    assert _counts(output)["passed"] == 1


def test_run_without_privileged_tests_fails_in_ci(project):
    """A machine that can show nothing about the datapath must not look green."""
    skipped = "import pytest\n\ndef test_it():\n    pytest.skip('no root')\n"
    _write(project, "tests/netns/test_x.py", skipped)
    _write(project, "tests/unit/test_y.py", "def test_it():\n    pass\n")
    code, output = _run(project, ci=False)
    assert code == 0
    code, output = _run(project, ci=True)
    assert code == 1
    assert "all 1 privileged tests were skipped" in output
    _write(project, "tests/netns/test_z.py", "def test_it():\n    pass\n")
    code, output = _run(project, ci=True)
    assert code == 0


def test_unknown_ability_is_an_error(project):
    """A misspelt ability must not skip the test for ever."""
    text = "import pytest\n\n@pytest.mark.needs('roott')\ndef test_it():\n    pass\n"
    _write(project, "tests/unit/test_y.py", text)
    code, output = _run(project)
    assert code != 0
    assert "roott" in output
