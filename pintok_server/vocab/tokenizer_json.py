"""Reads `tokenizer.json` of Hugging Face tokenizers, in all dialects that version 0.23 reads.

Merges as strings or pairs, models without a type, ByteLevel without use_regex, Metaspace with
str_rep and add_prefix_space, added tokens whose stated id is ignored. What would change ids and
cannot be expressed (dropout, an unknown component) is refused by name.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from pintok.errors import ModelError
from pintok_server._spec.image import (
    IMAGE_IDS_MAX,
    IMAGE_NONE,
    ImageAlgorithm,
    ImageFlags,
    ImageProfile,
    ImageSource,
)
from pintok_server.vocab import alphabet, normalization, profile_check, profiles, programs
from pintok_server.vocab.description import (
    U32,
    AddedToken,
    Description,
    Padding,
    Programs,
    Truncation,
)
from pintok_server.vocab.json_fields import Json, field, option, shorten
from pintok_server.vocab.profiles import Profile

# Pre-tokenizers that may stand behind a ByteLevel when its mapping is undone at compile time.
_AFTER_BYTE_LEVEL = frozenset({"Split", "Punctuation", "Digits"})
_STRATEGIES = {"LongestFirst": 0, "OnlyFirst": 1, "OnlySecond": 2}
_DIRECTIONS = {"Right": 0, "Left": 1}


def load(
    root: Json,
    *,
    meta: dict[str, Any],
    source: ImageSource = ImageSource.TOKENIZER_JSON,
    profile: Profile = profiles.DEFAULT,
) -> Description:
    """Read the JSON of a tokenizer.json. Raises ModelError with one sentence."""
    if not isinstance(root, dict) or not isinstance(root.get("model"), dict):
        raise ModelError("tokenizer.json: it has no model")
    version = root.get("version", "1.0")
    if version != "1.0":
        raise ModelError(f"tokenizer.json: the version {shorten(version)} is not known")
    model: Json = root["model"]
    kind = model_kind(model)
    readers = {
        "BPE": _read_bpe,
        "Unigram": _read_unigram,
        "WordPiece": _read_wordpiece,
        "WordLevel": _read_wordlevel,
    }
    core = readers[kind](model, root)
    profile_check.check(root, profile)
    return _finish(core, root, meta, source, profile.number)


def model_kind(model: Json) -> str:
    """BPE, Unigram, WordPiece or WordLevel; files of old versions do not say so."""
    kind = model.get("type")
    if kind is None:
        vocab = model.get("vocab")
        if isinstance(vocab, dict) and "merges" in model:
            return "BPE"
        if isinstance(vocab, dict) and "continuing_subword_prefix" in model:
            return "WordPiece"
        if isinstance(vocab, dict) and "unk_token" in model:
            return "WordLevel"
        if isinstance(vocab, list):
            return "Unigram"
        raise ModelError("model: without a type, and its fields do not tell")
    if kind not in ("BPE", "Unigram", "WordPiece", "WordLevel"):
        raise ModelError(f"model: the type {shorten(kind)} is not known")
    return str(kind)


@dataclasses.dataclass(slots=True)
class _Core:
    """What the model itself says, before added tokens."""

    algorithm: ImageAlgorithm
    flags: ImageFlags
    tokens: dict[str, int]
    keys: dict[int, bytes]
    merges: U32 | None = None
    byte_ids: U32 | None = None
    scores: np.ndarray[Any, np.dtype[np.float64]] | None = None
    unk_id: int | None = None
    prefix: bytes = b""
    suffix: bytes = b""
    word_chars_max: int = 0


def _vocab(model: Json) -> dict[str, int]:
    """The vocabulary as a dict of distinct ids."""
    vocab: dict[str, int] = field(model, "vocab", dict, "model")
    seen: set[int] = set()
    for token, token_id in vocab.items():
        if type(token_id) is not int or not 0 <= token_id < IMAGE_IDS_MAX:
            raise ModelError(f"model.vocab: {shorten(token)} has the id {shorten(token_id)}")
        seen.add(token_id)
    if len(seen) != len(vocab):
        raise ModelError("model.vocab: two tokens have the same id")
    return vocab


def _encode(token: str, where: str) -> bytes:
    try:
        return token.encode()
    except UnicodeEncodeError:
        raise ModelError(f"{where}: {shorten(token)} holds half of a surrogate pair") from None


def _optional_text(model: Json, name: str) -> str:
    value = model.get(name)
    if value is not None and not isinstance(value, str):
        raise ModelError(f"model.{name}: the value {shorten(value)} is not a string")
    return value or ""


# --- BPE -----------------------------------------------------------------------------------------


def _merge_list(model: Json) -> list[tuple[str, str]]:
    """Merges in order, from either spelling."""
    merges = field(model, "merges", list, "model")
    if not merges:
        return []
    if isinstance(merges[0], str):
        pairs = []
        for line in merges:
            if not isinstance(line, str):
                raise ModelError(f"model.merges: {shorten(line)} is not a string")
            if line.startswith("#version"):
                continue
            halves = line.split(" ")
            if len(halves) != 2:
                raise ModelError(f"model.merges: {shorten(line)} is not two tokens")
            pairs.append((halves[0], halves[1]))
        return pairs
    for pair in merges:
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(half, str) for half in pair)
        ):
            raise ModelError(f"model.merges: {shorten(pair)} is not two tokens")
    return [(pair[0], pair[1]) for pair in merges]


def _merge_rows(vocab: dict[str, int], pairs: list[tuple[str, str]], prefix: str) -> U32:
    """Rows of left, right, rank, id."""
    prefix_len = len(prefix.encode())
    rows = np.empty((len(pairs), 4), dtype=np.uint32)
    left, right, merged = [], [], []
    for a, b in pairs:
        tail = b.encode()[prefix_len:].decode("utf-8", "replace") if prefix else b
        try:
            left.append(vocab[a])
            right.append(vocab[b])
            merged.append(vocab[a + tail])
        except KeyError as error:
            raise ModelError(
                f"model.merges: {shorten([a, b])} needs the token {shorten(error.args[0])},"
                " which the vocabulary lacks"
            ) from None
    rows[:, 0], rows[:, 1], rows[:, 3] = left, right, merged
    rows[:, 2] = np.arange(len(pairs), dtype=np.uint32)
    return rows


def _can_undo_alphabet(root: Json, affixes: str) -> bool:
    """Whether a ByteLevel maps the text last of all that could tell characters from bytes.

    A prefix or suffix belongs to characters, so a model that has one keeps them.
    """
    if affixes or programs.has_byte_level(root.get("normalizer"), "normalizers", "normalizer"):
        return False
    kinds = [
        part["type"]
        for part, _ in programs.flatten(root.get("pre_tokenizer"), "pretokenizers", "pre_tokenizer")
    ]
    if kinds.count("ByteLevel") != 1:
        return False
    return _AFTER_BYTE_LEVEL.issuperset(kinds[kinds.index("ByteLevel") + 1 :])


def _read_bpe(model: Json, root: Json) -> _Core:
    dropout = model.get("dropout")
    if dropout not in (None, 0, 0.0):
        raise ModelError(f"model.dropout: {shorten(dropout)} makes ids random, which is refused")
    vocab = _vocab(model)
    prefix = _optional_text(model, "continuing_subword_prefix")
    suffix = _optional_text(model, "end_of_word_suffix")
    flags = ImageFlags(0)
    if option(model, "ignore_merges", False, "model"):
        flags |= ImageFlags.IGNORE_MERGES
    if option(model, "fuse_unk", False, "model"):
        flags |= ImageFlags.FUSE_UNK
    unk = model.get("unk_token")
    if unk is not None and not isinstance(unk, str):
        raise ModelError(f"model.unk_token: the value {shorten(unk)} is not a string")
    core = _Core(
        algorithm=ImageAlgorithm.BPE,
        flags=flags,
        tokens=vocab,
        keys={},
        merges=_merge_rows(vocab, _merge_list(model), prefix),
        unk_id=None if unk is None else vocab.get(unk),
        prefix=prefix.encode(),
        suffix=suffix.encode(),
    )
    if _can_undo_alphabet(root, prefix + suffix):
        _use_bytes(core)
        return core
    if unk is not None and core.unk_id is None:
        raise ModelError(f"model.unk_token: {shorten(unk)} is not in the vocabulary")
    core.keys = {token_id: _encode(token, "model.vocab") for token, token_id in vocab.items()}
    if option(model, "byte_fallback", False, "model"):
        core.flags |= ImageFlags.BYTE_FALLBACK
        core.byte_ids = byte_token_ids(vocab)
    return core


def _use_bytes(core: _Core) -> None:
    """Undo the alphabet: keys and units are raw bytes from here on."""
    byte_ids = np.full(256, IMAGE_NONE, dtype=np.uint32)
    gaps = False
    for byte, character in enumerate(alphabet.CHARACTERS):
        has_token = character in core.tokens
        if byte in alphabet.UTF8_BYTES:
            gaps = gaps or not has_token
        if has_token:
            byte_ids[byte] = core.tokens[character]
    # Tokens with other characters are never the result of a merge that a text could reach.
    keys = {
        token_id: key
        for token, token_id in core.tokens.items()
        if (key := alphabet.to_bytes(token)) is not None
    }
    assert core.merges is not None
    known = np.zeros(max(core.tokens.values(), default=-1) + 1, dtype=bool)
    known[list(keys)] = True
    core.merges = np.ascontiguousarray(
        core.merges[known[core.merges[:, 0]] & known[core.merges[:, 1]]]
    )
    core.keys = keys
    core.byte_ids = byte_ids
    core.flags |= ImageFlags.BYTE_UNITS
    if gaps:
        core.flags |= ImageFlags.BYTE_GAPS


def byte_token_ids(vocab: dict[str, int]) -> U32:
    """The ids of <0x00> to <0xFF>, IMAGE_NONE for those that the vocabulary lacks."""
    ids = [vocab.get(f"<0x{byte:02X}>", IMAGE_NONE) for byte in range(256)]
    return np.array(ids, dtype=np.uint32)


# --- The other families --------------------------------------------------------------------------


def _read_unigram(model: Json, root: Json) -> _Core:
    entries = field(model, "vocab", list, "model")
    tokens: dict[str, int] = {}
    scores = np.zeros(len(entries), dtype=np.float64)
    for token_id, entry in enumerate(entries):
        if (
            not isinstance(entry, list)
            or len(entry) != 2
            or not isinstance(entry[0], str)
            or type(entry[1]) not in (int, float)
        ):
            raise ModelError(f"model.vocab: {shorten(entry)} is not a token and its score")
        if entry[0] in tokens:
            raise ModelError(f"model.vocab: {shorten(entry[0])} stands there twice")
        tokens[entry[0]] = token_id
        try:
            scores[token_id] = entry[1]
        except OverflowError:
            raise ModelError(
                f"model.vocab: the score of {shorten(entry[0])} is too large"
            ) from None
    unk_id = model.get("unk_id")
    if unk_id is not None and (type(unk_id) is not int or not 0 <= unk_id < len(entries)):
        raise ModelError(f"model.unk_id: {shorten(unk_id)} is not an id of the vocabulary")
    flags = ImageFlags.FUSE_UNK
    byte_ids = None
    if option(model, "byte_fallback", False, "model"):
        flags |= ImageFlags.BYTE_FALLBACK
        byte_ids = byte_token_ids(tokens)
    return _Core(
        algorithm=ImageAlgorithm.UNIGRAM,
        flags=flags,
        tokens=tokens,
        keys={token_id: _encode(token, "model.vocab") for token, token_id in tokens.items()},
        byte_ids=byte_ids,
        scores=scores,
        unk_id=unk_id,
    )


def _read_wordpiece(model: Json, root: Json) -> _Core:
    vocab = _vocab(model)
    unk = field(model, "unk_token", str, "model")
    if unk not in vocab:
        raise ModelError(f"model.unk_token: {shorten(unk)} is not in the vocabulary")
    word_chars_max = field(model, "max_input_chars_per_word", int, "model")
    if not 0 <= word_chars_max < 2**32:
        raise ModelError(f"model.max_input_chars_per_word: {word_chars_max} is not supported")
    return _Core(
        algorithm=ImageAlgorithm.WORDPIECE,
        flags=ImageFlags(0),
        tokens=vocab,
        keys={token_id: _encode(token, "model.vocab") for token, token_id in vocab.items()},
        unk_id=vocab[unk],
        prefix=_encode(field(model, "continuing_subword_prefix", str, "model"), "model"),
        word_chars_max=word_chars_max,
    )


def _read_wordlevel(model: Json, root: Json) -> _Core:
    vocab = _vocab(model)
    unk = field(model, "unk_token", str, "model")
    return _Core(
        algorithm=ImageAlgorithm.WORDLEVEL,
        flags=ImageFlags(0),
        tokens=vocab,
        keys={token_id: _encode(token, "model.vocab") for token, token_id in vocab.items()},
        unk_id=vocab.get(unk),
    )


# --- Added tokens --------------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class _Added:
    """The added vocabulary after loading."""

    tokens: dict[int, AddedToken]
    decode_texts: dict[int, str]
    special_texts: set[str]


def _read_added(
    root: Json, vocab: dict[str, int], normalizer: bytes, profile: ImageProfile
) -> _Added:
    """Give every added token its id as the reference does: a content that the model knows keeps the
    model's id, every other one gets the next free id, whatever the file says."""
    entries = root.get("added_tokens") or []
    if not isinstance(entries, list):
        raise ModelError("added_tokens: not a list")
    by_content: dict[str, int] = {}
    out = _Added({}, {}, set())
    next_id = len(vocab)
    for entry in entries:
        if not isinstance(entry, dict):
            raise ModelError(f"added_tokens: {shorten(entry)} is not a token")
        content = field(entry, "content", str, "added_tokens")
        where = f"added_tokens: {shorten(content)}"
        raw = _encode(content, "added_tokens")
        if not content:
            continue
        token_id = by_content.get(content, vocab.get(content))
        if token_id is None:
            token_id = next_id
            next_id += 1
        normalized = field(entry, "normalized", bool, where)
        special = field(entry, "special", bool, where)
        match = normalization.normalize(normalizer, raw, profile=profile) if normalized else raw
        if not match:
            raise ModelError(f"{where}: nothing is left of it after normalization")
        by_content[content] = token_id
        if special:
            out.special_texts.add(content)
        out.decode_texts[token_id] = match.decode() if normalized else content
        out.tokens[token_id] = AddedToken(
            id=token_id,
            content=raw,
            special=content in out.special_texts,
            single_word=field(entry, "single_word", bool, where),
            lstrip=field(entry, "lstrip", bool, where),
            rstrip=field(entry, "rstrip", bool, where),
            normalized=normalized,
            match=match,
        )
    return out


