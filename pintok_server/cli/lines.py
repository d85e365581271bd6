"""JSON lines in, JSON lines out: what `pintok encode`, `decode` and `count` do with each line.

    bytes of a line ──parse──> Job ──backend──> Result | Refusal ──> bytes of a line

A line is a door: whatever it holds, the outcome is one line, an object with `error` where it
cannot be served, and the lines after it are not touched. The tokenizer in process and a server
are two backends behind the same jobs; what depends on the input alone is decided here, before
either, so that both give equal lines.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import difflib
import functools
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from pintok._calls import BlockingCalls
from pintok._codec import FileSettings, Outcome
from pintok._options import join_surrogates
from pintok._questions import encoding_of, stepped_of
from pintok._shape import pad
from pintok._wire import VERDICT_TEXTS, Verdict
from pintok.encoding import Encoding, Padding, ParseSpecial, PlainRange, Truncation
from pintok.errors import RefusedError
from pintok.stream import Step, Stepped, StreamWindow
from pintok_server._spec.image import ImageSource
from pintok_server.cli.shape_fields import parse_padding, parse_truncation

if TYPE_CHECKING:
    # The native core is needed only where there is no server.
    from pintok.tokenizer import Tokenizer

Operation = Literal["encode", "decode", "count"]
LineKind = Literal["encode", "decode", "count", "chat"]


@dataclasses.dataclass(frozen=True, slots=True)
class Refusal:
    """Why a line is not served: a code (a verdict's name where there is one) and a text."""

    code: str
    message: str

    @classmethod
    def of(cls, verdict: int) -> Refusal:
        """The refusal that a verdict of the protocol is: the same in process and from a server."""
        if verdict in VERDICT_TEXTS:
            return cls(Verdict(verdict).name.lower(), VERDICT_TEXTS[verdict])
        return cls("error", f"unknown verdict {verdict}")


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What a text or an id list is to be treated with; the command line gives the defaults."""

    add_special_tokens: bool = True
    parse_special: ParseSpecial = "all"
    encode_special_tokens: bool = False
    bos: bool = False
    eos: bool = False
    offsets: bool = False
    type_ids: bool = False
    special_tokens_mask: bool = False
    skip_special_tokens: bool = False
    stream: bool = False
    """Decode: the ids come one at a time."""
    truncation: Truncation | Literal["file"] | None = None
    padding: Padding | Literal["file"] | None = None

    @property
    def encoding(self) -> dict[str, Any]:
        """The arguments of an encode or count that are options."""
        return {
            "add_special_tokens": self.add_special_tokens,
            "parse_special": self.parse_special,
            "encode_special_tokens": self.encode_special_tokens,
            "bos": self.bos,
            "eos": self.eos,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """One line, checked: texts as bytes that may still turn out not to be UTF-8, or ids."""

    options: Options
    text: bytes = b""
    pair: bytes | None = None
    surrogates: bool = False
    """A text had surrogates: the bytes are what tiktoken makes of them, other models refuse it."""
    ids: npt.NDArray[np.uint32] | None = None
    prefill: npt.NDArray[np.uint32] | None = None
    """Of a stream: the ids that came before."""
    plain: tuple[PlainRange, ...] = ()
    """Where special tokens are ordinary text; of encodes to ids alone."""


_FLAGS: dict[Operation, tuple[str, ...]] = {
    "encode": (
        "add_special_tokens",
        "encode_special_tokens",
        "bos",
        "eos",
        "offsets",
        "type_ids",
        "special_tokens_mask",
    ),
    "count": ("add_special_tokens", "encode_special_tokens", "bos", "eos"),
    "decode": ("skip_special_tokens", "stream"),
}
_FIELDS: dict[LineKind, tuple[str, ...]] = {
    "encode": (
        "text",
        "text_b64",
        "pair",
        "pair_b64",
        "parse_special",
        "truncation",
        "padding",
        *_FLAGS["encode"],
    ),
    "count": ("text", "text_b64", "pair", "pair_b64", "parse_special", *_FLAGS["count"]),
    "decode": ("ids", "prefill", *_FLAGS["decode"]),
    "chat": (
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "continue_final_message",
        "template",
        "now",
        "content_special_tokens",
    ),
}
_ID_MAX = 0xFFFFFFFF


class LineRefused(Exception):
    """Carries a refusal out of the parsing of one line."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal


def bad(code: str, message: str) -> LineRefused:
    """What to raise where a line cannot be served."""
    return LineRefused(Refusal(code, message))


def parse_line(line: bytes, operation: Operation, *, defaults: Options) -> Job | Refusal:
    """The job that a line of JSON asks for, or why it cannot be one."""
    try:
        fields = parse_object(line)
        refuse_slips(fields, operation)
        options = _parse_options(fields, operation, defaults)
        if operation == "decode":
            return _decode_job(fields, options)
        text, text_joined = _parse_text(fields, "text")
        pair, pair_joined = _parse_text(fields, "pair")
        if text is None:
            raise bad("bad_field", "there is neither text nor text_b64")
        return Job(options, text=text, pair=pair, surrogates=text_joined or pair_joined)
    except LineRefused as refused:
        return refused.refusal


def parse_object(line: bytes) -> dict[str, Any]:
    """The object of a line of JSON. Raises LineRefused."""
    try:
        fields = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise LineRefused(Refusal.of(Verdict.BAD_UTF8)) from None
    except json.JSONDecodeError as error:
        raise bad("bad_json", f"not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError):
        raise bad("bad_json", "not JSON that can be read: too deep, or a number too long") from None
    if not isinstance(fields, dict):
        raise bad("bad_json", "the line is not a JSON object")
    return fields


def refuse_slips(fields: dict[str, Any], kind: LineKind) -> None:
    """Fields of the caller's own are allowed; raises LineRefused for a misspelt option."""
    known = _FIELDS[kind]
    for name in fields:
        # No slip is twice as long as what was meant; comparing a long name would cost its square.
        if name not in known and len(name) <= 40 and (meant := _meant(name, kind)):
            shown = name.encode("utf-8", "replace").decode()
            raise bad("bad_field", f"there is no field {shown!r}: {meant} is meant?")


@functools.lru_cache(maxsize=256)
def _meant(name: str, kind: LineKind) -> str | None:
    near = difflib.get_close_matches(name, _FIELDS[kind], n=1, cutoff=0.85)
    return near[0] if near else None


def _parse_options(fields: dict[str, Any], operation: Operation, defaults: Options) -> Options:
    changes: dict[str, Any] = {}
    for name in _FLAGS[operation]:
        if name in fields:
            if not isinstance(fields[name], bool):
                raise bad("bad_field", f"{name} is neither true nor false")
            changes[name] = fields[name]
    if operation != "decode" and "parse_special" in fields:
        if fields["parse_special"] not in ("all", "none"):
            raise bad("bad_field", "parse_special is neither 'all' nor 'none'")
        changes["parse_special"] = fields["parse_special"]
    if operation == "encode":
        try:
            if "truncation" in fields:
                changes["truncation"] = parse_truncation(fields["truncation"])
            if "padding" in fields:
                changes["padding"] = parse_padding(fields["padding"])
        except ValueError as error:
            raise bad("bad_field", str(error)) from None
    if not changes:
        return defaults
    options = dataclasses.replace(defaults, **changes)
    if options.encode_special_tokens and options.parse_special == "none":
        raise bad("bad_field", "encode_special_tokens needs parse_special 'all'")
    return options


def _parse_text(fields: dict[str, Any], name: str) -> tuple[bytes | None, bool]:
    """The bytes of `name` or of its base64 form (None when neither is there), and whether they are
    what tiktoken makes of surrogates."""
    coded = fields.get(f"{name}_b64")
    text = fields.get(name)
    if text is None and coded is None:
        if name in fields or f"{name}_b64" in fields:
            raise bad("bad_field", f"{name} is null")
        return None, False
    if text is not None and coded is not None:
        raise bad("bad_field", f"both {name} and {name}_b64 are there")
    if coded is not None:
        if not isinstance(coded, str):
            raise bad("bad_field", f"{name}_b64 is not a string")
        try:
            return base64.b64decode(coded, validate=True), False
        except (binascii.Error, ValueError):
            raise bad("bad_field", f"{name}_b64 is not base64") from None
    if not isinstance(text, str):
        raise bad("bad_field", f"{name} is not a string")
    return join_text(text)


def join_text(text: str) -> tuple[bytes, bool]:
    """The bytes of a text, and whether they are what tiktoken makes of surrogates in it."""
    try:
        return text.encode("utf-8"), False
    except UnicodeEncodeError:
        # A lone surrogate has no UTF-8: what to do depends on the model.
        return join_surrogates(text).encode("utf-8"), True


def _decode_job(fields: dict[str, Any], options: Options) -> Job:
    ids = _parse_ids(fields, "ids")
    if not options.stream:
        if "prefill" in fields:
            raise bad("bad_field", "prefill needs stream true")
        return Job(options, ids=ids)
    if "skip_special_tokens" not in fields:
        # The default of a stream, as DecodeStream's and the reference's.
        options = dataclasses.replace(options, skip_special_tokens=True)
    prefill = _parse_ids(fields, "prefill") if "prefill" in fields else None
    return Job(options, ids=ids, prefill=prefill)


def _parse_ids(fields: dict[str, Any], name: str) -> npt.NDArray[np.uint32]:
    ids = fields.get(name)
    if not isinstance(ids, list):
        raise bad("bad_field", f"{name} is not there, or is not a list")
    if not all(type(item) is int and 0 <= item <= _ID_MAX for item in ids):
        raise LineRefused(Refusal.of(Verdict.BAD_ID))
    return np.array(ids, dtype=np.uint32)


class Backend:
    """Serves jobs with a tokenizer in process, or with a server."""

    def __init__(self, engine: Tokenizer | BlockingCalls) -> None:
        self._engine = engine
        self._source: int | None = None
        self._settings: FileSettings | None = None

    def serve(self, operation: Operation, jobs: list[Job | Refusal]) -> list[dict[str, Any]]:
        """One object for each job, in order; a refusal becomes an object with `error`.

        Raises a PinTokError when the server does not answer or lacks the model: then the fault is
        not the line's.
        """
        answers: list[dict[str, Any]] = [{}] * len(jobs)
        kinds: dict[tuple[Options, bool, bool], list[int]] = {}
        for place, job in enumerate(jobs):
            if isinstance(job, Job) and job.surrogates and not self._joins_surrogates():
                job = Refusal.of(Verdict.BAD_UTF8)
            if isinstance(job, Refusal):
                answers[place] = error_object(job)
            else:
                kind = (job.options, job.pair is not None, bool(job.plain))
                kinds.setdefault(kind, []).append(place)
        for places in kinds.values():
            alike = [job for job in (jobs[place] for place in places) if isinstance(job, Job)]
            for place, answer in zip(places, self._serve_alike(operation, alike), strict=True):
                answers[place] = answer
        return answers

    def _joins_surrogates(self) -> bool:
        """Whether the model's reference takes text with surrogates."""
        return self._model_source() == ImageSource.TIKTOKEN

    def _model_source(self) -> int:
        """The format the model was compiled from; a server is asked once."""
        if self._source is None:
            engine = self._engine
            self._source = (
                engine.info().source if isinstance(engine, BlockingCalls) else engine.source
            )
        return self._source

    def _as_file(self) -> FileSettings:
        """What the model's own file sets; a server is asked once."""
        if self._settings is None:
            engine = self._engine
            self._settings = (
                engine.file_settings()
                if isinstance(engine, BlockingCalls)
                else FileSettings(engine.truncation, engine.padding)
            )
        return self._settings

    def _serve_alike(self, operation: Operation, jobs: list[Job]) -> Iterator[dict[str, Any]]:
        """Answers to jobs with equal options: through a server they share datagrams."""
        options = jobs[0].options
        if options.truncation is not None or options.padding is not None:
            truncation, padding = options.truncation, options.padding
            if truncation == "file":
                truncation = self._as_file().truncation
            if padding == "file":
                padding = self._as_file().padding
            yield from _serve_shaped(self._engine, jobs, truncation, padding)
            return
        if options.stream:
            yield from _serve_streams(self._engine, jobs)
            return
        if isinstance(self._engine, BlockingCalls):
            for job, outcome in zip(jobs, _ask(self._engine, operation, jobs), strict=True):
                if outcome.verdict != Verdict.OK:
                    yield error_object(Refusal.of(outcome.verdict))
                else:
                    yield _answer(operation, job, outcome)
            return
        for job in jobs:
            try:
                yield _answer(operation, job, _run(self._engine, operation, job))
            except RefusedError as refused:
                yield error_object(Refusal.of(refused.verdict))


def error_object(refusal: Refusal) -> dict[str, Any]:
    """The line of a refusal."""
    return {"error": {"code": refusal.code, "message": refusal.message}}


def _ask(client: BlockingCalls, operation: Operation, jobs: list[Job]) -> list[Outcome]:
    """What a server answers to jobs with equal options."""
    options = jobs[0].options
    if operation == "decode":
        id_lists = [job.ids for job in jobs if job.ids is not None]
        return client.decode_each(id_lists, skip_special_tokens=options.skip_special_tokens)
    texts = [job.text for job in jobs]
    pairs = [job.pair for job in jobs if job.pair is not None]
    if operation == "count":
        return client.count_each(texts, pairs=pairs or None, **options.encoding)
    full = bool(_extras(jobs[0]))
    plain = [job.plain for job in jobs] if jobs[0].plain else None
    return client.encode_each(
        texts, pairs=pairs or None, full=full, plain=plain, **options.encoding
    )


def _serve_shaped(
    engine: Tokenizer | BlockingCalls,
    jobs: list[Job],
    truncation: Truncation | None,
    padding: Padding | None,
) -> Iterator[dict[str, Any]]:
    """The answers to encodes with truncation or padding, windows that overflow included."""
    options = jobs[0].options
    for job, encoding in zip(jobs, _encode_windows(engine, jobs, truncation), strict=True):
        if isinstance(encoding, Refusal):
            yield error_object(encoding)
            continue
        full = encoding if padding is None else pad([encoding], padding)[0]
        answer = {name: getattr(full, name).tolist() for name in ["ids", *_extras(job)]}
        if options.padding is not None:
            answer["attention_mask"] = full.attention_mask.tolist()
        if options.truncation is not None:
            answer["overflowing"] = [window.ids.tolist() for window in full.overflowing]
        yield answer


def _encode_windows(
    engine: Tokenizer | BlockingCalls, jobs: list[Job], truncation: Truncation | None
) -> Iterator[Encoding | Refusal]:
    """Every job's text as windows, or why not."""
    options = jobs[0].options
    if isinstance(engine, BlockingCalls):
        pairs = [job.pair for job in jobs if job.pair is not None]
        texts = [job.text for job in jobs]
        for outcome in engine.encode_each(
            texts, pairs=pairs or None, full=True, truncation=truncation, **options.encoding
        ):
            ok = outcome.verdict == Verdict.OK
            yield encoding_of(outcome) if ok else Refusal.of(outcome.verdict)
        return
    for job in jobs:
        try:
            yield engine.encode_full(
                job.text, pair=job.pair, truncation=truncation, **options.encoding
            )
        except RefusedError as refused:
            yield Refusal.of(refused.verdict)


@dataclasses.dataclass(slots=True)
class _LineStream:
    """A stream under way: its window, the ids that have not come yet, and the answer so far."""

    window: StreamWindow
    ids: Iterator[int]
    chunks: list[str | None] = dataclasses.field(default_factory=list)
    answer: dict[str, Any] | None = None

    def next_step(self) -> Step:
        token_id = next(self.ids, None)
        return self.window.ask([] if token_id is None else [token_id], flush=token_id is None)

    def take(self, step: Step, stepped: Stepped | Refusal) -> None:
        if isinstance(stepped, Refusal):
            self.answer = error_object(stepped)
            return
        text = self.window.accept(step, stepped)
        if step.flush:
            self.answer = {"chunks": self.chunks, "flush": text}
        else:
            self.chunks.append(text or None)


def _serve_streams(engine: Tokenizer | BlockingCalls, jobs: list[Job]) -> Iterator[dict[str, Any]]:
    """Answers to streams: in every round each goes one id on, all together."""
    skip = jobs[0].options.skip_special_tokens
    streams = []
    for job in jobs:
        assert job.ids is not None
        prefill = [] if job.prefill is None else job.prefill.tolist()
        streams.append(_LineStream(StreamWindow(prefill), iter(job.ids.tolist())))
    waiting = streams
    while waiting:
        steps = [stream.next_step() for stream in waiting]
        for stream, step, stepped in zip(
            waiting, steps, _take_steps(engine, steps, skip), strict=True
        ):
            stream.take(step, stepped)
        waiting = [stream for stream in waiting if stream.answer is None]
    yield from (stream.answer or {} for stream in streams)


def _take_steps(
    engine: Tokenizer | BlockingCalls, steps: list[Step], skip: bool
) -> Iterator[Stepped | Refusal]:
    """One step of every stream, a refusal beside the others."""
    if isinstance(engine, BlockingCalls):
        for outcome in engine.decode_steps_each(steps, skip_special_tokens=skip):
            ok = outcome.verdict == Verdict.OK
            yield stepped_of(outcome) if ok else Refusal.of(outcome.verdict)
        return
    for step in steps:
        try:
            yield engine.decode_steps([step], skip_special_tokens=skip)[0]
        except RefusedError as refused:
            yield Refusal.of(refused.verdict)


def _run(tokenizer: Tokenizer, operation: Operation, job: Job) -> Outcome:
    """The same in process, for one job. Raises RefusedError."""
    options = job.options
    if job.ids is not None:
        skip = options.skip_special_tokens
        return Outcome(Verdict.OK, text=tokenizer.decode(job.ids, skip_special_tokens=skip))
    if operation == "encode" and _extras(job):
        full = tokenizer.encode_full(job.text, pair=job.pair, **options.encoding)
        return Outcome(
            Verdict.OK,
            len(full),
            full.ids,
            full.offsets,
            full.type_ids,
            full.special_tokens_mask,
        )
    if job.plain:
        plain = tokenizer.encode_plain(
            job.text, job.plain, add_special_tokens=options.add_special_tokens
        )
        return Outcome(Verdict.OK, len(plain.ids), plain.ids, hits=plain.hits)
    ids = tokenizer.encode(job.text, pair=job.pair, **options.encoding)
    return Outcome(Verdict.OK, len(ids), ids)


def _extras(job: Job) -> list[str]:
    """What an answer holds beside the ids.

    Whoever asks about two texts, or about places in the text, needs to know what is whose.
    """
    options = job.options
    both = job.pair is not None or options.offsets
    wanted = {
        "offsets": options.offsets,
        "type_ids": options.type_ids or both,
        "special_tokens_mask": options.special_tokens_mask or both,
    }
    return [name for name, is_wanted in wanted.items() if is_wanted]


def _answer(operation: Operation, job: Job, outcome: Outcome) -> dict[str, Any]:
    """The line of an outcome that is no refusal."""
    if operation == "decode":
        return {"text": outcome.text}
    if operation == "count":
        return {"count": outcome.count}
    names = ["ids", *_extras(job)]
    answer = {name: getattr(outcome, name).tolist() for name in names}
    return answer | {"hits": outcome.hits} if outcome.hits else answer


# ASCII only: U+2028 and the like end a line for some readers, never for others.
_encoder = json.JSONEncoder(separators=(",", ":"))


def format_line(answer: dict[str, Any]) -> bytes:
    """An answer as a line of ASCII."""
    return _encoder.encode(answer).encode("ascii") + b"\n"
