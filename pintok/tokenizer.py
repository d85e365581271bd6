"""The tokenizer in process: the same core that the server runs, without a network.

    >>> from pintok import Tokenizer
    >>> tokenizer = Tokenizer.from_pretrained("default")
    >>> ids = tokenizer.encode("Hello, world!")
    >>> tokenizer.decode(ids)
    'Hello, world!'

A tokenizer is immutable and may be used by any number of threads; the GIL is released while the
core works on texts of more than 8 KiB. Opening compiles the model once and caches the result by
fingerprint.
"""

from __future__ import annotations

import datetime
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pintok import _native
from pintok._options import (
    SOURCE_TIKTOKEN,
    encode_options,
    id_array,
    joined,
    offset_options,
    surrogate_refusal,
    truncation_limits,
    utf8,
)
from pintok._shape import pad, windows_of
from pintok._wire import WireOptions
from pintok.encoding import (
    Batch,
    Encoding,
    Ids,
    OffsetUnit,
    Padding,
    ParseSpecial,
    PlainEncoding,
    PlainRange,
    Truncation,
)
from pintok.errors import ModelError, RefusedError
from pintok.profiles import DEFAULT_PROFILE, PROFILES
from pintok.stream import DecodeStream, Step, Stepped

if TYPE_CHECKING:  # jinja2 is needed only where a template is rendered.
    from pintok._content import SpecialTokens
    from pintok.chat import ChatEncoding, ChatTemplate, ContentPolicies, Message

_NONE = 0xFFFFFFFF
_SKIP_SPECIAL_TOKENS = int(WireOptions.SKIP_SPECIAL_TOKENS)
# Bits of the image's `image_flags`.
_HAS_TRUNCATION = 1 << 6
_HAS_PADDING = 1 << 7


