"""`pintok-server`: serve models, and look after servers that run.

    pintok-server --cores 2-5 --iface eth0 --model NAME_OR_PATH
    pintok-server models | keys | status | top | doctor | upgrade | drain

Without a command it serves. This file only reads options and prints; what they do stands in
`control`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import click

from pintok.profiles import DEFAULT_PROFILE, PROFILES
from pintok_server.cli.run import command_errors, version_option
from pintok_server.control import doctor as host
from pintok_server.control.config import (
    SETTINGS,
    ModelChoice,
    Setting,
    Settings,
    parse_model,
    resolve_settings,
)
from pintok_server.control.drain import drain as end_server
from pintok_server.control.images import list_summaries
from pintok_server.control.keys import make_key, reload_keys
from pintok_server.control.log import Log
from pintok_server.control.memory import format_len
from pintok_server.control.models import (
    compile_model,
    describe_certificate,
    explain_source,
    load_model,
    unload_model,
)
from pintok_server.control.runtime import find_run_dir
from pintok_server.control.serve import serve as serve_until_stopped
from pintok_server.control.top import open_instance, status_document, status_text, top_text
from pintok_server.control.upgrade import upgrade as take_over
from pintok_server.errors import ConfigError


class _ServeByDefault(click.Group):
    """A group whose first word may be an option: then `serve` is meant."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {"-h", "--help", "--version"}
        if not args or (args[0].startswith("-") and args[0] not in own):
            args = ["serve", *args]
        return super().parse_args(ctx, args)


def _setting_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """One option for each setting, and the three that say where settings come from."""
    function = click.option("--no-http", is_flag=True, help="Do not serve metrics over HTTP.")(
        function
    )
    function = click.option(
        "--config", "config_file", metavar="FILE", type=click.Path(path_type=pathlib.Path),
        help="YAML file with settings: the names of these options with _ for -, and models.",
    )(function)  # fmt: skip
    for setting in reversed(SETTINGS):
        function = click.option(
            setting.option,
            setting.key,
            metavar=setting.metavar,
            multiple=setting.repeatable,
            help=_help(setting),
        )(function)
    return function


def _help(setting: Setting) -> str:
    if "Default: " in setting.doc or not isinstance(setting.default, int | float | str):
        return setting.doc
    return f"{setting.doc} Default: {setting.default}."


_log_format = click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True,
    help="Sentences, or one JSON object a line.",
)  # fmt: skip


def _instance_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--runtime-dir", metavar="DIR", help="Its runtime directory."),
        click.option("--instance", metavar="NAME", help="Which server; not needed for one."),
    ):
        function = option(function)
    return function


def _resolve(config_file: pathlib.Path | None, no_http: bool, flags: dict[str, Any]) -> Settings:
    if no_http:
        if flags["http"] is not None:
            raise ConfigError("--http and --no-http contradict each other")
        flags["http"] = "off"
    return resolve_settings(flags=flags, environment=os.environ, file=config_file)


