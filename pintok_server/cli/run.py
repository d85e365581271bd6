"""How both commands end: an error is one sentence and a status, its traceback only on request."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from pintok.errors import PinTokError

version_option = click.version_option(package_name="pintok")


def command_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--debug` to a command, and turn PinTokError into its sentence and exit status 1.

    A reader of standard output that went away ends the command quietly, as SIGPIPE would.
    """

    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @functools.wraps(function)
    def command(*args: Any, debug: bool, **options: Any) -> Any:
        try:
            return function(*args, **options)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except PinTokError as error:
            if debug:
                raise
            program = click.get_current_context().find_root().command.name
            click.echo(f"{program}: {error}", err=True)
            sys.exit(1)

    return command
