"""How commands fail: one line on standard error that says what to do, and an exit status."""

from __future__ import annotations

import traceback
from typing import IO

import click

from ..errors import InvalidInput, LegatoError
from .text import line

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells report it."""

DEBUG = "legato.debug"


class Failure(click.ClickException):
    """It could not be done: no server, the run failed, the store is locked ... The exit status is 1."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(line(message, None))

    def show(self, file: IO[str] | None = None) -> None:
        """Write the line."""
        click.echo(f"legato: {self.message}", file=file, err=file is None)


class Misuse(Failure):
    """It cannot be done as asked: a wrong option, a target that cannot be loaded. The exit status is 2."""

    exit_code = 2


class Commands(click.Group):
    """The group: it turns our errors into one line, unless ``--debug`` asks for the traceback."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command that was chosen."""
        try:
            return super().invoke(ctx)
        except (LegatoError, ImportError, Failure) as exc:
            if ctx.meta.get(DEBUG):
                traceback.print_exception(exc)
            failure = _failure(exc)
            if failure is exc:
                raise
            raise failure from exc


def _failure(exc: LegatoError | ImportError | Failure) -> Failure:
    if isinstance(exc, Failure):
        return exc
    if isinstance(exc, LegatoError):
        return (Misuse if isinstance(exc, InvalidInput) else Failure)(exc.message or exc.code)
    if (exc.name or "legato").partition(".")[0] == "legato":
        raise exc  # a fault of ours, not something to install
    if "pip install" in str(exc):
        return Failure(str(exc))
    return Failure(f"{exc.name} is not installed: pip install 'legato[server]'")


def _remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[DEBUG] = True


debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    callback=_remember,
    envvar="LEGATO_DEBUG",
    help="Show tracebacks of errors.",
)