# --- Settings ------------------------------------------------------------------------------------


def _read_truncation(root: Json) -> Truncation | None:
    value = root.get("truncation")
    if value is None:
        return None
    where = "truncation"
    if not isinstance(value, dict):
        raise ModelError(f"{where}: {shorten(value)} is not a setting")
    strategy = value.get("strategy")
    direction = value.get("direction", "Right")
    if strategy not in _STRATEGIES or direction not in _DIRECTIONS:
        raise ModelError(f"{where}: {shorten(value)} names an unknown strategy or direction")
    return Truncation(
        max_length=_count(value, "max_length", where),
        stride=_count(value, "stride", where),
        strategy=_STRATEGIES[strategy],
        direction=_DIRECTIONS[direction],
    )


def _read_padding(root: Json) -> Padding | None:
    value = root.get("padding")
    if value is None:
        return None
    where = "padding"
    if not isinstance(value, dict):
        raise ModelError(f"{where}: {shorten(value)} is not a setting")
    strategy = value.get("strategy")
    direction = value.get("direction")
    fixed = None
    if isinstance(strategy, dict) and list(strategy) == ["Fixed"]:
        fixed = _count(strategy, "Fixed", where)
    elif strategy != "BatchLongest":
        raise ModelError(f"{where}: the strategy {shorten(strategy)} is not known")
    if direction not in _DIRECTIONS:
        raise ModelError(f"{where}: the direction {shorten(direction)} is not known")
    multiple = value.get("pad_to_multiple_of")
    return Padding(
        fixed=fixed,
        left=direction == "Left",
        multiple_of=0 if multiple is None else _count(value, "pad_to_multiple_of", where),
        id=_count(value, "pad_id", where),
        type_id=_count(value, "pad_type_id", where),
    )


