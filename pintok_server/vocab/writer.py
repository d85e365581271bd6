"""Writes a description as a vocabulary image; `native/spec/image.toml` is the format."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pintok import _native
from pintok.errors import ModelError
from pintok_server._spec import image as spec
from pintok_server._spec.image import (
    ImageAddedFlags,
    ImageAlgorithm,
    ImageFlags,
    ImageSection,
    ImageTokenFlags,
)
from pintok_server.vocab import programs
from pintok_server.vocab.description import U32, AddedToken, Description

_OVERRUN = b"\0" * spec.IMAGE_OVERRUN
_NONE = spec.IMAGE_NONE

# Bytes of one item, for sections whose table entry counts items.
_ITEM_LEN = {
    ImageSection.CONFIG: spec.IMAGE_CONFIG.size,
    ImageSection.TOKEN_TEXT_OFFS: 4,
    ImageSection.TOKEN_BYTES_OFFS: 4,
    ImageSection.BYTE_IDS: 4,
    ImageSection.PAIRS: spec.IMAGE_PAIR.size,
    ImageSection.VOCAB: 4,
    ImageSection.VOCAB_KEY_OFFS: 4,
    ImageSection.PIECES: spec.IMAGE_PIECE.size,
    ImageSection.SCORES: 8,
    ImageSection.TRIE: spec.IMAGE_TRIE_UNIT.size,
    ImageSection.ADDED: spec.IMAGE_ADDED.size,
    ImageSection.ADDED_RAW: spec.IMAGE_MATCH_NODE.size,
    ImageSection.ADDED_NORMALIZED: spec.IMAGE_MATCH_NODE.size,
    ImageSection.NEIGHBOURS: spec.IMAGE_NEIGHBOURS.size,
    ImageSection.NEIGHBOUR_CHARS: 4,
    ImageSection.UNIGRAM_NEIGHBOURS: spec.IMAGE_UNIGRAM_NEIGHBOURS.size,
}


def write_image(
    description: Description,
    *,
    fingerprint: bytes,
    meta: dict[str, Any] | None = None,
) -> bytes:
    """The image as bytes, checksum included.

    Raises ModelError when the description does not fit the format.
    """
    _check_limits(description)
    sections: dict[ImageSection, bytes] = {}
    strings = _Strings()
    text_offs, text = _table(text or b"" for text in description.texts)
    bytes_offs, decoded = _table(description.decoded)
    key_offs, keys = _table(description.keys)
    key_array = np.frombuffer(keys + _OVERRUN, dtype=np.uint8)
    try:
        vocab, vocab_probe_max = _native.build_vocab(key_offs, key_array)
    except _native.SetupError as error:
        raise ModelError(f"vocabulary: {error.sentence}") from None

    pair_probe_max = piece_probe_max = 0
    reachable = np.ones(description.ids_end, dtype=np.uint8)
    if description.algorithm == ImageAlgorithm.BPE:
        merges, reachable = _merges(description, key_offs, key_array, vocab)
        pairs, pair_probe_max = _native.build_pairs(merges)
        sections[ImageSection.PAIRS] = pairs.tobytes()
        pieces = _pieces(description, key_offs, key_array, vocab, pairs)
        if len(pieces):
            table, piece_probe_max = _native.build_pieces(pieces)
            sections[ImageSection.PIECES] = table.tobytes()
    if description.algorithm in (
        ImageAlgorithm.UNIGRAM,
        ImageAlgorithm.WORDPIECE,
        ImageAlgorithm.LONGEST,
    ):
        order = sorted((key, token_id) for token_id, key in enumerate(description.keys) if key)
        ids = np.array([token_id for _, token_id in order], dtype=np.uint32)
        sections[ImageSection.TRIE] = _native.build_trie(key_offs, key_array, ids).tobytes()
    if description.scores is not None:
        sections[ImageSection.SCORES] = description.scores.astype("<f8").tobytes()
    if description.byte_ids is not None:
        sections[ImageSection.BYTE_IDS] = description.byte_ids.astype("<u4").tobytes()

    sections |= _added_sections(description, strings)
    sections |= {
        ImageSection.TOKEN_TEXT_OFFS: text_offs.tobytes(),
        ImageSection.TOKEN_TEXT: text,
        ImageSection.TOKEN_BYTES_OFFS: bytes_offs.tobytes(),
        ImageSection.TOKEN_BYTES: decoded + _OVERRUN,
        ImageSection.TOKEN_FLAGS: _token_flags(description, reachable),
        ImageSection.VOCAB: vocab.tobytes(),
        ImageSection.VOCAB_KEY_OFFS: key_offs.tobytes(),
        ImageSection.VOCAB_KEY: keys + _OVERRUN,
        ImageSection.NORMALIZER: description.programs.normalizer,
        ImageSection.PRE_TOKENIZER: description.programs.pre_tokenizer,
        ImageSection.POST_PROCESSOR: description.programs.post_processor,
        ImageSection.DECODER: description.programs.decoder,
        ImageSection.META: json.dumps({**description.meta, **(meta or {})}).encode(),
    }
    sections[ImageSection.CONFIG] = _config(
        description,
        strings,
        token_bytes_max=_longest(bytes_offs),
        key_bytes_max=_longest(key_offs),
        probes=(piece_probe_max, pair_probe_max, vocab_probe_max),
    )
    sections[ImageSection.STRINGS] = strings.joined()
    image = _assemble(sections, fingerprint, description.profile, description.source)
    sections |= _neighbours(image)
    return _assemble(sections, fingerprint, description.profile, description.source)


def _neighbours(image: bytes) -> dict[ImageSection, bytes]:
    """What opening would gather each time: which characters stand side by side in tokens."""
    try:
        neighbours, chars, unigram = _native.build_neighbours(image)
    except _native.SetupError:
        return {}  # whoever opens the image is told why it cannot be
    return {
        ImageSection.NEIGHBOURS: neighbours,
        ImageSection.NEIGHBOUR_CHARS: chars,
        ImageSection.UNIGRAM_NEIGHBOURS: unigram,
    }


def _header(image: bytes) -> dict[str, Any]:
    return dict(zip(spec.IMAGE_HEADER_FIELDS, spec.IMAGE_HEADER.unpack_from(image), strict=True))


def _sections(image: bytes) -> dict[ImageSection, bytes]:
    out: dict[ImageSection, bytes] = {}
    for index in range(_header(image)["section_count"]):
        at = spec.IMAGE_HEADER.size + index * spec.IMAGE_SECTION_ENTRY.size
        kind, _, off, length, _ = spec.IMAGE_SECTION_ENTRY.unpack_from(image, at)
        out[ImageSection(kind)] = image[off : off + length]
    return out


def replace_section(image: bytes, kind: ImageSection, body: bytes) -> bytes:
    """The same image with one section put in, replaced, or (empty body) taken out."""
    header = _header(image)
    sections = _sections(image)
    sections[kind] = body
    return _assemble(sections, header["fingerprint"], header["profile"], header["source"])


def _check_limits(description: Description) -> None:
    if description.ids_end > spec.IMAGE_IDS_MAX:
        raise ModelError(
            f"vocabulary: the largest id is {description.ids_end - 1},"
            f" {spec.IMAGE_IDS_MAX - 1} is supported"
        )
    for what, values in (
        ("token", description.texts),
        ("token", description.decoded),
        ("key", description.keys),
        ("added token", [token.match for token in description.added]),
    ):
        longest = max((len(value) for value in values if value is not None), default=0)
        if longest > spec.IMAGE_KEY_MAX:
            raise ModelError(
                f"vocabulary: a {what} has {longest} bytes, {spec.IMAGE_KEY_MAX} are supported"
            )


class _Strings:
    """The strings section while it grows; equal strings are held once."""

    def __init__(self) -> None:
        self._offs: dict[bytes, int] = {}
        self._parts: list[bytes] = []
        self._len = 0

    def add(self, text: bytes) -> tuple[int, int]:
        """(offset, length) of a string."""
        off = self._offs.get(text)
        if off is None:
            off = self._offs[text] = self._len
            self._parts.append(text)
            self._len += len(text)
        return off, len(text)

    def joined(self) -> bytes:
        return b"".join(self._parts)


def _table(values: Iterable[bytes]) -> tuple[U32, bytes]:
    """(offsets with the end at last, joined bytes)."""
    parts = list(values)
    offs = np.zeros(len(parts) + 1, dtype=np.uint32)
    np.cumsum([len(part) for part in parts], out=offs[1:])
    return offs, b"".join(parts)


def _longest(offs: U32) -> int:
    return int(np.diff(offs).max())


def _merges(
    description: Description, key_offs: U32, keys: npt.NDArray[np.uint8], vocab: U32
) -> tuple[U32, npt.NDArray[np.uint8]]:
    """(the merges that can happen, 1 for each id that merging can yield)."""
    if description.ranks is not None:
        try:
            merges, reachable = _native.build_rank_merges(key_offs, keys, vocab, description.ranks)
        except _native.SetupError as error:
            raise ModelError(f"vocabulary: {error.sentence}") from None
        return np.ascontiguousarray(merges), reachable
    assert description.merges is not None
    merges = description.merges
    # An affix makes other units of the same key, so nothing is certain then.
    if len(merges) == 0 or description.prefix or description.suffix:
        return merges, np.ones(description.ids_end, dtype=np.uint8)
    pairs, _ = _native.build_pairs(merges)
    keep, reachable = _native.prune_merges(
        key_offs, keys, vocab, pairs, merges, _start_ids(description)
    )
    return np.ascontiguousarray(merges[keep != 0]), reachable


def _start_ids(description: Description) -> U32 | None:
    """The ids of single bytes where merging starts from bytes, None where from characters."""
    return description.byte_ids if description.flags & ImageFlags.BYTE_UNITS else None


def _pieces(
    description: Description,
    key_offs: U32,
    keys: npt.NDArray[np.uint8],
    vocab: U32,
    pairs: U32,
) -> npt.NDArray[np.uint8]:
    """Pieces whose ids are certain: the vocabulary's own short tokens, commonest first."""
    # An affix makes a piece more than its bytes. Without a pre-tokenizer a text is one piece, but
    # its parts between safe cuts are looked up alike.
    if description.prefix or description.suffix:
        return np.empty((0, spec.IMAGE_PIECE.size), dtype=np.uint8)
    marks = _marks_spaces(description)
    texts = [
        key.replace(programs.MARK, b" ") if marks else key
        for key in description.keys
        if 0 < len(key) and not (marks and b" " in key) and _is_utf8(key)
    ]
    text_offs, joined = _table(text for text in texts if len(text) <= spec.IMAGE_PIECE_KEY_MAX)
    return np.ascontiguousarray(
        _native.seed_pieces(
            key_offs,
            keys,
            vocab,
            pairs,
            _start_ids(description),
            text_offs,
            np.frombuffer(joined + _OVERRUN, dtype=np.uint8),
            whole=bool(description.flags & ImageFlags.IGNORE_MERGES),
            space_marks=marks,
        )
    )


