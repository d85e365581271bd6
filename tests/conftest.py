"""Collects the C tests and fuzz corpora as pytest items, and tells what this machine is able to do.

`tests/native/test_*.c` and `tests/fuzz/fuzz_*.c` become one item per build variant of
`--native-build` (a comma list of debug, asan, tsan, release). A test that needs an ability says so
with `@pytest.mark.needs("root", "netns", ...)`; it is skipped, visibly, where that is missing.
Under CI a run in which every privileged test was skipped fails: it has shown nothing.
"""

from __future__ import annotations

import functools
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "native"
SKIP_EXIT_CODE = 77
PROGRAM_SECONDS_MAX = 300
PRIVILEGED_FOLDERS = ("bpf", "netns")
VARIANTS = ("debug", "asan", "tsan", "release")


# --- abilities -----------------------------------------------------------------------------------


def _has_root() -> bool:
    return os.geteuid() == 0


def _has_netns() -> bool:
    command = ["unshare", "--net", "--", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _has_af_xdp() -> bool:
    try:
        socket.socket(44, socket.SOCK_RAW).close()
    except OSError:
        return False
    return True


def _has_netem() -> bool:
    """True where the kernel offers the queueing discipline that makes a link bad."""
    command = "ip link set lo up && tc qdisc add dev lo root netem loss 1%"
    unshare = ["unshare", "--net", "--", "sh", "-c", command]
    return subprocess.run(unshare, capture_output=True, check=False).returncode == 0


def _has_hugepages() -> bool:
    """True where 2 MB pages are free, or the pool may be enlarged."""
    pool = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
    if not pool.is_dir():
        return False
    free = int((pool / "free_hugepages").read_text())
    return free > 0 or os.access(pool / "nr_hugepages", os.W_OK)


ABILITIES: dict[str, Callable[[], bool]] = {
    "root": _has_root,
    "netns": _has_netns,
    "af_xdp": _has_af_xdp,
    "netem": _has_netem,
    "hugepages": _has_hugepages,
}


@functools.cache
def has_ability(name: str) -> bool:
    """Whether this machine and user can do `name`, a key of ABILITIES; probed once a run."""
    return ABILITIES[name]()


# --- pytest hooks --------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--native-build",
        default="debug",
        help="build variants of the C tests, comma separated: " + ", ".join(VARIANTS),
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*abilities): skipped where one of them is missing")
    config.addinivalue_line("markers", "slow: left out of `scripts/dev test fast`")
    unknown = set(_variants(config)) - set(VARIANTS)
    if unknown:
        raise pytest.UsageError(f"--native-build: unknown variant {', '.join(sorted(unknown))}")


def _variants(config: pytest.Config) -> list[str]:
    return [name for name in str(config.getoption("--native-build")).split(",") if name]


def pytest_collect_file(parent: pytest.Collector, file_path: Path) -> pytest.Collector | None:
    if file_path.suffix != ".c":
        return None
    folder = file_path.parent.name
    if folder == "native" and file_path.name.startswith("test_"):
        return NativeFile.from_parent(parent, path=file_path)
    if folder == "fuzz" and file_path.name.startswith("fuzz_"):
        return FuzzFile.from_parent(parent, path=file_path)
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for ability in marker.args:
            if ability not in ABILITIES:
                raise pytest.UsageError(f"{item.nodeid}: unknown ability {ability!r}")
            if not has_ability(ability):
                pytest.skip(f"this machine or user lacks: {ability}")


