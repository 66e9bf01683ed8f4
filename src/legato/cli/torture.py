"""``legato torture``: whether this version, on this machine, holds what it promises while it is ill-treated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .failure import Failure, Misuse, debug_option


@click.command(short_help="Ill-treat a server of its own, and see whether it holds.")
@click.option("--soak", is_flag=True, help="Honest people beside hostile callers, texts, connections and agents.")
@click.option("--cluster", is_flag=True, help="Several nodes on one database, which are killed, stopped and cut off.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=5, max=86_400),
    help="How long it is ill-treated: 600 by default with --soak, 60 with --cluster.",
)
@click.option(
    "--people", type=click.IntRange(1, 200), default=10, show_default=True, help="How many talk honestly at once."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is random in it.")
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File for all figures: .json; with --cluster also .txt, .svg or .html, with a picture of what was done when.",
)
@click.option("--store", help="With --cluster: its URL; or postgresql: or redis:, for one that is thrown away.")
@click.option("--nodes", type=click.IntRange(1, 16), default=2, show_default=True, help="With --cluster: how many.")
@click.option(
    "--sessions", type=click.IntRange(1, 2_000), default=200, show_default=True, help="With --cluster: talks at once."
)
@click.option(
    "--lease-ttl",
    type=click.FloatRange(min=1, max=60),
    default=5.0,
    show_default=True,
    help="With --cluster: seconds after which a node that is not heard of is taken for dead.",
)
@click.option("--do", multiple=True, metavar="KIND", help="With --cluster: only this to nodes; may be repeated.")
@click.option("--app", metavar="TARGET", help="With --cluster: your own agents, as for legato serve.")
@click.option("--say", default="Hello", show_default=True, help="With --app: what is said to them.")
@click.option("--front", type=click.Choice(["haproxy", "relay"]), help="With --cluster: what stands before the nodes.")
@debug_option
def torture(soak: bool, cluster: bool, seconds: float | None, report: Path | None, **options: Any) -> None:
    """Start servers on free ports, with a store that is thrown away, and ill-treat them.

    With --soak, honest people talk while others send hostile texts, hold connections, read nothing, leave early, and
    let agents do what they should not. It prints how long the honest waited, alone and beside that, and what the server
    held. The status is 1 if anything was lost, doubled, out of order or not ended, or if the server holds more
    afterwards than before.

    With --cluster, people talk and readers come and go by way of a proxy, while nodes are killed (kill -9), stopped for
    a while (SIGSTOP), told to stop, and cut off from their database. Then every reader's text is compared with the log,
    and the logs of all nodes with each other. The status is 1 if anything was lost, doubled or out of order, did not
    end once, or stood still for longer than a lease and 5 seconds.

    \b
    Examples:
      legato torture --soak
      legato torture --soak --seconds 30 --report soak.json
      legato torture --cluster --store postgresql: --nodes 4 --report cluster.html
      legato torture --cluster --store redis://10.0.0.7 --app my_agents.py --say "What is a cursor?"
    """
    if soak == cluster:
        raise Misuse("say what to do: --soak or --cluster")
    if cluster:
        _cluster(60.0 if seconds is None else seconds, report, options)
    else:
        _soak(600.0 if seconds is None else seconds, report, options)


def _progress(text: str) -> None:
    click.echo(f"{text} ...", err=True)


def _cluster(seconds: float, report: Path | None, options: dict[str, Any]) -> None:
    import asyncio

    from ..torture.cluster import KINDS, ClusterPlan, torture_cluster
    from ..torture.report import write_chart

    if options["store"] is None:
        raise Misuse("--cluster wants --store: postgresql: or redis: starts one, or name one that is there by its URL")
    if unknown := set(options["do"]) - set(KINDS):
        raise Misuse(f"--do is one of {', '.join(KINDS)}; got {', '.join(sorted(unknown))}")
    plan = ClusterPlan(
        seconds=seconds,
        kinds=options["do"] or KINDS,
        **{name: options[name] for name in ("store", "nodes", "sessions", "lease_ttl", "app", "say", "front", "seed")},
    )
    chart = asyncio.run(torture_cluster(plan, _progress))
    if report is not None:
        write_chart(chart, report)
    for name, figure in chart.figures.items():
        click.echo(f"{name}: {figure}")
    if chart.faults:
        raise Failure(f"{len(chart.faults)} thing(s) must not be: {'; '.join(chart.faults[:10])}")
    click.echo("\nNothing was lost, doubled or out of order; each run ended once, and all nodes say the same.")


def _soak(seconds: float, report: Path | None, options: dict[str, Any]) -> None:
    import asyncio

    from ..torture.soak import Plan, written
    from ..torture.soak import soak as run

    found = asyncio.run(run(Plan(seconds, options["people"], options["seed"]), _progress))
    if report is not None:
        written(found, report)
    for each in found.lines():
        click.echo(each)
    if found.faults:
        listed = "; ".join(found.faults[:10])
        raise Failure(f"{len(found.faults)} thing(s) must not be: {listed}")
    click.echo("\nNothing was lost, doubled or out of order, and the server let go of all that was left.")
