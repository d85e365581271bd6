"""The README's quick start runs as written, and the commands it lists exist.

Blocks fenced as `sh` and `python` are run, one after another in one shell and one interpreter of
the project's environment; blocks fenced as `text` show what needs a machine of its own.
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
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _blocks(kind: str) -> list[str]:
    return [body for language, body in BLOCK.findall(README) if language == kind]


def _environment() -> dict[str, str]:
    """The environment after `. .venv/bin/activate`, whichever environment runs this test."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is missing")
@pytest.mark.needs("netns", "root")
def test_shell_blocks_run():
    """A newcomer who pastes the blocks sees them work: each command ends well."""
    script = "\n".join(_blocks("sh"))
    assert script.count("pintok encode") >= 3
    # The environment is active already.
    script = script.replace(". .venv/bin/activate\n", "")
    done = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "bash", "-s"],
        input=f"set -euo pipefail\nset -m\nmount -t tmpfs tmpfs /run\nip link set lo up\n{script}",
        cwd=ROOT,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_python_blocks_run():
    """The Python shown is right as it stands: it asserts what it claims."""
    blocks = _blocks("python")
    assert blocks
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        cwd=ROOT,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_listed_developer_commands_exist():
    """Each `scripts/dev` command of the README is one that the program knows."""
    listed = set(re.findall(r"^scripts/dev (\w+)", README, re.MULTILINE))
    assert len(listed) >= 7
    text = subprocess.run(
        [sys.executable, "scripts/dev", "--help"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    known = set(re.findall(r"^    (\w+)", text, re.MULTILINE))
    assert listed <= known


def test_two_commands_are_executable():
    """The commands of the first page run without `sh` before them."""
    for name in ("scripts/demo", "scripts/test", "scripts/dev", "scripts/setup-host.sh"):
        assert os.access(ROOT / name, os.X_OK), name