def _is_privileged(nodeid: str) -> bool:
    parts = nodeid.split("/")
    return len(parts) > 2 and parts[0] == "tests" and parts[1] in PRIVILEGED_FOLDERS


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if not os.environ.get("CI") or exitstatus != pytest.ExitCode.OK:
        return
    selected = [item for item in session.items if _is_privileged(item.nodeid)]
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not selected or reporter is None or session.config.option.collectonly:
        return
    passed = [
        report for report in reporter.stats.get("passed", ()) if _is_privileged(report.nodeid)
    ]
    if not passed:
        reporter.write_line(f"error: all {len(selected)} privileged tests were skipped", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


# --- C programs as items -------------------------------------------------------------------------


@functools.cache
def _build(variant: str, target: str) -> None:
    """Makes `target`, a path under native/, once a run; the item that asks first pays for it."""
    command = ["make", "-C", str(NATIVE), f"-j{os.cpu_count() or 1}", f"BUILD={variant}", target]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        raise ProgramFailed(f"{' '.join(command)}\n{done.stdout[-8000:]}")


@functools.cache
def default_image() -> str | None:
    """The embedded vocabulary compiled, for C programs that want a real model."""
    try:
        from pintok_server import vocab
    except ImportError:  # The native core is not built: such programs skip.
        return None
    return str(vocab.load_image("default").path)


class ProgramFailed(Exception):
    """A C program did not build, or did not end well; the message is what it printed."""


class ProgramItem(pytest.Item):
    """One run of one C program of one build variant."""

    def __init__(self, *, variant: str, target: str, inputs: list[Path], **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self._variant = variant
        self._target = f"build/{variant}/{target}"
        self._inputs = inputs

    def runtest(self) -> None:
        _build(self._variant, self._target)
        environment = dict(os.environ)
        environment["UBSAN_OPTIONS"] = "print_stacktrace=1:halt_on_error=1"
        environment["TSAN_OPTIONS"] = "halt_on_error=1"
        image = default_image()
        if image is not None:
            environment["PTK_TEST_IMAGE"] = image
        program = str(NATIVE / self._target)
        try:
            done = subprocess.run(
                [program, *map(str, self._inputs)],
                cwd=NATIVE,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=PROGRAM_SECONDS_MAX,
                check=False,
            )
        except subprocess.TimeoutExpired as expired:
            text = (expired.stdout or b"").decode(errors="replace")
            raise ProgramFailed(f"{program}: no end in {PROGRAM_SECONDS_MAX} s\n{text}") from None
        text = done.stdout.decode(errors="replace")
        if done.returncode == SKIP_EXIT_CODE:
            reasons = [line for line in text.splitlines() if line.startswith("skip:")]
            if not reasons:
                raise ProgramFailed(f"{program}: exit 77 without a line 'skip: reason'\n{text}")
            pytest.skip(reasons[-1].removeprefix("skip:").strip())
        if done.returncode != 0:
            raise ProgramFailed(f"{program}: exit {done.returncode}\n{text[-20000:]}")

    def repr_failure(
        self, excinfo: pytest.ExceptionInfo[BaseException], style: object = None
    ) -> str:
        if isinstance(excinfo.value, ProgramFailed):
            return str(excinfo.value)
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, self.name


class NativeFile(pytest.File):
    """`tests/native/test_x.c`: one item per variant."""

    def collect(self) -> Iterator[pytest.Item]:
        for variant in _variants(self.config):
            yield ProgramItem.from_parent(
                self, name=variant, variant=variant, target=f"tests/{self.path.stem}", inputs=[]
            )


class FuzzFile(pytest.File):
    """`tests/fuzz/fuzz_x.c`: one item replays all of `tests/corpus/x/` per variant.

    The thread sanitizer is left out: a fuzz target has one thread.
    """

    def collect(self) -> Iterator[pytest.Item]:
        corpus = ROOT / "tests" / "corpus" / self.path.stem.removeprefix("fuzz_")
        inputs = sorted(path for path in corpus.rglob("*") if path.is_file())
        if not inputs:
            raise pytest.UsageError(f"{corpus}: no corpus file for {self.path.name}")
        for variant in _variants(self.config):
            if variant != "tsan":
                yield ProgramItem.from_parent(
                    self,
                    name=variant,
                    variant=variant,
                    target=f"fuzz/{self.path.stem}",
                    inputs=inputs,
                )
