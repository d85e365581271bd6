"""Which model of a server a client speaks of, and how it is found."""

from __future__ import annotations

import dataclasses
from typing import Final

from pintok import _codec, _wire
from pintok._codec import ModelInfo, Reply, Target
from pintok._wire import Verdict
from pintok.errors import RefusedError

_SLOTS_SEARCHED: Final = 64


class Identity:
    """The model a client speaks of: its slot, and the tag that every reply must then carry.

    The tag is learned from the first answer. From then on another generation of the model is
    refused by name, never silently mixed in, until `forget` accepts it.
    """

    __slots__ = ("_target", "name")

    def __init__(self, model: int | str, reply_len_max: int, checksum: bool) -> None:
        self.name = model if isinstance(model, str) else None
        model_id = -1 if isinstance(model, str) else model
        if not -1 <= model_id <= 0xFFFF or model_id < 0 and self.name is None:
            raise ValueError(f"model must be a name or 0 ... 65535, not {model!r}")
        self._target = Target(model_id, reply_len_max=reply_len_max, checksum=checksum)

    @property
    def model(self) -> int | str:
        """The model as the client was asked for it."""
        return self.name if self.name is not None else self._target.model_id

    @property
    def known(self) -> bool:
        """False while the name is not yet resolved to a slot."""
        return self._target.model_id >= 0

    @property
    def target(self) -> Target:
        return self._target

    @property
    def tag(self) -> int | None:
        return self._target.model_tag or None

    def resolve(self, model_id: int, tag: int) -> None:
        self._target = dataclasses.replace(self._target, model_id=model_id, model_tag=tag)

    def forget(self) -> None:
        """Accept whatever model the server holds now; a name is looked up again."""
        model_id = self._target.model_id if self.name is None else -1
        self._target = dataclasses.replace(
            self._target, model_id=model_id, model_tag=_wire.WIRE_ANY_MODEL_TAG
        )

    def limit(self, reply_len_max: int) -> None:
        self._target = dataclasses.replace(self._target, reply_len_max=reply_len_max)

    def check(self, reply: Reply) -> None:
        """Raise RefusedError for the verdicts that concern the model; learn the tag otherwise."""
        target = self._target
        if reply.verdict == Verdict.OK:
            if reply.model_tag == target.model_tag:
                return
            if target.model_tag == _wire.WIRE_ANY_MODEL_TAG:
                self._target = dataclasses.replace(target, model_tag=reply.model_tag)
                return
        elif reply.verdict == Verdict.UNKNOWN_MODEL:
            raise RefusedError(Verdict.UNKNOWN_MODEL, detail=f"model {target.model_id}")
        elif reply.verdict != Verdict.MODEL_CHANGED:
            return
        raise RefusedError(
            Verdict.MODEL_CHANGED,
            detail=f"expected tag {target.model_tag:08x}, the server has {reply.model_tag:08x}; "
            "accept_model() goes on with it",
        )


class ModelSearch:
    """Which slots to ask for: all below the end that the first answer names."""

    __slots__ = ("_end", "_model_id", "found")

    def __init__(self) -> None:
        self.found: list[ModelInfo] = []
        self._end = _SLOTS_SEARCHED
        self._model_id = 0

    @property
    def next_id(self) -> int | None:
        return self._model_id if self._model_id < self._end else None

    def accept(self, reply: Reply) -> None:
        """Take the answer for `next_id`. Raises RefusedError, but not for an empty slot."""
        if reply.verdict == Verdict.OK:
            info = _codec.parse_info(reply)
            self.found.append(info)
            self._end = info.models_end
        elif reply.verdict != Verdict.UNKNOWN_MODEL:
            raise RefusedError(reply.verdict)
        self._model_id += 1

    def choose(self, name: str) -> ModelInfo:
        """The model of this name. Raises RefusedError (unknown_model) naming those there are."""
        for info in self.found:
            if info.name == name:
                return info
        names = ", ".join(repr(info.name) for info in self.found) or "none"
        raise RefusedError(Verdict.UNKNOWN_MODEL, detail=f"{name!r}; the server has {names}")