class Tokenizer(_native.Coder):
    """Text to ids and back, equal to the reference implementation of the model.

    Make one with `from_file` or `from_pretrained`. Methods raise `pintok.errors.RefusedError` with
    the verdict's code where a server would answer with that verdict: invalid UTF-8, for instance.
    """

    __slots__ = ("_config", "_piece", "_special", "name")

    def __init__(self, image_path: str | os.PathLike[str], *, name: str | None = None) -> None:
        """Open a compiled image. Raises ModelError when it is missing, damaged or unsupported."""
        try:
            super().__init__(_native.Model(os.fspath(image_path)))
        except _native.SetupError as error:
            raise ModelError(error.sentence) from None
        self._config: dict[str, int] = self._model.config
        self._piece = self._model.piece  # for streams
        self._special: SpecialTokens | None = None
        self.name = name or pathlib.Path(image_path).stem

    @classmethod
    def from_file(
        cls, path: str | os.PathLike[str], *, profile: str = DEFAULT_PROFILE
    ) -> Tokenizer:
        """Open a model's file or directory: tokenizer.json, .tiktoken, tekken.json and so on.

        `profile` is one of `pintok.profiles.PROFILES`: whose ids the tokenizer gives.
        Raises ModelError with one sentence naming what is missing or cannot be run exactly.
        """
        return cls._load(os.fspath(path), None, profile)

    @classmethod
    def from_pretrained(
        cls, name: str, *, revision: str | None = None, profile: str = DEFAULT_PROFILE
    ) -> Tokenizer:
        """Open `default`, or a model of the Hugging Face Hub (`ORG/NAME`) through its local cache.

        `profile` is one of `pintok.profiles.PROFILES`: whose ids the tokenizer gives.
        Raises ModelError when the model cannot be had or cannot be run exactly.
        """
        return cls._load(name, revision, profile)

    @classmethod
    def _load(cls, model: str, revision: str | None, profile: str) -> Tokenizer:
        from pintok_server import vocab  # Only needed here.
        from pintok_server.vocab import remembered

        known = None if revision is not None else remembered.find(model, profile)
        if known is not None:
            try:
                return cls(known[0], name=known[1])
            except ModelError:  # It has gone or is damaged.
                pass
        compiled = vocab.load_image(model, revision=revision, profile=profile, whole=False)
        try:
            return cls(compiled.path, name=compiled.name)
        except ModelError:  # A damaged image: one that is looked at as a whole is compiled again.
            compiled = vocab.load_image(model, revision=revision, profile=profile)
            return cls(compiled.path, name=compiled.name)

    @property
    def profile(self) -> str:
        """The reference profile that the ids follow: one of `pintok.profiles.PROFILES`."""
        return PROFILES[self._config["profile"] - 1]

    def _encode_any(
        self,
        text: str | bytes,
        pair: str | bytes | None,
        add_special_tokens: bool,
        parse_special: ParseSpecial,
        encode_special_tokens: bool,
        bos: bool,
        eos: bool,
        truncation: Truncation | None,
    ) -> Ids:
        """`encode` where the core's short way does not do."""
        options = encode_options(add_special_tokens, parse_special, encode_special_tokens, bos, eos)
        limits = truncation_limits(truncation)
        ids: Ids = self._run(self._model.encode, text, pair, options, limits)
        return ids

    def encode_full(
        self,
        text: str | bytes,
        *,
        pair: str | bytes | None = None,
        offset_unit: OffsetUnit = "chars",
        add_special_tokens: bool = True,
        parse_special: ParseSpecial = "all",
        encode_special_tokens: bool = False,
        bos: bool = False,
        eos: bool = False,
        truncation: Truncation | None = None,
        overflowing: bool = True,
    ) -> Encoding:
        """The ids with offsets, type ids and special tokens mask; arguments as in `encode`.

        What truncation cuts off is in `overflowing` of the result, window after window, unless it
        is not wanted: the first window alone costs less.
        """
        options = encode_options(add_special_tokens, parse_special, encode_special_tokens, bos, eos)
        options |= offset_options(offset_unit)
        limits = truncation_limits(truncation)
        if limits is None or not overflowing:
            return Encoding(*self._run(self._model.encode_full, text, pair, options, limits))
        ids, offsets, type_ids, special_tokens_mask, lens = self._run(
            self._model.encode_windows, text, pair, options, limits
        )
        return windows_of(ids, offsets, type_ids, special_tokens_mask, lens.tolist())

    def encode_plain(
        self,
        text: str | bytes,
        plain: Sequence[PlainRange],
        *,
        add_special_tokens: bool = True,
        bos: bool = False,
        eos: bool = False,
    ) -> PlainEncoding:
        """The ids of a text in which special tokens are ordinary text where `plain` says so.

        The ranges are bytes of the text's UTF-8, ascend and do not overlap. Nothing else changes:
        the text is normalized, split and encoded as a whole, and outside of the ranges the special
        tokens are those that `encode` finds there.
        """
        options = encode_options(add_special_tokens, "all", bos=bos, eos=eos)
        ranges = np.array(plain, dtype=np.uint32).reshape(-1, 3)
        try:
            return PlainEncoding(*self._model.encode_plain(text, options, ranges))
        except _native.Refused as refused:
            raise RefusedError(refused.verdict) from None
        except UnicodeEncodeError as error:
            raise surrogate_refusal(error) from None

    def encode_batch_full(
        self,
        texts: Iterable[str | bytes | tuple[str | bytes, str | bytes]],
        *,
        offset_unit: OffsetUnit = "chars",
        add_special_tokens: bool = True,
        parse_special: ParseSpecial = "all",
        encode_special_tokens: bool = False,
        truncation: Truncation | None = None,
        padding: Padding | None = None,
    ) -> list[Encoding]:
        """`encode_full` of many texts, or pairs as tuples, padded to a common length.

        `self.truncation` and `self.padding` are the settings in the model's own file. The first
        text that is refused raises.
        """
        encodings = []
        for item in texts:
            text, pair = item if isinstance(item, tuple) else (item, None)
            encodings.append(
                self.encode_full(
                    text,
                    pair=pair,
                    truncation=truncation,
                    offset_unit=offset_unit,
                    add_special_tokens=add_special_tokens,
                    parse_special=parse_special,
                    encode_special_tokens=encode_special_tokens,
                )
            )
        return encodings if padding is None else pad(encodings, padding)

    def encode_batch(
        self,
        texts: Iterable[str | bytes],
        *,
        add_special_tokens: bool = True,
        parse_special: ParseSpecial = "all",
        truncation: Truncation | None = None,
    ) -> Batch:
        """The ids of many texts in one array; the first text that is refused raises."""
        options = encode_options(add_special_tokens, parse_special)
        limits = truncation_limits(truncation)
        items = list(texts)
        try:
            return Batch(*self._model.encode_batch(items, options, limits))
        except _native.Refused as refused:
            raise RefusedError(refused.verdict) from None
        except UnicodeEncodeError as error:
            items = [self._joined(text, error) for text in items]
        return Batch(*self._model.encode_batch(items, options, limits))

    def _count_any(
        self,
        text: str | bytes,
        pair: str | bytes | None,
        add_special_tokens: bool,
        parse_special: ParseSpecial,
    ) -> int:
        """`count` where the core's short way does not do."""
        options = encode_options(add_special_tokens, parse_special)
        count: int = self._run(self._model.count, text, pair, options)
        return count

    def _run(
        self, call: Callable[..., Any], text: str | bytes, pair: str | bytes | None, *rest: Any
    ) -> Any:
        """A call of the core, its refusals as public exceptions."""
        try:
            return call(text, pair, *rest)
        except _native.Refused as refused:
            raise RefusedError(refused.verdict) from None
        except UnicodeEncodeError as error:
            text = self._joined(text, error)
            pair = None if pair is None else self._joined(pair, error)
        return self._run(call, text, pair, *rest)

    def _joined(self, text: str | bytes, error: UnicodeEncodeError) -> str | bytes:
        """A text that has surrogates by the rule of the reference: tiktoken joins and replaces
        them, the others refuse them."""
        if self.source != SOURCE_TIKTOKEN:
            raise surrogate_refusal(error) from None
        return joined(text)

    def _decode_any(self, ids: Sequence[int] | npt.NDArray[Any], skip_special_tokens: bool) -> str:
        """`decode` where the core's short way does not do."""
        options = _SKIP_SPECIAL_TOKENS if skip_special_tokens else 0
        try:
            return self._model.decode(id_array(ids), options)
        except _native.Refused as refused:
            raise RefusedError(refused.verdict) from None

    def decode_batch(
        self,
        batch: Iterable[Sequence[int] | npt.NDArray[Any]],
        *,
        skip_special_tokens: bool = False,
    ) -> list[str]:
        """The texts of many id lists."""
        return [self.decode(ids, skip_special_tokens=skip_special_tokens) for ids in batch]

    def decode_stream(
        self, *, skip_special_tokens: bool = True, prefill: Iterable[int] = ()
    ) -> DecodeStream:
        """A stream of ids to decode one at a time."""
        return DecodeStream(self, skip_special_tokens=skip_special_tokens, prefill=prefill)

    def decode_steps(
        self, steps: Sequence[Step], *, skip_special_tokens: bool = True
    ) -> list[Stepped]:
        """One step each of many streams whose windows the caller keeps; see `DecodeStream`."""
        return [
            Stepped._make(self._step(*step[:3], skip_special_tokens, step.flush)) for step in steps
        ]

    def _step(
        self, ids: list[int], given_count: int, new_count: int, skip_special: bool, flush: bool
    ) -> tuple[str, int, int]:
        """`Step` and `Stepped` by their fields, for streams."""
        options = _SKIP_SPECIAL_TOKENS if skip_special else 0
        try:
            return self._model.decode_step(ids, given_count, new_count, options, flush)
        except _native.Refused as refused:
            raise RefusedError(refused.verdict) from None

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        template: str | None = None,
        now: datetime.datetime | None = None,
        content_special_tokens: ContentPolicies = "text",
        **variables: Any,
    ) -> ChatEncoding:
        """The text of a conversation by the model's own chat template, and its ids.

        The template writes the special tokens, so none are added to the ids: no second BOS. Those
        that callers wrote (in messages, tools, documents and variables) are ordinary text and are
        counted, unless `content_special_tokens` is "parse", or says so of their place; see
        `ChatTemplate.render_content`. It is an argument and no field of a message: messages come
        from those whom it guards against.

        Arguments as `ChatTemplate.render`. Raises ChatTemplateError when the model has no template
        or the template refuses the messages.
        """
        from pintok._content import byte_ranges
        from pintok.chat import ChatEncoding

        rendered = self.chat_template.render_content(
            self.special_tokens,
            messages,
            content_special_tokens=content_special_tokens,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            template=template,
            now=now,
            **variables,
        )
        if not rendered.plain:
            ids = self.encode(rendered.text, add_special_tokens=False)
            return ChatEncoding(rendered.text, ids, acted_on=rendered.acted_on)
        try:
            data = rendered.text.encode()
        except UnicodeEncodeError as error:
            data = utf8(self._joined(rendered.text, error))
        ranges = byte_ranges(rendered.text, rendered.plain)
        encoding = self.encode_plain(data, ranges, add_special_tokens=False)
        return ChatEncoding(rendered.text, encoding.ids, encoding.hits, rendered.acted_on)

    @property
    def special_tokens(self) -> SpecialTokens:
        """The special tokens that are looked for in texts, for `ChatTemplate.render_content`."""
        if self._special is None:
            from pintok._content import SpecialTokens

            found = self._model.special_tokens
            self._special = SpecialTokens(
                (content.decode("utf-8", "replace") for content, _ in found),
                normalized=any(normalized for _, normalized in found),
            )
        return self._special

    @property
    def chat_template(self) -> ChatTemplate:
        """The chat template of the model. Raises ChatTemplateError when it has none."""
        from pintok.chat import ChatTemplate, ChatTemplateError

        meta = self._meta()
        source = meta.get("chat_template")
        if not source:
            raise ChatTemplateError(f"{self.name} has no chat template")
        return ChatTemplate.from_source(source, special_tokens=meta.get("special_tokens", {}))

    def _meta(self) -> dict[str, Any]:
        meta: dict[str, Any] = json.loads(self._model.meta or b"{}")
        return meta

    def id_to_token(self, token_id: int) -> str | None:
        """The vocabulary's own string of an id, or None for an id that is not in use."""
        token = self._model.id_to_token(token_id)
        return None if token is None else token.decode("utf-8", "replace")

    def id_to_bytes(self, token_id: int) -> bytes | None:
        """What an id decodes to in the middle of a text, or None for an id that is not in use."""
        token: bytes | None = self._model.id_to_bytes(token_id)
        return token

    def is_special(self, token_id: int) -> bool:
        """True for ids that `skip_special_tokens` leaves out."""
        return bool(self._model.is_special(token_id))

    @property
    def source(self) -> int:
        """The format the model was compiled from: a value of the image's `image_source`."""
        return self._config["source"]

    @property
    def truncation(self) -> Truncation | None:
        """The truncation that the model's file sets; used only where it is asked for."""
        config = self._config
        if not config["flags"] & _HAS_TRUNCATION:
            return None
        kind = config["truncation_kind"]
        return Truncation(
            config["truncation_max"],
            config["truncation_stride"],
            strategy=("longest_first", "only_first", "only_second")[kind & 0xFF],
            direction="left" if kind >> 8 else "right",
        )

    @property
    def padding(self) -> Padding | None:
        """The padding that the model's file sets; used only where it is asked for."""
        config = self._config
        if not config["flags"] & _HAS_PADDING:
            return None
        return Padding(
            direction="left" if config["padding_kind"] >> 8 else "right",
            pad_id=config["padding_id"],
            pad_type_id=config["padding_type_id"],
            length=config["padding_len"] if config["padding_kind"] & 1 else None,
            pad_to_multiple_of=config["padding_multiple"] or None,
        )

    @property
    def vocab_size(self) -> int:
        """Ids in use, added tokens included."""
        return self._config["vocab_len"]

    @property
    def ids_end(self) -> int:
        """Largest id plus one."""
        return self._config["ids_end"]

    @property
    def bos_id(self) -> int | None:
        """The beginning-of-text id that the source names."""
        return _optional(self._config["bos_id"])

    @property
    def eos_id(self) -> int | None:
        """The end-of-text id that the source names."""
        return _optional(self._config["eos_id"])

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the source and everything else that decides the ids, in hex."""
        return self._model.fingerprint.hex()

    @property
    def tag(self) -> int:
        """The first four bytes of the fingerprint, as the wire protocol carries it."""
        return self._config["tag"]

    @property
    def certificate(self) -> dict[str, Any]:
        """What was compared with the reference at compile time; empty when nothing was."""
        certificate: dict[str, Any] = json.loads(self._model.certificate or b"{}")
        return certificate

    def __repr__(self) -> str:
        return f"Tokenizer({self.name!r}, vocab_size={self.vocab_size})"


def _optional(token_id: int) -> int | None:
    return None if token_id == _NONE else token_id
