"""``legato config``: the settings that ``legato serve`` would run with, and where each was said."""

from __future__ import annotations

import textwrap
from typing import Any

import click

from .serve import serve
from .settings import Configured, key_of, masked, settings, source, toml


@click.pass_context
def _config(ctx: click.Context, /, example: bool, **options: Any) -> None:
    """Print the settings that `legato serve`, with the same options, would run with, as a TOML file that says of each
    where it is from. Passwords are not shown.

    Settings are said by options, in the environment (LEGATO_ALLOW_HOST for --allow-host) and in the file that --config
    or LEGATO_CONFIG names; in this order they win. What is wrong is told all at once, and the exit status is 2.

    \b
    Examples:
      legato config --example > legato.toml
      legato config --config legato.toml
    """
    known = settings(serve)
    if example:
        click.echo(_example(known), nl=False)
        return
    rows = []
    for key, param in known.items():
        value = ctx.params[param.name or ""]
        unset = value is None or value == ()
        rows.append((f"# {key} is not set" if unset else f"{key} = {toml(masked(key, value))}", source(ctx, param)))
    width = min(max(len(text) for text, _ in rows), 60)
    for text, where in rows:
        click.echo(text if text.startswith("# ") else f"{text:<{width}}  # {where}")


def _example(known: dict[str, click.Parameter]) -> str:
    """A file in which every setting is a comment."""
    parts = ["# Settings of `legato serve --config legato.toml`; `legato config --help` says what wins over them.\n"]
    for key, param in known.items():
        told = " ".join((getattr(param, "help", None) or "What to serve: agent.py, shop.agents:support.").split())
        lines = textwrap.wrap(told, 116, initial_indent="# ", subsequent_indent="# ")
        parts += [*lines, f"# {key} = {toml(_sample(param))}", ""]
    return "\n".join(parts)


def _sample(param: click.Parameter) -> Any:
    """A setting's default; where it has none, a value of its type."""
    value = param.get_default(click.Context(serve))
    if isinstance(value, str | bool | int | float):
        return value
    if isinstance(param.type, click.types.BoolParamType):
        return True
    name = param.metavar or param.type.name.upper()
    return [name] if getattr(param, "multiple", False) else name


config = Configured(
    "config",
    callback=_config,
    help=_config.__doc__,
    short_help="Show the settings of the server, and where each is from.",
    params=[
        *(param for param in serve.params if key_of(param) != "config"),
        click.Option(["--example"], is_flag=True, is_eager=True, help="Print a file with every setting as a comment."),
    ],
)
