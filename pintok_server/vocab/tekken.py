"""Reads `tekken.json` of mistral-common.

Ranks as in tiktoken, shifted behind the special tokens, which come first and are never recognised
in a text. Of the vocabulary only the first `default_vocab_size` less the special tokens are used.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from pintok.errors import ModelError
from pintok_server._spec.image import IMAGE_IDS_MAX, ImageFlags, ImageSource
from pintok_server.vocab import tiktoken_ranks
from pintok_server.vocab.description import Description
from pintok_server.vocab.json_fields import Json, field, shorten

# Files of versions up to v7 may leave their special tokens out: these are meant then, in order.
_OLD_SPECIALS = (
    "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS]"
    " [/TOOL_RESULTS] [TOOL_CALLS] [IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX]"
    " [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT]"
).split()
_OLD_VERSIONS = ("v1", "v2", "v3", "v7")
_NAMES = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def load(root: Json, *, meta: dict[str, Any]) -> Description:
    """Read the JSON of a tekken.json. Raises ModelError with one sentence."""
    if not isinstance(root, dict):
        raise ModelError("tekken.json: not a JSON object")
    config = field(root, "config", dict, "tekken.json")
    pattern = field(config, "pattern", str, "tekken.json config")
    vocab_size = field(config, "default_vocab_size", int, "tekken.json config")
    special_count = field(config, "default_num_special_tokens", int, "tekken.json config")
    entries = field(root, "vocab", list, "tekken.json")
    fits = 0 <= special_count < vocab_size <= len(entries) + special_count
    if not fits or vocab_size >= IMAGE_IDS_MAX:
        raise ModelError(
            f"tekken.json: {vocab_size} tokens with {special_count} special ones do not fit a"
            f" vocabulary of {len(entries)}"
        )
    specials = _specials(root, config, special_count)
    tokens: dict[bytes, int] = {}
    for rank, entry in enumerate(entries[: vocab_size - special_count]):
        token = _token_bytes(entry, rank)
        if token in tokens:
            raise ModelError(f"tekken.json: the token of rank {rank} stands there twice")
        tokens[token] = special_count + rank
    return tiktoken_ranks.describe(
        source=ImageSource.TEKKEN,
        pattern=pattern,
        tokens=tokens,
        specials=specials,
        flags=ImageFlags.NO_SPECIALS_IN_TEXT,
        named={name: specials.get(token) for name, token in _NAMES.items()},
        meta=meta,
    )


def _specials(root: Json, config: Json, count: int) -> dict[str, int]:
    """Special token to id: those of the file, then fillers up to the count."""
    stated = root.get("special_tokens")
    if stated is None:
        version = config.get("version")
        if version not in _OLD_VERSIONS:
            raise ModelError(f"tekken.json: version {shorten(version)} without special_tokens")
        names = _OLD_SPECIALS
    else:
        names = [
            field(entry, "token_str", str, "tekken.json special_tokens")
            for entry in field(root, "special_tokens", list, "tekken.json")
        ]
        for index, entry in enumerate(stated):
            if entry.get("rank") != index:
                raise ModelError(
                    f"tekken.json: the special token {shorten(names[index])} has the rank"
                    f" {shorten(entry.get('rank'))} at place {index}"
                )
    names = [*names, *(f"<SPECIAL_{index}>" for index in range(len(names), count))]
    if len(names) != count or len(set(names)) != count:
        raise ModelError(f"tekken.json: {len(set(names))} special tokens, {count} are stated")
    return {name: index for index, name in enumerate(names)}


def _token_bytes(entry: object, rank: int) -> bytes:
    if not isinstance(entry, dict) or entry.get("rank") != rank:
        raise ModelError(f"tekken.json: the vocabulary has no rank {rank} at its place")
    try:
        token = base64.b64decode(field(entry, "token_bytes", str, "tekken.json"), validate=True)
    except binascii.Error:
        raise ModelError(f"tekken.json: the token of rank {rank} is not base64") from None
    if not token or (rank < 256 and token != bytes([rank])):
        raise ModelError(f"tekken.json: the token of rank {rank} is {shorten(token.hex())}")
    return token
