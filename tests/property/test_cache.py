"""What a thread remembers about pieces never changes an answer, whatever was asked before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("pintok._native", reason="the native core is not built")

from pintok import Tokenizer, Truncation
from tests.strange_words import check_waiting_words

# Characters that make pieces of several parts, few enough that pieces come again.
texts = st.text(st.sampled_from(list("ab \u00bf\u00e8\u009d\u00a9\u00dd\u00c4\u4f60\U0001f600")))
truncations = st.builds(
    Truncation, st.integers(0, 20), direction=st.sampled_from(["left", "right"])
)


@settings(max_examples=300, deadline=None)
@given(texts, truncations, st.booleans())
@example("\u00bf\u00e8b\u009d\u00a9", Truncation(5, direction="left"), False)
def test_a_truncated_answer_leaves_nothing_behind(
    text: str, truncation: Truncation, full: bool
) -> None:
    """A piece of which only some ids were wanted must not be remembered as those ids."""
    fresh, used = Tokenizer.from_pretrained("default"), Tokenizer.from_pretrained("default")
    wanted = fresh.encode(text)
    if full:
        used.encode_full(text, truncation=truncation)
    else:
        used.encode(text, truncation=truncation)
    assert used.count(text) == len(wanted)
    assert np.array_equal(used.encode(text), wanted)
    assert used.decode(wanted) == fresh.decode(wanted)


@pytest.mark.parametrize("seed", range(6))
def test_words_that_wait_for_each_other_are_encoded_as_at_once(seed: int) -> None:
    check_waiting_words(lambda: Tokenizer.from_pretrained("default"), seed)