def _marks_spaces(description: Description) -> bool:
    """Whether a space of the text is looked up where the vocabulary has a mark."""
    return (
        description.algorithm == ImageAlgorithm.BPE
        and not description.flags & (ImageFlags.BYTE_UNITS | ImageFlags.IGNORE_MERGES)
        and not description.prefix
        and not description.suffix
        and programs.marks_spaces(
            description.programs.normalizer, description.programs.pre_tokenizer
        )
    )


def _is_utf8(key: bytes) -> bool:
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True


def _token_flags(description: Description, reachable: npt.NDArray[np.uint8]) -> bytes:
    flags = np.zeros(description.ids_end, dtype=np.uint8)
    exists = [text is not None for text in description.texts]
    flags[np.array(exists)] = ImageTokenFlags.EXISTS
    for token in description.added:
        flags[token.id] |= ImageTokenFlags.ADDED
    for token_id in description.special_ids:
        flags[token_id] |= ImageTokenFlags.SPECIAL
    if description.byte_ids is not None and not description.flags & ImageFlags.BYTE_UNITS:
        for token_id in description.byte_ids:
            if token_id != _NONE:
                flags[token_id] |= ImageTokenFlags.BYTE
    # With IGNORE_MERGES a token that no merges make may still be a whole piece.
    if not description.flags & ImageFlags.IGNORE_MERGES:
        unused = reachable == 0
        for token in description.added:
            unused[token.id] = False
        flags[unused] |= np.uint8(ImageTokenFlags.UNUSED)
    return flags.tobytes()


