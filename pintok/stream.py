"""Ids that arrive one at a time, as text that never has to be taken back.

The rule follows the reference that belongs to the model's source:

- Hugging Face tokenizers: a chunk is given when the decoded text has grown and does not end in
  U+FFFD (an unfinished character, or a true U+FFFD, which is held back as well);
- sentencepiece: the same. Its library does not stream, but what is given together is what it
  decodes;
- tiktoken and Tekken: the bytes of each token go through an incremental UTF-8 decoder.

Where the reference raises because earlier text would have to change, nothing is given until the
text again continues what was given; and what the reference never gives at the end, `flush` gives.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from pintok._wire import Verdict
from pintok.errors import RefusedError

if TYPE_CHECKING:  # A stream over a server does without the native core.
    from pintok.client import Client
    from pintok.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
_BYTE_SOURCES = frozenset((2, 3))  # image_source: tiktoken, tekken
_SENTENCEPIECE = 4

_T = TypeVar("_T")

Work = Generator[list[int], str, _T]
"""Something that asks for the texts of id lists, one after another, and then has a result."""


class _Rule(Protocol):
    even: bool
    last: int | None

    def step(self, token_id: int) -> Work[str | None]: ...

    def flush(self) -> Work[str]: ...


class DecodeStream:
    """Decodes one stream of ids.

        >>> from pintok import Tokenizer
        >>> tokenizer = Tokenizer.from_pretrained("default")
        >>> stream = DecodeStream(tokenizer)
        >>> "".join(stream.step(i) or "" for i in tokenizer.encode("Grüße, 世界")) + stream.flush()
        'Grüße, 世界'

    `prefill` is what came before, a prompt for instance: it is not given again, but it decides how
    the first ids read. Work per step is bounded by the ids since the last chunk.

    Over a `Client` the stream sends its window of ids to the server and keeps all state here.
    tiktoken and Tekken models need the bytes of single tokens, which a server does not give: there
    RefusedError (unsupported) is raised.
    """

    __slots__ = ("_decoder", "_piece", "_rule", "_skip")

    def __init__(
        self,
        decoder: Tokenizer | Client,
        *,
        skip_special_tokens: bool = True,
        prefill: Iterable[int] = (),
    ) -> None:
        self._decoder = decoder
        self._skip = skip_special_tokens
        info = getattr(decoder, "info", None)
        source: int = decoder.source if info is None else info().source  # type: ignore[union-attr]
        self._rule = _rule_for(decoder, source, skip_special_tokens, list(prefill))
        # What an id adds to a text that has begun, in bytes: servers do not say.
        self._piece: Callable[[int, bool], bytes | None] | None = getattr(decoder, "_piece", None)

    def step(self, token_id: int) -> str | None:
        """The text that this id completes, or None while there is none."""
        rule, piece = self._rule, self._piece
        if piece is not None and rule.even:
            # The usual case: it is plain what the id adds. Anything else goes the long way.
            try:
                added = piece(token_id, self._skip)
                # Spaces alone could be nothing at all at the beginning of the next window.
                if added and not added.isspace():
                    chunk: str = added.decode()
                    if chunk[-1] != _REPLACEMENT:
                        rule.last = token_id
                        return chunk
            except (UnicodeDecodeError, OverflowError, TypeError):
                pass  # an unfinished character, or an argument that the long way refuses
        return self._finish(rule.step(token_id))

    def flush(self) -> str:
        """What is left at the end, U+FFFD for unfinished characters; then the stream is new."""
        return self._finish(self._rule.flush())

    def _finish(self, work: Work[_T]) -> _T:
        try:
            ids = next(work)
            while True:
                ids = work.send(self._decoder.decode(ids, skip_special_tokens=self._skip))
        except StopIteration as end:
            result: _T = end.value
            return result


def stream_work(
    decoder: Tokenizer | Client,
    ids: Sequence[int],
    *,
    source: int,
    skip_special_tokens: bool,
    prefill: Iterable[int] = (),
) -> Work[tuple[list[str | None], str]]:
    """A whole stream as work: the chunk of each id, and what `flush` gives after the last.

    Whoever drives many of these answers their questions together, a datagram for many streams.
    `source` is the model's. Raises RefusedError, when it is begun, as DecodeStream does.
    """
    rule = _rule_for(decoder, source, skip_special_tokens, list(prefill))
    chunks = []
    for token_id in ids:
        chunks.append((yield from rule.step(token_id)))
    return chunks, (yield from rule.flush())


def _rule_for(decoder: Tokenizer | Client, source: int, skip: bool, prefill: list[int]) -> _Rule:
    """The rule of the model's reference. Raises RefusedError where a server cannot follow it."""
    if source not in _BYTE_SOURCES:
        return _ByText(prefill, keeps_text=source == _SENTENCEPIECE)
    if not hasattr(decoder, "id_to_bytes"):
        raise RefusedError(
            Verdict.UNSUPPORTED,
            detail="streams of tiktoken and Tekken models need the bytes of tokens, which servers"
            " do not give",
        )
    return _ByBytes(cast("Tokenizer", decoder), skip, prefill)


