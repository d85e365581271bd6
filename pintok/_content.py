"""Whose special tokens: which of those in a rendered chat its template wrote, which its caller.

A special token begins and ends with a mark of some kind, `<` and `>` in most models: its *edges*.
The chat is rendered once as it is, and once with a stand-in, a private-use character, for every
edge character of the callers' strings. Where the stand-ins come out, the callers' text stands, in
whatever way the template took it there: joined with its neighbours, in JSON, in lower case,
trimmed or cut. If that second rendering, stand-ins turned back, is not the first, then the
template has looked at the marks itself (it splits a text at `</think>`, for instance). Such texts,
which are constants of the template, keep their marks in the roles where that is so, and the
template's reading of them stands.

What is not searched for: a token whose both edges the template wrote, though a caller's word
stands between them. That is how templates make `<|user|>` of a role.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

from pintok._options import join_surrogates
from pintok._template_limits import LimitError
from pintok.encoding import PlainRange

ContentPolicy = Literal["text", "parse"]
"""Special tokens in callers' strings: ordinary text, or found as everywhere else."""

_STAND_INS: Final = range(0xE000, 0xF900)
"""The private-use characters of the basic plane: no case, no digits, no space, as edges are."""
_RENDERINGS_MAX: Final = 64

Strings = Callable[[str, str], str]
"""(place, string) -> string. A place is the role of a message, `tools`, `documents`, ..."""
Render = Callable[[Strings], str]


class AmbiguousError(Exception):
    """The template changes callers' strings so that the special tokens in them cannot be told
    from its own."""


@dataclasses.dataclass(frozen=True, slots=True)
class Rendered:
    """A rendered chat, and what of it must stay ordinary text."""

    text: str
    plain: tuple[tuple[int, int], ...] = ()
    """Half-open ranges of characters, ascending: no special token may reach into them."""
    acted_on: tuple[str, ...] = ()
    """Special tokens that are found because of what callers wrote: the template looks for it
    itself."""


class SpecialTokens:
    """The special tokens of one model as texts to be looked for."""

    __slots__ = ("_edges", "_pattern", "_words", "contents", "normalized")

    def __init__(self, contents: Iterable[str], *, normalized: bool = False) -> None:
        """`normalized`: some are looked for in the normalized text."""
        self.contents = frozenset(filter(None, contents))
        self.normalized = normalized
        edges: set[str] = set()
        words = []
        for content in self.contents:
            marks = [char for char in content if _is_mark(char)]
            edges.update(marks[:1], marks[-1:])
            if not marks:
                words.append(content)
        self._edges = frozenset(edges)
        self._words = tuple(sorted(words))
        self._pattern: re.Pattern[str] | None = None

    def find(self, text: str) -> list[tuple[int, int]]:
        """Where the longest token at each position stands; they may overlap."""
        if not self.contents:
            return []
        if self._pattern is None:
            self._pattern = re.compile(f"(?=({_trie_pattern(self.contents)}))", re.DOTALL)
        return [match.span(1) for match in self._pattern.finditer(text)]

    def texts(self, text: str, without: Sequence[tuple[int, int]] = ()) -> list[str]:
        """The tokens in it from left to right, none overlapping another or a range of `without`."""
        texts, pos = [], 0
        for begin, end in self.find(text):
            following = bisect.bisect(without, begin, key=lambda span: span[1])
            free = following == len(without) or end <= without[following][0]
            if begin >= pos and free:
                texts.append(text[begin:end])
                pos = end
        return texts

    def marks(self, string: str) -> list[int]:
        """The places in a caller's string that a token with a part of it must have an edge at."""
        characters = set(string)
        edges = characters & self._edges
        if not string.isascii():
            edges |= {
                char for char in characters if not char.isascii() and self._becomes_edge(char)
            }
        places = set()
        if edges:
            found = re.finditer("[" + re.escape("".join(sorted(edges))) + "]", string)
            places = {match.start() for match in found}
        for word in self._words:
            places.update(_word_marks(string, word))
        return sorted(places)

    def _becomes_edge(self, char: str) -> bool:
        """A normalizer may make an edge of a compatibility form."""
        return not self._edges.isdisjoint(unicodedata.normalize("NFKD", char))


def _is_mark(char: str) -> bool:
    return not (char.isalnum() or char.isspace() or char == "_")


def _word_marks(string: str, word: str) -> Iterator[int]:
    """For tokens without any mark: the first character of each occurrence, in whatever case."""
    text, word = _fold(string), _fold(word)
    begin = text.find(word)
    while begin >= 0:
        yield begin
        begin = text.find(word, begin + 1)