def _added_sections(description: Description, strings: _Strings) -> dict[ImageSection, bytes]:
    rows = []
    for token in description.added:
        flags = (
            ImageAddedFlags.SPECIAL * token.special
            | ImageAddedFlags.SINGLE_WORD * token.single_word
            | ImageAddedFlags.LSTRIP * token.lstrip
            | ImageAddedFlags.RSTRIP * token.rstrip
            | ImageAddedFlags.NORMALIZED * token.normalized
        )
        text = strings.add(token.content)
        match = strings.add(token.match or token.content)
        rows.append(spec.IMAGE_ADDED.pack(token.id, flags, *text, *match, 0, 0))
    out = {ImageSection.ADDED: b"".join(rows)}
    if not description.flags & ImageFlags.NO_SPECIALS_IN_TEXT:
        for section, normalized in (
            (ImageSection.ADDED_RAW, False),
            (ImageSection.ADDED_NORMALIZED, True),
        ):
            out[section] = _match_nodes(description.added, normalized=normalized)
    return out


_Level = list[tuple[bytes, int]]  # (what is matched, index of the added token)


def _match_nodes(added: Sequence[AddedToken], *, normalized: bool) -> bytes:
    """The match trie, breadth first: children of a node follow those of the one before it.

    Of tokens that normalization makes equal the reference matches one that its hash order decides,
    anew in each process; here it is the one with the highest id.
    """
    keys: _Level = sorted(
        (token.match or token.content, index)
        for index, token in enumerate(added)
        if token.normalized == normalized
    )
    if not keys:
        return b""
    out = []
    level: list[tuple[int, _Level]] = [(0, keys)]
    next_child = 1
    depth = 0
    while level:
        below: list[tuple[int, _Level]] = []
        for byte, group in level:
            ends = [index for key, index in group if len(key) == depth]
            ending = ends[-1] if ends else _NONE
            children: dict[int, _Level] = {}
            for entry in group[len(ends) :]:
                children.setdefault(entry[0][depth], []).append(entry)
            first = next_child if children else _NONE
            out.append(spec.IMAGE_MATCH_NODE.pack(first, len(children), byte, 0, ending, depth))
            next_child += len(children)
            below.extend(children.items())
        level = below
        depth += 1
    return b"".join(out)


