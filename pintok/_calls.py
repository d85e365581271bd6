"""The calls that clients and fleets have in common, for callers that block and for asyncio.

Each method says with its signature what can be asked, puts the arguments into a question
(`pintok._questions`), and leaves the answer to the class below it: `Client`, `Fleet`, and
`AsyncClient`, `AsyncFleet`. The two classes differ in `await` alone, and a test compares them.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy.typing as npt

from pintok import _questions
from pintok._codec import FileSettings, ModelInfo, Outcome
from pintok._options import encode_options, offset_options
from pintok._pacing import Patience
from pintok._questions import Question, skip_option
from pintok._session import Session, Steps
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
from pintok.stream import AsyncDecodeStream, DecodeStream, Step, Stepped

_T = TypeVar("_T")


class BlockingCalls(abc.ABC):
    """What `Client` and `Fleet` can be asked."""

    __slots__ = ()

    # --- text to ids --------------------------------------------------------------------------

    def encode(
        self,
        text: str | bytes,
        *,
        pair: str | bytes | None = None,
        add_special_tokens: bool = True,
        parse_special: ParseSpecial = "all",
        encode_special_tokens: bool = False,
        bos: bool = False,
        eos: bool = False,
        truncation: Truncation | None = None,
    ) -> Ids:
        """The ids of a text, or of a pair: uint32, shape (n,). Arguments as `Tokenizer.encode`."""
        options = encode_options(add_special_tokens, parse_special, encode_special_tokens, bos, eos)
        if pair is None and truncation is None:
            return self._encode_one(text, options)
        return self._answer(_questions.encode(text, pair, options, truncation))

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
        is not wanted: the first window alone is a shorter reply.
        """
        options = encode_options(add_special_tokens, parse_special, encode_special_tokens, bos, eos)
        options |= offset_options(offset_unit)
        return self._answer(_questions.encode_full(text, pair, options, truncation, overflowing))

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

        `file_settings` has the settings of the model's own file. The first text that is refused
        raises. Texts share datagrams as in `encode_batch`.
        """
        options = encode_options(add_special_tokens, parse_special, encode_special_tokens)
        options |= offset_options(offset_unit)
        return self._answer(_questions.encode_batch_full(texts, options, truncation, padding))

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

        As `Tokenizer.encode_plain`.
        """
        options = encode_options(add_special_tokens, "all", bos=bos, eos=eos)
        return self._answer(_questions.encode_plain(text, plain, options))

    def encode_batch(
        self,
        texts: Iterable[str | bytes],
        *,
        add_special_tokens: bool = True,
        parse_special: ParseSpecial = "all",
        truncation: Truncation | None = None,
    ) -> Batch:
        """The ids of many texts in one array; the first refusal raises and names its text.

        Short texts share datagrams, and `window` datagrams are under way at a time.
        """
        options = encode_options(add_special_tokens, parse_special)
        return self._answer(_questions.encode_batch(texts, options, truncation))

    def count(
        self,
        text: str | bytes,
        *,
        pair: str | bytes | None = None,
        add_special_tokens: bool = True,
        parse_special: ParseSpecial = "all",
    ) -> int:
        """How many ids `encode` would give."""
        options = encode_options(add_special_tokens, parse_special)
        return self._answer(_questions.count(text, pair, options))

    def count_batch(
        self,
        texts: Iterable[str | bytes],
        *,
        add_special_tokens: bool = True,
        parse_special: ParseSpecial = "all",
    ) -> list[int]:
        """How many ids each text has."""
        options = encode_options(add_special_tokens, parse_special)
        return self._answer(_questions.count_batch(texts, options))

    # --- ids to text --------------------------------------------------------------------------

    def decode(
        self, ids: Sequence[int] | npt.NDArray[Any], *, skip_special_tokens: bool = False
    ) -> str:
        """The text of the ids, as `Tokenizer.decode`."""
        return self._answer(_questions.decode(ids, skip_option(skip_special_tokens)))

    def decode_batch(
        self,
        batch: Iterable[Sequence[int] | npt.NDArray[Any]],
        *,
        skip_special_tokens: bool = False,
    ) -> list[str]:
        """The texts of many id lists."""
        return self._answer(_questions.decode_batch(batch, skip_option(skip_special_tokens)))

    def decode_stream(
        self, *, skip_special_tokens: bool = True, prefill: Iterable[int] = ()
    ) -> DecodeStream:
        """A stream of ids to decode one at a time; the server keeps nothing of it."""
        return DecodeStream(self, skip_special_tokens=skip_special_tokens, prefill=prefill)

    def decode_steps(
        self, steps: Sequence[Step], *, skip_special_tokens: bool = True
    ) -> list[Stepped]:
        """One step each of many streams whose windows the caller keeps; see `DecodeStream`.

        They share datagrams, and the first one that is refused raises.
        """
        return self._answer(_questions.decode_steps(steps, skip_option(skip_special_tokens)))

    # --- many independent requests ------------------------------------------------------------

    def encode_each(
        self,
        texts: Sequence[str | bytes],
        *,
        pairs: Sequence[str | bytes] | None = None,
        plain: Sequence[Sequence[PlainRange]] | None = None,
        full: bool = False,
        add_special_tokens: bool = True,
        parse_special: ParseSpecial = "all",
        encode_special_tokens: bool = False,
        bos: bool = False,
        eos: bool = False,
        truncation: Truncation | None = None,
    ) -> list[Outcome]:
        """As `encode` of each text (with its pair), but a refusal is an outcome beside the others.

        An outcome has `ids` when its `verdict` is 0, with `full` also offsets in characters, type
        ids and special tokens mask, and with truncation all windows, one after another. `plain`
        are ranges of each text as `encode_plain` takes them. Texts share datagrams as in
        `encode_batch`.
        """
        options = encode_options(add_special_tokens, parse_special, encode_special_tokens, bos, eos)
        return self._answer(_questions.encode_each(texts, pairs, plain, full, options, truncation))

    def count_each(
        self,
        texts: Sequence[str | bytes],
        *,
        pairs: Sequence[str | bytes] | None = None,
        add_special_tokens: bool = True,
        parse_special: ParseSpecial = "all",
        encode_special_tokens: bool = False,
        bos: bool = False,
        eos: bool = False,
    ) -> list[Outcome]:
        """As `encode_each`, but an outcome has only the `count` of ids."""
        options = encode_options(add_special_tokens, parse_special, encode_special_tokens, bos, eos)
        return self._answer(_questions.count_each(texts, pairs, options))

    def decode_each(
        self,
        batch: Iterable[Sequence[int] | npt.NDArray[Any]],
        *,
        skip_special_tokens: bool = False,
    ) -> list[Outcome]:
        """As `decode` of each id list; an outcome has `text` when its `verdict` is 0."""
        return self._answer(_questions.decode_each(batch, skip_option(skip_special_tokens)))

    def decode_steps_each(
        self, steps: Sequence[Step], *, skip_special_tokens: bool = True
    ) -> list[Outcome]:
        """As `decode_steps`; an outcome has the parts of a step when its `verdict` is 0."""
        return self._answer(_questions.decode_steps_each(steps, skip_option(skip_special_tokens)))

    # --- the server ---------------------------------------------------------------------------

    def info(self) -> ModelInfo:
        """What a server says about the model of these calls."""
        return self._ask(Session.info)

    def file_settings(self) -> FileSettings:
        """The truncation and padding that the model's own file sets; applied only if asked for."""
        return self._ask(Session.file_settings)

    def models(self) -> list[ModelInfo]:
        """Every model of a server, by slot."""
        return self._ask(Session.models)

    # --- whoever answers ----------------------------------------------------------------------

    @abc.abstractmethod
    def _answer(self, question: Question[_T]) -> _T:
        """The result of a question. Raises what the class says."""

    @abc.abstractmethod
    def _ask(self, ask: Callable[[Session, Patience], Steps[_T]]) -> _T:
        """What a server says of itself."""

    def _encode_one(self, text: str | bytes, options: int) -> Ids:
        """The ids of one text without anything beside it: the usual call."""
        return self._answer(_questions.encode(text, None, options, None))


