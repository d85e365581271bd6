"""`pintok`: encode, decode and count from the command line, in process or through a server.

    pintok encode --model gpt2.json --jsonl < requests.jsonl
    pintok encode --server 10.0.0.7 --lines notes.txt
    pintok encode --server 10.0.0.7,10.0.0.8 --hedge-after 0.02 --lines notes.txt
    pintok ping --server 10.0.0.7

Without --server the model is compiled and run in this process; with it, --model names a model of
the server, and nothing but the network client is used. Both ways give equal output.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any

import click
import numpy as np

from pintok._calls import BlockingCalls
from pintok._path import parse_server
from pintok._seal import Key
from pintok.client import Client
from pintok.errors import DeadlineError, PinTokError
from pintok.fleet import Fleet
from pintok.profiles import DEFAULT_PROFILE, PROFILES
from pintok_server.cli.lines import (
    Backend,
    Job,
    Operation,
    Options,
    Refusal,
    format_line,
    parse_line,
)
from pintok_server.cli.run import command_errors, version_option
from pintok_server.control.config import parse_model, split_revision

if TYPE_CHECKING:
    from pintok._content import ContentPolicy
    from pintok.tokenizer import Tokenizer
    from pintok_server.cli.chats import ChatBackend

# Read at once from a pipe that has more; what is there already is served without waiting for more.
_READ_LEN = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Connection:
    """The options that say which servers, if any, and how to talk to them; or whose ids a tokenizer
    in this process gives."""

    servers: tuple[str, ...]
    hedge_after: float | None
    timeout: float
    datagram_len_max: int | None
    profile: str | None = None


_SERVER_HELP = (
    "Use this server instead of a tokenizer in this process. Several, with commas or the option "
    "repeated, are one fleet: each text has a server of its own, and the next one where that fails."
)


def _server_names(values: tuple[str, ...]) -> tuple[str, ...]:
    """The servers of all --server options, each of which may name several."""
    return tuple(name.strip() for value in values for name in value.split(",") if name.strip())


def _engine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a `Connection`, which the command gets as one."""

    @functools.wraps(function)
    def bundled(
        server: tuple[str, ...],
        hedge_after: float | None,
        timeout: float,
        datagram_len_max: int | None,
        profile: str | None,
        **others: Any,
    ) -> Any:
        servers = _server_names(server)
        connection = Connection(servers, hedge_after, timeout, datagram_len_max, profile)
        return function(connection=connection, **others)

    for option in (
        click.option(
            "--datagram-len-max",
            type=click.IntRange(240, 65507),
            metavar="BYTES",
            help="Largest datagram to exchange with the server. Default: what the path carries, "
            "which is found out.",
        ),
        click.option(
            "--timeout", type=click.FloatRange(0, 3600, min_open=True), default=5.0,
            metavar="SECONDS", show_default=True, help="How long to wait for an answer, in all.",
        ),
        click.option(
            "--hedge-after", type=click.FloatRange(0, 3600, min_open=True), metavar="SECONDS",
            help="With several servers: ask a second one as well when the first is so late.",
        ),
        click.option(
            "--server", multiple=True, metavar="HOST[:PORT][,...]", help=_SERVER_HELP,
        ),
        click.option(
            "--profile", type=click.Choice(PROFILES),
            help="Whose ids a tokenizer in this process gives. Default: " + DEFAULT_PROFILE + ".",
        ),
    ):  # fmt: skip
        bundled = option(bundled)
    return bundled


def _text_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--jsonl", is_flag=True, help="One JSON object a line in, one a line out."),
        click.option("--lines", is_flag=True, help="Every line is a text of its own."),
        click.option(
            "--model", metavar="MODEL",
            help="A directory, a file, ORG/NAME on the hub, or 'default' (embedded, also the "
            "default). With --server: name or slot of a model there.",
        ),
        click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path(allow_dash=True)),
    ):  # fmt: skip
        function = option(function)
    return function


def _encode_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--add-special-tokens/--no-add-special-tokens", default=True, show_default=True,
            help="Add the special tokens that the model's post-processor adds.",
        ),
        click.option(
            "--parse-special", type=click.Choice(["all", "none"]), default="all",
            show_default=True, help="Special tokens written in the text: find them, or none.",
        ),
        click.option("--bos", is_flag=True, help="Begin with the model's beginning-of-text id."),
        click.option("--eos", is_flag=True, help="End with the model's end-of-text id."),
    ):  # fmt: skip
        function = option(function)
    return function


