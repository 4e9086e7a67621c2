"""The command line: parse, validate, call. One module per group of commands; imports wait for the command.

Results go to stdout, progress and warnings to stderr. Exit status: 0 done; 1 a check failed; 2 bad input;
3 a backend or device is not here; every failure is one `error:` and one `hint:` line.
"""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Sequence

import click

from .. import __version__
from ..errors import SubtuneError, did_you_mean
from . import (
    bundles,
    calibrating,
    choosing,
    costing,
    machine,
    networks,
    optimizing,
    reporting,
    searching,
    serving,
    shipping,
    timing,
    together,
    tuning,
)

EXPORT = ("torch", "torchvision", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "safetensors")
"""Packages of the extra `export`, which a device can do without."""


class _Group(click.Group):
    """A group that names the closest command."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise click.UsageError(f"there is no command {args[0]!r}\n{did_you_mean(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="subtune-deploy")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def cli() -> None:
    """Put tasks that were SubTuned on one backbone into ONE engine, check it, and time it."""


for command in (
    *networks.COMMANDS,
    *tuning.COMMANDS,
    *searching.COMMANDS,
    *bundles.COMMANDS,
    *shipping.COMMANDS,
    *timing.COMMANDS,
    *serving.COMMANDS,
    *calibrating.COMMANDS,
    *costing.COMMANDS,
    *choosing.COMMANDS,
    *reporting.COMMANDS,
    *together.COMMANDS,
    *optimizing.COMMANDS,
    *machine.COMMANDS,
):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `subtune-deploy`; always exits. `--debug` may stand anywhere."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    words = [word for word in given if word != "--debug"] or ["--help"]
    try:
        sys.exit(cli.main(words, prog_name="subtune-deploy", standalone_mode=False) or 0)
    except (SubtuneError, click.ClickException, OSError, ModuleNotFoundError) as error:
        if "--debug" in given:
            traceback.print_exc()
        message, hint, status = _told(error)
        click.echo(f"error: {message}\nhint: {hint}", err=True)
        sys.exit(status)
    except (KeyboardInterrupt, click.exceptions.Abort):
        click.echo("interrupted; nothing half-written was left", err=True)
        sys.exit(130)


def _told(error: Exception) -> tuple[str, str, int]:
    if isinstance(error, SubtuneError):
        return error.message, error.hint, error.exit_status
    if isinstance(error, click.ClickException):
        message, _, hint = error.format_message().partition("\n")
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "subtune-deploy"
        return message.rstrip("."), " ".join(hint.split()) or f"see {command} --help", 2
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package not in EXPORT:
            raise error
        hint = "pip install 'subtune-deploy[export]'"
        return f"this command needs {package}, which is not installed", hint, 3
    assert isinstance(error, OSError)
    hint = "free some space" if error.errno == errno.ENOSPC else "check the path and its permissions"
    return f"{error.filename or 'a file'}: {error.strerror or error}", hint, 2
