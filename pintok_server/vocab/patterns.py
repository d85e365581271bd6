"""Which split patterns have a hand-written scanner: exact regex text to scanner name.

A pattern is recognised by its whole text or not at all; one that is not here is compiled as a
regular expression instead, which is slower and otherwise the same. Two texts share a scanner only
when they cut every text alike.

The same text can mean different things to the two regex engines of the references: in Oniguruma
(tokenizer.json) ``{1,3}+`` repeats a repetition and ``$`` also matches before a line end, in
tiktoken's engine ``{1,3}+`` is possessive and ``$`` is the end of the text. Hence one table for
what both read alike and one for tiktoken's own spellings.
"""

from __future__ import annotations

import enum
from typing import Final


class Dialect(enum.Enum):
    """The regex engine that a pattern was written for."""

    ONIGURUMA = "oniguruma"  # tokenizer.json
    FANCY_REGEX = "fancy_regex"  # tiktoken, tekken.json


_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_LOWER = r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_FREE = r"[^\r\n\p{L}\p{N}]?"


def _cased_words(*, upper: str, lower: str, suffix: str) -> str:
    """The two word alternatives of the o200k family: upper* lower+, upper+ lower*."""
    return f"{_FREE}[{upper}]*[{lower}]+{suffix}|{_FREE}[{upper}]+[{lower}]*{suffix}"


_O200K_SUFFIX = f"(?i:{_CONTRACTIONS})?"
_NOT_HAN = r"&&[^\p{Han}]"
_CJK_BMP = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_ASCII_PUNCTUATION = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]".replace(r"\"", '"')

# What both engines read alike.
PATTERNS: Final[dict[str, str]] = {
    # GPT-2, and older spellings of tiktoken.
    rf"{_CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+": "gpt2",
    rf"{_CONTRACTIONS}| ?[\p{{L}}]+| ?[\p{{N}}]+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+": "gpt2",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt2",
    # Llama 3, and cl100k as tokenizer.json files hold it.
    rf"(?i:{_CONTRACTIONS})|{_FREE}\p{{L}}+|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}": "llama3",
    # Qwen 1 to 3.
    rf"(?i:{_CONTRACTIONS})|{_FREE}\p{{L}}+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}": "qwen2",
    # o200k_base, gpt-oss, Llama 4.
    rf"{_cased_words(upper=_UPPER, lower=_LOWER, suffix=_O200K_SUFFIX)}|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}": "o200k",
    # Mistral Tekken.
    rf"{_cased_words(upper=_UPPER, lower=_LOWER, suffix='')}|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}": "tekken",
    # Kimi K2.
    r"[\p{Han}]+|"
    + _cased_words(upper=_UPPER + _NOT_HAN, lower=_LOWER + _NOT_HAN, suffix=_O200K_SUFFIX)
    + rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}": "kimi",
    # DeepSeek V3: three splits in sequence; line ends and ranges stand in the files as characters.
    r"\p{N}{1,3}": "deepseek_digits",
    _CJK_BMP: "deepseek_cjk",
    _ASCII_PUNCTUATION + "[A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+": "deepseek_v3",
    _ASCII_PUNCTUATION + r"[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}": "deepseek_v3",
}

# What only tiktoken's engine reads so.
TIKTOKEN_PATTERNS: Final[dict[str, str]] = {
    # r50k_base, p50k_base.
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s": "gpt2",
    # cl100k_base: a run of white space that ends the text is one piece, line ends included.
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s": "cl100k",
    # cl100k_base before that.
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+": "llama3",
}


def scanner_of(pattern: str, *, dialect: Dialect) -> str | None:
    """Return the name (``SplitScanner``, lower case) of the scanner for ``pattern``, or None."""
    scanner = PATTERNS.get(pattern)
    if scanner is None and dialect is Dialect.FANCY_REGEX:
        scanner = TIKTOKEN_PATTERNS.get(pattern)
    return scanner
