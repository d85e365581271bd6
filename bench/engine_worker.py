"""The other libraries of the engine benchmark: how they are had, and each in its own process."""

from __future__ import annotations

import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]

# What each one is installed as. 1.0.0rc3 is the newest candidate of the reference's next line that
# the index has as a wheel for this Python.
PEERS = {
    "tokenizers": ["tokenizers==0.23.3"],
    "tokenizers1": ["tokenizers==1.0.0rc3"],
    "gigatoken": ["gigatoken==0.10.0"],
    "fastokens": ["fastokens==0.3.5"],
    "nanotoken": ["nanotoken==0.1.0"],
    "splintr": ["splintr-rs==0.22.0"],
    "basetenkenizer": ["basetenkenizer==0.2.8"],
    "tokie": ["tokie==0.1.4"],
    "iree": ["iree-tokenizer==0.3.0"],
    "tiktoken": ["tiktoken==0.14.0"],
    "quicktok": ["quicktok-v1==0.4.0"],
    "rs_bpe": ["rs_bpe==0.1.0"],
    "wordchipper": ["wordchipper==0.9.2"],
    "riptoken": ["riptoken==0.2.4"],
    "kitoken": ["kitoken==0.11.1"],
    "bpe_qwen": ["bpe-qwen==0.1.5", "huggingface_hub", "transformers"],
    "flash": ["flash_tokenizer==1.2.0"],
    "sentencepiece": ["sentencepiece==0.2.3"],
}
# The reference, and those that lead some row: what the pass of ten minutes measures.
QUICK_PEERS = (
    "tokenizers tokenizers1 gigatoken fastokens nanotoken splintr iree quicktok rs_bpe "
    "sentencepiece"
).split()
INSTALL_SECONDS = 300


def install(names: list[str], directory: pathlib.Path) -> dict[str, pathlib.Path | None]:
    """The folder of each peer that can be had here; a peer costs nothing but its own row.

    One interpreter with numpy for all of them, and a folder of packages for each, so that no two
    have to agree about their dependencies. None stands for the reference in this environment.
    """
    directory.mkdir(parents=True, exist_ok=True)
    python = interpreter(directory)
    folders: dict[str, pathlib.Path | None] = {}
    for name in names:
        requirements = PEERS[name]
        folder = directory / requirements[0]
        if not (folder / ".complete").exists():
            print(f"installing {' '.join(requirements)}", flush=True)
            if not pip(python, "--target", str(folder), "--upgrade", *requirements):
                print(f"  {name} is left out: it does not install here", flush=True)
                continue
            (folder / ".complete").touch()
        folders[name] = folder
    return folders


def interpreter(directory: pathlib.Path) -> pathlib.Path:
    python = directory / "base" / "bin" / "python"
    if not (directory / "base" / ".complete").exists():
        subprocess.run([sys.executable, "-m", "venv", str(directory / "base")], check=True)
        if not pip(python, "numpy"):
            raise SystemExit("engine: numpy, which the workers use, does not install here")
        (directory / "base" / ".complete").touch()
    return python


def pip(python: pathlib.Path, *words: str) -> bool:
    command = [str(python), "-m", "pip", "install", "-q", "--only-binary=:all:", *words]
    try:
        done = subprocess.run(command, capture_output=True, timeout=INSTALL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


class Worker:
    """One peer in its own process, pinned to one core, with a limit on the time of each answer."""

    def __init__(
        self,
        peer: str,
        command: list[str],
        *,
        core: int,
        python_path: str = "",
        environment: dict[str, str] | None = None,
    ) -> None:
        env = {
            **os.environ,
            "TOKENIZERS_PARALLELISM": "false",
            "RAYON_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONPATH": python_path,
            **(environment or {}),
        }
        self.peer = peer
        self.alive = True
        self.buffer = b""
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )

    def ask(self, seconds: float, **command: Any) -> dict[str, Any]:
        """One command and its answer; a worker that died or hangs is ended and answers an error."""
        if not self.alive:
            return {"error": "it is not there any more"}
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(command).encode() + b"\n")
            self.process.stdin.flush()
            line = self.read_line(time.monotonic() + seconds)
        except (BrokenPipeError, EOFError):
            self.stop()
            return {"error": f"it died in {command['do']} (exit {self.process.returncode})"}
        except TimeoutError:
            self.stop()
            return {"error": f"no answer to {command['do']} in {seconds:.0f} s"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def read_line(self, deadline: float) -> bytes:
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        while b"\n" not in self.buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                raise TimeoutError
            chunk = os.read(fd, 1 << 20)
            if not chunk:
                raise EOFError
            self.buffer += chunk
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line

    def stop(self) -> None:
        """End the process with everything that it started."""
        self.alive = False
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
