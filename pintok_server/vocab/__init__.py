"""The compiler: from a model's own files to a verified vocabulary image.

>>> from pintok_server import vocab
>>> model = vocab.load_image("default")
>>> model.name, model.source
('default', 'tokenizer_json')

The names are imported when they are first used: a path that is remembered needs no compiler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pintok_server.vocab.compiler import CompiledModel, load_image

__all__ = ["CompiledModel", "load_image"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'pintok_server.vocab' has no attribute {name!r}")
    from pintok_server.vocab import compiler

    return getattr(compiler, name)