class AsyncCalls(abc.ABC):
    """What `AsyncClient` and `AsyncFleet` can be asked: as `BlockingCalls`, to be awaited."""

    __slots__ = ()

    # --- text to ids --------------------------------------------------------------------------

    async def encode(
        self,
        text: str | bytes,
        *,
        pair: str | bytes | None = None,
        add_special_tokens: bool = True,
        parse_special: ParseSpecial = "all",
        encode_special_tokens: bool = False,
        bos: bool = False,
        eos: bool = False,
        truncation: Truncation | None = None,
    ) -> Ids:
        """The ids of a text, or of a pair: uint32, shape (n,). Arguments as `Tokenizer.encode`."""
        options = encode_options(add_special_tokens, parse_special, encode_special_tokens, bos, eos)
        if pair is None and truncation is None:
            return await self._encode_one(text, options)
        return await self._answer(_questions.encode(text, pair, options, truncation))

    async def encode_full(
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
        is not wanted: the first window alone is a shorter reply.
        """
        options = encode_options(add_special_tokens, parse_special, encode_special_tokens, bos, eos)
        options |= offset_options(offset_unit)
        return await self._answer(
            _questions.encode_full(text, pair, options, truncation, overflowing)
        )

    async def encode_batch_full(
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

        `file_settings` has the settings of the model's own file. The first text that is refused
        raises. Texts share datagrams as in `encode_batch`.
        """
        options = encode_options(add_special_tokens, parse_special, encode_special_tokens)
        options |= offset_options(offset_unit)
        return await self._answer(_questions.encode_batch_full(texts, options, truncation, padding))

    async def encode_plain(
        self,
        text: str | bytes,
        plain: Sequence[PlainRange],
        *,
        add_special_tokens: bool = True,
        bos: bool = False,
        eos: bool = False,
    ) -> PlainEncoding:
        """The ids of a text in which special tokens are ordinary text where `plain` says so.

        As `Tokenizer.encode_plain`.
        """
        options = encode_options(add_special_tokens, "all", bos=bos, eos=eos)
        return await self._answer(_questions.encode_plain(text, plain, options))

    async def encode_batch(
        self,
        texts: Iterable[str | bytes],
        *,
        add_special_tokens: bool = True,
        parse_special: ParseSpecial = "all",
        truncation: Truncation | None = None,
    ) -> Batch:
        """The ids of many texts in one array; the first refusal raises and names its text.

        Short texts share datagrams, and `window` datagrams are under way at a time.
        """
        options = encode_options(add_special_tokens, parse_special)
        return await self._answer(_questions.encode_batch(texts, options, truncation))

    async def count(
        self,
        text: str | bytes,
        *,
        pair: str | bytes | None = None,
        add_special_tokens: bool = True,
        parse_special: ParseSpecial = "all",
    ) -> int:
        """How many ids `encode` would give."""
        options = encode_options(add_special_tokens, parse_special)
        return await self._answer(_questions.count(text, pair, options))

    async def count_batch(
        self,
        texts: Iterable[str | bytes],
        *,
        add_special_tokens: bool = True,
        parse_special: ParseSpecial = "all",
    ) -> list[int]:
        """How many ids each text has."""
        options = encode_options(add_special_tokens, parse_special)
        return await self._answer(_questions.count_batch(texts, options))

    # --- ids to text --------------------------------------------------------------------------

    async def decode(
        self, ids: Sequence[int] | npt.NDArray[Any], *, skip_special_tokens: bool = False
    ) -> str:
        """The text of the ids, as `Tokenizer.decode`."""
        return await self._answer(_questions.decode(ids, skip_option(skip_special_tokens)))

    async def decode_batch(
        self,
        batch: Iterable[Sequence[int] | npt.NDArray[Any]],
        *,
        skip_special_tokens: bool = False,
    ) -> list[str]:
        """The texts of many id lists."""
        return await self._answer(_questions.decode_batch(batch, skip_option(skip_special_tokens)))

    def decode_stream(
        self, *, skip_special_tokens: bool = True, prefill: Iterable[int] = ()
    ) -> AsyncDecodeStream:
        """A stream of ids to decode one at a time; the server keeps nothing of it."""
        return AsyncDecodeStream(self, skip_special_tokens=skip_special_tokens, prefill=prefill)

    async def decode_steps(
        self, steps: Sequence[Step], *, skip_special_tokens: bool = True
    ) -> list[Stepped]:
        """One step each of many streams whose windows the caller keeps; see `AsyncDecodeStream`.

        They share datagrams, and the first one that is refused raises.
        """
        return await self._answer(_questions.decode_steps(steps, skip_option(skip_special_tokens)))

    # --- many independent requests ------------------------------------------------------------

    async def encode_each(
        self,
        texts: Sequence[str | bytes],
        *,
        pairs: Sequence[str | bytes] | None = None,
        plain: Sequence[Sequence[PlainRange]] | None = None,
        full: bool = False,
        add_special_tokens: bool = True,
        parse_special: ParseSpecial = "all",
        encode_special_tokens: bool = False,
        bos: bool = False,
        eos: bool = False,
        truncation: Truncation | None = None,
    ) -> list[Outcome]:
        """As `encode` of each text (with its pair), but a refusal is an outcome beside the others.

        An outcome has `ids` when its `verdict` is 0, with `full` also offsets in characters, type
        ids and special tokens mask, and with truncation all windows, one after another. `plain`
        are ranges of each text as `encode_plain` takes them. Texts share datagrams as in
        `encode_batch`.
        """
        options = encode_options(add_special_tokens, parse_special, encode_special_tokens, bos, eos)
        return await self._answer(
            _questions.encode_each(texts, pairs, plain, full, options, truncation)
        )

    async def count_each(
        self,
        texts: Sequence[str | bytes],
        *,
        pairs: Sequence[str | bytes] | None = None,
        add_special_tokens: bool = True,
        parse_special: ParseSpecial = "all",
        encode_special_tokens: bool = False,
        bos: bool = False,
        eos: bool = False,
    ) -> list[Outcome]:
        """As `encode_each`, but an outcome has only the `count` of ids."""
        options = encode_options(add_special_tokens, parse_special, encode_special_tokens, bos, eos)
        return await self._answer(_questions.count_each(texts, pairs, options))

    async def decode_each(
        self,
        batch: Iterable[Sequence[int] | npt.NDArray[Any]],
        *,
        skip_special_tokens: bool = False,
    ) -> list[Outcome]:
        """As `decode` of each id list; an outcome has `text` when its `verdict` is 0."""
        return await self._answer(_questions.decode_each(batch, skip_option(skip_special_tokens)))

    async def decode_steps_each(
        self, steps: Sequence[Step], *, skip_special_tokens: bool = True
    ) -> list[Outcome]:
        """As `decode_steps`; an outcome has the parts of a step when its `verdict` is 0."""
        return await self._answer(
            _questions.decode_steps_each(steps, skip_option(skip_special_tokens))
        )

    # --- the server ---------------------------------------------------------------------------

    async def info(self) -> ModelInfo:
        """What a server says about the model of these calls."""
        return await self._ask(Session.info)

    async def file_settings(self) -> FileSettings:
        """The truncation and padding that the model's own file sets; applied only if asked for."""
        return await self._ask(Session.file_settings)

    async def models(self) -> list[ModelInfo]:
        """Every model of a server, by slot."""
        return await self._ask(Session.models)

    # --- whoever answers ----------------------------------------------------------------------

    @abc.abstractmethod
    async def _answer(self, question: Question[_T]) -> _T:
        """The result of a question. Raises what the class says."""

    @abc.abstractmethod
    async def _ask(self, ask: Callable[[Session, Patience], Steps[_T]]) -> _T:
        """What a server says of itself."""

    async def _encode_one(self, text: str | bytes, options: int) -> Ids:
        """The ids of one text without anything beside it: the usual call."""
        return await self._answer(_questions.encode(text, None, options, None))
