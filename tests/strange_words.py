"""Texts of words that no vocabulary has, and what must be the same about them."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from pintok import Tokenizer, Truncation

ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz",
    "0123456789",
    "\u4f60\u597d\u4e16\u754c\u00e9\u03b1\u0436",
]
KNOWN = ["the", "of", "and", "in", "\u4e16\u754c"]
BETWEEN = ["", " ", "  ", "\n", "."]


def strange_text(rng: random.Random) -> str:
    """300 words, unknown ones of 1 to 40 letters among them, of which some come twice."""
    words = list(KNOWN)
    for _ in range(rng.choice([3, 40, 200])):
        words.append("".join(rng.choices(rng.choice(ALPHABETS), k=rng.randrange(1, 41))))
    return "".join(rng.choice(BETWEEN) + word for word in rng.choices(words, k=300))


def check_waiting_words(open_model: Callable[[], Tokenizer], seed: int) -> None:
    """With offsets each piece is finished before the next one begins; without them unknown ones
    wait until there are enough of them. Both ways, and at every limit, the ids are the same."""
    text = strange_text(random.Random(seed))
    wanted = open_model().encode_full(text, add_special_tokens=False).ids
    used = open_model()
    for _ in range(2):  # the second time the cache knows the words
        assert np.array_equal(used.encode(text, add_special_tokens=False), wanted)
        assert used.count(text, add_special_tokens=False) == len(wanted)
    for size in [1, 2, 3, 5, 255, 256, 257, len(wanted) - 1, len(wanted), len(wanted) + 1]:
        fresh = open_model()
        for _ in range(2):
            kept = fresh.encode(text, add_special_tokens=False, truncation=Truncation(size))
            assert np.array_equal(kept, wanted[:size])
    check_pairs(open_model, text, len(wanted))


def check_pairs(open_model: Callable[[], Tokenizer], text: str, count: int) -> None:
    """A second text that is cut alone is counted first, up to the limit: its ids are the first ones
    of all, also where the limit is near their number."""
    whole = open_model().encode("the", pair=text, add_special_tokens=False)
    for size in [len(whole) + more for more in (-count // 2, -1, 0, 1, 4, 7)]:
        truncation = Truncation(size, strategy="only_second")
        kept = open_model().encode(
            "the", pair=text, add_special_tokens=False, truncation=truncation
        )
        assert np.array_equal(kept, whole[:size])
