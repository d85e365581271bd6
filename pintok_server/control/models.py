"""Models of a server: compile what the settings name, and change what a running datapath holds."""

from __future__ import annotations

import dataclasses
import enum
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from pintok.profiles import DEFAULT_PROFILE
from pintok.tokenizer import Tokenizer
from pintok_server import vocab
from pintok_server._spec import image as spec_image
from pintok_server._spec import metrics as spec
from pintok_server.control.config import ModelChoice, split_revision
from pintok_server.control.log import Log
from pintok_server.control.mailbox import send_command
from pintok_server.control.runtime import (
    LoadedModel,
    RunDir,
    State,
    current_state,
    hold_lock,
    write_state,
)
from pintok_server.errors import InstanceError
from pintok_server.vocab import formats, profiles, sources, writer


@dataclasses.dataclass(frozen=True, slots=True)
class CompiledModel:
    """A model whose image lies in the cache, ready to be mapped."""

    name: str
    source: str
    image: pathlib.Path
    fingerprint: str
    certificate: dict[str, Any]

    @property
    def certificate_line(self) -> str:
        """What the certificate says, as a sentence."""
        return describe_certificate(self.certificate)


def compile_model(
    choice: ModelChoice, *, profile: str = DEFAULT_PROFILE, corpus: pathlib.Path | None = None
) -> CompiledModel:
    """Compile one model, or find it in the cache. Raises ModelError for one that cannot be run.

    With `corpus` its lines are also compared with the reference.
    """
    source, revision = split_revision(choice.source)
    compiled = vocab.load_image(source, revision=revision, corpus=corpus, profile=profile)
    return CompiledModel(
        name=choice.name,
        source=choice.source,
        image=pathlib.Path(compiled.path),
        fingerprint=compiled.fingerprint.hex(),
        certificate=compiled.certificate,
    )


def compile_models(
    choices: Sequence[ModelChoice], *, profile: str, log: Log
) -> list[CompiledModel]:
    """All models of the settings, in order, under their profile.

    Raises ModelError, naming the model, at the first that cannot be served.
    """
    models = []
    for choice in choices:
        under = "" if profile == DEFAULT_PROFILE else f" under {profile}"
        log.say("compile", f"model {choice.name}: {choice.source}{under}", name=choice.name)
        models.append(compile_model(choice, profile=profile))
    return models


def describe_certificate(certificate: Mapping[str, Any]) -> str:
    """What a certificate says, as a sentence."""
    if not certificate.get("compared"):
        return (
            f"not compared: {certificate.get('reason', 'there was no reference to compare with')}"
        )
    return f"equal to {certificate['reference']} in {certificate['cases']} cases"


def explain_source(path: pathlib.Path, *, profile: str = DEFAULT_PROFILE) -> dict[str, Any]:
    """What the model at `path` is made of, by part. It is compiled and opened, since some of what
    is refused shows only then, and forgotten.

    Raises ModelError with the sentence that a compilation would refuse it with.
    """
    source = sources.read(path)
    reference = profiles.find(profile)
    description = formats.describe(source, reference)
    image = writer.write_image(description, fingerprint=source.fingerprint(reference))
    with tempfile.TemporaryDirectory() as folder:
        candidate = pathlib.Path(folder) / "image"
        candidate.write_bytes(image)
        Tokenizer(candidate)
    return {
        "name": source.name,
        "format": source.kind.name.lower(),
        "files": ", ".join(f"{file.path.name} ({file.role})" for file in source.files),
        "profile": reference.name,
        "fingerprint": source.fingerprint(reference).hex(),
        "algorithm": description.algorithm.name.lower(),
        "properties": ", ".join(flag.name.lower() for flag in description.flags if flag.name),
        "ids": sum(text is not None for text in description.texts),
        "ids_end": description.ids_end,
        "added tokens": len(description.added),
        "special tokens": len(description.special_ids),
        "normalizer": _operations(spec_image.OpNorm, description.programs.normalizer),
        "pre-tokenizer": _operations(spec_image.OpPre, description.programs.pre_tokenizer),
        "post-processor": _operations(spec_image.OpPost, description.programs.post_processor),
        "decoder": _operations(spec_image.OpDec, description.programs.decoder),
    }


def _operations(kinds: type[enum.IntEnum], program: bytes) -> str:
    """The names of a program's operations, in order."""
    names = []
    off = 0
    while off < len(program):
        kind, _, param_len = spec_image.IMAGE_OP.unpack_from(program, off)
        names.append(kinds(kind).name.lower())
        off += spec_image.IMAGE_OP.size + -(-param_len // 8) * 8
    return ", ".join(names) or "none"


def load_model(
    run_dir: RunDir, choice: ModelChoice, *, profile: str = DEFAULT_PROFILE
) -> LoadedModel:
    """Load a model into a running datapath, or replace the one of that name there.

    Raises ModelError when it cannot be compiled, InstanceError when no datapath runs or it has no
    slot left, DatapathError when the datapath refuses.
    """
    model = compile_model(choice, profile=profile)
    with hold_lock(run_dir.mailbox_lock, wait=True, busy=""):
        state = _running(run_dir)
        slots = {loaded.name: loaded.slot for loaded in state.models}
        slot = slots.get(choice.name)
        if slot is None:
            slot_count = state.options.get("models-max", spec.MODEL_SLOTS_MAX)
            free = set(range(slot_count)) - set(slots.values())
            if not free:
                raise InstanceError(
                    f"all {slot_count} model slots are in use: unload a model first, "
                    "or start the server with a larger --models-max"
                )
            slot = min(free)
        loaded = LoadedModel(
            slot=slot,
            name=model.name,
            source=model.source,
            image=str(model.image),
            fingerprint=model.fingerprint,
        )
        send_command(
            run_dir,
            spec.MailboxCommand.LOAD,
            slot=slot,
            name=model.name,
            image=model.image,
        )
        others = [other for other in state.models if other.slot != slot]
        models = sorted([*others, loaded], key=lambda each: each.slot)
        write_state(run_dir, dataclasses.replace(state, models=tuple(models)))
    return loaded


def unload_model(run_dir: RunDir, name: str) -> LoadedModel:
    """Take a model out of a running datapath; requests for it are then refused by name.

    Raises InstanceError when there is no such model, DatapathError when the datapath refuses.
    """
    with hold_lock(run_dir.mailbox_lock, wait=True, busy=""):
        state = _running(run_dir)
        found = [model for model in state.models if model.name == name]
        if not found:
            names = ", ".join(model.name for model in state.models) or "none"
            raise InstanceError(f"no model is called {name!r} there; loaded: {names}")
        send_command(run_dir, spec.MailboxCommand.UNLOAD, slot=found[0].slot)
        models = tuple(model for model in state.models if model.name != name)
        write_state(run_dir, dataclasses.replace(state, models=models))
    return found[0]


def _running(run_dir: RunDir) -> State:
    state = current_state(run_dir)
    if state is None or not state.alive():
        raise InstanceError(f"no datapath runs in {run_dir.path}")
    return state