def _or_none(token_id: int | None) -> int:
    return _NONE if token_id is None else token_id


def _config(
    description: Description,
    strings: _Strings,
    *,
    token_bytes_max: int,
    key_bytes_max: int,
    probes: tuple[int, int, int],
) -> bytes:
    truncation = description.truncation
    padding = description.padding
    prefix = strings.add(description.prefix)
    suffix = strings.add(description.suffix)
    values: dict[str, int] = {
        "algorithm": description.algorithm,
        "flags": description.flags | ImageFlags.SPACE_MARKS * _marks_spaces(description),
        "ids_end": description.ids_end,
        "vocab_len": sum(text is not None for text in description.texts),
        "model_len": description.model_len,
        "added_len": len(description.added),
        "unk_id": _or_none(description.unk_id),
        "bos_id": _or_none(description.bos_id),
        "eos_id": _or_none(description.eos_id),
        "pad_id": _or_none(description.pad_id),
        "token_bytes_max": token_bytes_max,
        "word_chars_max": description.word_chars_max,
        "piece_probe_max": probes[0],
        "pair_probe_max": probes[1],
        "vocab_probe_max": probes[2],
        "prefix_off": prefix[0],
        "prefix_len": prefix[1],
        "suffix_off": suffix[0],
        "suffix_len": suffix[1],
        "key_bytes_max": key_bytes_max,
    }
    if truncation is not None:
        values |= {
            "truncation_max": truncation.max_length,
            "truncation_stride": truncation.stride,
            "truncation_kind": truncation.strategy | truncation.direction << 8,
        }
    if padding is not None:
        values |= {
            "padding_kind": (padding.fixed is not None) | padding.left << 8,
            "padding_len": padding.fixed or 0,
            "padding_multiple": padding.multiple_of,
            "padding_id": padding.id,
            "padding_type_id": padding.type_id,
        }
    known = set(spec.IMAGE_CONFIG_FIELDS)
    assert known.issuperset(values), set(values) - known
    out = bytearray(spec.IMAGE_CONFIG.size)
    for name, value in values.items():
        struct.pack_into("<I", out, spec.IMAGE_CONFIG_OFFSETS[name], value)
    return bytes(out)


def _align(length: int) -> int:
    return -(-length // spec.IMAGE_SECTION_ALIGN) * spec.IMAGE_SECTION_ALIGN


def _assemble(
    sections: dict[ImageSection, bytes], fingerprint: bytes, profile: int, source: int
) -> bytes:
    present = sorted((kind, body) for kind, body in sections.items() if body)
    head_len = spec.IMAGE_HEADER.size + len(present) * spec.IMAGE_SECTION_ENTRY.size
    off = _align(head_len)
    entries = b""
    for kind, body in present:
        item_len = _ITEM_LEN.get(kind, 1)
        count = len(body) // item_len if item_len > 1 else 0
        entries += spec.IMAGE_SECTION_ENTRY.pack(kind, 0, off, len(body), count)
        off += _align(len(body))
    if off > spec.IMAGE_LEN_MAX:
        raise ModelError(f"vocabulary: the image would have {off} bytes, over the format's limit")
    out = bytearray(off)
    tag = int.from_bytes(fingerprint[:4], "little") or 1
    out[: spec.IMAGE_HEADER.size] = spec.IMAGE_HEADER.pack(
        spec.IMAGE_MAGIC.encode(),
        spec.IMAGE_VERSION,
        len(present),
        off,
        0,  # the checksum: below
        fingerprint,
        profile,
        source,
        tag,
        b"",
    )
    out[spec.IMAGE_HEADER.size : head_len] = entries
    off = _align(head_len)
    for _, body in present:
        out[off : off + len(body)] = body
        off += _align(len(body))
    checksum = _native.image_checksum(np.frombuffer(out, dtype=np.uint8))
    struct.pack_into("<Q", out, spec.IMAGE_HEADER_OFFSETS["checksum"], checksum)
    return bytes(out)
