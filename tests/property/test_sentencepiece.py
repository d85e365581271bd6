"""Images of `.model` files answer as sentencepiece does: models trained here, over its options.

The reference trains and runs; nothing is stored. Every model is compared on ids, offsets and
decoded texts, for texts that normalizers dislike and for random ids.
"""

from __future__ import annotations

import io
import itertools
import os
import pathlib
import random
from collections.abc import Iterator
from typing import Any

import pytest
import sentencepiece

from pintok_server.vocab import adversarial
from tests.unit import spm_compare

SEED = int(os.environ.get("PINTOK_SEED", "20240917"))
CORPUS = [*adversarial._PROSE, *adversarial._CODE] * 3
RULES = ("nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", "identity")
SYMBOLS = ["<sep>", "ab", "abc", "bc", "▁the", "é", "  ", "x y", "\n", "東京", "▁▁", "<0x41>x"]
CONTROLS = ["<ctl>", "Q", "[CLS]"]


def train(**options: Any) -> bytes:
    """A small model as the bytes of its file."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=out,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **{"vocab_size": 700, **options},
    )
    return out.getvalue()


def texts() -> Iterator[str]:
    """Texts on which normalizers and symbols matter, then a sample of everything."""
    print(f"PINTOK_SEED={SEED}")
    source = random.Random(SEED)
    parts = [*SYMBOLS, *CONTROLS, " ", "   ", "▁", "\u3000", "\u0301", "ｶﾞ", "ﷺ", "\x01", "a", "Ａ"]
    yield from ("", " ", "  ", "▁", "▁ ", " ▁", "\u3000", "\x01", "\x01 ", " a ", "a ", "a  b")
    for _ in range(400):
        yield "".join(source.choices(parts, k=source.randint(1, 9)))
    everything = adversarial.texts(SYMBOLS)
    yield from source.sample(everything, 500)
    yield " ".join(adversarial._PROSE) * 40  # Where sums of f32 lose their last bits.


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("byte_fallback", [False, True])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_every_normalization_rule(
    kind: str, byte_fallback: bool, rule: str, tmp_path: pathlib.Path
) -> None:
    """The rules that the trainer knows, with and without bytes for unknown characters."""
    data = train(
        model_type=kind,
        byte_fallback=byte_fallback,
        normalization_rule_name=rule,
        character_coverage=0.98,
    )
    reference, ours = spm_compare.open_both(data, tmp_path)
    spm_compare.compare(reference, ours, texts(), seed=SEED)


FLAGS = list(itertools.product([False, True], repeat=3))


@pytest.mark.parametrize(("dummy", "extra", "suffix"), FLAGS)
@pytest.mark.parametrize("kind", ["bpe", "unigram", "char"])
def test_every_treatment_of_spaces(
    kind: str, dummy: bool, extra: bool, suffix: bool, tmp_path: pathlib.Path
) -> None:
    """With user-defined and control symbols that begin alike, hold spaces, or are characters."""
    data = train(
        model_type=kind,
        add_dummy_prefix=dummy,
        remove_extra_whitespaces=extra,
        treat_whitespace_as_suffix=suffix,
        user_defined_symbols=SYMBOLS,
        control_symbols=CONTROLS,
        character_coverage=0.99,
        byte_fallback=dummy != extra,
        allow_whitespace_only_pieces=suffix,
        pad_id=3,
        unk_surface=" <what?> " if suffix else " \u2047 ",
    )
    reference, ours = spm_compare.open_both(data, tmp_path)
    spm_compare.compare(reference, ours, texts(), seed=SEED)