def _fold(text: str) -> str:
    """Lower case, character by character: the length stays."""
    return "".join(low if len(low := char.lower()) == 1 else char for char in text)


def _trie_pattern(contents: Iterable[str]) -> str:
    """A regular expression for the longest of these at a position, without repeated beginnings."""

    def alternatives(words: list[str], depth: int) -> str:
        ends = len(words[0]) == depth
        parts = []
        for _, group in itertools.groupby(words[ends:], key=lambda word: word[depth]):
            same = list(group)
            shared = len(_shared_prefix(same[0], same[-1]))
            literal = re.escape(same[0][depth:shared])
            rest = "" if len(same) == 1 else alternatives(same, shared)
            parts.append(literal + rest)
        if not parts:
            return ""
        whole = "(?:" + "|".join(parts) + ")"
        return whole + "?" if ends else whole

    return alternatives(sorted(set(contents)), 0)


def _shared_prefix(first: str, last: str) -> str:
    for place, (one, other) in enumerate(zip(first, last)):  # noqa: B905 (they differ in length)
        if one != other:
            return first[:place]
    return min(first, last, key=len)


def map_strings(value: Any, call: Callable[[str], str]) -> Any:
    """A copy of a JSON value with every string, keys included, put through `call`."""
    if isinstance(value, str):
        return call(value)
    if isinstance(value, dict):
        return {map_strings(key, call): map_strings(item, call) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([map_strings(item, call) for item in value])
    return value


class _StandIns:
    """Turns edges into stand-ins and back. One for each chat."""

    def __init__(self, special: SpecialTokens, strings: Iterable[str], used: str) -> None:
        """`used`: text whose characters cannot be stand-ins. Raises AmbiguousError."""
        self._special = special
        chars = sorted({string[place] for string in strings for place in special.marks(string)})
        taken = set(used).union(*strings)
        free = (
            chr(code)
            for code in _STAND_INS
            if chr(code) not in taken and f"\\u{code:04x}" not in used
        )
        self._to = dict(zip(chars, free))  # noqa: B905 (the shorter one ends it)
        if len(self._to) < len(chars):
            raise AmbiguousError("the chat has too many private-use characters")
        self._from = {ord(stand_in): char for char, stand_in in self._to.items()}
        self._pattern = re.compile("[" + "".join(self._to.values()) + "]")

    def put(self, string: str, keep: Sequence[tuple[int, int]] = ()) -> str:
        """The string with stand-ins, but for the ascending ranges `keep`."""
        places = self._special.marks(string)
        if not places:
            return string
        chars = list(string)
        for place in places:
            if not _lies_in(place, keep):
                chars[place] = self._to[chars[place]]
        return "".join(chars)

    def compare(self, marked: str, text: str) -> list[int] | None:
        """Where the stand-ins stand in `text`; None when turned back it is another text."""
        for stand_in in self._from:  # JSON that keeps to ASCII has them as escapes.
            marked = marked.replace(f"\\u{stand_in:04x}", chr(stand_in))
        if marked.translate(self._from) != text:
            return None
        return [match.start() for match in self._pattern.finditer(marked)]


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class _Constant:
    """A text that the template's source names, in callers' strings of one place."""

    place: str
    text: str


class _Constants:
    """Where callers' strings hold texts on which the template may act."""

    def __init__(self, special: SpecialTokens, texts: Iterable[str]) -> None:
        known = [text for text in texts if special.marks(text)]
        self._pattern = re.compile(_trie_pattern(known), re.DOTALL) if known else None

    def spans(self, place: str, string: str) -> Iterator[tuple[_Constant, tuple[int, int]]]:
        if self._pattern is not None:
            for match in self._pattern.finditer(string):
                yield _Constant(place, match[0]), match.span()


def protect(
    render: Render,
    special: SpecialTokens,
    *,
    source: str,
    constants: Callable[[], Iterable[str]],
    parsed: Callable[[str], bool],
) -> Rendered:
    """Render a chat and find what its callers wrote.

    `render` gives the text with every string of a caller put through what it is given; `source` is
    the template's, and `constants` gives the texts that it names; `parsed` says of a place whether
    the special tokens there may be parsed. Raises AmbiguousError, and whatever `render` raises.
    """
    written: dict[tuple[str, str], None] = {}

    def note(place: str, string: str) -> str:
        if not parsed(place) and special.marks(string):
            written[place, string] = None
        return string

    text = render(note)
    if not written:
        return Rendered(text)
    renderings = itertools.count(2)
    stand_ins = _StandIns(special, [string for _, string in written], text + source)

    def marked(spans: Mapping[tuple[str, str], Sequence[tuple[int, int]]]) -> str | None:
        """The rendering with stand-ins everywhere but in these; None where the template raises."""

        def put(place: str, string: str) -> str:
            one = (place, string)
            return stand_ins.put(string, spans.get(one, ())) if one in written else string

        if next(renderings) > _RENDERINGS_MAX:
            raise AmbiguousError("the template acts on too many of them")
        try:
            return render(put)
        except LimitError:
            raise
        except Exception:  # It misses something: a text that it wants in a message, for instance.
            return None

    whole = marked({})
    places = None if whole is None else stand_ins.compare(whole, text)
    if places is not None:
        return Rendered(text, _ranges(special, text, places))

    known = _Constants(special, constants())
    found = {one: list(known.spans(*one)) for one in written}

    def kept_spans(kept: frozenset[_Constant]) -> dict[tuple[str, str], list[tuple[int, int]]]:
        return {
            one: [span for constant, span in spans if constant in kept]
            for one, spans in found.items()
        }

    def attempt(kept: frozenset[_Constant]) -> list[int] | None:
        rendered = marked(kept_spans(kept))
        return None if rendered is None else stand_ins.compare(rendered, text)

    kept = frozenset(constant for spans in found.values() for constant, _ in spans)
    if not kept or attempt(kept) is None:
        if whole is not None and special.texts(whole) == special.texts(text):
            return Rendered(text)  # Whatever became of the callers' tokens, none is left.
        raise AmbiguousError("the template changes the texts that hold them")
    kept = _fewest(attempt, kept, sorted(kept))
    places = attempt(kept)
    assert places is not None
    ranges = _ranges(special, text, places)
    acted_on = {
        string[begin:end]
        for (_, string), spans in kept_spans(kept).items()
        for begin, end in special.find(string)
        if _covered(special, string, begin, end, spans)
    }
    if whole is not None:
        found_now = special.texts(text, without=ranges)
        acted_on.update((Counter(found_now) - Counter(special.texts(whole))).keys())
    return Rendered(text, ranges, tuple(sorted(acted_on)))


def _fewest(
    attempt: Callable[[frozenset[_Constant]], list[int] | None],
    kept: frozenset[_Constant],
    among: Sequence[_Constant],
) -> frozenset[_Constant]:
    """The constants out of `kept` that must be kept: those `among` that need not be are dropped,
    by halves."""
    fewer = kept.difference(among)
    if attempt(fewer) is not None:
        return fewer
    if len(among) == 1:
        return kept
    middle = len(among) // 2
    for half in (among[:middle], among[middle:]):
        kept = _fewest(attempt, kept, half)
    return kept


def _covered(
    special: SpecialTokens,
    string: str,
    begin: int,
    end: int,
    spans: Sequence[tuple[int, int]],
) -> bool:
    """Whether no stand-in stands for an edge in string[begin:end]."""
    return all(_lies_in(begin + place, spans) for place in special.marks(string[begin:end]))


def _lies_in(place: int, spans: Sequence[tuple[int, int]]) -> bool:
    """Whether one of the ascending ranges holds the place."""
    before = bisect.bisect(spans, place, key=lambda span: span[0])
    return before > 0 and place < spans[before - 1][1]


def _ranges(special: SpecialTokens, text: str, places: list[int]) -> tuple[tuple[int, int], ...]:
    """Ranges around the callers' edges, as few as go without one of the template's in them.

    Only those in tokens as the text has them, unless a normalizer could make some.
    """
    wanted = places
    if not special.normalized:
        held: set[int] = set()
        for begin, end in special.find(text):
            held.update(places[bisect.bisect_left(places, begin) : bisect.bisect_left(places, end)])
        wanted = sorted(held)
    own = sorted(set(special.marks(text)).difference(places))
    ranges: list[tuple[int, int]] = []
    for place in wanted:
        if ranges and bisect.bisect(own, ranges[-1][1]) == bisect.bisect(own, place):
            ranges[-1] = (ranges[-1][0], place + 1)
        else:
            ranges.append((place, place + 1))
    return tuple(ranges)


def byte_ranges(text: str, ranges: Sequence[tuple[int, int]]) -> list[PlainRange]:
    """Ranges of characters as bytes of the text's UTF-8, surrogates as tiktoken takes them."""
    found = []
    pos = offset = 0
    for begin, end in ranges:
        offset += len(join_surrogates(text[pos:begin]).encode())
        length = len(join_surrogates(text[begin:end]).encode())
        found.append(PlainRange(offset, offset + length))
        pos, offset = end, offset + length
    return found
