"""Keys of tenants: what the control process makes and accepts is what the datapath accepts."""

from __future__ import annotations

import pathlib

import pytest

from pintok_server.control.keys import KEYS_MAX, check_keys, make_key
from pintok_server.errors import ConfigError

HEX = "00112233445566778899aabbccddeeff" * 2


@pytest.fixture
def write(tmp_path: pathlib.Path):
    def write(text: str, mode: int = 0o600) -> pathlib.Path:
        path = tmp_path / "keys"
        path.write_text(text)
        path.chmod(mode)
        return path

    return write


def test_made_keys_differ_and_are_accepted(write) -> None:
    lines = [make_key(number) for number in (0, 7, 4294967295)]
    assert len({line.split()[1] for line in lines}) == 3
    assert check_keys(write("\n".join(lines) + "\n")) == [0, 7, 4294967295]
    assert check_keys(write("")) == []


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (f"x {HEX}\n", "line 1 is not"),
        (f"1 {HEX}\n2 {HEX[:-1]}\n", "line 2 is not"),
        (f"1 {HEX.upper()}\n", "line 1 is not"),
        (f"4294967296 {HEX}\n", "line 1 is not"),
        (f"1  {HEX}\n", "line 1 is not"),
        (f"1 {HEX}\n\n2 {HEX}\n", "line 2 is not"),
        (f"1 {HEX}\n1 {HEX}\n", "line 2 repeats key 1"),
        ("".join(f"{n} {HEX}\n" for n in range(KEYS_MAX + 1)), "more than 64"),
        ("x" * 6000, "longer than"),
    ],
)
def test_refusal_names_the_line_and_not_the_key(write, text: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint) as caught:
        check_keys(write(text))
    assert HEX[:16] not in str(caught.value)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_file_that_others_may_read_is_refused(write, mode: int) -> None:
    with pytest.raises(ConfigError, match="chmod 600"):
        check_keys(write(f"1 {HEX}\n", mode))


def test_a_missing_file_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        check_keys(tmp_path / "none")
