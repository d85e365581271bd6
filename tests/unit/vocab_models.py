"""Small models of every family and format, made in the test: nothing is downloaded."""

from __future__ import annotations

import base64
import json
import pathlib
from typing import Any

from pintok_server.vocab import alphabet

Json = dict[str, Any]

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MERGES = (
    ("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "the"), ("e", "r"), ("in", "g"), ("Ġ", "t"),
    ("Ġt", "h"), ("Ġth", "e"), ("Ã", "©"), ("1", "2"), ("12", "3"), ("Ġ", "Ġ"), ("ĠĠ", "ĠĠ"),
)  # fmt: skip


def added(content: str, **flags: bool) -> Json:
    """One entry of added_tokens; flags as in the file, false by default."""
    defaults = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": 0, "content": content, **defaults, **flags}


def byte_level(**changes: Any) -> Json:
    """A byte-level BPE with a handful of merges and two special tokens."""
    vocab = {character: index for index, character in enumerate(alphabet.CHARACTERS)}
    for left, right in MERGES:
        vocab.setdefault(left + right, len(vocab))
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": [list(pair) for pair in MERGES],
    }
    root = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added("<s>", special=True), added("<|end|>", special=True)],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": model,
    }
    for name, value in changes.items():
        if name in root:
            root[name] = value
        else:
            model[name] = value
    return root


def split_pre_tokenizer(
    pattern: str = LLAMA3, behavior: str = "Isolated", invert: bool = False
) -> Json:
    return {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": pattern},
                "behavior": behavior,
                "invert": invert,
            },
            {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": False,
            },
        ],
    }


def sentencepiece_bpe() -> Json:
    """A SentencePiece-style BPE with byte fallback."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = [("▁", "t"), ("▁t", "h"), ("h", "e"), ("▁th", "e"), ("i", "n")]
    tokens += ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokens += [left + right for left, right in merges]
    return {
        "version": "1.0",
        "added_tokens": [
            added("<unk>", special=True),
            added("<s>", special=True),
            added("</s>", special=True),
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": template("<s>", 1),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }


def template(token: str, token_id: int) -> Json:
    """The post-processor that puts one token before each sequence."""
    special = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [special, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            special,
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": token, "type_id": 1}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }


def unigram() -> Json:
    """A Unigram model whose scores tie unless they are rounded as the reference rounds them."""
    pieces = [["<unk>", 0.0], ["▁", -2.0122928619384766], ["-", -5.129043102264404]]
    pieces += [["---", -12.130167007446289], ["▁the", -3.25], ["t", -6.5], ["h", -6.25]]
    pieces += [["e", -4.75], ["a", -5.5], ["n", -5.0], ["an", -5.25]]
    return {
        "version": "1.0",
        "added_tokens": [added("<unk>", special=True)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True},
        "post_processor": None,
        "decoder": {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces},
    }


def wordpiece() -> Json:
    """A lower-casing WordPiece."""
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "the",
        "##ing",
        "a",
        "##a",
        "go",
        ",",
        ".",
    ]
    return {
        "version": "1.0",
        "added_tokens": [added(token, special=True) for token in tokens[:5]],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {token: index for index, token in enumerate(tokens)},
        },
    }


def wordlevel() -> Json:
    """Whole words or unknown; without a decoder, so tokens are joined by spaces."""
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "unk_token": "[UNK]",
            "vocab": {"[UNK]": 0, "the": 1, "quick": 2, ".": 3, "don": 4, "'": 5, "t": 6},
        },
    }


def write(directory: pathlib.Path, root: Json, *, name: str = "tokenizer.json") -> pathlib.Path:
    """The model as a file of a directory of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text(json.dumps(root, ensure_ascii=False), encoding="utf-8")
    return path


def rank_tokens() -> list[bytes]:
    """Tokens by rank: the bytes, then some that merge and one that no merge reaches."""
    longer = [
        b"th",
        b"the",
        b" t",
        b" the",
        b"in",
        b"ing",
        b"12",
        b"\xc3\xa9",
        b"aaaa",
        b"  ",
        b"aa",
    ]
    return [*(bytes([byte]) for byte in range(256)), *longer]


def write_tiktoken(directory: pathlib.Path, **changes: Any) -> pathlib.Path:
    """encoding.json and its ranks."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = (
        f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(rank_tokens())
    )
    (directory / "small.tiktoken").write_text("\n".join(lines) + "\n")
    encoding = {
        "format": "tiktoken",
        "ranks_file": "small.tiktoken",
        "pat_str": LLAMA3,
        "special_tokens": {"<|endoftext|>": 300, "<|fim|>": 302},
        **changes,
    }
    return write(directory, encoding, name="encoding.json")


def write_tekken(directory: pathlib.Path, **changes: Any) -> pathlib.Path:
    """tekken.json with 20 special tokens; the last entries of its vocabulary are cut off."""
    vocab = [
        {
            "rank": rank,
            "token_bytes": base64.b64encode(token).decode(),
            "token_str": token.decode() if token.isascii() else None,
        }
        for rank, token in enumerate(rank_tokens())
    ]
    config = {
        "pattern": LLAMA3,
        "num_vocab_tokens": len(vocab),
        "default_vocab_size": len(vocab) + 18,
        "default_num_special_tokens": 20,
        "version": "v3",
        **changes,
    }
    return write(directory, {"config": config, "vocab": vocab}, name="tekken.json")