@click.group(
    "pintok", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@version_option
def main() -> None:
    """Text to LLM token ids and back, in process or through one PinTok server or several."""


@main.command()
@_text_options
@_encode_options
@_engine_options
@command_errors
def encode(
    files: tuple[str, ...],
    model: str | None,
    connection: Connection,
    jsonl: bool,
    lines: bool,
    **options: Any,
) -> None:
    """Text to ids: of standard input or of each FILE, one line of ids each.

    With --jsonl a line holds text or text_b64, and optionally pair or pair_b64, add_special_tokens,
    parse_special, encode_special_tokens, bos, eos, offsets, type_ids, special_tokens_mask,
    truncation and padding (objects with the reference's settings, or "file" for those of the
    model's file); the answer holds ids and what else was asked for, with truncation the ids of the
    further windows as overflowing, with padding attention_mask; or error with code and message.
    """
    with _open_engine(model, connection) as engine:
        _serve("encode", engine, files, Options(**options), jsonl=jsonl, lines=lines)


@main.command()
@_text_options
@_encode_options
@_engine_options
@command_errors
def count(
    files: tuple[str, ...],
    model: str | None,
    connection: Connection,
    jsonl: bool,
    lines: bool,
    **options: Any,
) -> None:
    """The number of ids, of standard input or of each FILE; input and options as in encode."""
    with _open_engine(model, connection) as engine:
        _serve("count", engine, files, Options(**options), jsonl=jsonl, lines=lines)


@main.command()
@_text_options
@click.option("--skip-special-tokens", is_flag=True, help="Leave special tokens out.")
@_engine_options
@command_errors
def decode(
    files: tuple[str, ...],
    model: str | None,
    connection: Connection,
    jsonl: bool,
    lines: bool,
    **options: Any,
) -> None:
    """Ids to text: ids of standard input or of each FILE, separated by white space or commas.

    The text is written as it is, without a line end of its own, so that decode undoes encode. With
    --jsonl a line holds ids and optionally skip_special_tokens; the answer holds text, or error.
    With stream true, and optionally prefill (ids that came before), the ids come one at a time: the
    answer holds chunks, the text or null that each completes, and flush, what is left at the end.
    Streams leave special tokens out unless skip_special_tokens is false.
    """
    with _open_engine(model, connection) as engine:
        _serve("decode", engine, files, Options(**options), jsonl=jsonl, lines=lines)


@main.command()
@click.option("--jsonl", is_flag=True, help="One JSON object a line in, one a line out.")
@click.option(
    "--model", metavar="MODEL",
    help="A directory, a file, or ORG/NAME on the hub. With --server: the same, named so or as "
    "NAME=MODEL there; the template is read here.",
)  # fmt: skip
@click.option(
    "--content-special-tokens", type=click.Choice(["text", "parse"]), default="text",
    show_default=True, help="Special tokens that the input writes in messages, tools, documents "
    "and variables: ordinary text, or found as those of the template.",
)  # fmt: skip
@click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path(allow_dash=True))
@_engine_options
@command_errors
def chat(
    files: tuple[str, ...],
    model: str | None,
    content_special_tokens: ContentPolicy,
    connection: Connection,
    jsonl: bool,
) -> None:
    """Messages to the text that the model's chat template makes of them, and its ids.

    With --jsonl a line holds messages and optionally tools, documents, add_generation_prompt,
    continue_final_message, template (a name), now (what the template sees as the time), and
    variables of the template like enable_thinking; the answer holds rendered and ids, or error.
    Without it each input is one such object, and the answer is the rendered text as it is.

    Only the template's special tokens are found. The answer's hits are those in the line's own
    strings that were left as text; content_special_tokens of a line is "parse" to find them, or an
    object that says so of roles, "tools", "documents" or "variables". Those that the template looks
    for itself are found in any case: acted_on names them.
    """
    # Imported here: the other commands do without jinja2.
    from pintok_server.cli.chats import ChatBackend

    local = _open_tokenizer(
        _named_source(model) if connection.servers and model else model, connection.profile
    )
    if connection.servers:  # Their profile shows in the fingerprint.
        connection = dataclasses.replace(connection, profile=None)
    with _open_engine(model, connection) as engine:
        if isinstance(engine, BlockingCalls) and engine.info().fingerprint != local.fingerprint:
            raise PinTokError(f"the server's {model or 'model'} is another than the one here")
        backend = ChatBackend(local, engine, policy=content_special_tokens)
        _serve_chats(backend, files, jsonl=jsonl)


@main.command()
@click.option("--count", "-c", "total", type=click.IntRange(1), default=4, show_default=True)
@click.option("--interval", type=click.FloatRange(0, 60), default=0.2, show_default=True,
              metavar="SECONDS")  # fmt: skip
@click.option("--size", type=click.IntRange(32, 65507), default=32, show_default=True,
              metavar="BYTES", help="Length of the datagram, 32 of it header.")  # fmt: skip
@click.option("--server", multiple=True, metavar="HOST[:PORT][,...]", default=["127.0.0.1"],
              show_default=True)  # fmt: skip
