"""Ids that arrive one at a time, as text that never has to be taken back.

Two rules, after the reference that belongs to the model's source:

- Hugging Face tokenizers: a chunk is given when the decoded text has grown and does not end in
  U+FFFD (an unfinished character, or a true U+FFFD, which is held back as well);
- tiktoken and Tekken: the bytes of each token go through an incremental UTF-8 decoder.

Where the reference raises because earlier text would have to change, nothing is given until the
text again continues what was given; and what the reference never gives at the end, `flush` gives.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Protocol

from pintok.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
_BYTE_SOURCES = frozenset((2, 3))  # image_source: tiktoken, tekken


class _Rule(Protocol):
    def step(self, token_id: int) -> str | None: ...

    def flush(self) -> str: ...


class DecodeStream:
    """Decodes one stream of ids.

        >>> from pintok import Tokenizer
        >>> tokenizer = Tokenizer.from_pretrained("default")
        >>> stream = DecodeStream(tokenizer)
        >>> "".join(stream.step(i) or "" for i in tokenizer.encode("Grüße, 世界")) + stream.flush()
        'Grüße, 世界'

    `prefill` is what came before, a prompt for instance: it is not given again, but it decides how
    the first ids read. Work per step is bounded by the ids since the last chunk.
    """

    __slots__ = ("_rule",)

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        prefill: Iterable[int] = (),
    ) -> None:
        rule = _ByBytes if tokenizer.source in _BYTE_SOURCES else _ByText
        self._rule: _Rule = rule(tokenizer, skip_special_tokens, list(prefill))

    def step(self, token_id: int) -> str | None:
        """The text that this id completes, or None while there is none."""
        return self._rule.step(token_id)

    def flush(self) -> str:
        """What is left at the end, U+FFFD for unfinished characters; then the stream is new."""
        return self._rule.flush()


class _ByText:
    """Decode a small window of ids and give what it adds to the part given before."""

    __slots__ = ("_given", "_given_len", "_ids", "_skip", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, skip: bool, prefill: list[int]) -> None:
        self._tokenizer = tokenizer
        self._skip = skip
        self._ids = prefill
        self._given = ""  # text of the first _given_len ids of the window: context, given before
        self._given_len = 0

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip)

    def step(self, token_id: int) -> str | None:
        if not self._given and self._ids:
            context = self._decode(self._ids)
            if not context.endswith(_REPLACEMENT):
                self._given, self._given_len = context, len(self._ids)
        self._ids.append(token_id)
        text = self._decode(self._ids)
        grown = len(text.encode()) > len(self._given.encode())
        if not grown or text.endswith(_REPLACEMENT) or not text.startswith(self._given):
            return None
        chunk = text[len(self._given) :]
        fresh_len = len(self._ids) - self._given_len
        del self._ids[: self._given_len]
        self._given, self._given_len = self._decode(self._ids), fresh_len
        return chunk

    def flush(self) -> str:
        text = self._decode(self._ids)
        same = 0
        while same < min(len(text), len(self._given)) and text[same] == self._given[same]:
            same += 1
        self._ids, self._given, self._given_len = [], "", 0
        return text[same:]


class _ByBytes:
    """Feed the bytes of each token to an incremental decoder."""

    __slots__ = ("_decoder", "_skip", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, skip: bool, prefill: list[int]) -> None:
        self._tokenizer = tokenizer
        self._skip = skip
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token_id in prefill:
            self.step(token_id)

    def step(self, token_id: int) -> str | None:
        if self._skip and self._tokenizer.is_special(token_id):
            return None
        return self._decoder.decode(self._tokenizer.id_to_bytes(token_id) or b"") or None

    def flush(self) -> str:
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
