"""Understands a source by its format: from the files that were read to a description."""

from __future__ import annotations

from typing import Any

from pintok_server._spec.image import ImageSource
from pintok_server.vocab import (
    profiles,
    sentencepiece_model,
    tekken,
    tiktoken_ranks,
    tokenizer_json,
    vocab_txt,
)
from pintok_server.vocab.description import Description
from pintok_server.vocab.profiles import Profile
from pintok_server.vocab.sources import Source, json_of


def describe(source: Source, profile: Profile = profiles.DEFAULT) -> Description:
    """Understand a source. Raises ModelError naming what is missing or cannot be expressed."""
    profiles.check_source(source.kind, profile)
    meta = _meta(source)
    if source.kind == ImageSource.TOKENIZER_JSON:
        return tokenizer_json.load(source.parse(), meta=meta, profile=profile)
    if source.kind == ImageSource.TIKTOKEN:
        ranks = source.file("ranks")
        assert ranks is not None
        return tiktoken_ranks.load(source.parse(), ranks.data, meta=meta)
    if source.kind == ImageSource.TEKKEN:
        return tekken.load(source.parse(), meta=meta)
    if source.kind == ImageSource.VOCAB_TXT:
        config = json_of(source, "config")
        return vocab_txt.load(source.main.data, config=config, meta=meta, profile=profile)
    return sentencepiece_model.load(source.main.data, meta=meta)


def _meta(source: Source) -> dict[str, Any]:
    """Names and settings that the configuration files give; none of it decides ids."""
    config = json_of(source, "config")
    special_map = json_of(source, "special_tokens_map")
    named = {**special_map, **config}
    named = {name: value for name, value in named.items() if name.endswith("_token")}
    extra = config.get("extra_special_tokens", special_map.get("extra_special_tokens"))
    if isinstance(extra, dict):
        named.update(extra)
    special_tokens = {}
    for name, value in named.items():
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            special_tokens[name] = value
    meta: dict[str, Any] = {"special_tokens": special_tokens}
    for name in ("chat_template", "model_max_length", "tokenizer_class"):
        if config.get(name) is not None:
            meta[name] = config[name]
    templates = _template_files(source)
    if templates:  # Newer than those inside of the configuration.
        meta["chat_template"] = templates
    return meta


def _template_files(source: Source) -> list[dict[str, str]]:
    """The chat templates that are files of their own, in the form of a configuration's list."""
    return [
        {
            "name": file.role.partition(":")[2] or "default",
            "template": file.data.decode("utf-8", "replace"),
        }
        for file in source.files
        if file.role.partition(":")[0] == "chat_template"
    ]
