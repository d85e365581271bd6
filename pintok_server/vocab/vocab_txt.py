"""Reads `vocab.txt` of BERT: one WordPiece a line, with the standard pipeline.

The file says nothing about case, so `tokenizer_config.json` must: without `do_lower_case` the model
is refused.
"""

from __future__ import annotations

from typing import Any

from pintok.errors import ModelError
from pintok_server._spec.image import ImageSource
from pintok_server.vocab import profiles, tokenizer_json
from pintok_server.vocab.description import Description
from pintok_server.vocab.json_fields import Json, shorten
from pintok_server.vocab.profiles import Profile

_SPECIALS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}


def load(
    data: bytes, *, config: Json, meta: dict[str, Any], profile: Profile = profiles.DEFAULT
) -> Description:
    """Read a vocab.txt with its tokenizer_config.json. Raises ModelError with one sentence."""
    root = as_tokenizer_json(data, config=config)
    return tokenizer_json.load(root, meta=meta, source=ImageSource.VOCAB_TXT, profile=profile)


def as_tokenizer_json(data: bytes, *, config: Json) -> Json:
    """The same model as BERT's own converter would write it. Raises ModelError as `load` does."""
    if not isinstance(config.get("do_lower_case"), bool):
        raise ModelError(
            "vocab.txt: a tokenizer_config.json beside it must state do_lower_case (true or false)"
        )
    try:
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ModelError(f"vocab.txt: not UTF-8 at byte {error.start}") from None
    vocab = {line.rstrip(): index for index, line in enumerate(lines)}
    if len(vocab) != len(lines):
        raise ModelError("vocab.txt: a token stands there twice")
    names = {}
    for name, default in _SPECIALS.items():
        value = config.get(name, default)
        names[name] = value.get("content") if isinstance(value, dict) else value
        if names[name] not in vocab:
            raise ModelError(f"vocab.txt: the {name} {shorten(names[name])} is not in it")
    return _standard_pipeline(vocab, names, config)


def _standard_pipeline(vocab: dict[str, int], names: dict[str, Any], config: Json) -> Json:
    """The pipeline of every BERT with this vocabulary."""
    cls, sep = names["cls_token"], names["sep_token"]
    single = [_special(cls, 0), _sequence("A", 0), _special(sep, 0)]
    return {
        "version": "1.0",
        "added_tokens": [
            {
                "id": vocab[names[name]],
                "content": names[name],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for name in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
            "strip_accents": config.get("strip_accents"),
            "lowercase": config["do_lower_case"],
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, _sequence("B", 1), _special(sep, 1)],
            "special_tokens": {
                token: {"id": token, "ids": [vocab[token]], "tokens": [token]}
                for token in (cls, sep)
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": names["unk_token"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        },
    }


def _special(token: str, type_id: int) -> Json:
    return {"SpecialToken": {"id": token, "type_id": type_id}}


def _sequence(name: str, type_id: int) -> Json:
    return {"Sequence": {"id": name, "type_id": type_id}}