class _ByText:
    """Decode a small window of ids and give what it adds to the part given before.

    With `keeps_text` the window always begins with some text: sentencepiece drops spaces before the
    first text of what it decodes, and only there.
    """

    __slots__ = ("_given", "_given_len", "_ids", "_keeps_text", "even", "last")

    def __init__(self, prefill: list[int], *, keeps_text: bool) -> None:
        self._ids = prefill
        self._keeps_text = keeps_text
        self._given = ""  # text of the first _given_len ids of the window: context, given before
        self._given_len = 0
        self.even = False  # all of the window has been given, and it is not empty
        self.last: int | None = None  # when set, the window is this id, and its text was given

    def step(self, token_id: int) -> Work[str | None]:
        if self.last is not None:
            self._ids, self._given_len = [self.last], 1
            self._given = yield [self.last]
            self.last = None
        if not self._given and self._ids:
            context = yield self._ids.copy()
            if not context.endswith(_REPLACEMENT):
                self._given, self._given_len = context, len(self._ids)
        self._ids.append(token_id)
        self.even = False
        text = yield self._ids.copy()
        grown = len(text.encode()) > len(self._given.encode())
        if not grown or text.endswith(_REPLACEMENT) or not text.startswith(self._given):
            return None
        chunk = text[len(self._given) :]
        context = yield self._ids[self._given_len :]
        if context or not self._keeps_text:
            del self._ids[: self._given_len]
            self._given = context
        else:
            self._given = text
        self._given_len = len(self._ids)
        self.even = self._given != ""
        return chunk

    def flush(self) -> Work[str]:
        if self.last is not None:
            self._ids, self._given, self.last = [], "", None
        self.even = False
        text = yield self._ids
        same = 0
        while same < min(len(text), len(self._given)) and text[same] == self._given[same]:
            same += 1
        self._ids, self._given, self._given_len = [], "", 0
        return text[same:]


class _ByBytes:
    """Feed the bytes of each token to an incremental decoder. Asks for no texts."""

    __slots__ = ("_decoder", "_skip", "_tokenizer", "even", "last")

    def __init__(self, tokenizer: Tokenizer, skip: bool, prefill: list[int]) -> None:
        self.even = False
        self.last: int | None = None
        self._tokenizer = tokenizer
        self._skip = skip
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token_id in prefill:
            self._feed(token_id)

    def _feed(self, token_id: int) -> str | None:
        if self._skip and self._tokenizer.is_special(token_id):
            return None
        return self._decoder.decode(self._tokenizer.id_to_bytes(token_id) or b"") or None

    def step(self, token_id: int) -> Work[str | None]:
        yield from ()
        return self._feed(token_id)

    def flush(self) -> Work[str]:
        yield from ()
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