def _count(component: Json, name: str, where: str) -> int:
    value = field(component, name, int, where)
    if not 0 <= value < 2**32:
        raise ModelError(f"{where}: {name} has the value {value}")
    return int(value)


# --- Together ------------------------------------------------------------------------------------


def _finish(
    core: _Core, root: Json, meta: dict[str, Any], source: ImageSource, profile: ImageProfile
) -> Description:
    byte_units = bool(core.flags & ImageFlags.BYTE_UNITS)
    program = Programs(
        normalizer=programs.normalizer(root.get("normalizer")),
        pre_tokenizer=programs.pre_tokenizer(root.get("pre_tokenizer"), byte_units=byte_units),
        post_processor=programs.post_processor(root.get("post_processor")),
        decoder=programs.decoder(root.get("decoder")),
    )
    added = _read_added(root, core.tokens, program.normalizer, profile)
    decoders = [
        part["type"] for part, _ in programs.flatten(root.get("decoder"), "decoders", "decoder")
    ]
    flags = core.flags
    concat = decoders == ["ByteLevel"]
    if concat:
        flags |= ImageFlags.DECODE_CONCAT
    if any(token.normalized for token in added.tokens.values()):
        flags |= ImageFlags.ADDED_NORMALIZED
    truncation = _read_truncation(root)
    padding = _read_padding(root)
    if truncation is not None:
        flags |= ImageFlags.HAS_TRUNCATION
    if padding is not None:
        flags |= ImageFlags.HAS_PADDING

    ids_end = 1 + max((*core.tokens.values(), *added.tokens), default=-1)
    if ids_end == 0:
        raise ModelError("model.vocab: there are no tokens")
    strings: list[str | None] = [None] * ids_end
    for token, token_id in core.tokens.items():
        strings[token_id] = token
    for token_id, text in added.decode_texts.items():
        strings[token_id] = text
    texts = [None if text is None else _encode(text, "model.vocab") for text in strings]
    if concat:
        decoded = [b"" if text is None else alphabet.decoded(text) for text in strings]
    else:
        decoded = [text or b"" for text in texts]
    keys = [b""] * ids_end
    for token_id, key in core.keys.items():
        keys[token_id] = key
    scores = core.scores
    if scores is not None and len(scores) < ids_end:
        scores = np.concatenate([scores, np.zeros(ids_end - len(scores))])
    names = meta.get("special_tokens", {})

    def named(name: str) -> int | None:
        content = names.get(name)
        for token in added.tokens.values():
            if content is not None and token.content == content.encode():
                return token.id
        return core.tokens.get(content) if content is not None else None

    return Description(
        source=source,
        profile=profile,
        algorithm=core.algorithm,
        flags=flags,
        texts=texts,
        decoded=decoded,
        keys=keys,
        model_len=len(core.tokens),
        special_ids=frozenset(
            token_id
            for token_id, text in enumerate(strings)
            if text is not None and text in added.special_texts
        ),
        added=tuple(added.tokens[token_id] for token_id in sorted(added.tokens)),
        programs=program,
        merges=core.merges,
        byte_ids=core.byte_ids,
        scores=scores,
        unk_id=core.unk_id,
        bos_id=named("bos_token"),
        eos_id=named("eos_token"),
        pad_id=named("pad_token"),
        prefix=core.prefix,
        suffix=core.suffix,
        word_chars_max=core.word_chars_max,
        truncation=truncation,
        padding=padding,
        meta={**meta, "model": _model_name(core.algorithm)},
    )


def _model_name(algorithm: ImageAlgorithm) -> str:
    return algorithm.name.lower()
