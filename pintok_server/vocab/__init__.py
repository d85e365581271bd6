"""The compiler: from a model's own files to a verified vocabulary image.

>>> from pintok_server import vocab
>>> model = vocab.load_image("default")
>>> model.name, model.source
('default', 'tokenizer_json')
"""

from pintok_server.vocab.compiler import CompiledModel, load_image

__all__ = ["CompiledModel", "load_image"]
