"""Leaving merges out changes no id: the kept ones give what all of them give, on any text.

The oracle merges naively, the lowest rank first and the leftmost on a tie, over random vocabularies
whose merges are more than any training would make.
"""

from __future__ import annotations

import os
import random

import numpy as np

from pintok import _native

SEED = int(os.environ.get("PINTOK_SEED", "70523"))
LETTERS = "abc"

Merges = dict[tuple[int, int], tuple[int, int]]  # (left, right) to (rank, id)


def naive(text: list[int], merges: Merges) -> list[int]:
    """Byte pair encoding by its definition."""
    while True:
        found = [
            (merges[pair], at)
            for at, pair in enumerate(zip(text, text[1:], strict=False))
            if pair in merges
        ]
        if not found:
            return text
        (_, token_id), at = min(found, key=lambda item: (item[0][0], item[1]))
        text = [*text[:at], token_id, *text[at + 2 :]]


def naive_ranks(text: bytes, ranks: dict[bytes, int]) -> list[int]:
    """tiktoken's definition: any two neighbours that make a token may merge."""
    parts = [text[at : at + 1] for at in range(len(text))]
    while True:
        found = [
            (ranks[left + right], at)
            for at, (left, right) in enumerate(zip(parts, parts[1:], strict=False))
            if left + right in ranks
        ]
        if not found:
            return [ranks[part] for part in parts]
        _, at = min(found)
        parts = [*parts[:at], parts[at] + parts[at + 1], *parts[at + 2 :]]


def tables(tokens: list[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    offs = np.zeros(len(tokens) + 1, dtype=np.uint32)
    np.cumsum([len(token) for token in tokens], out=offs[1:])
    keys = np.frombuffer(b"".join(tokens) + bytes(64), dtype=np.uint8)
    return offs, keys, _native.build_vocab(offs, keys)[0]


def random_vocabulary(source: random.Random) -> tuple[list[bytes], list[tuple[int, int, int]]]:
    """Tokens, and merges (left, right, id) in an order that need not make sense."""
    tokens = [letter.encode() for letter in LETTERS]
    merges = []
    for _ in range(source.randrange(2, 40)):
        left, right = source.randrange(len(tokens)), source.randrange(len(tokens))
        joined = tokens[left] + tokens[right]
        if len(joined) > 12:
            continue
        if joined not in tokens:
            tokens.append(joined)
        if (left, right) not in {merge[:2] for merge in merges}:
            merges.append((left, right, tokens.index(joined)))
    if source.random() < 0.5:
        source.shuffle(merges)
    return tokens, merges


def test_the_kept_merges_give_the_same_ids() -> None:
    print(f"PINTOK_SEED={SEED}")
    source = random.Random(SEED)
    left_out = 0
    for _ in range(150):
        tokens, merges = random_vocabulary(source)
        if not merges:
            continue
        offs, keys, vocab = tables(tokens)
        rows = np.array(
            [(left, right, rank, into) for rank, (left, right, into) in enumerate(merges)],
            dtype=np.uint32,
        )
        byte_ids = np.full(256, 0xFFFFFFFF, dtype=np.uint32)
        for index, letter in enumerate(LETTERS):
            byte_ids[ord(letter)] = index
        pairs = _native.build_pairs(rows)[0]
        keep, reachable = _native.prune_merges(offs, keys, vocab, pairs, rows, byte_ids)
        by_characters, _ = _native.prune_merges(offs, keys, vocab, pairs, rows, None)
        assert (keep == by_characters).all()
        everything: Merges = {}
        kept: Merges = {}
        for rank, (left, right, into) in enumerate(merges):
            everything[left, right] = (rank, into)
            if keep[rank]:
                kept[left, right] = (rank, into)
        left_out += len(everything) - len(kept)
        seen: set[int] = set()
        for _ in range(60):
            text = [source.randrange(len(LETTERS)) for _ in range(source.randrange(1, 24))]
            expected = naive(text, everything)
            assert naive(text, kept) == expected
            seen.update(expected)
        assert all(reachable[token_id] for token_id in seen)
    assert left_out > 0


def test_merges_from_ranks_give_what_ranks_give() -> None:
    print(f"PINTOK_SEED={SEED}")
    source = random.Random(SEED + 1)
    for _ in range(60):
        words = {
            bytes(source.choices(b"abc", k=source.randrange(2, 7)))
            for _ in range(source.randrange(1, 30))
        }
        tokens = [
            *(bytes([byte]) for byte in range(256)),
            *source.sample(sorted(words), len(words)),
        ]
        offs, keys, vocab = tables(tokens)
        rows, reachable = _native.build_rank_merges(
            offs, keys, vocab, np.arange(len(tokens), dtype=np.uint32)
        )
        assert len({row[3] for row in rows.tolist()}) == len(rows)  # one merge per token at most
        merges: Merges = {(left, right): (rank, into) for left, right, rank, into in rows.tolist()}
        ranks = {token: rank for rank, token in enumerate(tokens)}
        for _ in range(40):
            text = bytes(source.choices(b"abc", k=source.randrange(1, 24)))
            expected = naive_ranks(text, ranks)
            assert naive(list(text), merges) == expected
            assert all(reachable[token_id] for token_id in expected)


def test_seeded_pieces_are_what_merging_gives() -> None:
    print(f"PINTOK_SEED={SEED}")
    source = random.Random(SEED + 2)
    for _ in range(40):
        tokens, merges = random_vocabulary(source)
        if not merges:
            continue
        offs, keys, vocab = tables(tokens)
        rows = np.array(
            [(left, right, rank, into) for rank, (left, right, into) in enumerate(merges)],
            dtype=np.uint32,
        )
        everything = {
            (left, right): (rank, into) for rank, (left, right, into) in enumerate(merges)
        }
        pieces = _native.seed_pieces(
            offs,
            keys,
            vocab,
            _native.build_pairs(rows)[0],
            None,
            offs,
            keys,
            whole=False,
            space_marks=False,
        )
        seeded = {}
        for row in pieces.tolist():
            length, count = row[15] & 15, row[15] >> 4
            ids = np.array(row[16:], dtype=np.uint8).view(np.uint32)[:count].tolist()
            seeded[bytes(row[:length])] = ids
        for token in tokens:
            expected = naive([LETTERS.index(chr(byte)) for byte in token], everything)
            assert seeded.get(token) == (expected if len(expected) <= 4 else None)
