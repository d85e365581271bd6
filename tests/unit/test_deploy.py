"""The files of deploy/ are accepted by the programs that read them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pintok_server.control.config import SETTINGS, read_document, resolve_settings

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def test_example_configuration_is_valid():
    """Every key of the example is a setting, and the values are usable together."""
    settings = resolve_settings(flags={}, environment={}, file=DEPLOY / "pintok.yaml")
    assert settings.cores == (2, 3)
    assert settings.iface == "eth0"
    assert [model.name for model in settings.models] == ["default"]
    keys = read_document((DEPLOY / "pintok.yaml").read_bytes(), where="example")
    assert set(keys) <= {setting.key for setting in SETTINGS}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing")
def test_unit_is_valid(tmp_path):
    """systemd reads the unit without a complaint; the program's path is one that exists here."""
    text = (DEPLOY / "pintok-server.service").read_text()
    unit = tmp_path / "pintok-server.service"
    unit.write_text(text.replace("/opt/pintok/bin/pintok-server", shutil.which("true") or ""))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