@click.option("--timeout", type=click.FloatRange(0, 3600, min_open=True), default=1.0,
              metavar="SECONDS", show_default=True)  # fmt: skip
@command_errors
def ping(total: int, interval: float, size: int, server: tuple[str, ...], timeout: float) -> None:
    """Ask servers whether they answer, and how fast. Exit status 1 when one of them never did."""
    connection = Connection(_server_names(server), None, timeout, None)
    with _open_client(None, connection) as opened:
        clients = list(opened.clients.values()) if isinstance(opened, Fleet) else [opened]
        times_s: dict[str, list[float]] = {client.address.text: [] for client in clients}
        for number in range(total):
            if number:
                time.sleep(interval)
            for client in clients:
                text = client.address.text
                try:
                    times_s[text].append(client.ping(datagram_len=size))
                    click.echo(f"{text}: {size} bytes, {times_s[text][-1] * 1e6:.0f} us")
                except DeadlineError as error:
                    click.echo(str(error))
    for text, times in times_s.items():
        where = f"{text}: " if len(times_s) > 1 else ""
        if times:
            low, mean, high = min(times), sum(times) / len(times), max(times)
            click.echo(
                f"{where}{len(times)} of {total} answered; min/mean/max "
                f"{low * 1e6:.0f}/{mean * 1e6:.0f}/{high * 1e6:.0f} us"
            )
    if not all(times_s.values()):
        sys.exit(1)


@main.command()
@click.option("--server", multiple=True, metavar="HOST[:PORT][,...]", default=["127.0.0.1"],
              show_default=True)  # fmt: skip
@click.option("--timeout", type=click.FloatRange(0, 3600, min_open=True), default=5.0,
              metavar="SECONDS", show_default=True)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@command_errors
def models(server: tuple[str, ...], timeout: float, as_json: bool) -> None:
    """The models of a server, of several the first that answers: slot, name, ids, fingerprint."""
    with _open_client(None, Connection(_server_names(server), None, timeout, None)) as client:
        found = client.models()
    if as_json:
        rows = [
            {
                "slot": info.model_id,
                "name": info.name,
                "vocab_size": info.vocab_len,
                "ids_end": info.ids_end,
                "bos_id": info.bos_id,
                "eos_id": info.eos_id,
                "fingerprint": info.fingerprint,
            }
            for info in found
        ]
        click.echo(json.dumps(rows, indent=1))
        return
    width = max((len(info.name) for info in found), default=0)
    for info in found:
        click.echo(
            f"{info.model_id:3d}  {info.name:{width}}  {info.vocab_len:7d} ids  {info.fingerprint}"
        )


@contextlib.contextmanager
def _open_engine(model: str | None, connection: Connection) -> Iterator[Tokenizer | BlockingCalls]:
    if connection.servers:
        if connection.profile is not None:
            raise click.UsageError("--profile is not for --server: its models have theirs")
        with _open_client(model, connection) as client:
            yield client
        return
    if connection.datagram_len_max is not None:
        raise click.UsageError("--datagram-len-max is for --server")
    if connection.hedge_after is not None:
        raise click.UsageError("--hedge-after is for several servers")
    yield _open_tokenizer(model, connection.profile)


def _named_source(model: str) -> str:
    """The source of a model that may be written as NAME=SOURCE."""
    try:
        return parse_model(model).source
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _open_tokenizer(model: str | None, profile: str | None) -> Tokenizer:
    # Imported here: a client needs neither the native core nor the compiler.
    from pintok.tokenizer import Tokenizer

    source, revision = split_revision(model or "default")
    return Tokenizer.from_pretrained(source, revision=revision, profile=profile or DEFAULT_PROFILE)


def _tenant_key() -> Key | None:
    """The key in the file that PINTOK_KEY_FILE names, a line of `pintok-server keys make`."""
    name = os.environ.get("PINTOK_KEY_FILE")
    if not name:
        return None
    try:
        return Key.parse(pathlib.Path(name).read_text())
    except (OSError, ValueError) as error:
        raise click.UsageError(f"PINTOK_KEY_FILE {name}: {error}") from None


@contextlib.contextmanager
def _open_client(model: str | None, connection: Connection) -> Iterator[Client | Fleet]:
    key = _tenant_key()
    try:
        named = parse_model(model).name if model is not None else None
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    choice: int | str = 0
    if model is not None:
        choice = int(model) if re.fullmatch("[0-9]{1,5}", model) else model
    if named is not None and named != choice and isinstance(choice, str):
        # The words that a server was started with name its model too, if none has just that name.
        with _connect(0, connection, key) as client:
            names = {info.name for info in client.models()}
        choice = choice if choice in names else named
    with _connect(choice, connection, key) as client:
        yield client