@click.group(
    "pintok-server",
    cls=_ServeByDefault,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@version_option
def main() -> None:
    """Serve LLM tokenization over AF_XDP. Without a command: serve (options: serve --help)."""


@main.command("serve")
@_setting_options
@click.option("--replace", is_flag=True, help="Drain and replace a datapath with other settings.")
@_log_format
@command_errors
def serve_command(
    config_file: pathlib.Path | None,
    no_http: bool,
    replace: bool,
    log_format: str,
    **flags: Any,
) -> None:
    """Serve until SIGTERM or SIGINT; then finish what is under way and exit.

    Every option can also be given as a variable PINTOK_NAME or in the file of --config; options win
    over variables, variables over the file.
    """
    settings = _resolve(config_file, no_http, flags)
    log = Log(json_lines=log_format == "json")
    serve_until_stopped(settings, replace=replace, log=log)


@main.command("upgrade")
@_setting_options
@_log_format
@command_errors
def upgrade_command(
    config_file: pathlib.Path | None, no_http: bool, log_format: str, **flags: Any
) -> None:
    """Let this version's datapath take the place of the running one, without a packet lost.

    Takes the options of serve; models may differ from the running server's. Exit status 1 when the
    new datapath did not take over: then the running one serves on as before. The control process
    that runs begins anew with the program that is installed now.
    """
    settings = _resolve(config_file, no_http, flags)
    take_over(settings, log=Log(json_lines=log_format == "json"))


@main.command("drain")
@_instance_options
@click.option("--timeout", type=click.FloatRange(0.1, 3600), default=30.0, show_default=True,
              metavar="SECONDS", help="How long to wait until it has ended.")  # fmt: skip
@command_errors
def drain_command(instance: str | None, runtime_dir: str | None, timeout: float) -> None:
    """Let a running server answer what it has, and end it, as SIGTERM does."""
    run_dir = find_run_dir(instance, runtime_dir=runtime_dir)
    click.echo(f"drained: {end_server(run_dir, timeout_s=timeout)} has ended")


@main.command()
@_setting_options
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@click.option("--strict", is_flag=True, help="Exit with status 2 when there are only warnings.")
@command_errors
def doctor(
    config_file: pathlib.Path | None, no_http: bool, as_json: bool, strict: bool, **flags: Any
) -> None:
    """What on this host costs latency, with the command that repairs it. Changes nothing.

    Takes the options of serve and examines the host for that server. Exit status 1 when something
    would keep it from serving.
    """
    checks = host.examine(_resolve(config_file, no_http, flags))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(check) for check in checks], indent=1))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            wanted = f"; wanted: {check.wanted}" if check.wanted else ""
            why = f" ({check.why})" if check.why else ""
            click.echo(f"{check.outcome:4}  {check.name:{width}}  {check.found}{wanted}{why}")
            if check.repair:
                click.echo(f"{'':{width + 8}}-> {check.repair}")
    sys.exit(host.exit_status(checks, strict=strict))


@main.command()
@_instance_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object with everything.")
@command_errors
def status(instance: str | None, runtime_dir: str | None, as_json: bool) -> None:
    """What a running server is and has done. Exit status 1 when none runs."""
    running = open_instance(find_run_dir(instance, runtime_dir=runtime_dir))
    with running.reader:
        if as_json:
            click.echo(json.dumps(status_document(running), indent=1))
        else:
            click.echo(status_text(running))


@main.command()
@_instance_options
@click.option("--interval", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True,
              metavar="SECONDS")  # fmt: skip
@click.option("--count", type=click.IntRange(1), metavar="N", help="Stop after N screens.")
@command_errors
def top(instance: str | None, runtime_dir: str | None, interval: float, count: int | None) -> None:
    """What each core does, refreshed until interrupted."""
    run_dir = find_run_dir(instance, runtime_dir=runtime_dir)
    running = open_instance(run_dir)
    old, before = running.reader.read(), time.monotonic()
    shown = 0
    try:
        while count is None or shown < count:
            time.sleep(interval)
            if not running.state.alive():
                # A restarted datapath has a new segment.
                running.reader.close()
                running = open_instance(run_dir)
            new, now = running.reader.read(), time.monotonic()
            if sys.stdout.isatty():
                click.clear()
                click.echo(status_text(running) + "\n")
            click.echo(top_text(old, new, elapsed_s=now - before))
            old, before = new, now
            shown += 1
    except KeyboardInterrupt:
        return


_profile_option = click.option(
    "--profile", type=click.Choice(PROFILES), default=DEFAULT_PROFILE, show_default=True,
    envvar="PINTOK_PROFILE", help="Reference profile: whose ids the model gives.",
)  # fmt: skip


