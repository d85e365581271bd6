"""Ids that arrive one at a time, as text that never has to be taken back.

The core decides what a step gives, in process and in a server alike; a stream is nothing but the
window of ids that the next step needs. The rule follows the reference of the model's source:

- Hugging Face tokenizers: a chunk is given when the decoded text has grown and does not end in
  U+FFFD (an unfinished character, or a true U+FFFD, which is held back as well);
- sentencepiece: the same. Its library does not stream, but what is given together is what it
  decodes;
- tiktoken and Tekken: the bytes of each token go through an incremental UTF-8 decoder.

Three things the references leave open. Where one raises because earlier text would have to change,
the stream goes on with the text of the ids that were not given yet, decoded alone. What it never
gives at the end, `flush` gives. And where it holds back without end, 256 ids are given as `flush`
would give them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeAlias, TypeVar

from pintok._options import id_list

if TYPE_CHECKING:  # A stream over a server does without the native core.
    from pintok._calls import AsyncCalls, BlockingCalls
    from pintok.tokenizer import Tokenizer

    _Blocking: TypeAlias = Tokenizer | BlockingCalls
    _Waiting: TypeAlias = AsyncCalls


class Step(NamedTuple):
    """One step of one stream, as it is put to the core: all that a server is told of the stream."""

    ids: list[int]
    """The window, then the new ids."""
    given_count: int = 0
    """Ids at the front whose text was given: context."""
    new_count: int = 0
    """Ids at the end that are new."""
    flush: bool = False
    """The stream ends: give what is left."""


class Stepped(NamedTuple):
    """What a step gives, and what it leaves of the window."""

    text: str
    """The text that the ids complete; empty while there is none."""
    dropped_count: int
    """Ids that leave the window at its front."""
    given_count: int
    """Of those that remain, ids that are context."""


@dataclasses.dataclass(slots=True)
class StreamWindow:
    """The state of a stream: what its next step needs of the past."""

    ids: list[int]
    given_count: int = 0

    def ask(self, new_ids: Sequence[int], *, flush: bool = False) -> Step:
        """The step that takes these ids."""
        return Step([*self.ids, *new_ids], self.given_count, len(new_ids), flush)

    def accept(self, step: Step, stepped: Stepped) -> str:
        """Go on to what the step leaves; returns the text that it gives."""
        self.ids = step.ids[stepped.dropped_count :]
        self.given_count = stepped.given_count
        return stepped.text


_BYTE_SOURCES = frozenset((2, 3))  # image_source: tiktoken, tekken

_Decoder = TypeVar("_Decoder")


class _Stream(Generic[_Decoder]):
    """A window, and whom to ask."""

    __slots__ = ("_decoder", "_skip", "_window")

    def __init__(
        self, decoder: _Decoder, *, skip_special_tokens: bool = True, prefill: Iterable[int] = ()
    ) -> None:
        self._decoder = decoder
        self._skip = skip_special_tokens
        self._window = StreamWindow(id_list(prefill))

    def _ask(self, new_ids: Sequence[int], *, flush: bool = False) -> Step:
        return self._window.ask(new_ids, flush=flush)

    def _accept(self, step: Step, stepped: Stepped) -> str:
        return self._window.accept(step, stepped)


class DecodeStream(_Stream["_Blocking"]):
    """Decodes one stream of ids, in process or over a `Client` or `Fleet`.

        >>> from pintok import Tokenizer
        >>> tokenizer = Tokenizer.from_pretrained("default")
        >>> stream = DecodeStream(tokenizer)
        >>> "".join(stream.step(i) or "" for i in tokenizer.encode("Grüße, 世界")) + stream.flush()
        'Grüße, 世界'

    `prefill` is what came before, a prompt for instance: it is not given again, but it decides how
    the first ids read. The work of a step is bounded by the ids since the last chunk. Over a client
    each step sends the window, and all state stays here: any server of the model may answer, and a
    step that raises may be tried again. `step_streams` takes many streams on together.
    """

    __slots__ = ("_by_bytes", "_even", "_last", "_piece", "_step")

    def __init__(
        self,
        decoder: Tokenizer | BlockingCalls,
        *,
        skip_special_tokens: bool = True,
        prefill: Iterable[int] = (),
    ) -> None:
        super().__init__(decoder, skip_special_tokens=skip_special_tokens, prefill=prefill)
        # What an id adds to a text that has begun, where that is plain: servers do not say.
        self._piece: Callable[[object, bool], str | None] | None = getattr(decoder, "_piece", None)
        self._by_bytes = self._piece is not None and decoder.source in _BYTE_SOURCES  # type: ignore[union-attr]
        # Nothing waits, and the text of the window, if it has one, is more than spaces.
        self._even = False
        # The id that the window is by now, given; None: what the window says.
        self._last: int | None = None
        # A step in process, without the tuples that a server's needs.
        self._step: Callable[..., tuple[str, int, int]] | None = getattr(decoder, "_step", None)

    def step(self, new_ids: int | Sequence[int]) -> str | None:
        """The text that this id completes, or these together; None while there is none."""
        if self._even and self._piece is not None:
            # The usual case: it is plain what the id adds. Anything else goes the long way.
            chunk = self._piece(new_ids, self._skip)
            if chunk is not None:
                if not self._by_bytes:
                    self._last = new_ids  # type: ignore[assignment]
                return chunk
        return self._go_on(id_list(new_ids)) or None

    def flush(self) -> str:
        """What is left at the end, U+FFFD for unfinished characters; then the stream is new."""
        return self._go_on([], flush=True)

    def _go_on(self, new_ids: list[int], *, flush: bool = False) -> str:
        if self._step is None:
            step = self._ask(new_ids, flush=flush)
            (stepped,) = self._decoder.decode_steps([step], skip_special_tokens=self._skip)
            return self._accept(step, stepped)
        self._settle()
        window = self._window
        ids = window.ids + new_ids
        text, dropped_count, given_count = self._step(
            ids, window.given_count, len(new_ids), self._skip, flush
        )
        window.ids = ids[dropped_count:]
        window.given_count = given_count
        self._look(text)
        return text

    def _settle(self) -> None:
        """Put into the window what it is by now."""
        if self._last is not None:
            self._window.ids = [self._last]
            self._window.given_count = 1
            self._last = None

    def _ask(self, new_ids: Sequence[int], *, flush: bool = False) -> Step:
        self._settle()
        return super()._ask(new_ids, flush=flush)

    def _accept(self, step: Step, stepped: Stepped) -> str:
        text = super()._accept(step, stepped)
        self._look(text)
        return text

    def _look(self, text: str) -> None:
        """Whether the next id may go the short way, after a step that gave this."""
        window = self._window
        if self._by_bytes:
            self._even = not window.ids
        else:
            self._even = (
                window.given_count == len(window.ids) > 0 and text != "" and not text.isspace()
            )


class AsyncDecodeStream(_Stream["_Waiting"]):
    """As `DecodeStream`, over an `AsyncClient` or `AsyncFleet`; steps of a stream take turns."""

    __slots__ = ()

    async def step(self, new_ids: int | Sequence[int]) -> str | None:
        """The text that this id completes, or these together; None while there is none."""
        return await self._take(self._ask(id_list(new_ids))) or None

    async def flush(self) -> str:
        """What is left at the end, U+FFFD for unfinished characters; then the stream is new."""
        return await self._take(self._ask((), flush=True))

    async def _take(self, step: Step) -> str:
        (stepped,) = await self._decoder.decode_steps([step], skip_special_tokens=self._skip)
        return self._accept(step, stepped)


def step_streams(
    streams: Sequence[DecodeStream], new_ids: Sequence[int | Sequence[int]]
) -> list[str | None]:
    """`step` of many streams of one decoder, each with its own new ids, in one call.

    Over a client they share datagrams. Raises ValueError for streams that differ in decoder or in
    `skip_special_tokens`; after RefusedError all streams are as they were.
    """
    if not streams:
        return []
    steps = _asked(streams, new_ids)
    first = streams[0]
    stepped = first._decoder.decode_steps(steps, skip_special_tokens=first._skip)
    return _accepted(streams, steps, stepped)


async def step_streams_async(
    streams: Sequence[AsyncDecodeStream], new_ids: Sequence[int | Sequence[int]]
) -> list[str | None]:
    """`step_streams` for streams over an `AsyncClient`."""
    if not streams:
        return []
    steps = _asked(streams, new_ids)
    first = streams[0]
    stepped = await first._decoder.decode_steps(steps, skip_special_tokens=first._skip)
    return _accepted(streams, steps, stepped)


def _asked(streams: Sequence[_Stream[Any]], new_ids: Sequence[int | Sequence[int]]) -> list[Step]:
    if len({(id(stream._decoder), stream._skip) for stream in streams}) > 1:
        raise ValueError("the streams differ in decoder or skip_special_tokens")
    if len({id(stream) for stream in streams}) != len(streams):
        raise ValueError("a stream is there twice")
    return [stream._ask(id_list(ids)) for stream, ids in zip(streams, new_ids, strict=True)]


def _accepted(
    streams: Sequence[_Stream[Any]], steps: Sequence[Step], stepped: Sequence[Stepped]
) -> list[str | None]:
    return [
        stream._accept(step, outcome) or None
        for stream, step, outcome in zip(streams, steps, stepped, strict=True)
    ]
