"""Reads tiktoken's format: a file of base64 tokens and ranks, and an `encoding.json` that names it.

    encoding.json   {"format": "tiktoken", "ranks_file": "...", "pat_str": "...",
                     "special_tokens": {"<|endoftext|>": 100257, ...}}
    ranks file      one "BASE64 RANK" a line

The rank is the id. Special tokens are no part of the model: they are found in a text only when the
caller asks for it.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np

from pintok.errors import ModelError
from pintok_server._spec.image import (
    IMAGE_IDS_MAX,
    IMAGE_NONE,
    ImageAlgorithm,
    ImageFlags,
    ImageSource,
)
from pintok_server.vocab import programs
from pintok_server.vocab.description import AddedToken, Description, Programs
from pintok_server.vocab.json_fields import Json, field, shorten
from pintok_server.vocab.patterns import Dialect


def load(encoding: Json, ranks_data: bytes, *, meta: dict[str, Any]) -> Description:
    """Read an encoding.json and its ranks. Raises ModelError with one sentence."""
    if not isinstance(encoding, dict):
        raise ModelError("encoding.json: not a JSON object")
    kind = encoding.get("format", "tiktoken")
    if kind != "tiktoken":
        raise ModelError(f"encoding.json: the format {shorten(kind)} is not known")
    pattern = field(encoding, "pat_str", str, "encoding.json")
    special_tokens = field(encoding, "special_tokens", dict, "encoding.json")
    ranks = read_ranks(ranks_data)
    specials: dict[str, int] = {}
    for token, token_id in special_tokens.items():
        if type(token_id) is not int or not 0 <= token_id < IMAGE_IDS_MAX or not token:
            raise ModelError(f"encoding.json: {shorten(token)} has the id {shorten(token_id)}")
        specials[token] = token_id
    expected = encoding.get("explicit_n_vocab")
    if expected is not None and expected != len(ranks) + len(specials):
        raise ModelError(
            f"encoding.json: explicit_n_vocab is {shorten(expected)}, but there are"
            f" {len(ranks)} ranks and {len(specials)} special tokens"
        )
    names = {
        name: encoding.get(name) or meta.get("special_tokens", {}).get(name)
        for name in ("bos_token", "eos_token", "pad_token")
    }
    return describe(
        source=ImageSource.TIKTOKEN,
        pattern=pattern,
        tokens=ranks,
        specials=specials,
        flags=ImageFlags.SPECIALS_OPT_IN,
        named={name: specials.get(token) for name, token in names.items() if token},
        meta=meta,
    )


def read_ranks(data: bytes) -> dict[bytes, int]:
    """Token bytes to rank. Raises ModelError for lines that are not a token and a rank."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line:
            continue
        parts = line.split()
        try:
            token, rank = base64.b64decode(parts[0], validate=True), int(parts[1])
        except (binascii.Error, IndexError, ValueError):
            raise ModelError(f"ranks: line {number} is not a base64 token and a rank") from None
        if len(parts) != 2 or not token or not 0 <= rank < IMAGE_IDS_MAX or token in ranks:
            raise ModelError(f"ranks: line {number} is not a new token with a rank")
        ranks[token] = rank
    if len(set(ranks.values())) != len(ranks):
        raise ModelError("ranks: two tokens have the same rank")
    return ranks


def describe(
    *,
    source: ImageSource,
    pattern: str,
    tokens: dict[bytes, int],
    specials: dict[str, int],
    flags: ImageFlags,
    named: dict[str, int | None],
    meta: dict[str, Any],
) -> Description:
    """A vocabulary of bytes where any two neighbours that make a token may merge.

    `tokens` gives ids in ascending order of rank, so an id stands for its rank.
    """
    clash = set(tokens.values()) & set(specials.values())
    if clash or len(set(specials.values())) != len(specials):
        raise ModelError(f"special tokens: an id is used twice: {sorted(clash)[:3] or 'specials'}")
    ids_end = 1 + max((*tokens.values(), *specials.values()), default=-1)
    if not tokens:
        raise ModelError("ranks: there are no tokens")
    texts: list[bytes | None] = [None] * ids_end
    decoded = [b""] * ids_end
    keys = [b""] * ids_end
    rank_of = np.full(ids_end, IMAGE_NONE, dtype=np.uint32)
    for token, token_id in tokens.items():
        texts[token_id] = token.decode("utf-8", "replace").encode()
        decoded[token_id] = keys[token_id] = token
        rank_of[token_id] = token_id
    byte_ids = np.empty(256, dtype=np.uint32)
    for byte in range(256):
        if bytes([byte]) not in tokens:
            raise ModelError(f"ranks: the byte 0x{byte:02X} has no token")
        byte_ids[byte] = tokens[bytes([byte])]
    added = []
    for special, token_id in sorted(specials.items(), key=lambda item: item[1]):
        raw = special.encode("utf-8", "replace")
        texts[token_id] = decoded[token_id] = raw
        added.append(AddedToken(id=token_id, content=raw, special=True, match=raw))
    return Description(
        source=source,
        algorithm=ImageAlgorithm.BPE,
        flags=ImageFlags.BYTE_UNITS | ImageFlags.IGNORE_MERGES | ImageFlags.DECODE_CONCAT | flags,
        texts=texts,
        decoded=decoded,
        keys=keys,
        model_len=len(tokens),
        special_ids=frozenset(specials.values()),
        added=tuple(added),
        programs=Programs(
            pre_tokenizer=programs.split(
                pattern, behaviour=0, invert=True, dialect=Dialect.FANCY_REGEX
            )
        ),
        ranks=rank_of,
        byte_ids=byte_ids,
        bos_id=named.get("bos_token"),
        eos_id=named.get("eos_token"),
        pad_id=named.get("pad_token"),
        unk_id=named.get("unk_token"),
        meta={**meta, "model": "bpe"},
    )
