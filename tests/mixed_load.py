"""Small requests beside long messages: what asks for both, checks every answer and takes the time.

`tests/netns/test_mixed_load.py` shows that all of it is exact, `bench/mixed.py` what it costs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np

from pintok import Client, Tokenizer
from tests.lossy_link import Faults

SMALL_LEN = 200
LONG_LEN = 900_000
# A proxy instead of tc netem, which not every kernel has. No damage: a header has no checksum but
# that of UDP, which a proxy makes anew.
FAULTS = Faults(loss=0.02, double=0.01, overtake=0.05)
_PARTS = ("the", "Kernel", "größer", "日本語", "ids", "\n\n", "==", "🙂", "1234567", "naïve", "x")


def words(length: int, seed: int) -> str:
    """At most `length` bytes of text of several scripts, and at least 3 less."""
    chance = random.Random(seed)
    text = " ".join(chance.choice(_PARTS) for _ in range(length // 2 + 1))
    return text.encode()[:length].decode("utf-8", "ignore")


@dataclasses.dataclass(frozen=True, slots=True)
class Texts:
    """Texts and the ids that they must get, which the in-process tokenizer says."""

    texts: Sequence[str]
    wanted: Sequence[np.ndarray]

    @classmethod
    def make(cls, tokenizer: Tokenizer, *, length: int, count: int) -> Texts:
        texts = [words(length, seed) for seed in range(count)]
        return cls(texts, [tokenizer.encode(text) for text in texts])


@dataclasses.dataclass(frozen=True, slots=True)
class Figures:
    """How many answers there were, all of them exact, and how long one took, in milliseconds."""

    answers: int
    p50_ms: float
    p99_ms: float

    def __str__(self) -> str:
        return f"{self.answers} answers, p50 {self.p50_ms:.2f} ms, p99 {self.p99_ms:.2f} ms"


class Load(threading.Thread):
    """Asks for one text after another until it is told to stop, and checks each answer."""

    def __init__(
        self,
        address: tuple[str, int],
        texts: Texts,
        *,
        inside: Callable[[], AbstractContextManager[None]],
    ) -> None:
        super().__init__(daemon=True)
        self._address = address
        self._texts = texts
        self._inside = inside
        self._stopping = threading.Event()
        self._seconds: list[float] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            with (
                self._inside(),
                Client(*self._address, timeout=20.0, retries=30, retry_after=0.01) as client,
            ):
                while not self._stopping.is_set():
                    at = len(self._seconds) % len(self._texts.texts)
                    begin = time.perf_counter()
                    ids = client.encode(self._texts.texts[at])
                    self._seconds.append(time.perf_counter() - begin)
                    assert np.array_equal(ids, self._texts.wanted[at]), f"text {at}: wrong ids"
        except BaseException as error:
            self._error = error

    def finish(self) -> Figures:
        """Stop after the call under way. Raises AssertionError unless all went well."""
        self._stopping.set()
        self.join(30)
        assert not self.is_alive(), f"{self._address}: a call does not end"
        assert self._error is None, repr(self._error)
        assert self._seconds, f"{self._address}: no answer"
        p50, p99 = np.percentile(self._seconds, (50, 99)) * 1e3
        return Figures(len(self._seconds), float(p50), float(p99))


def measure(
    address: tuple[str, int],
    kinds: Sequence[Texts],
    *,
    seconds: float,
    inside: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
) -> list[Figures]:
    """A load of each kind, all at the same time. `inside` is entered where their sockets are made.

    Raises AssertionError for an answer that is wrong or missing.
    """
    loads = [Load(address, texts, inside=inside) for texts in kinds]
    for load in loads:
        load.start()
    time.sleep(seconds)
    return [load.finish() for load in loads]
