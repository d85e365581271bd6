"""Where a model's files are: a path, the embedded vocabulary, or the Hugging Face Hub.

Of a Hub repository only the tokenizer's files are fetched, through `huggingface_hub` and its own
cache: HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT and tokens work as they do everywhere else.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re

from pintok.errors import ModelError

DEFAULT_NAME = "default"
_DEFAULT_DIR = pathlib.Path(__file__).resolve().parent / "data" / "default"
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")

# What defines a tokenizer, and what stands beside it.
_TOKENIZERS = (
    "tokenizer.json",
    "tekken.json",
    "encoding.json",
    "*.tiktoken",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
)
_FILES = (
    *_TOKENIZERS,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Resolved:
    """A model's place on this machine."""

    path: pathlib.Path
    name: str | None
    """Its name if it was asked for by name; None for a path."""


def resolve(model: str, *, revision: str | None = None) -> Resolved:
    """Find a model: a FILE or DIR, `default`, or ORG/NAME of the Hub at a revision.

    A path that exists wins over a name. Raises ModelError when it cannot be had.
    """
    path = pathlib.Path(model).expanduser()
    if path.exists():
        return Resolved(path, None)
    if model == DEFAULT_NAME:
        return Resolved(_DEFAULT_DIR, DEFAULT_NAME)
    if not _REPOSITORY.fullmatch(model):
        raise ModelError(
            f"{model}: no such file or directory, and neither {DEFAULT_NAME!r} nor ORG/NAME"
        )
    return Resolved(_snapshot(model, revision), model)


def _snapshot(repository: str, revision: str | None) -> pathlib.Path:
    # Imported late: it is slow to import and needed for this alone.
    import huggingface_hub
    from huggingface_hub import errors

    where = f"{repository}@{revision}" if revision else repository
    try:
        directory = huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=list(_FILES)
        )
    except errors.RevisionNotFoundError:
        raise ModelError(f"{where}: the Hub has no such revision") from None
    except errors.GatedRepoError:
        raise ModelError(
            f"{where}: access must be granted on the Hub first: log in or set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"{where}: the Hub has no such repository, or it is private: log in or set HF_TOKEN"
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise ModelError(
            f"{where}: not in the local cache, and the Hub cannot be reached (offline?)"
        ) from None
    except (errors.HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{where}: the Hub answers with an error: {reason[0]}") from None
    snapshot = pathlib.Path(directory)
    if not any(next(snapshot.glob(pattern), None) for pattern in _TOKENIZERS):
        raise ModelError(f"{where}: the repository holds no tokenizer ({', '.join(_TOKENIZERS)})")
    return snapshot