def _connect(model: int | str, connection: Connection, key: Key | None) -> Client | Fleet:
    """The client of one server, or of several."""
    limit = connection.datagram_len_max
    alone = len(connection.servers) == 1
    if alone and connection.hedge_after is not None:
        raise click.UsageError("--hedge-after is for several servers")
    try:
        if not alone:
            return Fleet(
                connection.servers,
                hedge_after=connection.hedge_after,
                model=model,
                timeout=connection.timeout,
                datagram_len_max=limit,
                key=key,
            )
        host, port = parse_server(connection.servers[0])
        return Client(
            host, port, model=model, timeout=connection.timeout, datagram_len_max=limit, key=key
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _serve(
    operation: Operation,
    engine: Tokenizer | BlockingCalls,
    files: tuple[str, ...],
    options: Options,
    *,
    jsonl: bool,
    lines: bool,
) -> None:
    """Read the inputs, write the answers; exit status 1 when a plain input was refused."""
    if jsonl and lines:
        raise click.UsageError("--jsonl and --lines exclude each other")
    backend = Backend(engine)
    failed = False
    out = sys.stdout.buffer
    for name, stream in _inputs(files):
        if jsonl or lines:
            for block in _blocks(stream):
                if jsonl:
                    jobs = [parse_line(line, operation, defaults=options) for line in block]
                else:
                    jobs = [_plain_job(line, operation, options) for line in block]
                for answer in backend.serve(operation, jobs):
                    if jsonl:
                        out.write(format_line(answer))
                    else:
                        failed |= _write_plain(out, answer, name, line_end=True)
                out.flush()
        else:
            job = _plain_job(stream.read(), operation, options)
            for answer in backend.serve(operation, [job]):
                label = name if operation == "count" and len(files) > 1 else None
                end = operation != "decode"
                failed |= _write_plain(out, answer, name, line_end=end, label=label)
            out.flush()
    if failed:
        sys.exit(1)


def _serve_chats(backend: ChatBackend, files: tuple[str, ...], *, jsonl: bool) -> None:
    """Read the chats, write the answers; exit status 1 when a plain input was refused."""
    failed = False
    out = sys.stdout.buffer
    for name, stream in _inputs(files):
        if jsonl:
            for block in _blocks(stream):
                for answer in backend.serve(block):
                    out.write(format_line(answer))
                out.flush()
            continue
        (answer,) = backend.serve([stream.read()])
        if "error" in answer:
            click.echo(f"pintok: {name}: {answer['error']['message']}", err=True)
            failed = True
        else:
            out.write(answer["rendered"].encode("utf-8", "replace"))
        out.flush()
    if failed:
        sys.exit(1)


def _inputs(files: tuple[str, ...]) -> Iterator[tuple[str, IO[bytes]]]:
    for file in files or ("-",):
        if file == "-":
            yield "standard input", sys.stdin.buffer
            continue
        try:
            stream = open(file, "rb")  # noqa: SIM115 (closed below)
        except OSError as error:
            raise PinTokError(f"{file}: cannot be read: {error.strerror}") from None
        with stream:
            yield file, stream


def _blocks(stream: IO[bytes]) -> Iterator[list[bytes]]:
    """The lines of a stream, those that are there already together, without their ends."""
    rest: list[bytes] = []
    read = getattr(stream, "read1", stream.read)
    while data := read(_READ_LEN):
        head, newline, tail = data.rpartition(b"\n")
        if not newline:
            rest.append(data)
            continue
        rest.append(head)
        yield b"".join(rest).split(b"\n")
        rest = [tail] if tail else []
    if rest:
        yield [b"".join(rest)]


def _plain_job(data: bytes, operation: Operation, options: Options) -> Job | Refusal:
    """The job of a text as it is, or of ids as digits."""
    if operation != "decode":
        return Job(options, text=data)
    words = data.replace(b",", b" ").split()
    if not all(word.isdigit() and len(word) <= 10 and int(word) <= 0xFFFFFFFF for word in words):
        return Refusal("bad_id", "the ids are not whole numbers from 0 to 4294967295")
    return Job(options, ids=np.array([int(word) for word in words], dtype=np.uint32))


def _write_plain(
    out: IO[bytes],
    answer: dict[str, Any],
    name: str,
    *,
    line_end: bool,
    label: str | None = None,
) -> bool:
    """Write one answer without JSON; a refusal goes to standard error and returns True."""
    if "error" in answer:
        click.echo(f"pintok: {name}: {answer['error']['message']}", err=True)
        if line_end:
            # The line stays, empty, so that answers and inputs keep the same numbers.
            out.write(b"\n")
        return True
    if "ids" in answer:
        text = " ".join(map(str, answer["ids"]))
    else:
        text = str(answer.get("count", answer.get("text")))
    if label is not None:
        text = f"{text}\t{label}"
    out.write(text.encode("utf-8") + (b"\n" if line_end else b""))
    return False


if __name__ == "__main__":
    main()
