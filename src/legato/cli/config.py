"""``legato config``: the settings that ``legato serve`` would run with, and where each was said."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import click

from ..errors import InvalidInput
from .failure import Failure
from .serve import application, faults_of, given_of, serve, target_of
from .settings import Configured, Misset, key_of, masked, settings, source, toml
from .text import line

if TYPE_CHECKING:
    from ..server.app import Legato


@click.pass_context
def _config(ctx: click.Context, /, example: bool, **_: Any) -> None:
    """Print the settings that `legato serve`, with the same options, would run with, as a TOML file that says of each
    where it is from; of an app, which is loaded for that, what it says itself. Passwords are not shown.

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
    target = ctx.params["target"]
    options: Any = {param.name: ctx.params[param.name] for param in known.values() if param.name is not None}
    given = given_of(ctx, known.values(), options)
    faults = list(faults_of((ctx.params["host"], ctx.params["port"]), given, options))
    own: dict[str, Any] = {}
    try:
        found = target_of(target, given, options)
        own = {} if found.app is None else _of_app(found.app)
        if not faults:
            application(found, target, ctx.params["host"], given, options)
    except Misset:
        raise
    except (Failure, InvalidInput) as exc:  # it may be for another machine
        faults.append(exc.message)
    own_word = f"Legato(...) of {target}"
    rows = []
    for key, param in known.items():
        value, where = ctx.params[param.name or ""], source(ctx, param)
        if key in own and where == "default":
            value, where = own[key], own_word
        unset = value is None or value == ()
        mark = "# " if key in own and where == own_word else ""
        rows.append((f"# {key} is not set" if unset else f"{mark}{key} = {toml(masked(key, value))}", where))
    for fault in faults:
        click.echo(f"legato: as it is, `legato serve` would not start: {line(fault, None)}", err=True)
    width = min(max(len(text) for text, _ in rows), 60)
    for text, where in rows:
        click.echo(text if text.endswith(" is not set") else f"{text:<{width}}  # {where}")


def _of_app(app: Legato) -> dict[str, Any]:
    """The settings of which an application has its own word."""
    from ..server.limits import values

    chosen = app.settings
    limits = (f"{name}={value}" for name, value in values(app).items())
    return {
        "store": app.source if isinstance(app.source, str) else type(app.source).__name__,
        "grace": app.grace,
        "wait": app.lock_wait,
        "lease-ttl": app.lease_ttl,
        "heartbeat": chosen.heartbeat,
        "client": chosen.client,
        "cors": app.cors,
        "allow-host": app.hosts,
        "keys": app.signs_in,
        "limit": tuple(limits),
        "keep": f"{chosen.retention.sessions:g}",
        "keep-pieces": f"{chosen.retention.deltas:g}",
    }


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