@main.group(invoke_without_command=True)
@click.pass_context
def models(context: click.Context) -> None:
    """Models: list what is compiled, compile, check, certify, load and unload."""
    if context.invoked_subcommand is None:
        context.invoke(list_command)


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@command_errors
def list_command(as_json: bool = False) -> None:
    """The compiled models in the cache, the latest first."""
    found = list_summaries()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(summary) for summary in found], indent=1))
        return
    for summary in found:
        click.echo(
            f"{summary.fingerprint[:16]}  {summary.algorithm:9}  {summary.vocab_len:7d} ids  "
            f"{format_len(summary.image_len):>10}  {summary.meta.get('name', '-')}  "
            f"({summary.source}, {summary.profile})  {describe_certificate(summary.certificate)}"
        )


@models.command("compile")
@click.argument("model")
@click.option(
    "--corpus", type=click.Path(path_type=pathlib.Path, exists=True, dir_okay=False),
    help="Also compare the image with the reference on the lines of this file.",
)  # fmt: skip
@_profile_option
@command_errors
def compile_command(model: str, corpus: pathlib.Path | None, profile: str) -> None:
    """Compile MODEL and compare it with the reference library.

    MODEL is a directory, a file, ORG/NAME[@REVISION] of the hub, or 'default'.
    """
    compiled = compile_model(ModelChoice(name=model, source=model), corpus=corpus, profile=profile)
    click.echo(f"{compiled.fingerprint}  {compiled.image}")
    click.echo(f"certificate: {compiled.certificate_line}")


@models.command("check")
@click.argument("path", type=click.Path(path_type=pathlib.Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@_profile_option
@command_errors
def check_command(path: pathlib.Path, as_json: bool, profile: str) -> None:
    """Explain the model at PATH: its parts, or what is unsupported. Nothing is kept."""
    rows = explain_source(path, profile=profile)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    width = max(map(len, rows))
    for name, value in rows.items():
        click.echo(f"{name:{width}}  {value}")


@models.command("certificate")
@click.argument("model")
@_profile_option
@command_errors
def certificate_command(model: str, profile: str) -> None:
    """The certificate of MODEL as JSON: what was compared with the reference, with which result."""
    compiled = compile_model(ModelChoice(name=model, source=model), profile=profile)
    click.echo(json.dumps(compiled.certificate, indent=1, ensure_ascii=False))


@models.command("load")
@click.argument("model", metavar="[NAME=]SOURCE")
@_profile_option
@_instance_options
@command_errors
def load_command(model: str, instance: str | None, runtime_dir: str | None, profile: str) -> None:
    """Load a model into a running server, or replace the one of that name there."""
    try:
        choice = parse_model(model)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    loaded = load_model(find_run_dir(instance, runtime_dir=runtime_dir), choice, profile=profile)
    click.echo(f"model {loaded.name} is in slot {loaded.slot}: {loaded.fingerprint}")


@models.command("unload")
@click.argument("name")
@_instance_options
@command_errors
def unload_command(name: str, instance: str | None, runtime_dir: str | None) -> None:
    """Take the model NAME out of a running server."""
    unloaded = unload_model(find_run_dir(instance, runtime_dir=runtime_dir), name)
    click.echo(f"model {unloaded.name} is gone from slot {unloaded.slot}")


@main.group()
def keys() -> None:
    """Keys of tenants: make one, give a running server those of its file."""


@keys.command("make")
@click.argument("number", type=click.IntRange(0, (1 << 32) - 1))
@command_errors
def make_command(number: int) -> None:
    """Print a new key with this NUMBER, as a line for the file of --keys and for its tenant."""
    click.echo(make_key(number))


@keys.command("reload")
@_instance_options
@command_errors
def reload_command(instance: str | None, runtime_dir: str | None) -> None:
    """Let a running server read its file of keys again: new ones hold, others end, at once."""
    path, ids = reload_keys(find_run_dir(instance, runtime_dir=runtime_dir))
    click.echo(f"{path}: {len(ids)} keys: {', '.join(map(str, ids)) or 'none'}")


if __name__ == "__main__":
    main()
