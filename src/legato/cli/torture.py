"""``legato torture``: whether this version, on this machine, holds what it promises while it is ill-treated."""

from __future__ import annotations

from pathlib import Path

import click

from .failure import Failure, Misuse, debug_option


@click.command(short_help="Ill-treat a server of its own, and see whether it holds.")
@click.option("--soak", is_flag=True, help="Honest people beside hostile callers, texts, connections and agents.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=5, max=86_400),
    default=600.0,
    show_default=True,
    help="How long the hostile load lasts; the honest one is measured alone for a quarter of it, before and after.",
)
@click.option(
    "--people", type=click.IntRange(1, 200), default=10, show_default=True, help="How many talk honestly at once."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is random in it.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="File for all figures, as JSON.")
@debug_option
def torture(soak: bool, seconds: float, people: int, seed: int, report: Path | None) -> None:
    """Start a server on a free port, with a store that is thrown away, and ill-treat it.

    With --soak, honest people talk while others send hostile texts, hold connections, read nothing, leave early, and
    let agents do what they should not. It prints how long the honest waited, alone and beside that, and what the server
    held. The status is 1 if anything was lost, doubled, out of order or not ended, or if the server holds more
    afterwards than before.

    \b
    Examples:
      legato torture --soak
      legato torture --soak --seconds 30 --report soak.json
    """
    import asyncio

    from ..torture.soak import Plan, written
    from ..torture.soak import soak as run

    if not soak:
        raise Misuse("say what to do: --soak")
    found = asyncio.run(run(Plan(seconds, people, seed), lambda text: click.echo(f"{text} ...", err=True)))
    if report is not None:
        written(found, report)
    for each in found.lines():
        click.echo(each)
    if found.faults:
        listed = "; ".join(found.faults[:10])
        raise Failure(f"{len(found.faults)} thing(s) must not be: {listed}")
    click.echo("\nNothing was lost, doubled or out of order, and the server let go of all that was left.")
